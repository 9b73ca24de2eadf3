"""A run of the ledger in words: what `ps` says of it, as cells of a table and as JSON."""

from __future__ import annotations

from ..job_cost import in_words
from ..run_fields import fields, signal_name, state_of, who_ended
from ..watcher import ledger

__all__ = ["age", "cells", "cost", "fields", "signal_name", "state_of", "who_ended"]

MINUTE, HOUR, DAY = 60, 3600, 86400


def cells(row: ledger.Row, state: str, now: float) -> dict[str, str]:
    """A run as the cells of a table."""
    jobs = list(row.jobs)
    return {
        "AGE": age(now - (row.began_at or row.created_at)),
        "STATE": state,
        "BY": who_ended(row),
        "JOB": (f"{jobs[0]} +{len(jobs) - 1}" if len(jobs) > 1 else jobs[0]) if jobs else row.session or "",
        "BACKEND": row.backend,
        "PRIMITIVE": row.primitive,
        "PUBS": "" if row.pubs is None else str(row.pubs),
        "SHOTS": "" if row.shots is None else str(row.shots),
        "LABEL": row.label,
        "TAGS": ",".join(row.tags),
        "KEY": row.key or "",
        "COST": cost(row),
        "HOST": f"{row.host_identity.host}:{row.pid}",
        "TAG": row.tag or "",
        "COMMAND": row.command,
        "DETAIL": row.detail or row.reason,
    }


def cost(row: ledger.Row) -> str:
    """The QPU time of a run: charged, or "~" and what is expected."""
    if row.charged is not None:
        return in_words(row.charged)
    return "" if row.estimated is None else f"~{in_words(row.estimated)}"


def age(seconds: float) -> str:
    """For how long, in the largest unit that makes sense: 12s, 5m, 3h, 4d."""
    whole = max(0, int(seconds))
    for unit, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if whole >= 2 * unit:
            return f"{whole // unit}{letter}"
    return f"{whole}s"
