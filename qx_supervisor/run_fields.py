"""A run of the ledger in words and as JSON: what the commands and the page tell of it."""

from __future__ import annotations

import datetime
import signal
from typing import Any

from .watcher import ledger
from .watcher.facts import Figures


def state_of(row: ledger.Row, liveness: ledger.Liveness) -> str:
    """The state of a run, or what became of it.

    Args:
        row: The run.
        liveness: What can be said of it, by its processes or its lease.
    """
    if liveness == "final":  # a driver or watcher of an earlier release has not said how it ended
        return row.outcome or row.state
    if liveness in ("live", "ending") and row.state == "guarded" and row.key is not None and row.let_go_at is not None:
        return "waiting"
    return liveness


def who_ended(row: ledger.Row) -> str:
    """Who ended it: "program", "SIGINT (2)", "watcher" and so on; "" if nobody did, or that is not known."""
    if row.ended_by == "signal" and row.signum is not None:
        return f"{signal_name(row.signum)} ({row.signum})"
    return row.ended_by


def signal_name(signum: int) -> str:
    """A signal's name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return "signal"


def time_of(seconds: float | None) -> str | None:
    """Format a time in seconds since the epoch as all results have it: 2026-01-31T12:00:00Z."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fields(row: ledger.Row, state: str) -> dict[str, Any]:
    """A run as JSON."""
    figures = [Figures(), *row.figures.values()]
    queued, ran, ended = (
        [value for value in values if value is not None]
        for values in zip(*((each.queued, each.ran, each.ended) for each in figures), strict=True)
    )
    clock = "service" if ended else None if row.ended_at is None else "host"
    return {
        "state": state,
        "by": row.ended_by or None,
        "signal": row.signum,
        "signal_name": None if row.signum is None else signal_name(row.signum),
        "reason": row.reason,
        "host": row.host_identity.host,
        "pid": row.pid,
        "watcher_pid": row.watcher_pid,
        "jobs": dict(row.jobs),
        "session": row.session,
        "backend": row.backend or None,
        "primitive": row.primitive or None,
        "pubs": row.pubs,
        "shots": row.shots,
        "label": row.label or None,
        "tags": list(row.tags),
        "program": row.program or None,
        "command": row.command or None,
        "tag": row.tag,
        "key": row.key,
        "detail": row.detail,
        "run": row.run,
        "endpoint": row.endpoint,
        "qpu_seconds_estimated": row.estimated,
        "qpu_seconds": row.charged,
        "uncharged": row.uncharged,
        "began": time_of(row.began_at),
        "queued": time_of(min(queued, default=None)),
        "ran": time_of(min(ran, default=None)),
        "ended": time_of(max(ended, default=row.ended_at)),
        "ended_clock": clock,
        "created": time_of(row.created_at),
        "updated": time_of(row.updated_at),
    }
