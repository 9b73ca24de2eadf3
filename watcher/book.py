"""A driver's book: what its watcher writes down of its runs, in one ledger or in two.

Of a key the shared ledger decides, if it can be reached: only there can it be seen who else has it. The local one is
brought in line. While the shared one is away the local one decides alone, and what it decides is written to the shared
one when that is back.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from .driver_process import DriverIdentity
from .facts import NOTHING, About, End, Figures
from .host_identity import Process, this_process
from .protocol import Lease
from .writers import LocalWriter, Owner, SharedWriter, let_go

if TYPE_CHECKING:
    from .ledger import Ledger, ReservationWish, Reserved, Row, Ruling, RunState

LEDGER_SECONDS = 1.0
"""How long an answer, or the end, waits for the ledger: a disk that hangs must not keep a run from being submitted."""

OWED_SECONDS = 86400.0
"""How long a watcher stays that has nothing left to do but to write that runs are over. Unwritten, a reaper that finds
the database before it does would cancel a job that was let go."""

UNDECIDED_SECONDS = 480.0
"""How long a watcher whose run's grace period has passed waits for the shared ledger. Then it leaves the run to the
reapers: whether a driver on another host has it can't be known."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run as the driver announces it: `ledger.Row` says what the fields are."""

    run: str
    tag: str
    driver: str
    endpoint: str
    instance: str
    session: str = ""
    owner: bool = False
    lease: Lease | None = None
    about: About = NOTHING

    def row(self, driver: DriverIdentity, watcher: Process, *, is_shared: bool) -> Row:
        """The row that this watcher writes."""
        from .ledger import Row

        row = Row(
            run=self.run,
            host_identity=watcher.host_identity,
            pid=driver.pid,
            start_ticks=driver.start_ticks,
            watcher_pid=watcher.pid,
            watcher_start_ticks=watcher.start_ticks,
            tag=self.tag,
            driver_tag=self.driver or None,
            endpoint=self.endpoint,
            instance=self.instance,
            session=self.session or None,
            session_owner=self.owner,
            is_shared=is_shared,
            **self.about._asdict(),
        )
        lease = self.lease
        if lease is None:
            return row
        return replace(row, key=lease.key, fingerprint=lease.fingerprint, grace=lease.grace, holder=lease.holder)


class Ledgers:
    """The ledgers that a watcher writes, each by one thread and over one connection, whoever's runs they are.

    Args:
        directory: The state directory.
        lease_seconds: How long a lease lasts without being renewed.
    """

    def __init__(self, directory: str, lease_seconds: float = 30.0) -> None:
        self.lease_seconds = lease_seconds
        self.watcher = this_process()
        self.local = LocalWriter(directory, lease_seconds)
        self._shared: dict[str, SharedWriter] = {}  # by URL, which nobody prints
        self._ending: list[SharedWriter] = []

    def shared(self, url: str, owner: Owner) -> SharedWriter:
        """The thread that writes to a shared ledger, from now on for this owner too."""
        writer = self._shared.get(url)
        if writer is None:
            writer = self._shared[url] = SharedWriter(url, self.lease_seconds)
        writer.join(owner)
        return writer

    def leave(self, owner: Owner, shared_owner: Owner, shared: SharedWriter | None) -> None:
        """An owner has nothing left to write; a connection that no other uses is closed."""
        self.local.leave(owner)
        if shared is not None and not shared.leave(shared_owner):
            self._shared = {url: writer for url, writer in self._shared.items() if writer is not shared}
            self._ending = [writer for writer in self._ending if not writer.close(0)]
            shared.close(0)
            self._ending.append(shared)

    def renew(self, holders: list[str]) -> None:
        """Renew leases in the local ledger; those in a shared one are renewed by its thread."""
        self.local.ask(lambda ledger: ledger.renew(holders))

    def close(self, seconds: float) -> None:
        """Wait until everything is written, or for some seconds with each ledger."""
        self.local.close(seconds)
        for writer in self._all_shared():
            writer.close(seconds)

    def wait_for_shared(self) -> None:
        """Wait for a database that is away, if a reaper must know what is not written yet."""
        for writer in self._all_shared():
            if not writer.close(0):
                writer.close(OWED_SECONDS)

    def _all_shared(self) -> list[SharedWriter]:
        return [*self._shared.values(), *self._ending]


