"""A job's place in the queue and its cost, as IBM Quantum reports them.

They are read from GET /jobs/{id} and GET /jobs/{id}/metrics, as by `qiskit_ibm_runtime.RuntimeJobV2` 0.51. Every field
may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .watcher.facts import Figures, moment, number


@dataclass(frozen=True)
class QueueInfo:
    """The queue info of a job. None: not reported.

    Attributes:
        queue_position: The job's place in the queue, 1 for the next one.
        estimated_start: The expected start, in seconds since the epoch.
        qpu_seconds_estimated: The expected QPU time, in seconds.
        qpu_seconds: The QPU time charged, in seconds; None while that is pending.
    """

    queue_position: int | None = None
    estimated_start: float | None = None
    qpu_seconds_estimated: float | None = None
    qpu_seconds: float | None = None


def read(job: dict[str, Any], metrics: dict[str, Any]) -> QueueInfo:
    """Extract the queue info from two answers.

    Args:
        job: The answer to GET /jobs/{id}.
        metrics: The answer to GET /jobs/{id}/metrics.
    """
    position = number(metrics.get("position_in_queue"))
    figures = Figures.read(job, metrics)
    return QueueInfo(
        queue_position=None if position is None else int(position),
        estimated_start=moment(metrics.get("estimated_start_time")),
        qpu_seconds_estimated=figures.estimated,
        qpu_seconds=figures.charged,
    )
