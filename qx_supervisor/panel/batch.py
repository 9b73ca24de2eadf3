"""Runs that are in progress at the same time: how many of them are done, and how long the others will take."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence

from .. import forks
from ..result import RunResult
from ..timeline import rough
from .view import View

FEWEST_FOR_A_PACE = 3
"""Runs that must have ended before their pace says how long the others will take."""

LINES = 20
"""Runs of a batch up to which each result is told in a line of its own; those of larger ones are counted."""


class Batch:
    """The runs that are shown from the first that begins to the last that ends, with at least one in progress always.

    Safe to use from any thread.

    Args:
        clock: A monotonic clock, in seconds.
        wall: Seconds since the epoch.

    Attributes:
        done: How many have ended with a result.
        failed: How many have ended without.
        going_on: How many go on, though they are shown no more.
        qpu_seconds: The QPU time charged for those that have ended, as far as it is known.
        pending: How many of these have a charge that is not known.
        is_large: Whether it has, or had, too many runs to tell each result in a line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[View] = weakref.WeakSet()
        self._began = self._spoke = clock()
        self._first_end = self._last_end = 0.0
        self.done = self.failed = self.going_on = self.pending = 0
        self.qpu_seconds = 0.0
        self.is_large = False

    def begin(self, view: View) -> None:
        """A run begins."""
        with self._lock:
            self._open.add(view)
            self.is_large = self.is_large or self._total > LINES

    def end(self, view: View) -> None:
        """A run has ended, and its view says how."""
        with self._lock:
            if view not in self._open:
                return
            self._open.discard(view)
            self._last_end = self._clock()
            self._first_end = self._first_end or self._last_end
            if isinstance(view.outcome, RunResult):
                self.done += 1
            elif view.goes_on:
                self.going_on += 1
                return
            else:
                self.failed += 1
            if view.is_billed:
                charged = view.charged
                self.pending += charged is None
                self.qpu_seconds += charged or 0.0

    @property
    def views(self) -> list[View]:
        """The runs in progress, in no particular order."""
        with self._lock:
            return list(self._open)

    @property
    def _total(self) -> int:
        return len(self._open) + self.done + self.failed + self.going_on

    @property
    def total(self) -> int:
        """How many runs there are, or were."""
        with self._lock:
            return self._total

    @property
    def is_over(self) -> bool:
        """Whether none is in progress."""
        with self._lock:
            return not self._open

    def spoke(self, now: float) -> None:
        """Something was written about one of the runs, at this time of its clock."""
        self._spoke = now

    def may_speak(self, now: float, pause: float) -> bool:
        """Whether nothing was written about any of them for so many seconds; if so, that is as if something was."""
        with self._lock:
            if now - self._spoke < pause:
                return False
            self._spoke = now
            return True

    def progress(self) -> str:
        """How many have ended, as "7 of 20 done, 1 failed"."""
        failed = f", {self.failed} failed" if self.failed else ""
        going_on = f", {self.going_on} {'goes' if self.going_on == 1 else 'go'} on" if self.going_on else ""
        return f"{self.done} of {self.total} done{failed}{going_on}"

    def left(self) -> str:
        """How long the others will take, as "about 4 min left", or "" where that can't be told."""
        views = self.views
        seconds = _told(views, self._wall()) if views else None
        if seconds is None:
            seconds = self._at_this_pace(len(views))
        return f"about {rough(max(1.0, round(seconds)))} left" if views and seconds is not None else ""

    def _at_this_pace(self, left: int) -> float | None:
        ended = self.done + self.failed
        if ended < FEWEST_FOR_A_PACE:
            return None
        # From the first end on: what came before it is the wait of the first one.
        pause = (self._last_end - self._first_end) / (ended - 1)
        since = self._clock() - self._last_end
        if since > pause:  # the next one is late
            pause = (self._clock() - self._first_end) / ended
        return pause * left - min(since, pause)

    def words(self, views: Sequence[View] | None = None) -> list[str]:
        """How many have ended, how long the others will take, and in which states they are."""
        counts = Counter(view.state for view in (self.views if views is None else views))
        states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
        return [each for each in (self.progress(), self.left(), states) if each]

    def summary(self) -> str:
        """One line about a batch that is over."""
        parts = [self.progress(), f"{rough(self._last_end - self._began)} in all"]
        if self.qpu_seconds or self.pending:
            pending = f", {self.pending} pending" if self.pending else ""
            parts.append(f"QPU {self.qpu_seconds:.4g} s charged{pending}")
        return " · ".join(parts)


def _told(views: Sequence[View], now: float) -> float | None:
    """Seconds until the last run ends, by the starts that IBM Quantum expects, where it does for all in the queue."""
    ends = []
    for view in views:
        if view.state == "running":
            continue  # for how long is not told: it includes preparations
        status = view.status
        if status is None or status.state != "queued" or status.estimated_start is None:
            return None
        ends.append(status.estimated_start + (status.qpu_seconds_estimated or 0.0))
    return max(max(ends) - now, 0.0) if ends else None


_current: Batch | None = None
_batches: weakref.WeakKeyDictionary[View, Batch] = weakref.WeakKeyDictionary()
_changing = forks.make_lock()


def begin(view: View) -> None:
    """A run begins: it belongs to the batch in progress, or is the first of another one."""
    global _current  # noqa: PLW0603 - there is one for the process, as there is one terminal
    with _changing:
        if _current is None or _current.is_over:
            _current = Batch()
        _current.begin(view)
        _batches[view] = _current


def of(view: View) -> Batch:
    """The batch that a run belongs to; one of its own if it was not begun here."""
    with _changing:
        known = _batches.get(view)
        if known is None:
            known = _batches[view] = Batch(view.clock)
            known.begin(view)
        return known


def _forget() -> None:
    global _current  # noqa: PLW0603
    _current = None
    _batches.clear()


forks.reset_in_child(_forget)
