"""A few threads for any number of runs, and the timers that wake them.

A pool starts threads as there is work, up to its size, and lets them go when there is none. They are daemons: when a
program ends Python joins those of `concurrent.futures`, and a queue of a thousand submissions would keep it running.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from . import forks
from .distribution import please_report

logger = logging.getLogger("qx_supervisor")

IDLE_SECONDS = 10.0
"""How long a thread without work stays."""

Work = Callable[[], object]
T = TypeVar("T")


class ThreadPool:
    """A bounded number of threads.

    Args:
        name: What they are called in a debugger.
        size: How many there are at most.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: it has none of its parent's threads."""
        self._changed = threading.Condition()
        self._work: deque[Work] = deque()
        self._threads = self._idle = 0

    def keep_one(self) -> None:
        """Start a thread that stays for as long as there are runs."""
        with self._changed:
            if not self._threads:
                self._add()

    def _add(self) -> None:
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._threads += 1

    def do(self, work: Work) -> None:
        """Have one of the threads do something, as soon as one is free.

        Raises:
            RuntimeError: There is no thread, and none can be started.
        """
        with self._changed:
            self._work.append(work)
            if self._idle >= len(self._work):
                self._changed.notify()
            elif self._threads < self._size:
                try:
                    self._add()
                except RuntimeError:
                    if not self._threads:
                        self._work.pop()
                        raise

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Have it done; returns a future of what it returns or raises."""
        future: Future[T] = Future()

        def done() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is asked
                future.set_exception(error)
            else:
                future.set_result(result)

        self.do(done)
        return future

    def after(self, seconds: float, work: Work) -> Timer:
        """Have it done after some seconds."""
        return timers.after(seconds, functools.partial(self.do, work))

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._work:
                    self._idle += 1
                    has_work = self._changed.wait_for(lambda: self._work, IDLE_SECONDS)
                    self._idle -= 1
                    if not has_work and self._threads == 1 and _runs:
                        continue
                    if not has_work:
                        self._threads -= 1
                        return
                work = self._work.popleft()
            _do(work)
            del work  # what it holds need not wait for the next


def do_alone(name: str, work: Work) -> None:
    """Have a thread of its own do something that others must not have to wait for.

    Args:
        name: What the thread is called in a debugger.
        work: What it does.

    Raises:
        RuntimeError: None can be started.
    """
    threading.Thread(target=_do, args=(work,), name=name, daemon=True).start()


class Timer:
    """Work to be done later, unless it is cancelled."""

    __slots__ = ("work",)

    def __init__(self, work: Work) -> None:
        self.work: Work | None = work

    def cancel(self) -> None:
        """Drop the work."""
        self.work = None


class Timers:
    """A thread that does what is due. The work must be quick: anything else belongs in a pool."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child."""
        self._changed = threading.Condition()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._tidy_at = 64

    def after(self, seconds: float, work: Work) -> Timer:
        """Do something after some seconds."""
        timer = Timer(work)
        with self._changed:
            if len(self._timers) >= self._tidy_at:  # the timeouts of runs that are over
                self._timers = [each for each in self._timers if each[2].work is not None]
                heapq.heapify(self._timers)
                self._tidy_at = max(64, 2 * len(self._timers))
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
            if self._thread is None:
                self._add()
            elif self._timers[0][2] is timer:
                self._changed.notify()
        return timer

    def keep_one(self) -> None:
        """Start the thread, which stays for as long as there are runs."""
        with self._changed:
            if self._thread is None:
                self._add()

    def _add(self) -> None:
        thread = threading.Thread(target=self._serve, name="qx-clock", daemon=True)
        thread.start()
        self._thread = thread

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._timers and self._timers[0][2].work is None:
                    heapq.heappop(self._timers)
                if not self._timers:
                    if not self._changed.wait(IDLE_SECONDS) and not self._timers and not _runs:
                        self._thread = None
                        return
                    continue
                left = self._timers[0][0] - time.monotonic()
                if left > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                    continue
                work = heapq.heappop(self._timers)[2].work
            if work is not None:
                _do(work)
            del work


def _do(work: Work) -> None:
    try:
        work()
    except BaseException:  # noqa: BLE001 - the thread has other work to do
        log_fault()


def log_fault() -> None:
    """Log the exception at hand: a fault of our own that ends nothing, nor does one of a handler that is told of it."""
    if not sys.is_finalizing():  # then no thread can be started any more
        with contextlib.suppress(Exception):
            logger.exception("a fault in qx_supervisor, which goes on; %s", please_report())


timers = Timers()
announcing = ThreadPool("qx-announce", 4)  # waits for the watcher's acknowledgement, while others go on preparing
submitting = ThreadPool("qx-submit", 4)  # transpiles and submits; a minute allows about as many POSTs
asking = ThreadPool("qx-ask", 4)  # reads states and fetches results, over as many connections
ending = ThreadPool("qx-end", 4)  # cancels and confirms
parting = ThreadPool("qx-part", 16)  # ends the parts of split runs: whoever waits for them may be in `ending`
looking = ThreadPool("qx-look", 2)  # asks for what is shown beside the state, for which nobody waits
telling = ThreadPool("qx-tell", 16)  # calls `on_status` functions, which may take their time


_runs: set[object] = set()


def begin_run(run: object) -> None:
    """Note that a run begins, and start the threads that it will need.

    Python 3.12.0 to 3.12.2 starts none once the main thread has ended, and other threads' runs go on (gh-113964).

    Raises:
        RuntimeError: No thread can be started.
    """
    for each in (timers, asking, ending):
        each.keep_one()
    _runs.add(run)


def runs() -> list[object]:
    """The runs that are not over."""
    return list(_runs)


def end_run(run: object) -> None:
    """Note that a run is over."""
    _runs.discard(run)


def _forget_all() -> None:
    _runs.clear()
    for each in (timers, announcing, submitting, asking, ending, parting, looking, telling):
        each.forget()


forks.reset_in_child(_forget_all)
