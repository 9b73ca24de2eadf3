"""The status of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .errors import Stage
from .quota import Quota


@dataclass(frozen=True, repr=False)
class Status:
    """One change in the life of a run, as `on_status` receives it.

    The place in the queue and the estimated start are requested only if a panel is shown and at most ten runs of this
    process are in flight.

    Attributes:
        stage: Where the run is: "config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job" or
            "results".
        state: The state, in words: "queued", "running", "connection lost, retrying", "refused, retrying",
            "done" and so on.
        job_id: The job at IBM Quantum, or None while it has no id.
        backend: The backend's name; "" until it is chosen.
        detail: Details of the state, for instance why a queued job may wait forever; or "".
        watcher: Process id of the watcher that protects the run, or None.
        time: When, in seconds since the epoch.
        shots: The number of shots, if the call or its PUBs have one; None: the primitive's default.
        queue_position: The job's place in the queue, 1 for the next one; None if IBM Quantum does not report it.
        estimated_start: The start that IBM Quantum expects, in seconds since the epoch, or None.
        qpu_seconds_estimated: The QPU time that IBM Quantum expects, in seconds, or None.
        qpu_seconds: The QPU time charged, in seconds; None while that is pending.
        url: The job's page at IBM Quantum, or "".
        taken_up: Whether an earlier driver submitted the job with the same key.
        label: The run's label, or "".
        key: The run's key, or "".
        pubs: The number of the run's PUBs, or None.
        quota: What the instance has left of its QPU time, where that is low: less than a tenth of its limit, or than
            the job is expected to take. It is read now and then while a panel is shown. None: it is not low, or not
            known.
        is_embedded: Whether `QX_LOCAL` has the embedded service run the job, so that its result is no QPU's.
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
    label: str = ""
    quota: Quota | None = None
    is_embedded: bool = False
    key: str = ""
    pubs: int | None = None

    def __repr__(self) -> str:
        shown = f"stage={self.stage!r}, state={self.state!r}, job_id={self.job_id!r}"
        return f"Status({shown}, detail={self.detail!r})" if self.detail else f"Status({shown})"

    def __str__(self) -> str:
        parts = [self.state]
        if self.job_id:
            parts.append(f"job {self.job_id}")
        if self.label:
            parts.append(self.label)
        if self.detail:
            parts.append(self.detail)
        return " · ".join(parts)
