"""Cancel the orphans of this machine: jobs whose driver and watcher are both dead.

The local ledger names what was guarded here. Such a row is claimed, so that no two reapers cancel the same; its jobs
are cancelled and its tag is swept, or its session closed. A row of another machine, container or PID namespace is never
touched, nor one of an account that is not at hand.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from . import service as qiskit_service
from . import shared_ledger
from .backoff import LEFT_BEHIND, look_until
from .descriptors import is_readable
from .errors import QxError
from .resolve import Outcome, Resolved, resolve
from .settings import sweep_window
from .uncharged import ASKED_FOR, AT_ONCE, read_charges
from .watcher import host_identity, ledger, remote

if TYPE_CHECKING:
    from qx_supervisor.watcher.ledger.postgres import SharedLedger

logger = logging.getLogger("qx_supervisor")

BACKGROUND_SECONDS = 130.0
"""How long a program looks in the background: for the sweep window of a submission that died right before it."""

LOOK_SECONDS = 0.25
"""How often it looks whether a watcher has done its work that lives on for other drivers."""

STILL_AT_WORK = "its watcher is still at work; if that ends, reap again"
"""What is said of a run whose watcher has not resolved it when the wait is over."""


Fate = Literal[Outcome, "in grace", "other account", "elsewhere"]


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
    """Cancel what the ledger knows to be orphaned on this machine, and ask for the charges that nobody has learned.

    Args:
        service: A `QiskitRuntimeService`. None: the user's saved account.
        wait: Seconds to wait first for the watchers of dead drivers that are still at work: whoever is about to end
            this container, or this machine, would end them in the middle of it.

    Returns:
        What became of each run that was left behind; those that live are not among them. Where a watcher is still at
        work after the wait, its run is "pending".

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
            is_needed = any(ledger.judge(row, book.host_identity) == "orphan" for row in book.rows(ledger.UNFINISHED))
            clients = qiskit_service.clients_of(connect()) if is_needed else []
            found = _reap(book, clients)
            _read_charges(book, clients, connect)
            if wait > 0:
                found += [_reaped(row, "pending", STILL_AT_WORK) for row in _at_work(book, wait)]
            return found
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


def _read_charges(book: ledger.Ledger, clients: list[Any], connect: Callable[[], Any]) -> None:
    """Ask for the charges that nobody has learned. For that alone no account is required."""
    rows = book.uncharged(ASKED_FOR, AT_ONCE)
    if rows and not clients:
        with contextlib.suppress(QxError):
            clients = qiskit_service.clients_of(connect())
    read_charges(rows, {qiskit_service.address(each): qiskit_service.remote_of(each) for each in clients}, book)


def _wait_for_watchers(book: ledger.Ledger, seconds: float) -> None:
    """Wait for watchers that are at work for dead drivers, but not for those that leave a job to its grace."""
    end = time.monotonic() + seconds
    while seconds > 0 and (at_work := _at_work(book, seconds)):
        left = end - time.monotonic()
        if left <= 0:
            return
        # Its end is the sign, or what it writes: it may live on for other drivers.
        pidfd = None if at_work[0].watcher_pid is None else host_identity.pidfd_of(at_work[0].watcher_pid)
        if pidfd is None:
            time.sleep(min(left, LOOK_SECONDS))
        else:
            is_readable(pidfd, min(left, LOOK_SECONDS))
            os.close(pidfd)


def _at_work(book: ledger.Ledger, seconds: float) -> list[ledger.Row]:
    def is_at_work(row: ledger.Row) -> bool:
        in_grace = row.key is not None and row.state == "guarded" and row.grace > seconds
        return not in_grace and ledger.judge(row, book.host_identity) == "ending"

    return [row for row in book.rows(ledger.UNFINISHED) if is_at_work(row)]


def watchers_at_work() -> int:
    """How many runs of dead drivers have a watcher that lives, and has not resolved them yet.

    Raises:
        QxError: If the ledger can't be read.
    """
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            return len(_at_work(book, 0.0))
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


_begun = threading.Lock()


def reap_in_background(client: Any) -> None:
    """Reap once per process, with the account of its first run, in a thread; says in the log what it did."""
    if _begun.acquire(blocking=False):  # for good: this is done once
        with contextlib.suppress(RuntimeError):  # no thread can be had any more: the next program will look
            threading.Thread(target=_in_background, args=(client,), name="qx-reaper", daemon=True).start()


