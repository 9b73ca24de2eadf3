"""What the watcher writes to the ledger, in a thread of its own: a slow disk must not delay a cancel.

Rows that wait together are written together, with one synchronization. Whatever fails costs the ledger only: it is
complained of once, and tried again, with the next write or a while later.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .driver_process import DriverIdentity
from .host_identity import HostIdentity, Process, start_ticks
from .protocol import Lease

if TYPE_CHECKING:
    from .ledger import Ledger, Row, Ruling, State

AGAIN = 10.0
"""Seconds after which what was refused is tried again, if nothing else is written before."""

MOST_AGAIN = 10_000
"""The most writes that are kept to be tried again."""

SWEPT_FOR = 86400.0
"""For a day what could not be resolved is swept again, by whoever reaps."""

KEPT_FOR = 30 * 86400.0
"""Seconds after which a run that is over is forgotten."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run as it is written down: `ledger.Row` says what the fields are."""

    run: str
    tag: str
    driver: str
    endpoint: str
    instance: str
    session: str = ""
    owner: bool = False
    lease: Lease | None = None
    is_shared: bool = False

    def row(self, place: HostIdentity, driver: DriverIdentity, watcher_start_ticks: int | None) -> Row:
        """The row that this watcher writes.

        Args:
            place: Where the driver and this watcher are.
            driver: The driver.
            watcher_start_ticks: This watcher's start.
        """
        from .ledger import Row

        row = Row(
            run=self.run,
            place=place,
            pid=driver.pid,
            start_ticks=driver.start_ticks,
            watcher_pid=os.getpid(),
            watcher_start_ticks=watcher_start_ticks,
            tag=self.tag,
            driver_tag=self.driver or None,
            endpoint=self.endpoint,
            instance=self.instance,
            session=self.session or None,
            session_owner=self.owner,
            is_shared=self.is_shared,
        )
        lease = self.lease
        if lease is None:
            return row
        return replace(row, key=lease.key, fingerprint=lease.fingerprint, grace=lease.grace, holder=lease.holder)


@dataclass
class _Write:
    do: Callable[[Ledger], Any]
    durable: bool = False
    done: Future[Any] | None = None  # somebody waits for it
    is_question: bool = False  # and for what it says, or for the error


