"""What the watcher writes to the ledger, in a thread of its own: a slow disk must not delay a cancel.

Rows that wait together are written together, with one synchronization. Whatever fails costs the ledger only: it is
complained of once, and tried again with the next write.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .parent import Identity
from .place import start_ticks

if TYPE_CHECKING:
    from .ledger import Ledger, State

SWEPT_FOR = 86400.0
"""For a day what could not be resolved is swept again, by whoever reaps."""

KEPT_FOR = 30 * 86400.0
"""Seconds after which a run that is over is forgotten."""


@dataclass
class _Write:
    do: Callable[[Ledger], object]
    durable: bool = False
    done: Future[None] | None = None  # somebody waits for it


class Record:
    """The watcher's pen.

    Args:
        directory: The state directory.
        driver: The driver whose runs are written down.
        complain: Called once, in another thread, with what keeps the ledger from being written.
    """

    def __init__(self, directory: str, driver: Identity, complain: Callable[[str], None]) -> None:
        self._directory = directory
        self._driver = driver
        self._start_ticks = start_ticks(os.getpid())
        self._complain = complain
        self._complained = False
        self._ledger: Ledger | None = None
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def guard(
        self, run: str, tag: str, *, driver: str, endpoint: str, instance: str, session: str, owner: bool
    ) -> Future[None]:
        """Write that a run is guarded; the future is done when that is durable, or can't be had."""
        written: Future[None] = Future()

        def write(ledger: Ledger) -> None:
            from .ledger import Row

            ledger.intent(
                Row(
                    run=run,
                    place=ledger.place,
                    pid=self._driver.pid,
                    start_ticks=self._driver.start_ticks,
                    watcher_pid=os.getpid(),
                    watcher_start_ticks=self._start_ticks,
                    tag=tag,
                    driver_tag=driver or None,
                    endpoint=endpoint,
                    instance=instance,
                    session=session or None,
                    session_owner=owner,
                )
            )

        self._writes.put(_Write(write, durable=True, done=written))
        return written

    def job(self, run: str, job: str, outcome: str) -> None:
        """Write a job of a run, and what became of it."""
        self._writes.put(_Write(lambda ledger: ledger.job_outcome(run, job, outcome)))

    def answered(self, run: str) -> None:
        """Write that no job of a run is unknown."""
        self._writes.put(_Write(lambda ledger: ledger.answered(run)))

    def finish(self, run: str, state: State, detail: str) -> None:
        """Write what a run has come to."""
        until = time.time() + SWEPT_FOR if state == "pending" else None
        # A run that was let go may outlive its driver: the next boot must know.
        self._writes.put(_Write(lambda ledger: ledger.finish(run, state, detail, sweep_until=until), durable=True))

    def close(self, seconds: float) -> None:
        """Wait until everything is written, or so many seconds."""
        self._writes.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        self._open()
        over = False
        while not over:
            batch = [self._writes.get()]
            while not self._writes.empty():
                batch.append(self._writes.get())
            over = None in batch
            self._write([write for write in batch if write is not None])
        self._shut()

    def _open(self) -> None:
        from .ledger import Ledger, LedgerError  # in this thread, beside what the start imports

        try:
            self._ledger = Ledger.open(self._directory)
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

    def _write(self, batch: list[_Write]) -> None:
        from .ledger import LedgerError, UnknownRun

        if self._ledger is None and any(write.done is not None for write in batch):
            self._open()
        try:
            if self._ledger is not None and batch:
                try:
                    self._write_together(self._ledger, batch)
                except UnknownRun:
                    # What fails for one run must not cost another its `done`, or a later reap would cancel its job.
                    for write in batch:
                        try:
                            self._write_together(self._ledger, [write])
                        except UnknownRun as error:
                            self._trouble(str(error))
        except LedgerError as error:
            self._trouble(str(error))
        for write in batch:
            if write.done is not None:
                write.done.set_result(None)

    @staticmethod
    def _write_together(ledger: Ledger, batch: list[_Write]) -> None:
        with ledger.batch(durable=any(write.durable for write in batch)):
            for write in batch:
                write.do(ledger)

    def _trouble(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(text)
