"""What the watcher writes to the ledger of many hosts, in a thread of its own: a database may be far away, or away.

What is to be written is kept as it should read, and not as a list of writes: so after an hour without the database the
same few statements bring it up to date. Whatever fails costs the protection from afar only. It is told of once for each
time that the database is away, and tried again after a pause that grows, but never beyond a third of a lease: when the
database is back, every lease must be renewed before a reaper may judge it.

A run that another holder has is let go here: what this watcher would write of it any more is refused by the database.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import host_identity
from .driver_process import DriverIdentity
from .host_identity import Process, start_ticks

if TYPE_CHECKING:
    from .ledger import Row, Ruling, State
    from .ledger.postgres import Kept, SharedLedger
    from .record import Entry

BUSY_SECONDS = 1.0
"""A database that has not answered for so long is away, for those who would wait for it."""

FIRST_PAUSE = 0.1

OWED_SECONDS = 86400.0
"""How long a watcher stays that has nothing left to do but to write that runs are over. Unwritten, a reaper that finds
the database before it does would cancel a job that was let go."""


@dataclass
class _Run:
    """A run as it should read.

    Attributes:
        row: The run.
        let_go: When nobody waited for it any more, on the monotonic clock.
        is_known: Whether the database has it, as far as this process knows.
        version: How often it was changed.
        written: The version that the database has.
        waiting: Those who wait until it is written.
    """

    row: Row
    let_go: float | None = None
    is_known: bool = False
    version: int = 1
    written: int = 0
    waiting: list[Future[None]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether nothing will be written of it any more."""
        return self.row.state in ("done", "cancelled") or (
            self.row.state == "pending" and self.row.sweep_until is not None
        )


@dataclass
class _Question:
    ask: Callable[[SharedLedger], Any]
    answer: Future[Any]


