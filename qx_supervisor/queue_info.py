"""A job's place in the queue and its cost, as IBM Quantum reports them.

They are read from GET /jobs/{id} and GET /jobs/{id}/metrics, as by `qiskit_ibm_runtime.RuntimeJobV2` 0.51. Every field
may be missing.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any


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
    position = _number(metrics.get("position_in_queue"))
    usage = metrics.get("usage")
    charged = None
    # The figures may change until the status is final.
    if isinstance(usage, dict) and usage.get("status", "pending") != "pending":
        charged = _number(usage.get("qpu_charge_time_seconds"))
        if charged is None:
            charged = _number(usage.get("quantum_seconds"))
    return QueueInfo(
        queue_position=None if position is None else int(position),
        estimated_start=_time(metrics.get("estimated_start_time")),
        qpu_seconds_estimated=_number(job.get("estimated_running_time_seconds")),
        qpu_seconds=charged,
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return float(value)


def _time(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        found = datetime.datetime.fromisoformat(value)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
