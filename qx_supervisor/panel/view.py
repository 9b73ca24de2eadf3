"""A run as all panels show it, in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import Interrupted, RunError
from ..result import RunResult
from ..status import Status

TROUBLES = ("lost", "limited", "reserved", "retrying", "cancelling", "not protected")
"""Words in the states that need attention."""


@dataclass
class View:
    """What panels show of a run.

    Attributes:
        hint: How to cancel it, or "".
        shows_results: Whether counts or expectation values are shown.
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
    def job_id(self) -> str:
        """The job's id, or ""."""
        return printable((self.status and self.status.job_id) or "")

    @property
    def url(self) -> str:
        """The URL of the job's page, or ""."""
        return self.status.url if self.status else ""

    @property
    def backend(self) -> str:
        """The backend's name, or ""."""
        return printable(self.status.backend) if self.status else ""

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

    def cost(self) -> str:
        """The QPU time, estimated or charged."""
        status = self.status
        estimated = status.qpu_seconds_estimated if status else None
        charged = status.qpu_seconds if status else None
        if isinstance(self.outcome, RunResult) and self.outcome.qpu_seconds is not None:
            charged = self.outcome.qpu_seconds
        if charged is not None:
            return f"{seconds(charged)} charged"
        return "charge pending" if estimated is None else f"{seconds(estimated)} estimated, charge pending"

    def protection(self) -> str:
        """Which watcher protects the run."""
        status = self.status
        if status is None:
            return "nothing submitted yet"
        if status.watcher is not None:
            return f"{'taken up again, ' if status.taken_up else ''}watched by pid {status.watcher}"
        if "unguarded" in status.detail:
            return "simulated on this machine, nothing to guard"
        return "NOT WATCHED" if status.job_id else "nothing submitted yet"

    def summary(self) -> str:
        """One line about a run that has ended."""
        parts = [self.state]
        if self.job_id:
            parts.append(f"job {self.job_id}")
        if self.backend:
            parts.append(self.backend)
        if self.shots():
            parts.append(self.shots())
        return " · ".join([*parts, self.bill()])

    def bill(self) -> str:
        """The elapsed time and the QPU time."""
        parts = [self.times()]
        if self.job_id and not (self.status and "unguarded" in self.status.detail):
            parts.append(f"QPU {self.cost()}")
        return " · ".join(parts)

    def shots(self) -> str:
        """The number of shots, or ""."""
        return f"{self.status.shots} shots" if self.status and self.status.shots else ""

    def reason(self) -> str:
        """Why the run has no result, or ""."""
        if isinstance(self.outcome, RunError):
            return printable(self.outcome.reason)
        return str(self.outcome) if isinstance(self.outcome, Interrupted) else ""


def printable(text: str) -> str:
    """A text of the service's, or of a library's, without control characters."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def _news(status: Status) -> tuple[object, ...]:
    return (status.stage, status.state, status.detail, status.job_id, status.watcher)


def duration(length: float) -> str:
    """A duration as 0:07, 12:05, 3:00:09, 2 d 3:00:09."""
    whole = max(0, int(length))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {clock}" if days else clock


def seconds(length: float) -> str:
    """Seconds of QPU time."""
    return f"{length:.3g} s" if length < 100 else f"{length:.0f} s"


def when(moment: float | None, now: float) -> str:
    """A moment in local time, with the date unless it is today; "–" for None."""
    if moment is None:
        return "–"
    local, today = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if local[:3] == today[:3] else "%Y-%m-%d %H:%M", local)