class Shared:
    """The watcher's pen for the shared ledger.

    Args:
        url: The database; it holds a password.
        driver: The driver whose runs are written down.
        lease_seconds: How long a lease is held without being renewed.
        tell: Called, in another thread, with "away" and why, or "back".
        lost: Called, in another thread, with a run, its holder's word if it has a key, and who has it now.
    """

    def __init__(
        self,
        url: str,
        driver: DriverIdentity,
        lease_seconds: float,
        tell: Callable[[str, str], None],
        lost: Callable[[str, str, str], None],
    ) -> None:
        self._url = url
        self._driver = driver
        self._lease_seconds = lease_seconds
        self._tell = tell
        self._lost = lost
        self._place = replace(host_identity.this_host(), machine="")
        self._start_ticks = start_ticks(os.getpid())
        self._changed = threading.Condition()
        self._runs: dict[str, _Run] = {}
        self._questions: list[_Question] = []
        self._ledger: SharedLedger | None = None
        self._identity = ""
        self._trouble = ""  # why the database is away
        self._busy_since: float | None = None
        self._is_told = False  # that it is busy for so long that it counts as away
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE
        self._renew_at = 0.0
        self._is_over = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return "Shared()"

    # What is to be written

    def guard(self, entry: Entry) -> Future[None]:
        """Write that a run is guarded; the future is done when that is written, or can't be now."""
        written: Future[None] = Future()
        with self._changed:
            known = self._runs.get(entry.run)
            row = self._row(entry)
            if known is None:
                known = self._runs[entry.run] = _Run(row)
            else:  # told again, or a run with a key whose POST may leave now: what is known of it stays
                known.row = replace(row, jobs=known.row.jobs, epoch=known.row.epoch)
                known.let_go = None
                known.version += 1
            is_news = False
            if self._is_away():
                written.set_result(None)
                is_news = not self._trouble and not self._is_told
                self._is_told |= is_news
            else:
                known.waiting.append(written)
            self._changed.notify_all()
        if is_news:
            self._tell("away", "The shared ledger can't be used: it does not answer.")
        return written

    def anew(self, run: str, outcomes: dict[str, str], holder: str) -> None:
        """Write what became of a key's jobs so far."""
        self._change(run, holder, lambda row: replace(row, jobs={**row.jobs, **outcomes}))

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run any more."""
        with self._changed:
            known = self._runs.get(run)
            if known is not None and known.row.holder == holder and known.let_go is None:
                known.let_go = time.monotonic()
                known.version += 1
                self._changed.notify_all()

    def bury(self) -> None:
        """Write that the driver is dead: nobody waits for any of its runs."""
        with self._changed:
            for known in self._runs.values():
                if known.let_go is None and not known.is_over:
                    known.let_go = time.monotonic()
                    known.version += 1
            self._changed.notify_all()

    def job(self, run: str, job: str, outcome: str) -> None:
        """Write a job of a run, and what became of it."""
        self._change(run, None, lambda row: replace(row, jobs={**row.jobs, job: outcome or row.jobs.get(job, "")}))

    def answered(self, run: str, holder: str = "") -> None:
        """Write that no job of a run is unknown."""
        self._change(run, holder or None, lambda row: replace(row, answered=True))

    def finish(self, run: str, state: State, detail: str, holder: str = "") -> None:
        """Write what a run has come to."""
        until = time.time() if state == "pending" else None  # the database counts by its own clock
        self._change(run, holder or None, lambda row: replace(row, state=state, detail=detail, sweep_until=until))

    def _change(self, run: str, holder: str | None, change: Callable[[Row], Row]) -> None:
        with self._changed:
            known = self._runs.get(run)
            if known is not None and holder in (None, known.row.holder):
                known.row = change(known.row)
                known.version += 1
                self._changed.notify_all()

    def _row(self, entry: Entry) -> Row:
        return replace(entry.row(self._place, self._driver, self._start_ticks), epoch=1)

    # What is asked

    def take(self, entry: Entry, instances: tuple[str, ...]) -> Future[Ruling]:
        """Take the lease on a key, if it can be had; the future fails with a `LedgerError` where the database is away.

        The times of the ruling's row are of this host's clock.
        """

        def ask(ledger: SharedLedger) -> Ruling:
            from .ledger import Wish

            wish = Wish(row=replace(self._row(entry), answered=True), instances=instances)
            ruling = ledger.take(wish)
            if ruling.answer == "granted":
                mine = replace(wish.row, run=ruling.row.run, tag=ruling.row.tag, driver_tag=ruling.row.driver_tag)
                taken = replace(
                    mine,
                    instance=ruling.row.instance,
                    jobs=ruling.row.jobs,
                    answered=ruling.row.answered,
                    epoch=ruling.row.epoch,
                )
                with self._changed:
                    self._runs[taken.run] = _Run(taken, is_known=True, written=1)
            return ruling

        return self._ask(ask)

    def keep(self, row: Row) -> None:
        """Write a run with a key that was taken while the database was away."""
        with self._changed:
            mine = replace(row, place=self._place, epoch=1)
            self._runs[row.run] = _Run(mine)
            self._changed.notify_all()

    def contest(self, run: str, holder: str) -> Future[bool]:
        """Win the lease on a run once more, to cancel its jobs; fails with a `LedgerError` where that can't be said."""

        def ask(ledger: SharedLedger) -> bool:
            with self._changed:
                known = self._runs.get(run)
            if known is None or known.row.holder != holder:
                return False  # lost before
            won = ledger.contest(run, known.row.epoch, Process(self._place, os.getpid(), self._start_ticks))
            with self._changed:
                if won:
                    known.row = replace(known.row, state="pending")
                else:
                    self._runs.pop(run, None)
            return won

        return self._ask(ask)

    def holds(self, run: str, holder: str) -> Future[bool]:
        """Whether the lease on a run is still this one's; fails with a `LedgerError` where that can't be said."""

        def ask(ledger: SharedLedger) -> bool:
            with self._changed:
                known = self._runs.get(run)
            return known is not None and known.row.holder == holder and bool(ledger.mine({run: known.row.epoch}))

        return self._ask(ask)

    def give_back(self, run: str) -> None:
        """Undo a `contest` that was won here and lost on this machine."""

        def ask(ledger: SharedLedger) -> None:
            with self._changed:
                known = self._runs.pop(run, None)
            if known is not None:
                ledger.give_back(run, known.row.epoch)

        self._ask(ask)

    def _ask(self, ask: Callable[[SharedLedger], Any]) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._changed:
            trouble = self._trouble
            if not trouble:  # only slow, it is waited for: what it says matters more than a second
                self._questions.append(_Question(ask, answer))
                self._changed.notify_all()
                return answer
        from .ledger import LedgerError

        answer.set_exception(LedgerError(trouble))
        return answer

    def _is_away(self) -> bool:
        busy = self._busy_since
        return bool(self._trouble) or (busy is not None and time.monotonic() - busy > BUSY_SECONDS)

    # The end

    def close(self, seconds: float) -> bool:
        """Wait until everything is written, or so many seconds.

        Returns:
            Whether there is nothing that must be written still.
        """
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            return not any(run.row.state == "done" and run.row.jobs for run in self._runs.values())

    # The thread

    def _work(self) -> None:
        from .ledger import LedgerError

        # A second on a loaded machine, in which the database is not asked yet. What fails is told of below.
        with contextlib.suppress(Exception):
            from .ledger import postgres  # noqa: F401

        while self._wait():
            with self._changed:
                questions, self._questions = self._questions, []
                began = self._busy_since = time.monotonic()
            is_old = self._ledger is not None
            trouble = self._do(questions)
            if trouble and is_old and time.monotonic() - began < BUSY_SECONDS:
                # The connection was idle for hours, and broke when nobody looked. That is no news.
                self._shut()
                trouble = self._do(questions)
            self._note(trouble)
            for question in questions:
                if not question.answer.done():
                    question.answer.set_exception(LedgerError(trouble))
        self._leave()

    def _do(self, questions: list[_Question]) -> str:
        """Write what is to be written, and ask what is to be asked; returns what stands in the way, or ""."""
        from .ledger import LedgerError

        try:
            self._bring_up_to_date()
            for question in questions:
                if not question.answer.done():
                    question.answer.set_result(question.ask(self._opened()))
        except LedgerError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a fault in here must not end the protection from afar
            return f"The shared ledger can't be used ({type(error).__name__})."
        return ""

    def _wait(self) -> bool:
        """Wait until there is something to do; False when there never will be."""
        with self._changed:
            while True:
                now = time.monotonic()
                is_dirty = any(run.version > run.written for run in self._runs.values())
                if self._is_over and not is_dirty and not self._questions:
                    return False
                if self._trouble:
                    due = self._retry_at
                elif is_dirty or self._questions or self._ledger is None:
                    return True
                elif self._runs:
                    due = self._renew_at
                else:
                    due = now + 3600.0
                if now >= due:
                    return True
                self._changed.wait(due - now)

    def _opened(self) -> SharedLedger:
        from .ledger.postgres import SharedLedger  # in this thread: psycopg takes a while

        if self._ledger is None:
            self._ledger = SharedLedger.open(
                self._url, lease_seconds=self._lease_seconds, place=self._place, identity=self._identity
            )
            self._identity = self._ledger.id
            self._renew_at = 0.0
        return self._ledger

    def _bring_up_to_date(self) -> None:
        ledger = self._opened()
        if time.monotonic() >= self._renew_at:
            began = time.monotonic()
            had_run_out = ledger.renew()
            self._renew_at = began + self._lease_seconds / 3
            if had_run_out:
                self._look_for_losses(ledger)
        with self._changed:
            dirty = {name: (run, run.version) for name, run in self._runs.items() if run.version > run.written}
        if not dirty:
            return
        entered: dict[str, int] = {}
        for name, (run, _) in dirty.items():
            if run.row.key is not None and not run.is_known:
                epoch = ledger.enter(self._kept(run))
                if epoch is not None:
                    entered[name] = epoch
        others = [self._kept(run) for run, _ in dirty.values() if run.row.key is None or run.is_known]
        written = entered | (ledger.write(others) if others else {})
        lost: list[_Run] = []
        with self._changed:
            for name, (run, version) in dirty.items():
                if name not in written:
                    if self._runs.pop(name, None) is not None:
                        lost.append(run)
                    version = run.version  # noqa: PLW2901 - nothing is left to write
                else:
                    run.row = replace(run.row, epoch=written[name])
                    run.is_known = True
                run.written = version
                if run.is_over and run.version == run.written:
                    self._runs.pop(name, None)
            done = [future for run, _ in dirty.values() for future in run.waiting]
            for run, _ in dirty.values():
                run.waiting.clear()
        self._tell_of(ledger, lost)  # before who waits: it would submit
        for future in done:
            future.set_result(None)

    @staticmethod
    def _kept(run: _Run) -> Kept:
        from .ledger.postgres import Kept

        return Kept(row=run.row, let_go=None if run.let_go is None else time.monotonic() - run.let_go)

    def _look_for_losses(self, ledger: SharedLedger) -> None:
        """This process's lease had run out: what it held may have been taken."""
        with self._changed:
            known = {name: run.row.epoch for name, run in self._runs.items() if run.is_known}
        if not known:
            return
        mine = ledger.mine(known)
        with self._changed:
            lost = [self._runs.pop(name) for name in known if name not in mine and name in self._runs]
        self._tell_of(ledger, lost)

    def _tell_of(self, ledger: SharedLedger, lost: list[_Run]) -> None:
        from .ledger import LedgerError

        for run in lost:
            if run.is_over:
                continue
            holder, who = None, "another process has taken it"
            with contextlib.suppress(LedgerError):
                holder = ledger.holder(run.row.run)
            if holder is not None:
                what = "a reaper" if holder.kind == "reaper" else "another driver"
                who = f"{what} has taken it (its pid is {holder.pid} on {holder.host})"
            self._lost(run.row.run, run.row.holder, f"its lease in the shared ledger ran out, and {who}")

    def _note(self, trouble: str) -> None:
        """Remember whether the database is there, and say so when that changes."""
        waiting: list[Future[None]] = []
        with self._changed:
            self._busy_since = None
            was_away, self._trouble = bool(self._trouble) or self._is_told, trouble
            self._is_told = False
            if trouble:
                self._retry_at = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, self._lease_seconds / 3)
                for run in self._runs.values():
                    waiting += run.waiting
                    run.waiting.clear()
            else:
                self._pause = FIRST_PAUSE
        for future in waiting:
            future.set_result(None)
        if trouble:
            self._shut()
            if not was_away:
                self._tell("away", trouble)
        elif was_away:
            self._tell("back", "")

    def _leave(self) -> None:
        from .ledger import LedgerError

        if self._ledger is not None:
            with contextlib.suppress(LedgerError):
                self._ledger.leave()
            self._shut()

    def _shut(self) -> None:
        from .ledger import LedgerError

        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with contextlib.suppress(LedgerError):
                ledger.close()
