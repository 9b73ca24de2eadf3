"""A run as all panels show it, in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import Interrupted, RunError
from ..job_cost import in_words
from ..origin import place
from ..result import RunResult
from ..status import Status

TROUBLES = ("lost", "limited", "reserved", "retrying", "again", "cancelling", "not protected")
"""Words in the states that need attention."""


@dataclass(eq=False)
class View:
    """What panels show of a run.

    Attributes:
        hint: How to cancel it, or "".
        shows_results: Whether counts or expectation values are shown, or why there are none.
        clock: A monotonic clock, in seconds.
        status: The latest status; None before the first.
        outcome: The result or the error; None while the run is in progress.
        began: When the run began, by the clock.
        changed: When its state changed last.
        ended: When it ended, or None.
    """

    hint: str = ""
    shows_results: bool = True
    clock: Callable[[], float] = time.monotonic
    status: Status | None = None
    outcome: RunResult | BaseException | None = None
    began: float = field(init=False)
    changed: float = field(init=False)
    ended: float | None = None

    def __post_init__(self) -> None:
        """Start the clock."""
        self.began = self.changed = self.clock()

    def see(self, status: Status) -> bool:
        """Store a status; returns whether it is news, rather than a move in the queue."""
        before = self.status
        self.status = status
        if before is not None and _news(before) == _news(status):
            return False
        if before is None or before.state != status.state:
            self.changed = self.clock()
        return True

    def end(self, outcome: RunResult | BaseException) -> None:
        """Store how the run ended."""
        self.outcome = outcome
        self.ended = self.clock()

    @property
    def state(self) -> str:
        """The state, or how the run ended."""
        if self.outcome is None:
            return printable(self.status.state) if self.status else "starting"
        if isinstance(self.outcome, RunResult):
            return "done"
        if isinstance(self.outcome, Interrupted):
            return "interrupted"
        return type(self.outcome).__name__

    @property
    def tone(self) -> str:
        """How the state is coloured: "good", "bad", "warning" or "plain"."""
        if self.outcome is not None:
            return "good" if isinstance(self.outcome, RunResult) else "bad"
        if any(word in self.state for word in TROUBLES):
            return "warning"
        if self.state == "queued" and self.detail:  # it may wait forever
            return "warning"
        return "plain"

    @property
    def goes_on(self) -> bool:
        """Whether the job goes on, though it is shown no more."""
        return False

    @property
    def job_id(self) -> str:
        """The job's id, or ""."""
        return printable((self.status and self.status.job_id) or "")

    @property
    def jobs(self) -> tuple[str, ...]:
        """The jobs of a run with a result that has several, for `split`; or ()."""
        found = self.outcome.job_ids if isinstance(self.outcome, RunResult) else ()
        return found if len(found) > 1 else ()

    @property
    def url(self) -> str:
        """The URL of the job's page, or ""."""
        return self.status.url if self.status else ""

    @property
    def backend(self) -> str:
        """The backend's name, and that it is not IBM's own, or ""."""
        if self.status is None:
            return ""
        return place(printable(self.status.backend), is_embedded=self.status.is_embedded)

    @property
    def label(self) -> str:
        """The run's label, or ""."""
        return printable(self.status.label) if self.status else ""

    @property
    def key(self) -> str:
        """The run's key, or ""."""
        return printable(self.status.key) if self.status else ""

    @property
    def name(self) -> str:
        """The user's words for the run: its label, else its key, else ""."""
        return self.label or self.key

    @property
    def detail(self) -> str:
        """Details of the state, or ""."""
        return printable(self.status.detail) if self.status else ""

    def times(self) -> str:
        """How long the run has been in this state, and in all."""
        now = self.clock()
        if self.ended is not None:
            return f"{duration(self.ended - self.began)} in all"
        return f"{duration(now - self.changed)} in this state, {duration(now - self.began)} in all"

    def queue(self) -> str:
        """The job's place in the queue and its expected start."""
        position = self.position()
        return f"{position if position == '–' else f'position {position}'}, start {self.start()}"

    def position(self) -> str:
        """The job's place in the queue, or "–"."""
        known = self.status.queue_position if self.status else None
        return "–" if known is None else str(known)

    def start(self) -> str:
        """The expected start, or "–"."""
        return when(self.status.estimated_start if self.status else None, time.time())

    @property
    def charged(self) -> float | None:
        """The QPU time charged, in seconds; None while that is pending, or not known."""
        charged = self.status.qpu_seconds if self.status else None
        if isinstance(self.outcome, RunResult) and self.outcome.qpu_seconds is not None:
            charged = self.outcome.qpu_seconds
        return charged

    @property
    def is_local(self) -> bool:
        """Whether it is simulated on this machine, and costs nothing."""
        return self.status is not None and "unguarded" in self.status.detail

    @property
    def is_billed(self) -> bool:
        """Whether there is something to say of its cost."""
        if self.jobs:
            return self.charged is not None
        return bool(self.job_id) and not self.is_local

    def cost(self) -> str:
        """The QPU time, estimated or charged."""
        estimated, charged = self.status.qpu_seconds_estimated if self.status else None, self.charged
        if charged is not None:
            return f"{in_words(charged)} charged"
        return "charge pending" if estimated is None else f"{in_words(estimated)} estimated, charge pending"

    def quota(self) -> str:
        """What the instance has left of its QPU time, if that is low; or ""."""
        known = self.status.quota if self.status else None
        if known is None or (known.is_used_up and self.detail):  # which says it already
            return ""
        return known.words()

    def protection(self) -> str:
        """Which watcher protects the run."""
        status = self.status
        if status is None:
            return "nothing submitted yet"
        if status.watcher is not None:
            return f"{'taken up again, ' if status.taken_up else ''}watched by pid {status.watcher}"
        if self.is_local:
            return "simulated on this machine, nothing to guard"
        return "NOT WATCHED" if status.job_id else "nothing submitted yet"

    def summary(self) -> str:
        """One line about a run that has ended."""
        parts = [self.state]
        if self.job_id:
            parts.append(f"job {self.job_id}")
        elif self.jobs:
            parts.append(f"{len(self.jobs)} jobs")
        parts += filter(None, (self.label, self.key, self.backend, self.size()))
        return " · ".join([*parts, self.bill()])

    def bill(self) -> str:
        """The elapsed time, that of the run's parts, and the QPU time."""
        parts = [self.times(), *filter(None, [self.timeline()])]
        if self.is_billed:
            parts.append(f"QPU {self.cost()}")
        return " · ".join(parts)

    def timeline(self) -> str:
        """How long the parts of a run with a result took, or ""."""
        return str(self.outcome.timeline) if isinstance(self.outcome, RunResult) else ""

    def pubs(self) -> str:
        """The number of PUBs if there are several, or ""."""
        return f"{self.status.pubs} PUBs" if self.status and self.status.pubs and self.status.pubs > 1 else ""

    def size(self) -> str:
        """The numbers of PUBs and of shots, as "40 PUBs × 4096 shots", or ""."""
        return " × ".join(filter(None, (self.pubs(), self.shots())))

    def shots(self) -> str:
        """The number of shots, or ""."""
        return f"{self.status.shots} shots" if self.status and self.status.shots else ""

    def reason(self) -> str:
        """Why the run has no result, or "", also where that is told elsewhere."""
        if not self.shows_results:
            return ""
        if isinstance(self.outcome, RunError):
            return printable(self.outcome.reason)
        return str(self.outcome) if isinstance(self.outcome, Interrupted) else ""


def printable(text: str) -> str:
    """A text of the service's, or of a library's, without control characters."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def _news(status: Status) -> tuple[object, ...]:
    return (status.stage, status.state, status.detail, status.job_id, status.watcher, status.quota)


def duration(length: float) -> str:
    """A duration as 0:07, 12:05, 3:00:09, 2 d 3:00:09."""
    whole = max(0, int(length))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {clock}" if days else clock


def when(moment: float | None, now: float) -> str:
    """A moment in local time, with the date unless it is today; "–" for None."""
    if moment is None:
        return "–"
    local, today = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if local[:3] == today[:3] else "%Y-%m-%d %H:%M", local)
