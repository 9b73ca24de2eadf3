"""What many runs have in common: counts, plots, drivers, hosts, leases."""

from __future__ import annotations

import bisect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ..usage import AFTER_A_DEATH, is_a_deaths, jobs_of, moment_of
from ..watcher import ledger
from ..watcher.facts import Figures
from .deaths import Death
from .entry import Entry
from .filters import CHOICES

Key = TypeVar("Key")

PER_PAGE = 200
"""Lines of a page of a table."""

MOST_CHOICES = 100
"""Values of a filter that are offered, those with the most runs."""

HOUR, DAY = 3600.0, 86400.0

SIZES = (60.0, 300.0, 900.0, HOUR, 3 * HOUR, 6 * HOUR, DAY, 7 * DAY)
"""How long a bar of a plot may be, in seconds."""

MOST_BARS = 32

KINDS = ("finished", "failed", "cancelled", "death", "open")
"""What a bar of runs is made of: "death": cancelled because the driver had died; "open": not over."""


def kind_of(entry: Entry) -> str:
    """Which part of a bar a run is."""
    if entry.is_open:
        return "open"
    if entry.row.ended_by in AFTER_A_DEATH:
        return "death"
    return entry.state if entry.state in ("failed", "cancelled") else "finished"


def page(lines: Sequence[Any], number: int) -> dict[str, Any]:
    """A page of a table.

    Args:
        lines: All lines.
        number: The page, from 1; beyond the last it is the last.
    """
    pages = max(1, math.ceil(len(lines) / PER_PAGE))
    number = min(number, pages)
    return {
        "rows": list(lines[(number - 1) * PER_PAGE : number * PER_PAGE]),
        "total": len(lines),
        "page": number,
        "pages": pages,
    }


def counts(entries: Sequence[Entry], deaths: Sequence[Death]) -> dict[str, Any]:
    """What there is of each state, and what it cost."""
    states: Counter[str] = Counter()
    charged = after_death = estimated = 0.0
    uncharged = 0
    for entry in entries:
        states[entry.state] += 1
    for entry, job in jobs_of(entries, lambda entry: entry.row):
        figures = entry.row.figures.get(job, Figures())
        charged += figures.charged or 0.0
        if is_a_deaths(entry.row, job):
            after_death += figures.charged or 0.0
        if entry.is_open:
            estimated += figures.estimated or 0.0
        elif figures.charged is None:
            uncharged += 1
    return {
        "states": dict(states),
        "runs": states.total(),
        "deaths": len(deaths),
        "unresolved": sum(death.state != "resolved" for death in deaths),
        "charged": charged,
        "after_death": after_death,
        "estimated": estimated,
        "uncharged": uncharged,
    }


def plots(entries: Sequence[Entry], deaths: Iterable[Death], since: float, now: float) -> dict[str, Any]:
    """Runs by when they began, charges by when their jobs ran, and deaths, in bars of equal length.

    Args:
        entries: The runs.
        deaths: The deaths.
        since: How far back they go, in seconds.
        now: The ledger's clock.
    """
    size = next(
        (size for size in SIZES if since / size <= MOST_BARS), SIZES[-1] * math.ceil(since / SIZES[-1] / MOST_BARS)
    )
    number = math.ceil(since / size) + 1
    begins = _begins(size, number, now)

    def bar(moment: float) -> int:
        return bisect.bisect_right(begins, moment) - 1

    runs = {kind: [0] * number for kind in KINDS}
    charged, after_death, died = [0.0] * number, [0.0] * number, [0] * number
    for entry in entries:
        if (i := bar(entry.began)) >= 0:
            runs[kind_of(entry)][i] += 1
    for entry, job in jobs_of(entries, lambda entry: entry.row):
        figures = entry.row.figures.get(job, Figures())
        if figures.charged and (i := bar(moment_of(entry.row, job))) >= 0:
            (after_death if is_a_deaths(entry.row, job) else charged)[i] += figures.charged
    for death in deaths:
        if (i := bar(death.at)) >= 0:
            died[i] += 1
    return {
        "begins": begins,
        "size": size,
        "runs": runs,
        "charged": {"alive": charged, "death": after_death},
        "deaths": died,
    }


