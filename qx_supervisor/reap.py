"""Cancel what the dead left behind: drivers whose watcher died with them.

The ledger names what was guarded on this machine. A row whose driver and watcher are both dead is claimed, so that no
two reapers cancel the same; its jobs are cancelled and its tag is swept, or its session closed. A row of another
machine, container or PID namespace is never touched, nor one of an account that is not at hand.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import service as qiskit_service
from .errors import QxError
from .ours import cancel, ledger, place, remote

logger = logging.getLogger("qx_supervisor")

WINDOW = 120.0
"""Seconds after a death in which a POST that was on its way may still make a job."""

PATIENCE = 60.0
"""Seconds to try for one cancel; what takes longer is left for the next time."""

BACKGROUND_PAUSES = (5.0, 15.0, 40.0, 70.0)

Fate = Literal["cancelled", "nothing left", "in grace", "pending", "expired", "other account", "elsewhere"]


@dataclass(frozen=True)
class Reaped:
    """What became of one run that was left behind.

    Attributes:
        run: The run's id.
        fate: "cancelled": its jobs are cancelled, and that is confirmed. "nothing left": none of its jobs was
            unfinished. "in grace": a driver may still come back for them. "pending": not resolved yet, look again in some minutes. "expired": it could not be resolved
            for a day. "other account": the jobs belong to an account that was not given. "elsewhere": only the machine
            or container where its driver ran can judge it.
        jobs: The jobs that were cancelled, or are known.
        detail: More words, or "".
        pid: The driver's process id.
        host: Where it ran.
    """

    run: str
    fate: Fate
    jobs: tuple[str, ...]
    detail: str
    pid: int
    host: str


def reap(service: Any = None) -> list[Reaped]:
    """Cancel what the ledger knows to be orphaned on this machine.

    Args:
        service: A `QiskitRuntimeService`. None: the user's saved account.

    Returns:
        What became of each run that was left behind; those that live are not among them.

    Raises:
        QxError: If the ledger can't be read, or there are orphans and no account can be used.
    """
    return reap_with(lambda: service if service is not None else qiskit_service.default_service())


def reap_with(connect: Callable[[], Any]) -> list[Reaped]:
    """`reap`, with a service that is made only if there is something to reap.

    Raises:
        QxError: If the ledger can't be read, or by `connect`.
    """
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            is_needed = any(ledger.judge(row, book.place) == "orphan" for row in book.rows(ledger.UNFINISHED))
            return _reap(book, qiskit_service.clients_of(connect()) if is_needed else [])
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


_begun = threading.Lock()


def reap_in_background(client: Any) -> None:
    """Reap once per process, with the account of its first run, in a thread; says in the log what it did."""
    if _begun.acquire(blocking=False):  # for good: this is done once
        threading.Thread(target=_in_background, args=(client,), name="qx-reaper", daemon=True).start()


def _in_background(client: Any) -> None:
    try:
        for pause in (*BACKGROUND_PAUSES, 0.0):
            with ledger.Ledger.open(ledger.state_directory()) as book:
                found = _reap(book, [client])
            for reaped in found:
                if reaped.fate == "cancelled":
                    jobs = ", ".join(reaped.jobs)
                    logger.warning("cancelled what driver %d left behind with its watcher: %s", reaped.pid, jobs)
            if not any(reaped.fate in ("pending", "in grace") for reaped in found):
                return
            time.sleep(pause)
    except ledger.LedgerError as error:
        logger.warning("what was left behind on this machine could not be looked for: %s", error)


def _reap(book: Any, clients: list[Any]) -> list[Reaped]:
    done = []
    me = place.this_process(book.place)
    by_account = {qiskit_service.address(client): client for client in clients}
    for row in book.rows(ledger.UNFINISHED):
        verdict = ledger.judge(row, book.place)
        if verdict == "elsewhere":
            done.append(_told(row, "elsewhere"))
        if verdict != "orphan":
            continue
        left = _grace_left(book, row)
        client = by_account.get((row.endpoint, row.instance))
        if left > 0:
            done.append(_told(row, "in grace", f"for {left:.0f} s, for a driver that comes back with its key"))
        elif client is None:
            done.append(_told(row, "other account", "give reap() the service that it ran with"))
        elif book.claim(row.run, me):
            try:
                # Between the look and the claim another reaper may have done it all.
                fresh = book.row(row.run)
                is_same = fresh is not None and fresh.holder == row.holder  # else a driver has come back for it
                if is_same and fresh.state in ledger.UNFINISHED:
                    done.append(_resolve(book, fresh, qiskit_service.remote_of(client)))
            finally:
                book.release(row.run, me)
    return done


def _grace_left(book: Any, row: Any) -> float:
    """Seconds in which nobody but a driver that comes back with its key may touch the jobs of an orphan."""
    if row.key is None:
        return 0.0
    now = time.time()
    if row.let_go_at is None:  # the watcher died too; when is not known, and the grace counts from here
        book.let_go(row.run, row.holder)
    return float((row.let_go_at or now) + row.grace - now)


def _told(row: Any, fate: Fate, detail: str = "") -> Reaped:
    return Reaped(row.run, fate, tuple(row.jobs), detail, row.pid, row.place.host)


def _resolve(book: Any, row: Any, there: remote.Remote) -> Reaped:
    """Cancel what a row names and what a sweep finds, and write down what the row has come to."""
    now = time.time()
    end = time.monotonic() + PATIENCE
    cancelled: dict[str, str] = {}
    troubles: list[str] = []
    kept = {job for job, outcome in row.jobs.items() if outcome == "kept"}

    def cancel_one(job: str) -> None:
        outcome, trouble = cancel.cancel(job, there, time.monotonic, lambda seconds: _wait(seconds, end))
        cancelled[job] = outcome
        book.job_outcome(row.run, job, outcome)
        if outcome == "unconfirmed":
            troubles.append(trouble)

    for job, outcome in row.jobs.items():
        if outcome in ("", "unconfirmed") and job not in kept:
            cancel_one(job)
    try:
        session = row.session if row.session_owner else ""
        if session:
            there.close_session(session)
        for _ in range(2 if session else 1):
            for job in there.unfinished(tag="" if session else row.tag or "", session=session or ""):
                if job not in kept and job not in cancelled:
                    cancel_one(job)
    except remote.RemoteError as error:
        troubles.append(str(error))
    return _conclude(book, replace(row, jobs={**row.jobs, **cancelled}), troubles, now)


def _conclude(book: Any, row: Any, troubles: list[str], now: float) -> Reaped:
    was_cancelled = tuple(job for job, outcome in row.jobs.items() if outcome == "cancelled")
    first_seen = row.sweep_until - 86400.0 if row.sweep_until is not None else None
    # When the driver died is not known; that it had died when this row was first judged, is.
    in_window = now < (now if first_seen is None else first_seen) + WINDOW
    fate: Fate = "cancelled" if was_cancelled else "nothing left"
    if troubles or (in_window and not row.answered and not row.session_owner):
        fate = "pending"
    if fate == "pending" and first_seen is not None and now >= row.sweep_until:
        fate = "expired"
    detail = troubles[0] if troubles else ""
    if fate == "pending":
        detail = detail or "a job that was being submitted at the death may still turn up; reap again in two minutes"
        until = (now if first_seen is None else first_seen) + 86400.0
        book.finish(row.run, "pending", detail, sweep_until=until, holder=row.holder)
    elif fate == "expired":
        book.finish(row.run, "expired", detail, holder=row.holder)
    else:
        book.finish(row.run, "cancelled" if was_cancelled else "done", detail, holder=row.holder)
    return Reaped(row.run, fate, was_cancelled or tuple(row.jobs), detail, row.pid, row.place.host)


def _wait(seconds: float, end: float) -> bool:
    left = end - time.monotonic()
    time.sleep(max(0.0, min(seconds, left)))
    return left <= seconds