def _in_background(client: Any) -> None:
    def is_done() -> bool:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            found = _reap(book, [client])
        for reaped in found:
            if reaped.fate == "cancelled":
                jobs = ", ".join(reaped.jobs)
                logger.warning("cancelled what driver %d left behind with its watcher: %s", reaped.pid, jobs)
        return not any(reaped.fate in ("pending", "in grace") for reaped in found)

    try:
        look_until(time.monotonic() + BACKGROUND_SECONDS, is_done, LEFT_BEHIND, time.sleep)
    except (ledger.LedgerError, QxError) as error:
        logger.warning("what was left behind on this machine could not be looked for: %s", error)


class _SharedClaims:
    """The claims of this process in the shared ledger, which has a say in what may be reaped here.

    A driver on another host may have taken up a run whose driver and watcher died on this one.
    """

    def __init__(self) -> None:
        self._ledger: SharedLedger | None = None
        self._seized: set[str] = set()

    def seize(self, row: ledger.Row) -> Literal["free", "taken", "busy"]:
        """Claim a run with a key; if it is free, nobody else may have it from then on.

        Raises:
            LedgerError: If the database can't be asked.
            QxError: If none is named, or what it needs is not installed.
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

    def finish(self, row: ledger.Row, found: Resolved) -> None:
        """Write what a run has come to; if that fails, a reaper looks again when the claim has run out."""
        if self._ledger is not None and row.run in self._seized:
            with contextlib.suppress(ledger.LedgerError):
                found.write(row, self._ledger)

    def close(self) -> None:
        """Let the claims run out."""
        if self._ledger is not None:
            with contextlib.suppress(ledger.LedgerError):
                self._ledger.leave()
                self._ledger.close()


def _reap(book: ledger.Ledger, clients: list[Any]) -> list[Reaped]:
    claims = _SharedClaims()
    try:
        return _reap_rows(book, clients, claims)
    finally:
        claims.close()


def _reap_rows(book: ledger.Ledger, clients: list[Any], claims: _SharedClaims) -> list[Reaped]:
    done = []
    me = host_identity.this_process(book.host_identity)
    by_account = {qiskit_service.address(client): client for client in clients}
    for row in book.rows(ledger.UNFINISHED):
        liveness = ledger.judge(row, book.host_identity)
        if liveness == "elsewhere":
            done.append(_reaped(row, "elsewhere"))
        if liveness != "orphan":
            continue
        left = _grace_left(book, row)
        client = by_account.get((row.endpoint, row.instance))
        if left > 0:
            done.append(_reaped(row, "in grace", f"for {left:.0f} s, for a driver that comes back with its key"))
        elif client is None:
            done.append(_reaped(row, "other account", "give reap() the service that it ran with"))
        elif book.claim(row.run, me):
            try:
                # Between the look and the claim another reaper may have done it all, or a driver have taken it up.
                fresh = book.row(row.run)
                if fresh is not None and fresh.holder == row.holder and fresh.state in ledger.UNFINISHED:
                    done += _resolve_if_free(book, fresh, qiskit_service.remote_of(client), claims)
            finally:
                book.release(row.run, me)
    return done


def _grace_left(book: ledger.Ledger, row: ledger.Row) -> float:
    """Seconds in which nobody but a driver that comes back with its key may touch the jobs of an orphan."""
    if row.key is None:
        return 0.0
    now = time.time()
    if row.let_go_at is None:  # the watcher died too; when is not known, and the grace period counts from here
        book.let_go(row.run, row.holder)
    return (row.let_go_at or now) + row.grace - now


def _reaped(row: ledger.Row, fate: Fate, detail: str = "") -> Reaped:
    return Reaped(row.run, fate, tuple(row.jobs), detail, row.pid, row.host_identity.host)


def _resolve_if_free(book: ledger.Ledger, row: ledger.Row, there: remote.Remote, claims: _SharedClaims) -> list[Reaped]:
    window = sweep_window()
    if row.key is not None and row.is_shared:
        try:
            match claims.seize(row):
                case "taken":
                    book.finish(row.run, "done", "taken up on another host", holder=row.holder)
                    return []
                case "busy":
                    return [_reaped(row, "pending", "somebody cancels its jobs already, or did until a moment ago")]
        except (ledger.LedgerError, QxError) as error:
            detail = f"a driver on another host may have taken it up, and that can't be asked: {error}"
            return [_reaped(row, "pending", detail)]
    found = resolve(row, there, book, by="reap", window=window)
    found.write(row, book)
    claims.finish(row, found)
    return [Reaped(row.run, found.outcome, found.jobs, found.detail, row.pid, row.host_identity.host)]
