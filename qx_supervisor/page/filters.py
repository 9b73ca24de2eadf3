"""Which runs are asked for, as the address of the page says: `?state=live&host=node7&since=1d`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .entry import Entry

UNITS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}

SINCE = "7d"

OPEN = "open"
"""All states of runs that are not over."""

STATES = (
    "live", "ending", "waiting", "orphan", "reaping", "pending", "elsewhere",
    "finished", "failed", "cancelled", "detached", "expired", "done",
)  # fmt: skip

ENDED_BY = ("program", "signal", "watcher", "reap", "reaper", "someone else", "IBM")

CHOICES = ("host", "label", "backend", "program")
"""What values are offered of."""

EXACT = (*CHOICES, "pid")

LONGEST = 200
"""Characters of a value."""

MOST_PAGES = 100_000


@dataclass(frozen=True)
class Filter:
    """Which runs.

    Attributes:
        since: Runs that began, or ended, within so many seconds; those that are not over are always among them.
        states: Only in these states; none: in any.
        ended_by: Only those that one of these has ended.
        exact: What else must be so: host, label, backend, program.
        words: What must stand somewhere in them, in small letters.
    """

    since: float
    states: frozenset[str] = frozenset()
    ended_by: frozenset[str] = frozenset()
    exact: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """Read it from the query of an address; what else stands there is for others.

        Raises:
            ConfigError: If a value makes no sense.
        """
        for name in ("since", "state", "by", "q", *EXACT):
            if len(query.get(name, "")) > LONGEST:
                raise ConfigError("config", f"{name}= in the address is longer than {LONGEST} characters: shorten it")
        since = query.get("since") or SINCE
        found = re.fullmatch(r"(\d{1,4})([hdw])", since)
        if found is None or not int(found[1]):
            raise ConfigError("config", f"since= in the address is an age such as 12h, 7d or 4w, not {since!r}")
        return cls(
            since=int(found[1]) * UNITS[found[2]],
            states=_some(query, "state", (OPEN, *STATES)),
            ended_by=_some(query, "by", ENDED_BY),
            exact=tuple((name, query[name]) for name in EXACT if query.get(name)),
            words=tuple(query.get("q", "").lower().split()),
        )

    def is_recent(self, entry: Entry, now: float) -> bool:
        """Whether a run is of the time that is asked for."""
        return entry.is_open or max(entry.began, entry.ended or 0.0) >= now - self.since

    def wants(self, entry: Entry) -> bool:
        """Whether a run, of whatever time, is asked for."""
        return (
            (not self.states or entry.state in self.states or (entry.is_open and OPEN in self.states))
            and (not self.ended_by or entry.row.ended_by in self.ended_by)
            and all(entry.value(name) == value for name, value in self.exact)
            and all(word in entry.text for word in self.words)
        )

    def chosen(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """The runs that are asked for, in order."""
        return [entry for entry in entries if self.is_recent(entry, now) and self.wants(entry)]


def page_of(query: Mapping[str, str]) -> int:
    """The number of the page of a table, from 1.

    Raises:
        ConfigError: If it is none.
    """
    text = query.get("page") or "1"
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ConfigError("config", f"page= in the address is a number from 1, not {text[:LONGEST]!r}")
    return int(text)


def _some(query: Mapping[str, str], name: str, known: tuple[str, ...]) -> frozenset[str]:
    given = frozenset(word for word in query.get(name, "").split(",") if word)
    if unknown := sorted(given - {*known}):
        raise ConfigError("config", f"{name}={unknown[0]} in the address is unknown; there are: {', '.join(known)}")
    return given
