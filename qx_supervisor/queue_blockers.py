"""Why a queued job may wait forever: its backend is away, or its instance's time is used up.

IBM Quantum accepts such jobs and queues them without a message. So the state of the backend and the instance is read
once a minute, for all runs of this process that wait there.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import Any

from . import forks, quota, threads
from .watcher import remote, service_messages

FIRST_LOOK = 2.0
"""Seconds in the queue before the first look, since most jobs run at once."""

LOOK_AGAIN = 60.0
"""Seconds between two looks."""

FORGET = 120.0
"""Seconds without a waiting run after which the last finding is discarded."""

_AVAILABLE = ("", "active", "online", "available")


class QueueBlockers:
    """Why jobs may wait forever at a backend of an instance. Thread-safe.

    Args:
        api: The instance.
        backend: The backend's name.
    """

    def __init__(self, api: remote.Remote, backend: str) -> None:
        self._api = api
        self._backend = backend
        self._lock = threading.Lock()
        self._due = 0.0
        self._asked = 0.0
        self._known = ""

    def words(self) -> str:
        """Why a job may wait forever, or "". An old finding is renewed in the background."""
        now = time.monotonic()
        with self._lock:
            if now - self._asked >= FORGET:  # the last run that waited here may be long past
                self._known = ""
            self._asked = now
            if now >= self._due:
                self._due = now + LOOK_AGAIN
                with contextlib.suppress(RuntimeError):  # no thread is available
                    threads.looking.do(self._look)
            return self._known

    def _look(self) -> None:
        # Errors are ignored: the job's own state shows trouble with the network.
        found = []
        with contextlib.suppress(remote.RemoteError):
            found.append(away(self._backend, self._api.backend_status(self._backend)))
        with contextlib.suppress(remote.RemoteError):
            found.append(quota.read(self._api).used_up())
        if not found:
            return
        why = "; ".join(filter(None, found))
        with self._lock:
            self._known = f"{why}; the job waits until that changes, unless you cancel it" if why else ""


def away(backend: str, status: dict[str, Any]) -> str:
    """Why a backend does not run queued jobs, by its status at the service; or ""."""
    word = service_messages.one_line(str(status.get("status") or ""))
    message = service_messages.one_line(str(status.get("message") or ""))
    if status.get("state") is False:
        text = f"{backend} is offline" + ("" if word.lower() in (*_AVAILABLE, "offline") else f" ({word})")
    elif word.lower() not in _AVAILABLE:
        text = f"{backend} is {word}"
    else:
        return ""
    return f"{text}: {message}" if message and message.lower() != word.lower() else text


_known_blockers: weakref.WeakValueDictionary[tuple[int, str], QueueBlockers] = weakref.WeakValueDictionary()
_making = forks.make_lock()


def blockers_of(api: remote.Remote, backend: str) -> QueueBlockers:
    """The blockers of a backend and its instance, shared by all runs that wait there."""
    with _making:
        known = _known_blockers.get((id(api), backend))
        if known is None:
            known = _known_blockers[id(api), backend] = QueueBlockers(api, backend)
        return known


forks.reset_in_child(_known_blockers.clear)
