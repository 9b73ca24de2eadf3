"""The watcher's event loop: one wait for descriptors, calls from other threads, and timers.

It knows nothing of drivers. Whatever it calls must do a bounded piece of work and never block: all that it watches
takes turns.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import select
import socket
import time
from collections.abc import Callable

LONGEST_WAIT = 3600.0
"""Seconds. poll(2) has a limit."""


class Loop:
    """The loop. Only `post` may be called from another thread, or from a signal handler.

    Attributes:
        when_fault: Called with what a call has raised; the loop goes on.
    """

    def __init__(self) -> None:
        self.when_fault: Callable[[Exception], object] = lambda _: None
        self._poll = select.poll()
        self._watched: dict[int, tuple[Callable[[], object], bool]] = {}
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._is_over = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.watch(self._wake_reader.fileno(), self._drain_wake)

    def watch(self, descriptor: int, call: Callable[[], object], *, first: bool = False) -> None:
        """Call something whenever a descriptor has something to read, or is closed.

        Args:
            descriptor: What is watched; if it was already, this replaces it.
            call: What is called.
            first: Whether it is called before others: a death comes before messages.
        """
        self._watched[descriptor] = call, first
        self._poll.register(descriptor, select.POLLIN)

    def watch_for_room(self, descriptor: int, *, wanted: bool) -> None:
        """Whether to call for room to write, too, of a descriptor that is watched."""
        self._poll.modify(descriptor, select.POLLIN | (select.POLLOUT if wanted else 0))

    def unwatch(self, descriptor: int) -> None:
        """Watch a descriptor no more; before it is closed."""
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def post(self, call: Callable[[], object]) -> None:
        """Have the loop call something; from any thread, or from a signal handler."""
        self._calls.put(call)
        try:
            self._wake_writer.send(b"\0")
        except BlockingIOError:
            pass  # it is awake already

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Call something after some seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    def stop(self) -> None:
        """End `run`."""
        self._is_over = True

    def run(self) -> None:
        """Wait and call, until `stop`."""
        while not self._is_over:
            until = self._timers[0][0] - time.monotonic() if self._timers else LONGEST_WAIT
            if not self._calls.empty():  # left over from the last turn
                until = 0.0
            happened = self._poll.poll(math.ceil(max(0.0, min(until, LONGEST_WAIT)) * 1000))
            for first in (True, False):
                for descriptor, _ in happened:
                    watched = self._watched.get(descriptor)  # an earlier call may have ended its watch
                    if watched is not None and watched[1] is first and not self._is_over:
                        self._call(watched[0])
            for _ in range(self._calls.qsize()):
                self._call(self._calls.get_nowait())
            while self._timers and self._timers[0][0] <= time.monotonic() and not self._is_over:
                self._call(heapq.heappop(self._timers)[2])

    def _call(self, call: Callable[[], object]) -> None:
        if self._is_over:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - one fault must not end the watch over everything else
            self.when_fault(error)

    def _drain_wake(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            pass
