"""The threads that make requests: few, and shared fairly.

Work belongs to a lane and to somebody. All of one lane goes to the same service, and only so much of it is done at the
same time: a slow service keeps its own lane waiting and no other. Within a lane those who have work take turns, so that
one with a thousand jobs does not hold up one with a single job.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

KEPT = 4
"""Threads that are kept when there is nothing to do: the next death must not wait for one."""

IDLE_SECONDS = 10.0
"""After which any other idle thread ends."""

Work = Callable[[], object]


class Lane:
    """Work of one kind.

    Args:
        workers: The threads.
        width: How much of it is done at the same time, at most; it may be changed.
    """

    def __init__(self, workers: Workers, width: int) -> None:
        self._workers = workers
        self.width = width
        self._assigned = 0
        self._turns: OrderedDict[object, deque[Work]] = OrderedDict()

    def submit(self, whose: object, work: Work) -> None:
        """Have a thread do something; from any thread.

        Raises:
            RuntimeError: If there is no thread, and none can be started.
        """
        self._workers.submit(self, whose, work)

    def add(self, whose: object, work: Work) -> None:
        """Line up some work. Called with the workers' lock held, as what follows."""
        self._turns.setdefault(whose, deque()).append(work)

    def assign(self) -> Work | None:
        """The next work, if there is any and it may be done now: that of who has waited longest."""
        if not self._turns or self._assigned >= self.width:
            return None
        self._assigned += 1
        whose, lined_up = self._turns.popitem(last=False)
        work = lined_up.popleft()
        if lined_up:
            self._turns[whose] = lined_up
        return work

    def done(self) -> None:
        """Some work is done."""
        self._assigned -= 1


class Workers:
    """The threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: deque[tuple[Lane, Work]] = deque()
        self._threads = 0
        self._idle = 0

    def submit(self, lane: Lane, whose: object, work: Work) -> None:
        """See `Lane.submit`."""
        with self._changed:
            lane.add(whose, work)
            if not self._take_from(lane):
                return
            if len(self._due) <= self._idle:
                self._changed.notify()
                return
            self._threads += 1
            try:
                threading.Thread(target=self._work, daemon=True).start()
            except RuntimeError:
                self._threads -= 1
                if not self._threads:
                    raise

    def _take_from(self, lane: Lane) -> bool:
        work = lane.assign()
        if work is None:
            return False
        self._due.append((lane, work))
        return True

    def _work(self) -> None:
        while (assigned := self._next()) is not None:
            lane, work = assigned
            with contextlib.suppress(Exception):  # each piece of work tells whom it concerns
                work()
            del work, assigned  # what it refers to is not kept while this thread is idle
            with self._changed:
                lane.done()
                self._take_from(lane)

    def _next(self) -> tuple[Lane, Work] | None:
        """What is due next; None if this thread is not needed any more."""
        with self._changed:
            while not self._due:
                self._idle += 1
                is_woken = self._changed.wait(None if self._threads <= KEPT else IDLE_SECONDS)
                self._idle -= 1
                if not is_woken and not self._due and self._threads > KEPT:
                    self._threads -= 1
                    return None
            return self._due.popleft()
