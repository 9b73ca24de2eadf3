"""Cancel what the dead left behind: drivers whose watcher died with them.

The ledger names what was guarded on this machine. A row whose driver and watcher are both dead is claimed, so that no
two reapers cancel the same; its jobs are cancelled and its tag is swept, or its session closed. A row of another
machine, container or PID namespace is never touched, nor one of an account that is not at hand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from . import service as qiskit_service
from . import shared_ledger
from .descriptors import is_readable
from .errors import QxError
from .resolve import Resolved, resolve
from .watcher import host_identity, ledger, remote

logger = logging.getLogger("qx_supervisor")

BACKGROUND_PAUSES = (5.0, 15.0, 40.0, 70.0)

Fate = Literal["cancelled", "nothing left", "in grace", "pending", "expired", "other account", "elsewhere"]


@dataclass(frozen=True)
class Reaped:
    """What became of one run that was left behind.

    Attributes:
        run: The run's id.
        fate: "cancelled": its jobs are cancelled, and that is confirmed. "nothing left": none of its jobs was
            unfinished. "in grace": a driver may still come back for them. "pending": not resolved yet, look again in
            some minutes. "expired": it could not be resolved for a day. "other account": the jobs belong to an account
            that was not given. "elsewhere": only the machine or container where its driver ran can judge it.
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


def reap(service: Any = None, *, wait: float = 0.0) -> list[Reaped]:
    """Cancel what the ledger knows to be orphaned on this machine.

    Args:
        service: A `QiskitRuntimeService`. None: the user's saved account.
        wait: Seconds to wait first for the watchers of dead drivers that are still at work: whoever is about to end
            this container, or this machine, would end them in the middle of it.

    Returns:
        What became of each run that was left behind; those that live are not among them.

    Raises:
        QxError: If the ledger can't be read, or there are orphans and no account can be used.
    """
    return reap_with(lambda: service if service is not None else qiskit_service.accounts.default_service(), wait)


def reap_with(connect: Callable[[], Any], wait: float = 0.0) -> list[Reaped]:
    """`reap`, with a service that is made only if there is something to reap.

    Raises:
        QxError: If the ledger can't be read, or by `connect`.
    """
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            _wait_for_watchers(book, wait)
            is_needed = any(ledger.judge(row, book.place) == "orphan" for row in book.rows(ledger.UNFINISHED))
            return _reap(book, qiskit_service.clients_of(connect()) if is_needed else [])
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


def _wait_for_watchers(book: Any, seconds: float) -> None:
    """Wait for the ends of watchers whose drivers are dead, but not for those that leave a job to its grace."""
    end = time.monotonic() + seconds
    for row in book.rows(ledger.UNFINISHED) if seconds > 0 else ():
        in_grace = row.key is not None and row.state == "guarded" and row.grace > seconds
        if in_grace or ledger.judge(row, book.place) != "live" or host_identity.is_running(row.pid, row.start_ticks):
            continue
        pidfd = host_identity.pidfd_of(row.watcher_pid)
        if pidfd is not None:
            is_readable(pidfd, max(0.0, end - time.monotonic()))
            os.close(pidfd)


_begun = threading.Lock()


def reap_in_background(client: Any) -> None:
    """Reap once per process, with the account of its first run, in a thread; says in the log what it did."""
    if _begun.acquire(blocking=False):  # for good: this is done once
        with contextlib.suppress(RuntimeError):  # no thread can be had any more: the next program will look
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


class _Elsewhere:
    """The ledger of many hosts, as far as it has a say in what may be reaped here.

    A driver on another host may have come back for a run whose driver and watcher died on this one.
    """

    def __init__(self) -> None:
        self._ledger: Any = None
        self._seized: set[str] = set()

    def seize(self, row: Any) -> Literal["free", "taken", "busy"]:
        """Ask for a run with a key; if it is free, nobody else may have it from then on.

        Raises:
            QxError: If it can't be asked.
        """
        if self._ledger is None:
            self._ledger = shared_ledger.opened("reaper")
        if self._ledger.seize(row.run, row.holder):
            self._seized.add(row.run)
            return "free"
        known = self._ledger.row(row.run)
        if known is None:
            return "free"  # it was never written there
        is_same = known.holder == row.holder and known.state in ledger.UNFINISHED
        return "busy" if is_same else "taken"

    def finish(self, run: str, found: Resolved) -> None:
        """Write what a run has come to; if that fails, a reaper looks again when the claim has run out."""
        if run in self._seized:
            with contextlib.suppress(ledger.LedgerError):
                self._ledger.finish(run, found.state, found.detail, sweep_until=found.sweep_until)

    def close(self) -> None:
        """Let go of it."""
        if self._ledger is not None:
            with contextlib.suppress(ledger.LedgerError):
                self._ledger.leave()
                self._ledger.close()


def _reap(book: Any, clients: list[Any]) -> list[Reaped]:
    elsewhere = _Elsewhere()
    try:
        return _reap_rows(book, clients, elsewhere)
    finally:
        elsewhere.close()


def _reap_rows(book: Any, clients: list[Any], elsewhere: _Elsewhere) -> list[Reaped]:
    done = []
    me = host_identity.this_process(book.place)
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
                    done += _resolve_if_free(book, fresh, qiskit_service.remote_of(client), elsewhere)
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


def _resolve_if_free(book: Any, row: Any, there: remote.Remote, elsewhere: _Elsewhere) -> list[Reaped]:
    if row.key is not None and row.is_shared:
        try:
            match elsewhere.seize(row):
                case "taken":
                    book.finish(row.run, "done", "taken up on another host", holder=row.holder)
                    return []
                case "busy":
                    return [_told(row, "pending", "somebody cancels its jobs already, or did until a moment ago")]
        except (ledger.LedgerError, QxError) as error:
            detail = f"a driver on another host may have taken it up, and that can't be asked: {error}"
            return [_told(row, "pending", detail)]
    found = _resolve(book, row, there)
    elsewhere.finish(row.run, found)
    return [Reaped(row.run, found.fate, found.jobs, found.detail, row.pid, row.place.host)]


def _resolve(book: Any, row: Any, there: remote.Remote) -> Resolved:
    """Cancel what a row names and what a sweep finds, and write down what the row has come to."""
    found = resolve(row, there, now=time.time(), note=lambda job, outcome: book.job_outcome(row.run, job, outcome))
    book.finish(row.run, found.state, found.detail, sweep_until=found.sweep_until, holder=row.holder)
    return found
