"""One timestamped line on stderr per change, and one a minute while nothing changes.

For logs, for terminals that can't show a panel, and for users who set `NO_COLOR`. Of several runs at the same time, the
line a minute is about all of them.
"""

from __future__ import annotations

import sys
import time

from ..result import RunResult
from ..status import Status
from . import batch, notices
from .view import View, printable

HEARTBEAT = 60.0
"""Seconds of silence after which a line is written, so that the log does not look dead."""


class Plain:
    """Shows a run as lines on the current `sys.stderr`."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._watched: int | None = None
        self._quota = self._job = ""
        self._together = batch.of(view)

    def show(self, status: Status) -> None:
        """Write a line if the status has changed."""
        self._write_notices()
        view = self._view
        if not view.see(status) or status.state == "done":  # `close` writes that
            return
        parts = [printable(str(status))]
        if view.job_id != self._job:
            self._job = view.job_id
            parts += filter(None, (f"key {view.key}" if view.key else "", view.pubs()))
        if status.watcher not in (None, self._watched):
            self._watched = status.watcher
            parts.append(f"watched by pid {status.watcher}")
        if view.quota() != self._quota:
            self._quota = view.quota()
            parts += [f"quota: {self._quota}"] if self._quota else []
        self._write([*parts, *self._queue()])

    def tick(self) -> None:
        """Write a heartbeat if nothing has been written for a while, about any run that is in progress too."""
        self._write_notices()
        view, together = self._view, self._together
        if view.status is None or view.outcome is not None or not together.may_speak(view.clock(), HEARTBEAT):
            return
        if together.total > 1:
            progress, *more = together.words()
            self._write([f"still {progress}", *more, view.protection()])
        else:
            self._write([f"still {printable(str(view.status))}", view.times(), *self._queue(), view.protection()])

    def _queue(self) -> list[str]:
        status = self._view.status
        is_known = status and status.state == "queued" and (status.queue_position or status.estimated_start)
        return [self._view.queue()] if is_known else []

    def _write_notices(self) -> None:
        for text in notices.take():
            self._write([text])

    def close(self, outcome: RunResult | BaseException) -> None:
        """Write the summary."""
        self._view.end(outcome)
        self._together.end(self._view)
        self._write_notices()
        parts = [self._view.summary()] if isinstance(outcome, RunResult) else []  # a failure was told as a status
        if self._together.total > 1:
            parts.append(self._together.progress())
        if parts:
            self._write(parts)

    def _write(self, parts: list[str]) -> None:
        self._together.spoke(self._view.clock())
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        write(f"{stamp} qx: {' · '.join(parts)}\n")


def write(text: str) -> None:
    """Write to stderr, if possible."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # no stderr, a closed one, or a terminal that has hung up: the run goes on
