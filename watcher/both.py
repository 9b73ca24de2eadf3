"""The watcher's two pens: the machine's own ledger, always, and the one of many hosts, where there is one.

Of a key the shared ledger decides, if it can be reached: only there can it be seen who else has it. The machine's own
is brought in line. While the shared one is away the machine's own decides alone, and what it decides is written there
when it is back.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from .record import Entry, Record
from .shared import OWED_SECONDS, Shared

if TYPE_CHECKING:
    from .ledger import Ruling, State

UNDECIDED_SECONDS = 480.0
"""After so long without the shared ledger a run whose grace has passed is left to the reapers: whether a driver on
another host has it can't be known."""


class Both:
    """Writes to both ledgers, as `Record` does to one.

    Args:
        own: The machine's own ledger.
        shared: The one of many hosts.
    """

    def __init__(self, own: Record, shared: Shared) -> None:
        self._own = own
        self._shared = shared
        self._undecided: dict[tuple[str, str], float] = {}  # since when

    def guard(self, entry: Entry) -> Future[None]:
        """Write that a run is guarded; the future is done when that is durable, or can't be had."""
        written: Future[None] = Future()
        own, shared = self._own.guard(replace(entry, is_shared=True)), self._shared.guard(entry)
        own.add_done_callback(lambda _: shared.add_done_callback(lambda _: written.set_result(None)))
        return written

    def take(self, entry: Entry, instances: tuple[str, ...]) -> Future[Ruling]:
        """Take the lease on a key, if it can be had; the future may fail with a `LedgerError`."""
        answer: Future[Ruling] = Future()

        def decided(said: Future[Ruling]) -> None:
            if said.exception() is not None:
                self._own.take(replace(entry, is_shared=True), instances).add_done_callback(decided_alone)
                return
            ruling = said.result()
            if ruling.answer == "granted":
                # Only then may a job be submitted: what the shared ledger has, this machine's has as well.
                self._own.adopt(ruling.row).add_done_callback(lambda _: answer.set_result(ruling))
            else:
                answer.set_result(ruling)

        def decided_alone(said: Future[Ruling]) -> None:
            trouble = said.exception()
            if trouble is not None:
                answer.set_exception(trouble)
                return
            if said.result().answer == "granted":
                self._shared.keep(said.result().row)
            answer.set_result(said.result())

        self._shared.take(entry, instances).add_done_callback(decided)
        return answer

    def contest(self, run: str, holder: str) -> Future[bool]:
        """Win the lease on a run once more, in both ledgers; the future fails where that can't be said."""
        answer: Future[bool] = Future()

        def decided(said: Future[bool]) -> None:
            trouble = said.exception()
            if trouble is not None:
                since = self._undecided.setdefault((run, holder), time.monotonic())
                if time.monotonic() - since < UNDECIDED_SECONDS:
                    answer.set_exception(trouble)
                else:
                    answer.set_result(False)
            elif not said.result():
                answer.set_result(False)
            else:
                self._own.contest(run, holder).add_done_callback(decided_here)

        def decided_here(said: Future[bool]) -> None:
            # A ledger of this machine that can't be written has nobody come back in it.
            won = said.exception() is not None or said.result()
            if not won:
                self._shared.give_back(run)
            answer.set_result(won)

        self._shared.contest(run, holder).add_done_callback(decided)
        return answer

    def holds(self, run: str, holder: str) -> Future[bool]:
        """Whether the lease on a run is still this one's; the future may fail with a `LedgerError`."""
        answer: Future[bool] = Future()

        def decided(said: Future[bool]) -> None:
            if said.exception() is None:
                answer.set_result(said.result())
            else:
                self._own.holds(run, holder).add_done_callback(decided_here)

        def decided_here(said: Future[bool]) -> None:
            trouble = said.exception()
            if trouble is not None:
                answer.set_exception(trouble)
            else:
                answer.set_result(said.result())

        self._shared.holds(run, holder).add_done_callback(decided)
        return answer

    def anew(self, run: str, outcomes: dict[str, str], holder: str) -> None:
        """Write what became of a key's jobs so far."""
        self._own.anew(run, outcomes, holder)
        self._shared.anew(run, outcomes, holder)

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run with a key any more."""
        self._own.let_go(run, holder)
        self._shared.let_go(run, holder)

    def bury(self) -> None:
        """The driver is dead."""
        self._shared.bury()

    def renew(self, holders: list[str]) -> None:
        """Hold leases for longer; those of the shared ledger are renewed by its own thread."""
        self._own.renew(holders)

    def job(self, run: str, job: str, outcome: str) -> None:
        """Write a job of a run, and what became of it."""
        self._own.job(run, job, outcome)
        self._shared.job(run, job, outcome)

    def answered(self, run: str, holder: str = "") -> None:
        """Write that no job of a run is unknown."""
        self._own.answered(run, holder)
        self._shared.answered(run, holder)

    def finish(self, run: str, state: State, detail: str, holder: str = "") -> None:
        """Write what a run has come to."""
        self._own.finish(run, state, detail, holder)
        self._shared.finish(run, state, detail, holder)

    def close(self, seconds: float) -> None:
        """Wait until everything is written, or so many seconds."""
        self._own.close(seconds)
        self._shared.close(seconds)

    def settle(self) -> None:
        """Wait for a database that is away, with what a reaper must know."""
        if not self._shared.close(0):
            self._shared.close(OWED_SECONDS)
