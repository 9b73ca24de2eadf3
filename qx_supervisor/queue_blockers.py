"""What keeps a queued job from its turn, for as long as it may last: a backend that is away, time that is used up.

IBM Quantum takes such jobs, and has them wait without a word. So it is asked about them, once a minute for all runs of
this process that wait at the same backend of the same instance.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
import weakref
from typing import Any

from . import threads
from .watcher import remote, service_messages

FIRST_LOOK = 2.0
"""Seconds in the queue after which it is asked first: a job that is run at once is not worth it."""

LOOK_AGAIN = 60.0
"""Seconds between two looks."""

FORGET = 120.0
"""Seconds after which what was found is no longer told, if no run waited there in between."""

_AT_WORK = ("", "active", "online", "available")


class QueueBlockers:
    """What is known of one backend and its instance. Safe to use from any thread.

    Args:
        there: The instance.
        backend: The backend's name.
    """

    def __init__(self, there: remote.Remote, backend: str) -> None:
        self._there = there
        self._backend = backend
        self._lock = threading.Lock()
        self._due = 0.0
        self._asked = 0.0
        self._known = ""

    def words(self) -> str:
        """Why a job may wait without end, or "". If that was found out long ago, it is found out anew meanwhile."""
        now = time.monotonic()
        with self._lock:
            if now - self._asked >= FORGET:  # somebody may have kept it since a run of yesterday
                self._known = ""
            self._asked = now
            if now >= self._due:
                self._due = now + LOOK_AGAIN
                with contextlib.suppress(RuntimeError):  # no thread can be had
                    threads.looking.do(self._look)
            return self._known

    def _look(self) -> None:
        # What can't be read is not known to be in the way; of trouble on the way there the job's own state tells.
        found = []
        with contextlib.suppress(remote.RemoteError):
            found.append(away(self._backend, self._there.backend_status(self._backend)))
        with contextlib.suppress(remote.RemoteError):
            found.append(used_up(self._there.usage()))
        if not found:
            return
        why = "; ".join(filter(None, found))
        with self._lock:
            self._known = f"{why}; the job waits until that changes, unless you cancel it" if why else ""


def away(backend: str, status: dict[str, Any]) -> str:
    """Why a backend takes no jobs out of its queue, by its status as the service tells it; or ""."""
    word = service_messages.one_line(str(status.get("status") or ""))
    message = service_messages.one_line(str(status.get("message") or ""))
    if status.get("state") is False:
        said = f"{backend} is offline" + ("" if word.lower() in (*_AT_WORK, "offline") else f" ({word})")
    elif word.lower() not in _AT_WORK:
        said = f"{backend} is {word}"
    else:
        return ""
    return f"{said}: {message}" if message and message.lower() != word.lower() else said


def used_up(usage: dict[str, Any]) -> str:
    """That an instance's time is used up, with what is left and when there is more, or ""."""
    if usage.get("usage_limit_reached") is not True:
        return ""
    used = _number(usage.get("usage_consumed_seconds"))
    limit = _number(usage.get("usage_limit_seconds"))
    if limit is None:
        limit = _number(usage.get("usage_allocation_seconds"))
    parts = ["the instance has used up its time"]
    if used is not None and limit is not None:
        parts.append(f"{used:g} s of {limit:g} s are used, {max(0.0, limit - used):g} s are left")
    period = usage.get("usage_period")
    end = period.get("end_time") or period.get("end") if isinstance(period, dict) else None
    if isinstance(end, str):
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.fromisoformat(end).astimezone()
            parts.append(f"its period ends at {moment:%Y-%m-%d %H:%M}")
    if len(parts) == 1:
        return f"{parts[0]} (see https://quantum.cloud.ibm.com/instances)"
    return f"{parts[0]} ({', '.join(parts[1:])}; see https://quantum.cloud.ibm.com/instances)"


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


_known_blockers: weakref.WeakValueDictionary[tuple[int, str], QueueBlockers] = weakref.WeakValueDictionary()
_making = threading.Lock()


def blockers_of(there: remote.Remote, backend: str) -> QueueBlockers:
    """The one of a backend and its instance; there is one as long as anybody has it."""
    with _making:
        known = _known_blockers.get((id(there), backend))
        if known is None:
            known = _known_blockers[id(there), backend] = QueueBlockers(there, backend)
        return known


def _begin_anew() -> None:
    _known_blockers.clear()
    _making._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001


os.register_at_fork(after_in_child=_begin_anew)
