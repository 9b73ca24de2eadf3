"""The journal: every request in order of arrival, and waiting for requests.

Tests and benchmarks wait here instead of sleeping: an entry is visible once the whole request has arrived, before it is
handled, and each arrival and each answer wakes the waiting threads.
"""

from __future__ import annotations

import fnmatch
import threading
import time
from dataclasses import dataclass, replace

from .records import JournalEntry

# So that a service that runs for weeks does not grow without bound. No test run sends that many requests.
_LIMIT = 200_000

# Query fields whose value is a credential. The current client sends none, another might.
_SECRET_FIELDS = frozenset({"access_token", "apikey", "api_key", "token"})


@dataclass(frozen=True)
class Pattern:
    """Selects entries.

    Attributes:
        after: Only entries with a higher ``seq``.
        method: Only this method.
        path: Only paths that match this ``fnmatch`` pattern; a ``*`` spans slashes too.
    """

    after: int = 0
    method: str | None = None
    path: str | None = None

    def matches(self, entry: JournalEntry) -> bool:
        """Whether it selects the entry."""
        return (
            entry.seq > self.after
            and (self.method is None or entry.method == self.method.upper())
            and (self.path is None or fnmatch.fnmatchcase(entry.path, self.path))
        )


class Journal:
    """The entries. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: list[JournalEntry] = []
        self._seq = 0

    def arrive(
        self, *, arrived: int, connection: int, method: str, path: str, query: dict[str, list[str]], instance: str = ""
    ) -> JournalEntry:
        """Add a request."""
        shown = {name: ["…"] if name.lower() in _SECRET_FIELDS else values for name, values in query.items()}
        with self._changed:
            self._seq += 1
            entry = JournalEntry(self._seq, arrived, connection, method, path, shown, instance=instance)
            self._entries.append(entry)
            if len(self._entries) > _LIMIT:
                del self._entries[: _LIMIT // 2]
            self._changed.notify_all()
        return entry

    def add(
        self,
        entry: JournalEntry,
        *,
        tags: list[str] | None = None,
        job_id: str | None = None,
        fault: str | None = None,
    ) -> None:
        """Complete an entry."""
        with self._changed:
            entry.tags = entry.tags if tags is None else tags
            entry.job_id = entry.job_id if job_id is None else job_id
            entry.fault = entry.fault if fault is None else fault

    def answer(self, entry: JournalEntry, status: int | None) -> None:
        """Record the answer's status; None: the connection was dropped."""
        with self._changed:
            entry.status, entry.answered = status, time.monotonic_ns()
            self._changed.notify_all()

    def cursor(self) -> int:
        """The latest ``seq``, 0 if there is none."""
        with self._changed:
            return self._seq

    def select(self, pattern: Pattern) -> list[JournalEntry]:
        """Copies of the matching entries."""
        with self._changed:
            return [replace(entry) for entry in self._since(pattern.after) if pattern.matches(entry)]

    def wait(self, pattern: Pattern, *, count: int, timeout: float, answered: bool) -> tuple[bool, list[JournalEntry]]:
        """Wait until ``count`` entries match (and are answered, if ``answered``).

        Returns:
            Whether they arrived within ``timeout`` seconds, and the matching entries.
        """
        deadline = time.monotonic() + timeout
        found: list[JournalEntry] = []
        scanned = pattern.after
        with self._changed:
            while True:
                # Only new entries: every request wakes this thread, which must not read the whole journal each time.
                found += [entry for entry in self._since(scanned) if pattern.matches(entry)]
                scanned = max(scanned, self._seq)
                ready = [entry for entry in found if entry.answered is not None] if answered else found
                remaining = deadline - time.monotonic()
                if len(ready) >= count or remaining <= 0:
                    return len(ready) >= count, [replace(entry) for entry in ready]
                self._changed.wait(remaining)

    def clear(self) -> None:
        """Forget the entries. Numbering continues, so an earlier cursor stays valid."""
        with self._changed:
            self._entries = []
            self._changed.notify_all()

    def _since(self, seq: int) -> list[JournalEntry]:
        """Entries later than ``seq``. Numbers are consecutive, so their place is known."""
        if not self._entries:
            return []
        return self._entries[max(0, seq - self._entries[0].seq + 1) :]
