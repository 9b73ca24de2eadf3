"""What a run tells while it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .errors import Stage


@dataclass(frozen=True, repr=False)
class Status:
    """One change in the life of a run, as `on_status` receives it.

    The place in the queue, the estimated start and QPU time, and the charge are asked for where a panel is shown, while
    at most ten runs of this process are in flight.

    Attributes:
        stage: Where the run is: "config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job" or
            "results".
        state: What is happening, in words: "queued", "running", "connection lost, retrying", "refused, retrying",
            "done" and so on.
        job_id: The job at IBM Quantum, or None while it has no id.
        backend: The backend's name, or "" while it is not chosen.
        detail: More words, or "": why a queued job may wait without end, for instance.
        watcher: Process id of the watcher that protects the run, or None.
        time: When, in seconds since the epoch.
        shots: How often each circuit is executed, where the call or its PUBs say so; None: the primitive's default.
        queue_position: The job's place in the queue, 1 for the next one; None where IBM Quantum does not tell.
        estimated_start: When IBM Quantum expects the job to start, in seconds since the epoch, or None.
        qpu_seconds_estimated: QPU time that IBM Quantum expects the job to take, in seconds, or None.
        qpu_seconds: QPU time that is charged, in seconds; None while that is pending.
        url: The job's page at IBM Quantum, or "".
        taken_up: Whether the job was submitted before, with the same key, by a driver that is gone.
    """

    stage: Stage
    state: str
    job_id: str | None = None
    backend: str = ""
    detail: str = ""
    watcher: int | None = None
    time: float = field(default_factory=time.time)
    shots: int | None = None
    queue_position: int | None = None
    estimated_start: float | None = None
    qpu_seconds_estimated: float | None = None
    qpu_seconds: float | None = None
    url: str = ""
    taken_up: bool = False

    def __repr__(self) -> str:
        shown = f"stage={self.stage!r}, state={self.state!r}, job_id={self.job_id!r}"
        return f"Status({shown}, detail={self.detail!r})" if self.detail else f"Status({shown})"

    def __str__(self) -> str:
        parts = [self.state]
        if self.job_id:
            parts.append(f"job {self.job_id}")
        if self.detail:
            parts.append(self.detail)
        return " · ".join(parts)
