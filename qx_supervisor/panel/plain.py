"""One timestamped line per change, on stderr, and one a minute while nothing changes: for logs.

Also for terminals that can do no more, and for people who set `NO_COLOR`.
"""

from __future__ import annotations

import sys
import time

from ..result import RunResult
from ..status import Status
from . import notices
from .view import View, printable

HEARTBEAT = 60.0
"""Seconds without a line, after which one is written all the same: a log that stands still looks like a dead one."""


class Plain:
    """Writes lines to whatever `sys.stderr` is at the time."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._watched: int | None = None
        self._last = view.clock()

    def show(self, status: Status) -> None:
        """Write a line, if there is news."""
        self._write_notices()
        view = self._view
        if not view.see(status) or status.state == "done":  # `close` says so, and what it took
            return
        parts = [printable(str(status))]
        if status.watcher not in (None, self._watched):
            self._watched = status.watcher
            parts.append(f"watched by pid {status.watcher}")
        if status.state == "queued" and (status.queue_position or status.estimated_start):
            parts.append(view.queue())
        self._write(parts)

    def tick(self) -> None:
        """Write that nothing has changed, if that has been so for a while."""
        self._write_notices()
        view = self._view
        if view.status is None or view.outcome is not None or view.clock() - self._last < HEARTBEAT:
            return
        parts = [f"still {printable(str(view.status))}", view.times()]
        if view.status.state == "queued" and (view.status.queue_position or view.status.estimated_start):
            parts.append(view.queue())
        self._write([*parts, view.protection()])

    def _write_notices(self) -> None:
        for text in notices.take():
            self._write([text])

    def close(self, outcome: RunResult | BaseException) -> None:
        """Write what it took."""
        self._view.end(outcome)
        self._write_notices()
        if isinstance(outcome, RunResult):
            self._write([self._view.summary()])

    def _write(self, parts: list[str]) -> None:
        self._last = self._view.clock()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        write(f"{stamp} qx: {' · '.join(parts)}\n")


def write(text: str) -> None:
    """Write to stderr, if there is one."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # no stderr, a closed one, or a terminal that has hung up: the run goes on
