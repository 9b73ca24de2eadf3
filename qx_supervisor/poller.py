"""One poller of job states for all runs of a process, and one for the jobs of each other driver that it has taken over.

Up to ten jobs are read one by one, each when it is due, as the official client reads them. More are listed together,
200 at a time, by the tag that all jobs of one driver have: a thousand jobs then cost a handful of requests per
interval, and none waits for the others' turn. A list shows only jobs that are not final; any other is read by itself.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from . import forks
from .threads import Timer, asking, log_fault, timers
from .watcher import cancel, remote

SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.5, 15.0
"""Seconds between two lists, or two readings of one job, unless a run asks for less: the official client asks no more
often."""

INTERVAL_SHARE = 0.02
"""How late a job's end may be noticed, of the time that it took: after an hour in the queue it is asked every 15 s."""

LISTS_AGAIN = 900.0
"""Seconds after which a service that refuses to list is asked for a list again."""

T = TypeVar("T")


@dataclass(eq=False)
class Watched:
    """A job that is polled.

    Attributes:
        job: Its id.
        saw: Called with its state; returns the seconds until the next reading, or None to end.
        missed: Called with the error, most often a `RemoteError`, if it could not be read; returns the same.
        due: When it is to be read next, by the monotonic clock; infinite while it is being read.
        interval: Seconds that `saw` asked for.
    """

    job: str
    saw: Callable[[remote.JobState], float | None]
    missed: Callable[[Exception], float | None]
    due: float
    interval: float = SHORTEST_INTERVAL


def interval(seconds: float, shortest: float = SHORTEST_INTERVAL) -> float:
    """How long to wait before the state of a job that has taken so many seconds is read again."""
    return min(LONGEST_INTERVAL, max(shortest, INTERVAL_SHARE * seconds))


class Poller:
    """Reads the states of one driver's jobs at one instance. Safe to use from any thread.

    Args:
        there: The instance.
        tag: The tag that all jobs have.
    """

    def __init__(self, there: remote.Remote, tag: str) -> None:
        self._there = there
        self._tag = tag
        self._lock = threading.Lock()
        self._watched: set[Watched] = set()
        self._alarm: Timer | None = None
        self._alarm_at = math.inf
        self._lists = False
        self._listed_at = -math.inf
        self._list_from = -math.inf

    @property
    def is_crowd(self) -> bool:
        """Whether there are too many jobs to ask for the details of each."""
        return len(self._watched) > cancel.SINGLY

    def watch(
        self,
        job: str,
        saw: Callable[[remote.JobState], float | None],
        missed: Callable[[Exception], float | None],
    ) -> Watched:
        """Begin to poll a job; the functions are called by one thread at a time."""
        watched = Watched(job, saw, missed, time.monotonic())
        with self._lock:
            self._watched.add(watched)
            self._wake_at(watched.due)
        return watched

    def leave(self, watched: Watched) -> None:
        """Stop polling it."""
        with self._lock:
            self._watched.discard(watched)

    def _wake_at(self, due: float) -> None:
        """Set the timer, if it is not due earlier already. Called with the lock held."""
        if due < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = due
            self._alarm = timers.after(max(0.0, due - time.monotonic()), lambda: asking.do(self._work))

    def _work(self) -> None:
        """Do what is due."""
        with self._lock:
            self._alarm, self._alarm_at = None, math.inf
            now = time.monotonic()
            due = [each for each in self._watched if each.due <= now]
            listed: list[Watched] = []
            if due and self._is_crowd(now):
                if self._lists:
                    return  # the end of the list looks again
                shortest = min(SHORTEST_INTERVAL, *(each.interval for each in due))
                if now >= self._listed_at + shortest:
                    self._lists, self._listed_at = True, now
                    listed = [each for each in self._watched if each.due < math.inf]
                    due = []
                else:
                    self._wake_at(self._listed_at + shortest)
                    return
            for each in (*due, *listed):
                each.due = math.inf
            if not listed:
                self._look_again()
        for each in due:
            asking.do(lambda each=each: self._read(each))  # type: ignore[misc]
        if listed:
            self._list(listed)

    def _is_crowd(self, now: float) -> bool:
        return len(self._watched) > cancel.SINGLY and now >= self._list_from

    def _look_again(self) -> None:
        """Wake when the next one is due. Called with the lock held."""
        self._wake_at(min((each.due for each in self._watched), default=math.inf))

    def _read(self, watched: Watched) -> None:
        try:
            state = ask(self._there, lambda: self._there.job(watched.job))
        except Exception as error:  # noqa: BLE001 - the run judges
            pause = _answer(watched.missed, error)
        else:
            pause = _answer(watched.saw, state)
        with self._lock:
            self._set(watched, pause)
            self._wake_at(watched.due)

    def _list(self, listed: list[Watched]) -> None:
        pauses: dict[Watched, float | None] = {}
        missing: list[Watched] = []
        try:
            states = ask(self._there, lambda: self._there.unfinished_states(self._tag))
        except (remote.Transient, remote.Refused) as error:
            pauses = {each: _answer(each.missed, error) for each in listed}
        except Exception:  # noqa: BLE001 - the single readings will tell
            with self._lock:
                self._list_from = time.monotonic() + LISTS_AGAIN
            missing = listed
        else:
            for each in listed:
                state = states.get(each.job)
                if state is None or not state.status:
                    missing.append(each)
                else:
                    pauses[each] = _answer(each.saw, state)
        with self._lock:
            self._lists = False
            for each, pause in pauses.items():
                self._set(each, pause)
            self._look_again()
        for each in missing:
            asking.do(lambda each=each: self._read(each))  # type: ignore[misc]

    def _set(self, watched: Watched, pause: float | None) -> None:
        if pause is None:
            self._watched.discard(watched)
        else:
            watched.due, watched.interval = time.monotonic() + pause, pause


def _answer(told: Callable[[T], float | None], what: T) -> float | None:
    """What a run answers to what was read of its job. By a fault in that neither it nor any other is forgotten."""
    try:
        return told(what)
    except Exception:  # noqa: BLE001 - see above
        log_fault()
        return LONGEST_INTERVAL


def ask(there: remote.Remote, question: Callable[[], T]) -> T:
    """Ask the service, and once more with a new token if the present one is refused.

    Raises:
        RemoteError: It did not answer, or refused.
    """
    known = there.renewals
    try:
        return question()
    except remote.Refused:
        there.renew(known)
        return question()


_pollers: weakref.WeakValueDictionary[tuple[int, str], Poller] = weakref.WeakValueDictionary()
_making = forks.make_lock()


def poller_of(there: remote.Remote, tag: str) -> Poller:
    """The poller of the jobs with this tag at an instance; there is one for as long as anybody holds it.

    A job that was attached, or taken up by its key, has that of the driver that submitted it: a list by that shows none
    of this process's own jobs.
    """
    with _making:
        known = _pollers.get((id(there), tag))
        if known is None:
            known = _pollers[id(there), tag] = Poller(there, tag)
        return known


forks.reset_in_child(_pollers.clear)
