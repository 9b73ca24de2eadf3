"""Who is told that something has changed: server-sent events.

An event says that there is news, not what: whoever listens asks for what it shows. The ledger is looked at once a
second while somebody listens, and not at all otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .reader import Reader

MOST = 32
"""How many may listen at once."""

LOOK_SECONDS = 1.0

HEARTBEAT_SECONDS = 15.0
"""After which a listener is told that there is nothing new, so that proxies and browsers keep the connection."""

RETRY_MILLISECONDS = 2000
"""After which a browser whose connection broke comes again."""


class Listeners:
    """Those who listen. All methods are for the thread of the event loop.

    Args:
        reader: Reads the ledger.

    Attributes:
        is_over: Set when the server ends.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._news: set[asyncio.Event] = set()
        self._version: int | None = None
        self._looking: asyncio.Task[None] | None = None
        self.is_over = asyncio.Event()

    def __len__(self) -> int:
        return len(self._news)

    @property
    def is_full(self) -> bool:
        """Whether nobody else may listen."""
        return len(self._news) >= MOST

    def stop(self) -> None:
        """Let all go: the server ends."""
        self.is_over.set()
        for news in self._news:
            news.set()

    async def listen(self) -> AsyncIterator[bytes]:
        """What one listener is sent."""
        news = asyncio.Event()
        self._news.add(news)
        if self._version is not None:  # others listen: what they were told before this one came, it has not heard
            news.set()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
            while not self.is_over.is_set():
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                news.clear()
                if not self.is_over.is_set():
                    yield f"event: change\nid: {self._version}\ndata: {self._version}\n\n".encode()
        finally:
            self._news.discard(news)

    async def _look(self) -> None:
        """Look once a second, until nobody listens any more."""
        try:
            while self._news and not self.is_over.is_set():
                with contextlib.suppress(Exception):  # the reader has said what is the matter
                    version = (await asyncio.wrap_future(self._reader.ask())).version
                    if version != self._version:
                        self._version = version
                        for news in self._news:
                            news.set()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._looking = None
