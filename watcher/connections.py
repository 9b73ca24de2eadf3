"""The connections to one service and its token service, which several threads use, and a warm one for the first cancel.

A new connection over TLS costs two round trips before a request can leave, and one more by a proxy. So a watcher keeps
one open while it has nothing to do: it is opened when the account is armed, and anew when the service has closed it.
One thread does that for all accounts. It sleeps until a connection ends, and costs nothing meanwhile.
"""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .protocol import Credentials
from .wake import Wake

if TYPE_CHECKING:
    import requests

SIZE = 4
"""Connections to one service, at most, unless many drivers share them."""

CONNECT_TIMEOUT = 5.0
"""Seconds for each step to a connection."""

SHORTEST_PAUSE, LONGEST_PAUSE = 15.0, 240.0
"""Seconds from one attempt to open a warm connection to the next: doubled while that fails, or it does not last."""

IN_USE_PAUSE = 1.0
"""Seconds after which a warm connection that was in use is looked at again."""


class Connections:
    """The connections to one service and its token service.

    Args:
        credentials: How it is reached.
        size: The most that are open at the same time.
    """

    def __init__(self, credentials: Credentials, size: int = SIZE) -> None:
        self._size = size
        self._urls = (credentials.endpoint, credentials.iam_url)
        self._verify = credentials.verify
        self._proxies = credentials.proxies or {}
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._in_use = 0

    def __repr__(self) -> str:
        return "Connections()"

    def open(self) -> requests.Session:
        """The session, with all that it will ever read from files.

        Raises:
            OSError: If the CA certificates can't be read.
        """
        from . import transport

        with self._lock:
            if self._session is None:
                self._session = transport.make_session(self._verify, self._proxies, self._urls, self._size)
            return self._session

    def request(self, method: str, url: str, seconds: float, **details: Any) -> requests.Response:
        """Make a request.

        Args:
            method: HTTP method.
            url: The URL.
            seconds: How long its answer may take.
            **details: As `requests.Session.request` takes them.
        """
        with self._lock:
            self._in_use += 1
        try:
            # The service itself never redirects: a network's login page does, for instance.
            return self.open().request(
                method, url, timeout=(CONNECT_TIMEOUT, seconds), allow_redirects=False, **details
            )
        finally:
            with self._lock:
                self._in_use -= 1

    def connect(self, *, opens: bool) -> int | None:
        """See that there is a connection to the service for the next request.

        Args:
            opens: Whether one is opened if there is none.

        Returns:
            Its descriptor; None if there is none.

        Raises:
            Exception: If there is no way to the service.
        """
        from . import transport

        return transport.connect(self.open(), self._urls[0], CONNECT_TIMEOUT, opens=opens)

    @property
    def is_in_use(self) -> bool:
        """Whether a request is under way."""
        return self._in_use > 0

    def keep_warm(self) -> None:
        """Keep a connection to the service open from now on, as long as this object exists."""
        _the_keeper().add(self)


@dataclass
class _Kept:
    """A connection that is kept open.

    Attributes:
        connections: Where it is to be.
        descriptor: Its descriptor, while it is watched.
        opened_at: When it was opened, or that was tried.
        look_at: When to look at it, even if nothing happens.
        pause: How long to wait after `opened_at`, should it not last.
    """

    connections: weakref.ref[Connections]
    descriptor: int | None = None
    opened_at: float = -math.inf
    look_at: float = 0.0
    pause: float = field(default_factory=lambda: SHORTEST_PAUSE)

    def look(self, now: float) -> None:
        """Open it again if that is due."""
        connections = self.connections()
        if connections is None:
            return
        lasted = self.descriptor is not None and now >= self.opened_at + SHORTEST_PAUSE
        opens = lasted or now >= self.look_at
        self.descriptor, self.look_at = None, now + IN_USE_PAUSE
        if connections.is_in_use:
            return
        with contextlib.suppress(Exception):  # a cancel will say what is wrong with the way to the service
            self.descriptor = connections.connect(opens=False)
            if self.descriptor is None and opens:
                self.opened_at = now
                self.descriptor = connections.connect(opens=True)
        if lasted:
            self.pause = SHORTEST_PAUSE
        if self.descriptor is not None:
            self.look_at = math.inf
        else:
            self.look_at = self.opened_at + self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE)


class _Keeper:
    """The thread that keeps connections open."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._lock = threading.Lock()
        self._wake = Wake()
        threading.Thread(target=self._work, name="warm", daemon=True).start()

    def add(self, connections: Connections) -> None:
        """Keep one open there."""
        with self._lock:
            self._kept.append(_Kept(weakref.ref(connections)))
        self._wake.set()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._kept = [each for each in self._kept if each.connections() is not None]
                kept = self._kept.copy()
            ready = self._wait(kept)
            now = time.monotonic()
            for each in kept:
                if each.descriptor in ready or now >= each.look_at:
                    each.look(now)

    def _wait(self, kept: list[_Kept]) -> set[int]:
        """Wait until there may be something to do; returns the connections that have something to read."""
        poll = select.poll()
        for descriptor in (self._wake.fileno(), *(each.descriptor for each in kept)):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        until = min((each.look_at for each in kept), default=math.inf)
        pause = None if until == math.inf else max(0, math.ceil((until - time.monotonic()) * 1000))
        ready = {descriptor for descriptor, _ in poll.poll(pause)}
        if self._wake.fileno() in ready:
            self._wake.clear()
        return ready


_keeper: _Keeper | None = None
_making = threading.Lock()


def _the_keeper() -> _Keeper:
    global _keeper  # noqa: PLW0603 - one thread for all
    with _making:
        if _keeper is None:
            _keeper = _Keeper()
        return _keeper
