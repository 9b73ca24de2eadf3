"""What tries have come to: orphans, duplicates, false cancels. From records alone, so that the judge can be tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Requests = Literal["one", "some"]
"""How often a job that is to be cancelled may be asked for: once, or more often, since requests are what fails."""


@dataclass(frozen=True)
class JobSeen:
    """A job as the service has it in the end. Times are monotonic, in ns.

    Attributes:
        id: Its id.
        run: The tag of its run, or of its key.
        status: Its last status.
        ended: When it became final.
        requests: How many requests to cancel it have arrived.
        cancels: When they arrived.
    """

    id: str
    run: str
    status: str
    ended: int | None
    requests: int
    cancels: tuple[int, ...] = ()


@dataclass
class TrySeen:
    """A try as the drill saw it.

    Attributes:
        gave_up: When the driver died, was told to end, or failed, in ns; None if it lived and got its result.
        ended: When the kernel said that the driver was dead, in ns, where that was asked.
        held: The jobs whose ids the driver knew.
        kept: The jobs whose results the driver has.
        jobs: All that it made.
        troubles: What else went wrong.
        log: What the driver said.
    """

    gave_up: int | None = None
    ended: int | None = None
    held: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    jobs: list[JobSeen] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    log: str = ""


@dataclass
class Totals:
    """What a row has come to.

    Attributes:
        tries: How many.
        orphans: Jobs that were not cancelled though their driver was gone.
        duplicates: Jobs left beside another one of the same run.
        false_cancels: Requests to cancel a job that its driver wanted.
        wrong_requests: Jobs that were asked to stop more or less often than they should be.
        requests: Requests per job that was to be cancelled.
        latencies: From the driver's end to the first of them, in ms.
        deaths: From the kill to the kernel's word that the driver is dead, in ms.
        troubles: What else went wrong, in words.
    """

    tries: int = 0
    orphans: int = 0
    duplicates: int = 0
    false_cancels: int = 0
    wrong_requests: int = 0
    requests: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def badness(self) -> tuple[int, ...]:
        """What the rows are sorted by: a false cancel is worst."""
        counts = (self.false_cancels, self.orphans, self.duplicates, self.wrong_requests, len(self.troubles))
        return (sum(counts), *counts)

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return not any(self.badness)

    def add(self, seen: TrySeen, requests: Requests = "one") -> None:
        """Judge one more try."""
        before = self.badness
        self.tries += 1
        for job in seen.jobs:
            if job.id in seen.kept:
                self.false_cancels += job.requests
                if job.status != "Completed":
                    self.troubles.append(f"the driver has the result of {job.id}, which is {job.status}")
            elif seen.gave_up is None:
                self._judge_duplicate(job, requests)
            else:
                self._judge_left(job, seen, seen.gave_up, requests)
        if seen.ended is not None and seen.gave_up is not None:
            self.deaths.append((seen.ended - seen.gave_up) / 1e6)
        left = Counter(job.run for job in seen.jobs if job.status != "Cancelled")
        self.duplicates += sum(count - 1 for count in left.values())
        self.troubles += seen.troubles
        if self.badness != before:
            self.troubles.append(f"the driver's words: {seen.log}; its jobs: {seen.jobs}; it gave up at {seen.gave_up}")

    def _judge_duplicate(self, job: JobSeen, requests: Requests) -> None:
        """A job that its driver, which lived, did not know of."""
        if job.status == "Cancelled":
            self._count_requests(job, requests)

    def _judge_left(self, job: JobSeen, seen: TrySeen, gave_up: int, requests: Requests) -> None:
        """A job that its driver left behind."""
        if job.id in seen.held:
            self.false_cancels += sum(arrival < gave_up for arrival in job.cancels)
        if job.status != "Cancelled" and job.ended is not None and job.ended <= gave_up:
            # It was over before the driver was. The watcher can't know that, and may ask, once.
            self.requests.append(job.requests)
            self.wrong_requests += job.requests > 1 and requests == "one"
            return
        # A job that completed after the death counts as well: what the drill holds does not complete by itself.
        self.orphans += job.status != "Cancelled"
        self._count_requests(job, requests)
        self.latencies += [(arrival - gave_up) / 1e6 for arrival in job.cancels[:1] if arrival >= gave_up]

    def _count_requests(self, job: JobSeen, requests: Requests) -> None:
        self.requests.append(job.requests)
        self.wrong_requests += job.requests != 1 if requests == "one" else job.requests < 1


def total(rows: Iterable[Totals]) -> Totals:
    """All rows as one."""
    everything = Totals()
    for row in rows:
        everything.tries += row.tries
        everything.orphans += row.orphans
        everything.duplicates += row.duplicates
        everything.false_cancels += row.false_cancels
        everything.wrong_requests += row.wrong_requests
        everything.requests += row.requests
        everything.latencies += row.latencies
        everything.deaths += row.deaths
        everything.troubles += row.troubles
    return everything
