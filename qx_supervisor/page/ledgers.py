"""What is read of a ledger, and no more of it than has changed.

All runs that are not over are read when somebody has written, those that are over only if they were written since the
last look. What is written of them later, a charge, comes with a look at all, once a minute. Nothing is read while
nobody asks.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..log_tail import MOST_LINES, Tail
from ..shared_ledger import opened
from ..watcher import host_identity, ledger
from . import deaths
from .entry import Entry, Lease

if TYPE_CHECKING:
    from ..watcher.ledger.postgres import SharedLedger

MOST = 20_000
"""The most runs that are read, the latest."""

WHOLE_SECONDS = 60.0
"""Between two looks at everything."""

OVERLAP_SECONDS = 10.0
"""By how much looks overlap: a transaction is seen when it ends, and has the time at which it began."""

BALANCE_SECONDS = 5.0
"""Between two looks at budgets, which have each charge that is known be counted."""

LEASE_NEWS_SECONDS = 5.0
"""Between two tellings that leases were renewed, and nothing else."""


Judged = tuple[ledger.Row, ledger.Liveness, Lease | None]


@dataclass(frozen=True)
class Snapshot:
    """A ledger at one moment.

    Attributes:
        version: Another number if anything is new.
        now: The ledger's clock, in seconds since the epoch.
        entries: The runs, the newest first.
        deaths: The deaths, the latest first.
        balances: The standing budgets.
        lines: What watchers have logged on this machine about deaths, the latest of it.
        is_cut: Whether there are earlier runs, which were not read.
        trouble: Why the ledger can't be read now, in a sentence; "" if it can.
    """

    version: int = 0
    now: float = 0.0
    entries: tuple[Entry, ...] = ()
    deaths: tuple[deaths.Death, ...] = ()
    balances: tuple[ledger.Balance, ...] = ()
    lines: tuple[Mapping[str, Any], ...] = ()
    is_cut: bool = False
    trouble: str = ""


class Source(ABC):
    """A ledger that is looked at again and again, by one thread."""

    NAME: str
    """What the page calls it: "this machine" or "all hosts"."""

    def __init__(self) -> None:
        self._book: ledger.Store | None = None
        self._tail: Tail | None = None
        self._latest = Snapshot()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._changes: object = None
        self._unjudged: list[tuple[ledger.Row, Lease | None]] = []
        self._open: dict[str, Entry] = {}
        self._over: dict[str, Entry] = {}
        self._read_at = 0.0  # by the ledger's clock
        self._whole_at = self._balances_at = self._news_at = 0.0  # by ours
        self._is_cut = False
        self._has_new_ends = True
        self._has_new_leases = False

    @abstractmethod
    def _opened(self) -> ledger.Store:
        """Open the ledger."""

    @abstractmethod
    def _unfinished(self) -> list[tuple[ledger.Row, Lease | None]]:
        """Read the runs that are not over."""

    @abstractmethod
    def _judge(self, now: float) -> Iterator[Judged]:
        """What can be said now of those that were not over when they were read."""

    def look(self) -> Snapshot:
        """Read what has changed."""
        try:
            found = self._look()
        except ledger.LedgerError as error:
            self.close()
            if self._latest.trouble != str(error):
                self._latest = replace(self._latest, trouble=str(error), version=self._latest.version + 1)
            return self._latest
        self._latest = found
        return found

    def forget(self) -> None:
        """Forget what was read, for nobody asks; versions go on."""
        self._tail = None
        self._latest = Snapshot(version=self._latest.version)

    def close(self) -> None:
        """Close the ledger; the next look opens it again."""
        book, self._book = self._book, None
        self._begin_anew()
        if book is not None:
            try:
                book.close()
            except ledger.LedgerError:
                pass  # it is gone

    def _look(self) -> Snapshot:
        if self._book is None:
            self._book = self._opened()
        book, clock = self._book, time.monotonic()
        changes = book.changes()
        is_whole = clock >= self._whole_at
        now = book.clock()
        if is_whole or changes != self._changes:
            self._read(book, now, is_whole=is_whole)
            self._changes = changes
            if is_whole:
                self._whole_at = clock + WHOLE_SECONDS
        balances = self._latest.balances
        if clock >= self._balances_at:
            self._balances_at = clock + BALANCE_SECONDS
            balances = tuple(book.balances()) if book.standing_budgets() else ()
        return self._told(now, clock, balances)

    def _read(self, book: ledger.Store, now: float, *, is_whole: bool) -> None:
        # First those that are not over: what ends between the two questions is in both answers, and over.
        unfinished = self._unfinished()
        ended = book.ended_since(0.0 if is_whole else self._read_at - OVERLAP_SECONDS, MOST + 1)
        over = {} if is_whole else dict(self._over)
        for row, _ in unfinished:
            over.pop(row.run, None)  # it was taken up again
        for row in ended[:MOST]:
            known = self._over.get(row.run)
            over[row.run] = known if known is not None and known.row == row else Entry.of(row, "final")
        if over.keys() != self._over.keys() or any(entry is not self._over[run] for run, entry in over.items()):
            self._has_new_ends = True
        self._over = over
        self._unjudged = [each for each in unfinished if each[0].run not in over]
        self._read_at = now
        if is_whole:
            self._is_cut = len(ended) > MOST

    def _told(self, now: float, clock: float, balances: tuple[ledger.Balance, ...]) -> Snapshot:
        latest, before = self._latest, self._open
        self._open = {}
        for row, liveness, lease in self._judge(now):
            known = before.get(row.run)
            if known is None or (known.row, known.liveness, known.lease) != (row, liveness, lease):
                known = Entry.of(row, liveness, lease)
            self._open[row.run] = known
        is_same = (
            not self._has_new_ends
            and before.keys() == self._open.keys()
            and all(_is_same(before[run], entry) for run, entry in self._open.items())
        )
        has_new_leases = is_same and any(before[run] is not entry for run, entry in self._open.items())
        entries = latest.entries
        if not is_same or has_new_leases:
            together = (*self._over.values(), *self._open.values())
            entries = tuple(sorted(together, key=lambda entry: (-entry.began, entry.row.run)))
        self._has_new_ends = False
        self._has_new_leases |= has_new_leases
        lines = self._lines()
        has_news = not is_same or lines != latest.lines or balances != latest.balances or bool(latest.trouble)
        if has_news or (self._has_new_leases and clock >= self._news_at + LEASE_NEWS_SECONDS):
            has_news, self._has_new_leases, self._news_at = True, False, clock
        return Snapshot(
            version=latest.version + (has_news or not latest.version),
            now=now,
            entries=entries,
            deaths=latest.deaths if is_same and lines == latest.lines else tuple(deaths.find(entries, lines)),
            balances=balances,
            lines=lines,
            is_cut=self._is_cut,
        )

    def _lines(self) -> tuple[Mapping[str, Any], ...]:
        """What the log files of this machine say of deaths."""
        if self._tail is None:
            try:
                self._tail = Tail(ledger.state_directory())
            except ledger.LedgerError:
                return ()
        try:
            new = [line for line in self._tail.new() if line.get("driver") is not None]
        except OSError:
            return self._latest.lines
        return (*self._latest.lines, *new)[-MOST_LINES:] if new else self._latest.lines


def _is_same(before: Entry, after: Entry) -> bool:
    """Whether nothing is new of a run that is not over, but that its lease was renewed."""
    if before is after:
        return True
    if before.state != after.state or (before.lease is None) != (after.lease is None):
        return False
    return before.row == replace(after.row, lease_until=before.row.lease_until, updated_at=before.row.updated_at)


class ThisMachine(Source):
    """The ledger of this machine."""

    NAME = "this machine"

    _book: ledger.Ledger | None

    def _opened(self) -> ledger.Store:
        return ledger.Ledger.open(ledger.state_directory())

    def _unfinished(self) -> list[tuple[ledger.Row, Lease | None]]:
        assert self._book is not None
        return [(row, None) for row in self._book.rows(ledger.UNFINISHED, MOST)]

    def _judge(self, now: float) -> Iterator[Judged]:  # noqa: ARG002 - processes are looked at
        assert self._book is not None
        here = self._book.host_identity
        is_running = functools.cache(host_identity.is_running)  # of one driver there may be a thousand runs
        for row, _ in self._unjudged:
            lease = None
            if row.key is not None and row.lease_until is not None and row.watcher_pid is not None:
                lease = Lease("watcher", row.host_identity.host, row.watcher_pid, row.lease_until)
            yield row, ledger.judge(row, here, is_running), lease


class AllHosts(Source):
    """The shared ledger."""

    NAME = "all hosts"

    _book: SharedLedger | None

    def _opened(self) -> ledger.Store:
        return opened("reaper")

    def _unfinished(self) -> list[tuple[ledger.Row, Lease | None]]:
        assert self._book is not None
        return [
            (
                held.row,
                Lease(held.holder.kind, held.holder.host, held.holder.pid, held.row.lease_until or 0.0)
                if held.holder.kind
                else None,
            )
            for held in self._book.held(ledger.UNFINISHED, MOST)
        ]

    def _judge(self, now: float) -> Iterator[Judged]:
        return ((row, ledger.judge_by_lease(row, now), lease) for row, lease in self._unjudged)