class Book:
    """What a watcher writes down of one driver's runs.

    Args:
        ledgers: Where.
        driver: The driver.
        complain: Called once, in another thread, with what keeps the local ledger from being written.
    """

    def __init__(self, ledgers: Ledgers, driver: DriverIdentity, complain: Callable[[str], None]) -> None:
        self._ledgers = ledgers
        self._driver = driver
        self._watcher = ledgers.watcher
        self._complaints = iter([complain])
        self._owner = Owner(self._complain)  # of the runs in the local ledger
        self._local = ledgers.local
        self._local.join(self._owner)
        self._shared_owner = self._owner
        self._shared: SharedWriter | None = None
        self._undecided: dict[tuple[str, str], float] = {}  # since when

    def share(self, url: str, tell: Callable[[str, str], None], lost: Callable[[str, str, str], None]) -> None:
        """Write to the shared ledger too; see `Owner` for what is called."""
        if self._shared is None:
            self._shared_owner = Owner(tell, lost)
            self._shared = self._ledgers.shared(url, self._shared_owner)

    def _complain(self, event: str, detail: str) -> None:
        if event == "away":
            for complain in self._complaints:
                complain(detail)

    def _row(self, entry: Entry) -> Row:
        return entry.row(self._driver, self._watcher, is_shared=self._shared is not None)

    # What is to be

    def guard(self, entry: Entry) -> Future[None]:
        """Write that a run is guarded; the future is done when that is durable, or can't be had."""
        local = self._local.guard(self._row(entry), self._owner)
        if self._shared is None:
            return local
        shared = self._shared.guard(self._row(entry), self._shared_owner)
        written: Future[None] = Future()
        local.add_done_callback(lambda _: shared.add_done_callback(lambda _: written.set_result(None)))
        return written

    def job(self, run: str, job: str, outcome: str) -> None:
        """Write a job of a run, and what became of it."""
        self._change(run, "", lambda row: replace(row, jobs={**row.jobs, job: outcome or row.jobs.get(job, "")}))

    def job_outcomes(self, run: str, outcomes: dict[str, str], holder: str) -> None:
        """Write what became of a key's jobs so far."""
        self._change(run, holder, lambda row: replace(row, jobs={**row.jobs, **outcomes}))

    def job_figures(self, run: str, job: str, figures: Figures) -> None:
        """Write what a job cost; its run may be over."""
        for writer in self._writers():
            writer.write_figures(run, job, figures)

    def answered(self, run: str, holder: str = "") -> None:
        """Write that no job of a run is unknown."""
        self._change(run, holder, lambda row: replace(row, answered=True))

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run with a key any more."""
        self._change(run, holder, let_go, is_durable=True)

    def finish(self, run: str, state: RunState, detail: str, holder: str = "", end: End | None = None) -> None:
        """Write what a run has come to."""
        from .ledger import SWEPT_FOR

        now = time.time()
        until = now + SWEPT_FOR if state == "pending" else None
        ended: dict[str, object] = {}
        if end is not None:
            outcome, by, signum, reason = end
            ended = {"outcome": outcome, "ended_by": by, "signum": signum, "reason": reason, "ended_at": now}
        # A run that was let go may outlive its driver: the next boot must know.
        change = functools.partial(replace, state=state, detail=detail, sweep_until=until, **ended)
        self._change(run, holder, change, is_durable=True)

    def _change(self, run: str, holder: str, change: Callable[[Row], Row], *, is_durable: bool = False) -> None:
        for writer in self._writers():
            writer.change(run, holder, change, is_durable=is_durable)

    def _writers(self) -> list[LocalWriter | SharedWriter]:
        return [self._local] if self._shared is None else [self._local, self._shared]

    def driver_died(self) -> None:
        """Write that nobody waits for any of the runs; in the local ledger the driver's death can be seen."""
        if self._shared is not None:
            self._shared.let_all_go(self._shared_owner)

    def stood_down(self, runs: list[str]) -> Future[dict[str, End | None]]:
        """Which of some runs the driver itself has written to be stood down, and how they ended; the future may fail.

        One that may have duplicates is not over then, but the job that its driver held is to be kept.
        """

        def look(ledger: Ledger) -> dict[str, End | None]:
            from .ledger import FINAL

            found = {run: ledger.row(run) for run in runs}
            return {
                run: row.end
                for run, row in found.items()
                if row is not None and (row.state in FINAL or "kept" in row.jobs.values())
            }

        return self._local.ask(look)

    # Who may take QPU time

    def reserve(self, wish: ReservationWish) -> Future[tuple[Reserved, bool]]:
        """Reserve QPU time (`Spending.reserve`); the future may fail.

        Of two ledgers the shared one decides: only there can it be seen what other hosts take.
        """
        return (self._shared or self._local).reserve(wish)

    @property
    def is_limited(self) -> bool | None:
        """Whether there are standing budgets, as far as is known; None: nobody could look yet."""
        return (self._shared or self._local).is_limited

    # Who may have a key

    def take(self, entry: Entry, instances: tuple[str, ...]) -> Future[Ruling]:
        """Take the lease on a key, if it can be had; the future may fail with a `LedgerError`."""
        row, local, shared = self._row(entry), self._local, self._shared
        if shared is None:
            return local.take(row, instances, self._owner)
        answer: Future[Ruling] = Future()

        def shared_decided(said: Future[Ruling]) -> None:
            if said.exception() is not None:
                local.take(row, instances, self._owner).add_done_callback(local_decided)
            elif said.result().answer == "granted":
                # Only then may a job be submitted: what the shared ledger has, the local one has as well.
                granted = replace(said.result().row, is_shared=True)
                local.enter(granted, self._owner).add_done_callback(lambda _: answer.set_result(said.result()))
            else:
                answer.set_result(said.result())

        def local_decided(said: Future[Ruling]) -> None:
            if said.exception() is None and said.result().answer == "granted":
                shared.enter(said.result().row, self._shared_owner)
            _copy(said, answer)

        shared.take(row, instances, self._shared_owner).add_done_callback(shared_decided)
        return answer

    def contest(self, run: str, holder: str) -> Future[bool]:
        """Win the lease on a run once more, to cancel its jobs; the future fails if that can't be said."""
        local, shared, watcher = self._local, self._shared, self._watcher
        if shared is None:
            return local.contest(run, holder, watcher)
        answer: Future[bool] = Future()

        def shared_decided(said: Future[bool]) -> None:
            trouble = said.exception()
            if trouble is not None:
                since = self._undecided.setdefault((run, holder), time.monotonic())
                if time.monotonic() - since < UNDECIDED_SECONDS:
                    answer.set_exception(trouble)
                else:
                    answer.set_result(False)
            elif said.result():
                local.contest(run, holder, watcher).add_done_callback(local_decided)
            else:
                answer.set_result(False)

        def local_decided(said: Future[bool]) -> None:
            # If the local ledger can't be written, nobody has come back in it.
            won = said.exception() is not None or said.result()
            if not won:
                shared.undo_contest(run, holder)
            answer.set_result(won)

        shared.contest(run, holder, watcher).add_done_callback(shared_decided)
        return answer

    def holds(self, run: str, holder: str) -> Future[bool]:
        """Whether the lease on a run is still this watcher's; the future may fail with a `LedgerError`."""
        if self._shared is None:
            return self._local.holds(run, holder)
        answer: Future[bool] = Future()

        def decided(said: Future[bool]) -> None:
            if said.exception() is None:
                answer.set_result(said.result())
            else:
                self._local.holds(run, holder).add_done_callback(lambda local: _copy(local, answer))

        self._shared.holds(run, holder).add_done_callback(decided)
        return answer

    # The end

    def leave(self) -> None:
        """Nothing is left to be written, but for what has not been written yet."""
        self._ledgers.leave(self._owner, self._shared_owner, self._shared)


def _copy(said: Future[T], answer: Future[T]) -> None:
    trouble = said.exception()
    if trouble is None:
        answer.set_result(said.result())
    else:
        answer.set_exception(trouble)