class Record:
    """The watcher's pen.

    Args:
        directory: The state directory.
        driver: The driver whose runs are written down.
        complain: Called once, in another thread, with what keeps the ledger from being written.
        lease_seconds: How long a lease is held without being renewed.
    """

    def __init__(
        self, directory: str, driver: DriverIdentity, complain: Callable[[str], None], lease_seconds: float = 30.0
    ) -> None:
        self._directory = directory
        self._lease_seconds = lease_seconds
        self._driver = driver
        self._start_ticks = start_ticks(os.getpid())
        self._complain = complain
        self._complained = False
        self._lost = "The ledger could not be written."
        self._ledger: Ledger | None = None
        # Refused, and to be tried again: an end that is not written down is an orphan's, for whoever reaps.
        self._again: list[_Write] = []
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def guard(self, entry: Entry) -> Future[None]:
        """Write that a run is guarded; the future is done when that is durable, or can't be had."""
        written: Future[None] = Future()
        self._writes.put(_Write(lambda ledger: ledger.intent(self._row(ledger, entry)), durable=True, done=written))
        return written

    def take(self, entry: Entry, instances: tuple[str, ...]) -> Future[Ruling]:
        """Take the lease on a key, if it can be had; the future may fail with a `LedgerError`."""

        def ask(ledger: Ledger) -> Ruling:
            from .ledger import Wish

            return ledger.take(Wish(row=replace(self._row(ledger, entry), answered=True), instances=instances))

        return self._ask(ask)

    def adopt(self, row: Row) -> Future[None]:
        """Write a run with a key as the shared ledger has it; the future may fail with a `LedgerError`."""
        return self._ask(lambda ledger: ledger.adopt(replace(row, place=ledger.place, is_shared=True)))

    def contest(self, run: str, holder: str) -> Future[bool]:
        """Win the lease on a run once more, to cancel its jobs; the future may fail with a `LedgerError`."""

        def ask(ledger: Ledger) -> bool:
            return ledger.contest(run, holder, Process(ledger.place, os.getpid(), self._start_ticks))

        return self._ask(ask)

    def holds(self, run: str, holder: str) -> Future[bool]:
        """Whether the lease on a run is still this one's; the future may fail with a `LedgerError`."""

        def ask(ledger: Ledger) -> bool:
            row = ledger.row(run)
            return row is not None and row.holder == holder

        return self._ask(ask, durable=False)

    def _ask(self, ask: Callable[[Ledger], Any], *, durable: bool = True) -> Future[Any]:
        answer: Future[Any] = Future()
        self._writes.put(_Write(ask, durable=durable, done=answer, is_question=True))
        return answer

    def _row(self, ledger: Ledger, entry: Entry) -> Row:
        return entry.row(ledger.place, self._driver, self._start_ticks)

    def anew(self, run: str, outcomes: dict[str, str], holder: str) -> None:
        """Write what became of a key's jobs so far."""
        self._writes.put(_Write(lambda ledger: ledger.anew(run, outcomes, holder=holder)))

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run with a key any more."""
        self._writes.put(_Write(lambda ledger: ledger.let_go(run, holder), durable=True))

    def renew(self, holders: list[str]) -> None:
        """Hold leases for longer."""
        self._writes.put(_Write(lambda ledger: ledger.renew(holders)))

    def job(self, run: str, job: str, outcome: str) -> None:
        """Write a job of a run, and what became of it."""
        self._writes.put(_Write(lambda ledger: ledger.job_outcome(run, job, outcome)))

    def answered(self, run: str, holder: str = "") -> None:
        """Write that no job of a run is unknown."""
        self._writes.put(_Write(lambda ledger: ledger.answered(run, holder=holder)))

    def finish(self, run: str, state: State, detail: str, holder: str = "") -> None:
        """Write what a run has come to."""
        until = time.time() + SWEPT_FOR if state == "pending" else None
        # A run that was let go may outlive its driver: the next boot must know.

        def write(ledger: Ledger) -> None:
            ledger.finish(run, state, detail, sweep_until=until, holder=holder)

        self._writes.put(_Write(write, durable=True))

    def close(self, seconds: float) -> None:
        """Wait until everything is written, or so many seconds."""
        self._writes.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        self._open()
        over = False
        while not over:
            batch = self._wait()
            over = None in batch
            self._write([write for write in batch if write is not None])
        if self._again:
            self._write([])
        self._shut()

    def _wait(self) -> list[_Write | None]:
        """What is to be written next; nothing where something is to be tried again."""
        batch: list[_Write | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._writes.get(timeout=AGAIN if self._again else None))
            while True:
                batch.append(self._writes.get_nowait())
        return batch

    def _open(self) -> None:
        from .ledger import Ledger, LedgerError  # in this thread, beside what the start imports

        try:
            self._ledger = Ledger.open(self._directory, lease_seconds=self._lease_seconds)
            self._ledger.forget(KEPT_FOR)
        except LedgerError as error:
            self._trouble(str(error))

    def _shut(self) -> None:
        from .ledger import LedgerError

        if self._ledger is not None:
            try:
                self._ledger.close()
            except LedgerError as error:
                self._trouble(str(error))

    def _write(self, new: list[_Write]) -> None:
        from .ledger import LedgerError, UnknownRun

        batch, self._again = [*self._again, *new], []
        if self._ledger is None and any(write.done is not None for write in batch):
            self._open()
        said: dict[int, Any] = {}
        trouble: Exception = LedgerError(self._lost)
        try:
            if self._ledger is not None and batch:
                try:
                    said = self._write_together(self._ledger, batch)
                except UnknownRun:
                    # What fails for one run must not cost another its `done`, or a later reap would cancel its job.
                    for write in batch:
                        try:
                            said |= self._write_together(self._ledger, [write])
                        except UnknownRun as error:
                            self._trouble(str(error))
        except LedgerError as error:
            trouble = error
            self._trouble(str(error))
            # All of it, in its order; what was written of it by itself may be written twice.
            self._again = [replace(write, done=None) for write in batch if not write.is_question][-MOST_AGAIN:]
        for write in batch:
            if write.done is None:
                continue
            if write.is_question and id(write) not in said:
                write.done.set_exception(trouble)
            else:
                write.done.set_result(said.get(id(write)))

    @staticmethod
    def _write_together(ledger: Ledger, batch: list[_Write]) -> dict[int, Any]:
        """Do some writes as one; what each returned, by its id."""
        with ledger.batch(durable=any(write.durable for write in batch)):
            return {id(write): write.do(ledger) for write in batch}

    def _trouble(self, text: str) -> None:
        self._lost = text
        if not self._complained:
            self._complained = True
            self._complain(text)
