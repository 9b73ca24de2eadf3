"""Which drivers have died with runs in flight, and what became of these.

The ledger says what was done, and of which runs; a watcher's log, where it is on this machine, also how the driver died
and how long all of it took.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..usage import AFTER_A_DEATH
from ..watcher import events
from ..watcher.seen_process import in_words
from .entry import Entry

DEAD = ("ending", "waiting", "orphan", "reaping", "pending")
"""States of runs whose driver is gone, and which are not over."""

TOLD = ("driver died", "all resolved")
"""The events of a watcher's log that are about a death as a whole."""

LATE = 86400.0
"""How long after a row was written last its death may be told of, in seconds: no longer is anything looked for."""

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a driver.

    Attributes:
        at: When it died, or was seen to be dead, in seconds since the epoch.
        host: Its host's name.
        pid: Its process id.
        program: Its program.
        how: How it ended, in words; "" if that is not known.
        by: Who looked after its runs: "watcher", "reap", "reaper"; "" if nobody has yet.
        state: What its runs have come to: "resolved", or a state of one that is not over.
        runs: Its runs that were in flight.
        jobs: How many of their jobs were cancelled, had finished, and so on; "" counts those that are open.
        charged: What these were charged, in QPU seconds; None if nothing is known.
        seconds: How long it took until all was resolved; None if that is not known.
    """

    at: float
    host: str
    pid: int
    program: str
    how: str
    by: str
    state: str
    runs: frozenset[str]
    jobs: Counter[str]
    charged: float | None
    seconds: float | None

    def cells(self) -> dict[str, Any]:
        """A line of the table of deaths."""
        return {
            "at": self.at,
            "host": self.host,
            "pid": self.pid,
            "program": self.program,
            "how": self.how,
            "by": self.by,
            "state": self.state,
            "runs": len(self.runs),
            "run": min(self.runs),
            "jobs": dict(self.jobs),
            "charged": self.charged,
            "seconds": self.seconds,
        }


def is_after_death(entry: Entry) -> bool:
    """Whether a run was in flight when its driver died."""
    return entry.state in DEAD if entry.is_open else entry.row.ended_by in AFTER_A_DEATH


def find(entries: Iterable[Entry], lines: Iterable[Line]) -> list[Death]:
    """Find the deaths, the latest first.

    Args:
        entries: The runs.
        lines: What watchers have logged, as objects.
    """
    told: dict[tuple[object, object], list[events.Event]] = defaultdict(list)
    for line in lines:
        if line.get("event") in TOLD:
            told[line.get("host"), line.get("driver")].append(events.from_object(line))
    groups: dict[object, list[Entry]] = defaultdict(list)
    for entry in entries:
        if is_after_death(entry):
            groups[entry.driver].append(entry)
    found = []
    for group in groups.values():
        host, _, pid, _ = group[0].driver
        found.append(_death(group, told.get((host, pid), [])))
    return sorted(found, key=lambda death: -death.at)


def _death(group: list[Entry], told: list[events.Event]) -> Death:
    first = group[0].row
    began, written = max(each.began for each in group), max(each.row.updated_at for each in group)
    # The pid may have been another driver's before, or be by now.
    about = {each.name: each for each in told if began - 1 <= each.time <= written + LATE}
    died, resolved = (about.get(name) for name in TOLD)
    known = died or resolved
    status = known.fields.get("wait_status") if known else None
    seconds = resolved.fields.get("seconds") if resolved else None
    seen = [moment for each in group if (moment := each.row.let_go_at or each.row.ended_at) is not None]
    at = died.time if died else min(seen, default=written)
    open_states = [each.state for each in group if each.is_open]
    charges = [each.row.charged for each in group if each.row.charged is not None]
    return Death(
        at=at,
        host=first.host_identity.host,
        pid=first.pid,
        program=first.program,
        how=in_words(status if isinstance(status, int) else None) if known else "",
        by=next((each.row.ended_by for each in group if not each.is_open), ""),
        state=min(open_states, key=DEAD.index) if open_states else "resolved",
        runs=frozenset(each.row.run for each in group),
        jobs=Counter(outcome for each in group for outcome in each.row.jobs.values()),
        charged=sum(charges) if charges else None,
        seconds=float(seconds) if isinstance(seconds, int | float) and not open_states else None,
    )
