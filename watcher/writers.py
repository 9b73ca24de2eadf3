"""The thread that keeps one ledger up to date: a slow disk must not delay a cancel, and a database may be far away.

It keeps the state that each run is to have, and not a list of writes: so after an hour without the database the same
few statements bring it up to date. Whatever fails costs that ledger's protection only, and is tried again. A run that
another process has by then is dropped here, for the ledger refuses what would be written of it.

All drivers of a watcher share it: their rows are written together, over one connection, and each hears of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .facts import Figures
from .host_identity import Process

if TYPE_CHECKING:
    from .ledger import Ledger, LedgerError, ReservationWish, Reserved, Row, Ruling, Store
    from .ledger.postgres import SharedLedger

LOCAL_RETRY = 10.0
"""Seconds after which the local ledger is tried again, if nothing else is to be written before."""

FIRST_RETRY = 0.1
"""Seconds after which the shared ledger is tried again at first; then twice as many each time, up to a third of a
lease: when it is back, every lease must be renewed before a reaper may judge it."""

BUSY_SECONDS = 1.0
"""A shared ledger that has not answered for that long is away, for those who would wait for it."""


def let_go(row: Row) -> Row:
    """A run that nobody waits for any more; that counts from the first time."""
    return replace(row, let_go_at=time.time() if row.let_go_at is None else row.let_go_at)


@dataclass(frozen=True, eq=False)
class Owner:
    """Whose runs are written, and how it hears of them: in the writer's thread.

    Attributes:
        tell: Called with "away" and why, or with "back".
        lost: Called with a run that is another's now, the word of who held it, if it has a key, and who has it.
    """

    tell: Callable[[str, str], None]
    lost: Callable[[str, str, str], None] = lambda *_: None


@dataclass
class DesiredRun:
    """The state that a run is to have in one ledger.

    Attributes:
        row: The run as it is to be.
        owner: Whose it is.
        enters: Whether it has a key that was granted elsewhere, so that this ledger must be asked whose it is here.
        is_durable: Whether what has changed must survive a power failure at once.
        version: How often it was changed.
        written: The version that the ledger has, or has refused.
        is_refused: Whether it is known that the ledger refuses it.
        waiting: Those who wait until it is written.
    """

    row: Row
    owner: Owner
    enters: bool = False
    is_durable: bool = True
    version: int = 1
    written: int = 0
    is_refused: bool = False
    waiting: list[Future[None]] = field(default_factory=list)

    @property
    def is_dirty(self) -> bool:
        """Whether the ledger has an earlier version."""
        return self.version > self.written

    def change(self, row: Row, *, is_durable: bool = False) -> None:
        """Change it."""
        self.row = row
        self.is_durable |= is_durable
        self.version += 1


S = TypeVar("S", bound="Store")
T = TypeVar("T")
Question = tuple[Callable[[S], Any], Future[Any]]


class Writer(ABC, Generic[S]):
    """The thread that keeps one ledger up to date.

    Attributes:
        is_limited: Whether it had standing budgets when somebody looked last; None: nobody could look yet.
    """

    is_shared: ClassVar[bool]

    def __init__(self) -> None:
        self.is_limited: bool | None = None
        self._owners: set[Owner] = set()
        self._ledger: S | None = None
        self._runs: dict[str, DesiredRun] = {}
        self._figures: dict[tuple[str, str], Figures] = {}  # by run and job, that are not written
        self._questions: list[Question[S]] = []
        self._changed = threading.Condition()
        self._has_news = False  # since the ledger was tried last
        self._trouble = ""  # why it can't be used
        self._retry_at = 0.0
        self._renew_at = float("inf")
        self._is_ending = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    # Whose runs they are

    def join(self, owner: Owner) -> None:
        """Write an owner's runs from now on."""
        with self._changed:
            self._owners.add(owner)
            trouble = self._trouble
        if trouble:
            owner.tell("away", trouble)

    def leave(self, owner: Owner) -> bool:
        """Tell an owner nothing more, and forget its runs as soon as they are written; returns whether any is left."""
        with self._changed:
            self._owners.discard(owner)
            for run, desired in list(self._runs.items()):
                if desired.owner is owner and not desired.is_dirty:
                    del self._runs[run]
            return bool(self._owners)

    def _tell(self, event: str, detail: str) -> None:
        with self._changed:
            owners = list(self._owners)
        for owner in owners:
            owner.tell(event, detail)

    # The desired state

    def guard(self, row: Row, owner: Owner) -> Future[None]:
        """Have a run guarded; the future is done when that is written, or can't be now."""
        desired = DesiredRun(row, owner, enters=self.is_shared and row.key is not None)
        with self._changed:
            known = self._runs.get(row.run)
            if known is not None:  # told again, or a run with a key whose POST may leave now: what is known of it stays
                known.change(replace(row, jobs=known.row.jobs), is_durable=True)
                known.owner = owner
                desired = known
            return self._write(desired)

    def enter(self, row: Row, owner: Owner) -> Future[None]:
        """Write a run with a key that the other ledger has granted; the future is done when it is, or can't be now."""
        with self._changed:
            return self._write(DesiredRun(row, owner, enters=True))

    def _write(self, desired: DesiredRun) -> Future[None]:
        self._runs[desired.row.run] = desired
        written: Future[None] = Future()
        if self._trouble and self.is_shared:
            written.set_result(None)
        else:
            desired.waiting.append(written)
        self._wake()
        return written

    def change(self, run: str, holder: str, change: Callable[[Row], Row], *, is_durable: bool = False) -> None:
        """Change what a run is to be; nothing happens if it is not this watcher's any more."""
        with self._changed:
            desired = self._runs.get(run)
            if desired is not None and holder in ("", desired.row.holder):
                desired.change(change(desired.row), is_durable=is_durable)
                self._wake()

    def write_figures(self, run: str, job: str, figures: Figures) -> None:
        """Write what a job cost, whatever has become of its run."""
        with self._changed:
            self._figures[run, job] = self._figures.get((run, job), Figures()).updated(figures)
            self._wake()

    def let_all_go(self, owner: Owner) -> None:
        """A driver is dead: nobody waits for any of its runs any more."""
        with self._changed:
            for desired in self._runs.values():
                if desired.owner is owner and not desired.row.is_over:
                    desired.change(let_go(desired.row))
            self._wake()

    def _wake(self) -> None:
        self._has_news = True
        self._changed.notify_all()

    # Questions

    def ask(self, question: Callable[[S], T]) -> Future[T]:
        """Ask the ledger, once it is up to date; the future may fail with a `LedgerError`."""
        answer: Future[T] = Future()
        with self._changed:
            trouble = self._trouble if self.is_shared else ""
            if not trouble:  # only slow, it is waited for: what it says matters more than a second
                self._questions.append((question, answer))
                self._wake()
                return answer
        from .ledger import LedgerError

        answer.set_exception(LedgerError(trouble))
        return answer

    def reserve(self, wish: ReservationWish) -> Future[tuple[Reserved, bool]]:
        """Reserve QPU time."""

        def question(ledger: S) -> tuple[Reserved, bool]:
            found = ledger.reserve(wish)
            self.is_limited = found[1]
            return found

        return self.ask(question)

    def take(self, row: Row, instances: tuple[str, ...], owner: Owner) -> Future[Ruling]:
        """Take the lease on a key, if it can be had."""

        def question(ledger: S) -> Ruling:
            from .ledger import Wish

            wish = Wish(row=replace(row, host_identity=ledger.host_identity, answered=True), instances=instances)
            ruling = ledger.take(wish)
            if ruling.answer == "granted":
                with self._changed:
                    self._runs[ruling.row.run] = DesiredRun(ruling.row, owner, written=1)
            return ruling

        return self.ask(question)

    def contest(self, run: str, holder: str, watcher: Process) -> Future[bool]:
        """Win the lease on a run once more, to cancel its jobs."""

        def question(ledger: S) -> bool:
            desired = self._runs.get(run)
            if desired is None or desired.row.holder != holder:
                return False  # lost before
            won = ledger.contest(run, holder, replace(watcher, host_identity=ledger.host_identity))
            with self._changed:
                if won:
                    desired.row = replace(let_go(desired.row), state="pending")
                else:
                    self._runs.pop(run, None)
            return won

        return self.ask(question)

    def undo_contest(self, run: str, holder: str) -> None:
        """Undo a `contest` that was won here and lost in the other ledger."""

        def question(ledger: S) -> None:
            with self._changed:
                self._runs.pop(run, None)
            ledger.undo_contest(run, holder)

        self.ask(question)

    def holds(self, run: str, holder: str) -> Future[bool]:
        """Whether the lease on a run is still this watcher's."""

        def question(ledger: S) -> bool:
            desired = self._runs.get(run)
            return desired is not None and desired.row.holder == holder and ledger.holds(run, holder)

        return self.ask(question)

    # The end

    def close(self, seconds: float) -> bool:
        """Wait until everything is written, or for some seconds.

        Returns:
            Whether there is nothing that must be written still.
        """
        with self._changed:
            self._is_ending = True
            self._wake()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            return not any(desired.row.state == "done" and desired.row.jobs for desired in self._runs.values())

    # The thread

    def _work(self) -> None:
        from . import ledger  # noqa: F401 - in this thread, beside what the start imports

        self._prepare()
        while self._wait():
            with self._changed:
                questions, self._questions = self._questions, []
                self._has_news = False
            trouble = self._try(questions)
            self._note(str(trouble or ""))
            if trouble and self.is_shared:  # what was asked meanwhile need not wait for the next try
                with self._changed:
                    questions, self._questions = questions + self._questions, []
            for _, answer in questions:
                if trouble and not answer.done():
                    answer.set_exception(trouble)
        self._shut()

    def _wait(self) -> bool:
        """Wait until there is something to do; False if there never will be."""
        with self._changed:
            while True:
                now = time.monotonic()
                is_dirty = any(desired.is_dirty for desired in self._runs.values())
                has_work = is_dirty or bool(self._figures) or bool(self._questions)
                if self._is_ending and (not has_work or self._gives_up()):
                    return False
                if self._trouble:
                    due = 0.0 if self._has_news and not self.is_shared else self._retry_at
                elif has_work or self._ledger is None:
                    return True
                else:
                    due = self._renew_at if self._runs else now + 3600.0
                if now >= due:
                    return True
                self._changed.wait(min(due - now, 3600.0))

    def _try(self, questions: list[Question[S]]) -> LedgerError | None:
        """Write what is to be written, and ask what is to be asked; returns what stands in the way."""
        from .ledger import LedgerError, RefusedRow

        try:
            ledger = self._ledger or self._open()
            self._ledger = ledger
            self._bring_up_to_date(ledger)
            self._write_figures(ledger)
            for question, answer in questions:
                if not answer.done():
                    try:
                        answer.set_result(question(ledger))
                    except RefusedRow as error:
                        answer.set_exception(error)
        except LedgerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a fault in here must not end the protection by this ledger
            kind = "shared ledger" if self.is_shared else "ledger"
            return LedgerError(f"The {kind} can't be used ({type(error).__name__}).")
        return None

    def _look_for_budgets(self, ledger: S) -> None:
        self.is_limited = bool(ledger.standing_budgets())

    def _bring_up_to_date(self, ledger: S) -> None:
        with self._changed:
            dirty = [(desired, desired.version, desired.row) for desired in self._runs.values() if desired.is_dirty]
            waiting = {future for desired, _, _ in dirty for future in desired.waiting}
            rows = {row.run: replace(row, host_identity=ledger.host_identity) for _, _, row in dirty}
            entering = {desired.row.run for desired, _, _ in dirty if desired.enters}
            durable = any(desired.is_durable for desired, _, _ in dirty)
        if not dirty:
            return
        written, refused = self._write_rows(ledger, list(rows.values()), entering, durable=durable)
        written |= refused.keys()  # nobody else has them
        with self._changed:
            for desired, version, row in dirty:
                desired.waiting = [future for future in desired.waiting if future not in waiting]
                desired.enters, desired.written = False, version
                desired.is_durable &= desired.is_dirty
                is_over = (row.is_over or desired.owner not in self._owners) and not desired.is_dirty
                if (row.run not in written or is_over) and self._runs.get(row.run) is desired:
                    del self._runs[row.run]
            lost = [(row, desired.owner) for desired, _, row in dirty if row.run not in written]
            news = [desired for desired, _, row in dirty if row.run in refused and not desired.is_refused]
            for desired in news:
                desired.is_refused = True
        self._report_lost(ledger, lost)  # before who waits: it would submit
        for desired in news:
            desired.owner.tell("away", refused[desired.row.run])
        for future in waiting:
            future.set_result(None)

    def _write_rows(
        self, ledger: S, rows: list[Row], entering: set[str], *, durable: bool
    ) -> tuple[set[str], dict[str, str]]:
        """Write rows, those that do not enter together; returns the runs that were written, and why others can't be.

        If one is refused for what is in it, each is written by itself: it would keep all others from being written.
        """
        from .ledger import RefusedRow

        refused: dict[str, str] = {}
        try:
            written = {row.run for row in rows if row.run in entering and ledger.enter(row)}
            if others := [row for row in rows if row.run not in entering]:
                written |= ledger.write(*others, durable=durable)
        except RefusedRow:
            written = set()
            for row in rows:
                try:
                    if ledger.enter(row) if row.run in entering else ledger.write(row, durable=durable):
                        written.add(row.run)
                except RefusedRow as error:
                    refused[row.run] = str(error)
        return written, refused

    def _write_figures(self, ledger: S) -> None:
        with self._changed:
            figures, self._figures = self._figures, {}
        if not figures:
            return
        try:
            with ledger.batch(durable=False):
                for (run, job), each in figures.items():
                    ledger.job_figures(run, job, each)
        except BaseException:
            with self._changed:  # again, when the ledger is back
                self._figures = {key: each.updated(self._figures.get(key, each)) for key, each in figures.items()} | {
                    key: each for key, each in self._figures.items() if key not in figures
                }
            raise

    def _note(self, trouble: str) -> None:
        """Remember whether the ledger can be used, and say so when that changes."""
        waiting: list[Future[None]] = []
        with self._changed:
            was_away, self._trouble = bool(self._trouble), trouble
            if trouble:
                self._retry_at = time.monotonic() + self._next_pause()
                for desired in self._runs.values():
                    waiting += desired.waiting
                    desired.waiting = []
        for future in waiting:
            future.set_result(None)
        self._tell_if_changed(was_away=was_away, trouble=trouble)

    def _tell_if_changed(self, *, was_away: bool, trouble: str) -> None:
        if trouble and not was_away:
            self._tell("away", trouble)
        elif was_away and not trouble:
            self._tell("back", "")

    @abstractmethod
    def _open(self) -> S:
        """Open the ledger."""

    @abstractmethod
    def _next_pause(self) -> float:
        """Seconds until a ledger that has failed is tried again."""

    @abstractmethod
    def _gives_up(self) -> bool:
        """Whether what can't be written at the end is left unwritten."""

    def _prepare(self) -> None:
        """Do what would take long when the first run waits for it."""

    def _report_lost(self, ledger: S, lost: list[tuple[Row, Owner]]) -> None:
        """Say that runs are another's."""

    def _shut(self) -> None:
        from .ledger import LedgerError

        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            with contextlib.suppress(LedgerError):
                ledger.close()


