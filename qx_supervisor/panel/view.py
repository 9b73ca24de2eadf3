"""One run as it is shown, in words: what all panels have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Interrupted, RunError
from ..result import RunResult
from ..status import Status

TROUBLES = ("lost", "limited", "reserved", "retrying", "cancelling", "not protected")
"""Words of states in which something is not as it should be."""


@dataclass
class View:
    """What is shown of a run.

    Attributes:
        hint: How to cancel it, or "".
        shows_results: Whether counts, or expectation values, are shown.
        clock: Gives seconds, by a clock that nobody sets: how long something took is no matter of the time of day.
        status: The latest status, or None before the first.
        outcome: The result, or the error that it ended in; None while it goes on.
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
        """Begin to count."""
        self.began = self.changed = self.clock()

    def see(self, status: Status) -> bool:
        """Take in a status; returns whether it says something new, and not only how the queue moves."""
        before = self.status
        self.status = status
        if before is not None and _words(before) == _words(status):
            return False
        if before is None or before.state != status.state:
            self.changed = self.clock()
        return True

    def end(self, outcome: RunResult | BaseException) -> None:
        """The run is over."""
        self.outcome = outcome
        self.ended = self.clock()

    # What is said of it

    @property
    def state(self) -> str:
        """What is happening, or how it ended."""
        if self.outcome is None:
            return printable(self.status.state) if self.status else "starting"
        if isinstance(self.outcome, RunResult):
            return "done"
        if isinstance(self.outcome, Interrupted):
            return "interrupted"
        return type(self.outcome).__name__

    @property
    def tone(self) -> str:
        """How the state is to look: "good", "bad", "warning" or "plain"."""
        if self.outcome is not None:
            return "good" if isinstance(self.outcome, RunResult) else "bad"
        if any(word in self.state for word in TROUBLES):
            return "warning"
        if self.state == "queued" and self.detail:  # why it may wait without end
            return "warning"
        return "plain"

    @property
    def job_id(self) -> str:
        """The job's whole id, or ""."""
        return printable((self.status and self.status.job_id) or "")

    @property
    def url(self) -> str:
        """The job's page, or ""."""
        return self.status.url if self.status else ""

    @property
    def backend(self) -> str:
        """The backend's name, or ""."""
        return printable(self.status.backend) if self.status else ""

    @property
    def detail(self) -> str:
        """More words about the state, or ""."""
        return printable(self.status.detail) if self.status else ""

    def times(self) -> str:
        """How long it is in this state, and in all."""
        now = self.clock()
        if self.ended is not None:
            return f"{duration(self.ended - self.began)} in all"
        return f"{duration(now - self.changed)} in this state, {duration(now - self.began)} in all"

    def queue(self) -> str:
        """Its place in the queue, and when it is expected to start."""
        position = self.position()
        return f"{position if position == '–' else f'position {position}'}, start {self.start()}"

    def position(self) -> str:
        """Its place in the queue, as a number, or "–"."""
        known = self.status.queue_position if self.status else None
        return "–" if known is None else str(known)

    def start(self) -> str:
        """When it is expected to start, or "–"."""
        return when(self.status.estimated_start if self.status else None, time.time())

    def cost(self) -> str:
        """QPU time, estimated and charged."""
        status = self.status
        estimated = status.qpu_seconds_estimated if status else None
        charged = status.qpu_seconds if status else None
        if isinstance(self.outcome, RunResult) and self.outcome.qpu_seconds is not None:
            charged = self.outcome.qpu_seconds
        if charged is not None:
            return f"{seconds(charged)} charged"
        return "charge pending" if estimated is None else f"{seconds(estimated)} estimated, charge pending"

    def protection(self) -> str:
        """Who looks after it."""
        status = self.status
        if status is None:
            return "nothing submitted yet"
        if status.watcher is not None:
            return f"{'taken up again, ' if status.taken_up else ''}watched by pid {status.watcher}"
        if "unguarded" in status.detail:
            return "simulated on this machine, nothing to guard"
        return "NOT WATCHED" if status.job_id else "nothing submitted yet"

    def summary(self) -> str:
        """How it went, in a line."""
        parts = [self.state]
        if self.job_id:
            parts.append(f"job {self.job_id}")
        if self.backend:
            parts.append(self.backend)
        if self.shots():
            parts.append(self.shots())
        return " · ".join([*parts, self.bill()])

    def bill(self) -> str:
        """What it took."""
        parts = [self.times()]
        if self.job_id and not (self.status and "unguarded" in self.status.detail):
            parts.append(f"QPU {self.cost()}")
        return " · ".join(parts)

    def shots(self) -> str:
        """How often it is executed, or ""."""
        return f"{self.status.shots} shots" if self.status and self.status.shots else ""

    def reason(self) -> str:
        """Why it ended without a result, or ""."""
        if isinstance(self.outcome, RunError):
            return printable(self.outcome.reason)
        return str(self.outcome) if isinstance(self.outcome, Interrupted) else ""


def printable(text: str) -> str:
    """A text of the service's, or of a library's, without what would command a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def _words(status: Status) -> tuple[Any, ...]:
    return (status.stage, status.state, status.detail, status.job_id, status.watcher)


def duration(length: float) -> str:
    """A length of time: 0:07, 12:05, 3:00:09, 2 d 3:00:09."""
    whole = max(0, int(length))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{days} d {clock}" if days else clock


def seconds(length: float) -> str:
    """Some seconds of QPU time."""
    return f"{length:.3g} s" if length < 100 else f"{length:.0f} s"


def when(moment: float | None, now: float) -> str:
    """A moment by the local clock, with the date if that is not today; "–" for none."""
    if moment is None:
        return "–"
    there, here = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if there[:3] == here[:3] else "%Y-%m-%d %H:%M", there)