def _begins(size: float, number: int, now: float) -> list[float]:
    """When bars of a length begin, the last of which has this moment; those of days begin at midnight here."""
    here = time.localtime(now)
    last = (now + here.tm_gmtoff) // size
    if size < DAY:
        return [(last - number + 1 + i) * size - here.tm_gmtoff for i in range(number)]
    # By the calendar: where the clocks are changed, a day has 23 or 25 hours.
    days = int(size // DAY)
    ago = int((now + here.tm_gmtoff) // DAY - last * days)  # how many days before today the last one begins
    return [
        time.mktime((here.tm_year, here.tm_mon, here.tm_mday - ago - k * days, 0, 0, 0, 0, 0, -1))
        for k in reversed(range(number))
    ]


def choices(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """The values of filters, those with the most runs first."""
    found: dict[str, Counter[str]] = {name: Counter() for name in CHOICES}
    for entry in entries:
        for name, values in found.items():
            if value := entry.value(name):
                values[value] += 1
    return {name: [value for value, _ in values.most_common(MOST_CHOICES)] for name, values in found.items()}


class _Group:
    """Runs of one driver or host."""

    def __init__(self, entry: Entry) -> None:
        self.first = entry  # the newest
        self.states: Counter[str] = Counter()
        self.runs = self.open = self.deaths = 0
        self.began, self.written = entry.began, 0.0
        self.charged = 0.0
        self.drivers: set[object] = set()
        self.living: set[object] = set()
        self.labels: dict[str, None] = {}

    def add(self, entry: Entry) -> None:
        self.runs += 1
        self.began = min(self.began, entry.began)
        self.written = max(self.written, entry.row.updated_at)
        self.charged += entry.row.charged or 0.0
        self.drivers.add(entry.driver)
        if entry.row.label:
            self.labels[entry.row.label] = None
        if entry.is_open:
            self.open += 1
            self.states[entry.state] += 1
            if entry.state == "live":
                self.living.add(entry.driver)

    @property
    def state(self) -> str:
        """The state of those that are not over; "over"."""
        return next((state for state in URGENT if self.states[state]), "over")


def _grouped(entries: Iterable[Entry], of: Callable[[Entry], Key]) -> dict[Key, _Group]:
    groups: dict[Key, _Group] = {}
    for entry in entries:
        key = of(entry)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(entry)
        group.add(entry)
    return groups


URGENT = ("orphan", "pending", "reaping", "ending", "waiting", "live", "elsewhere")
"""Of several states of one driver, the first of these is shown."""


def drivers(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The drivers, those with runs in flight first, then the latest."""
    groups = _grouped(entries, lambda entry: entry.driver)
    found = sorted(groups.values(), key=lambda group: (not group.open, -group.written))
    return [
        {
            "host": group.first.row.host_identity.host,
            "pid": group.first.row.pid,
            "program": group.first.row.program,
            "command": group.first.row.command,
            "labels": list(group.labels)[:3],
            "state": group.state,
            "runs": group.runs,
            "open": group.open,
            "charged": group.charged,
            "began": group.began,
            "written": group.written,
        }
        for group in found
    ]


def hosts(entries: Iterable[Entry], deaths: Iterable[Death]) -> list[dict[str, Any]]:
    """The hosts, those with runs in flight first."""
    groups = _grouped(entries, lambda entry: entry.value("host"))
    died = Counter(death.host for death in deaths)
    found = sorted(groups.items(), key=lambda each: (not each[1].open, -each[1].written))
    return [
        {
            "host": name,
            "state": group.state,
            "drivers": len(group.drivers),
            "living": len(group.living),
            "runs": group.runs,
            "open": group.open,
            "deaths": died[name],
            "charged": group.charged,
            "written": group.written,
        }
        for name, group in found
    ]


def leases(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Who has leases, on how many runs, and until when: what runs out first comes first."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for entry in entries:
        if (lease := entry.lease) is None:
            continue
        line = found.setdefault(
            (lease.kind, lease.host, lease.pid),
            {"kind": lease.kind, "host": lease.host, "pid": lease.pid, "until": lease.until, "runs": 0, "keys": []},
        )
        line["until"] = min(line["until"], lease.until)
        line["runs"] += 1
        if entry.row.key and len(line["keys"]) < 3:
            line["keys"].append(entry.row.key)
    return sorted(found.values(), key=lambda line: float(line["until"]))


def budgets(balances: Iterable[ledger.Balance]) -> list[dict[str, Any]]:
    """The standing budgets."""
    return [
        {
            "seconds": each.budget.seconds,
            "per": each.budget.period,
            "label": each.budget.label,
            "instance": each.budget.instance,
            "spent": each.spent,
            "reserved": each.reserved,
            "left": each.left,
            "until": each.ends,
            "largest": [list(one) for one in each.largest],
        }
        for each in balances
    ]