class LocalWriter(Writer["Ledger"]):
    """The thread that writes to the local ledger: a file, which may be locked, or its disk full, but is never away.

    Args:
        directory: The state directory.
        lease_seconds: How long a lease lasts without being renewed.
    """

    is_shared = False

    def __init__(self, directory: str, lease_seconds: float) -> None:
        self._directory = directory
        self._lease_seconds = lease_seconds
        super().__init__()

    def _open(self) -> Ledger:
        from .ledger import KEPT_FOR, Ledger

        ledger = Ledger.open(self._directory, lease_seconds=self._lease_seconds)
        self._look_for_budgets(ledger)
        ledger.forget(KEPT_FOR)
        return ledger

    def _bring_up_to_date(self, ledger: Ledger) -> None:
        self._look_for_budgets(ledger)  # before what waits for the locks of others
        super()._bring_up_to_date(ledger)

    def _next_pause(self) -> float:
        return LOCAL_RETRY

    def _gives_up(self) -> bool:
        return bool(self._trouble) and not self._has_news


class SharedWriter(Writer["SharedLedger"]):
    """The thread that writes to the shared ledger, and renews the watcher's lease in it.

    Args:
        url: The database; it holds a password.
        lease_seconds: How long a lease lasts without being renewed.
    """

    is_shared = True

    def __init__(self, url: str, lease_seconds: float) -> None:
        self._url = url
        self._lease_seconds = lease_seconds
        self._earlier: SharedLedger | None = None
        self._pause = FIRST_RETRY
        self._busy_since: float | None = None
        self._is_told = False  # that it has been busy for so long that it counts as away
        super().__init__()

    def __repr__(self) -> str:
        return "SharedWriter()"

    def guard(self, row: Row, owner: Owner) -> Future[None]:
        """See `Writer.guard`; a database that does not answer is waited for no longer than `BUSY_SECONDS`."""
        written = super().guard(row, owner)
        with self._changed:
            busy = self._busy_since
            if written.done() or busy is None or time.monotonic() - busy <= BUSY_SECONDS:
                return written
            is_news = not self._is_told
            self._is_told = True
        if is_news:
            self._tell("away", "The shared ledger can't be used: it does not answer.")
        return _done()

    def _prepare(self) -> None:
        # psycopg takes a second to load on a busy machine. What fails is told of when the ledger is opened.
        with contextlib.suppress(Exception):
            from .ledger import postgres  # noqa: F401

    def _open(self) -> SharedLedger:
        from .ledger.postgres import SharedLedger

        self._earlier = SharedLedger.open(self._url, lease_seconds=self._lease_seconds, earlier=self._earlier)
        self._renew_at = 0.0
        return self._earlier

    def _try(self, questions: list[Question[SharedLedger]]) -> LedgerError | None:
        began, was_open = time.monotonic(), self._ledger is not None
        self._busy_since = began
        trouble = super()._try(questions)
        if trouble and was_open and time.monotonic() - began < BUSY_SECONDS:
            # The connection was idle for hours, and broke when nobody looked. That is no news.
            self._close_connection()
            trouble = super()._try(questions)
        if trouble:
            self._close_connection()
        else:
            self._pause = FIRST_RETRY
        return trouble

    def _bring_up_to_date(self, ledger: SharedLedger) -> None:
        if self.is_limited is None:  # then each reservation tells: to ask takes a way there and back
            self._look_for_budgets(ledger)
        if time.monotonic() >= self._renew_at:
            began = time.monotonic()
            had_run_out = ledger.renew()
            self._renew_at = began + self._lease_seconds / 3
            if had_run_out:  # what this process had may have been taken
                others = ledger.lost()
                with self._changed:
                    lost = [self._runs.pop(run) for run in list(self._runs) if run in others]
                self._report_lost(ledger, [(desired.row, desired.owner) for desired in lost])
                for future in [future for desired in lost for future in desired.waiting]:
                    future.set_result(None)
        super()._bring_up_to_date(ledger)

    def _report_lost(self, ledger: SharedLedger, lost: list[tuple[Row, Owner]]) -> None:
        from .ledger import LedgerError

        for row, owner in lost:
            if row.is_over:
                continue
            holder, who = None, "another process has taken it"
            with contextlib.suppress(LedgerError):
                holder = ledger.holder(row.run)
            if holder is not None:
                what = "a reaper" if holder.kind == "reaper" else "another driver"
                who = f"{what} has taken it (its pid is {holder.pid} on {holder.host})"
            owner.lost(row.run, row.holder, f"its lease in the shared ledger ran out, and {who}")

    def _tell_if_changed(self, *, was_away: bool, trouble: str) -> None:
        with self._changed:
            self._busy_since = None
            was_away |= self._is_told
            self._is_told = False
        super()._tell_if_changed(was_away=was_away, trouble=trouble)

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, self._lease_seconds / 3)
        return pause

    def _gives_up(self) -> bool:
        return False

    def _shut(self) -> None:
        from .ledger import LedgerError

        if self._ledger is not None:
            with contextlib.suppress(LedgerError):
                self._ledger.leave()
        self._close_connection()

    def _close_connection(self) -> None:
        super()._shut()


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done
