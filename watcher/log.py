"""The watcher's log: events go to its file and to the systemd journal, by a thread of their own, after all else.

Nothing waits for it. A disk that is full, or hangs, costs the log only.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from . import log_file, systemd_journal
from .events import Event

GATHER_SECONDS = 0.05
"""How long the thread waits before it writes: a death's cancels go first, and then what comes is written together."""

MOST_WAITING = 10_000
"""Events that wait to be written; what is beyond is lost."""

MOST_AT_ONCE = 100
"""Lines in one write."""


class Log:
    """The log.

    Args:
        directory: The state directory, or "".
        host: This host's name.
    """

    def __init__(self, directory: str, host: str) -> None:
        self._path = log_file.path_of(directory, host) if directory else ""
        self._waiting: queue.Queue[Event | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def write(self, events: Sequence[Event]) -> None:
        """Write events; from any thread, and returns at once."""
        if not events:
            return
        now = time.time()
        try:
            for event in events:
                self._waiting.put_nowait(event._replace(time=now))
        except queue.Full:
            pass
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread can be had: the next event tries again
                    return
                self._thread = thread

    def close(self, seconds: float) -> None:
        """Write what waits, for some seconds at most."""
        thread = self._thread
        if thread is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            thread.join(seconds)

    def _work(self) -> None:
        is_open = True
        while is_open:
            due = [self._waiting.get()]
            if due[0] is not None:
                time.sleep(GATHER_SECONDS)
            while len(due) < MOST_AT_ONCE and not self._waiting.empty():
                due.append(self._waiting.get_nowait())
            is_open = None not in due
            # The ledger's module, which another thread has loaded or is loading: not at the start.
            from .ledger.row import safe_detail

            events = [event.cleaned(safe_detail) for event in due if event is not None]
            if not events:
                continue
            if self._path:
                try:
                    log_file.append(self._path, "".join(f"{event.as_json()}\n" for event in events))
                except OSError:
                    pass
            systemd_journal.send(events)
