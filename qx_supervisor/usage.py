"""What jobs have cost, added up from the rows of a ledger."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from .watcher import ledger
from .watcher.facts import Figures

By = Literal["day", "backend", "label", "program", "key"]

T = TypeVar("T")

AFTER_A_DEATH = ("watcher", "reap", "reaper")
"""Those who end a run because its driver is dead."""


@dataclass
class Usage:
    """The cost of some jobs.

    Attributes:
        jobs: How many there are.
        estimated: QPU seconds that they were expected to take, as far as IBM Quantum told.
        charged: QPU seconds charged.
        after_death: Those of them for jobs that were cancelled because their driver died.
        uncharged: How many of the jobs are over, and what they cost is not known.
    """

    jobs: int = 0
    estimated: float = 0.0
    charged: float = 0.0
    after_death: float = 0.0
    uncharged: int = 0

    def add(self, row: ledger.Row, job: str) -> None:
        """Add a job of a run."""
        figures = row.figures.get(job, Figures())
        self.jobs += 1
        self.estimated += figures.estimated or 0.0
        self.charged += figures.charged or 0.0
        if is_a_deaths(row, job):
            self.after_death += figures.charged or 0.0
        if figures.charged is None and (row.is_over or row.jobs[job]):
            self.uncharged += 1


def is_a_deaths(row: ledger.Row, job: str) -> bool:
    """Whether a death has made of a job what it is: a session's row has those, too, that had finished before."""
    return row.ended_by in AFTER_A_DEATH and row.jobs.get(job) != "finished"


def moment_of(row: ledger.Row, job: str) -> float:
    """When a job cost what it did, in seconds since the epoch: when it ran, or as near to that as is known."""
    figures = row.figures.get(job, Figures())
    for known in (figures.ran, figures.ended, figures.queued, row.began_at):
        if known is not None:
            return known
    return row.created_at


def jobs_of(runs: Iterable[T], row_of: Callable[[T], ledger.Row]) -> list[tuple[T, str]]:
    """The jobs of some runs, each once, with the run that knows what it was charged, or else the first.

    A job that was detached and attached again is in the rows of two runs; so is one of a session that is guarded in a
    program under `exec`.
    """
    found: dict[str, T] = {}
    charged: set[str] = set()
    for run in runs:
        row = row_of(run)
        for job, outcome in row.jobs.items():
            if outcome == "gone":
                continue
            is_charged = row.figures.get(job, Figures()).charged is not None
            if job not in found or (is_charged and job not in charged):
                found[job] = run
            if is_charged:
                charged.add(job)
    return [(run, job) for job, run in found.items()]


def add_up(rows: Iterable[ledger.Row], by: By, since: float | None = None) -> dict[str, Usage]:
    """Add up what jobs cost, in groups.

    Args:
        rows: The runs.
        by: What the jobs of a group have in common: the day (this machine's), such as "2026-01-31", or what their runs
            say; "" where they say nothing.
        since: Only jobs that ran later, in seconds since the epoch.

    Returns:
        The groups: days in order, others the dearest first.
    """
    group_of: Callable[[ledger.Row, str], str] = _day if by == "day" else lambda row, _: getattr(row, by) or ""
    groups: dict[str, Usage] = {}
    for row, job in jobs_of(rows, lambda row: row):
        if since is None or moment_of(row, job) >= since:
            groups.setdefault(group_of(row, job), Usage()).add(row, job)
    if by == "day":
        return dict(sorted(groups.items()))
    return dict(sorted(groups.items(), key=lambda each: (-each[1].charged, -each[1].estimated, each[0])))


def total(usages: Iterable[Usage]) -> Usage:
    """The sum of some."""
    whole = Usage()
    for each in usages:
        whole.jobs += each.jobs
        whole.estimated += each.estimated
        whole.charged += each.charged
        whole.after_death += each.after_death
        whole.uncharged += each.uncharged
    return whole


def _day(row: ledger.Row, job: str) -> str:
    return f"{datetime.datetime.fromtimestamp(moment_of(row, job)).astimezone():%Y-%m-%d}"
