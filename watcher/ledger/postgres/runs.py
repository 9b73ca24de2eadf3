"""Runs, as they are written to the database and as they are read from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...host_identity import HostIdentity, Process
from ..row import UNFINISHED, Row, safe_detail, safe_endpoint

RETRY_SECONDS = 60.0
"""After which a reaper takes what a watcher could not resolve."""

SWEPT_SECONDS = 86400.0
"""For a day what could not be resolved is swept again."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A run as its holder knows it, to be written.

    Attributes:
        row: The run; `epoch` is the one that it was last written or taken with, 1 where it was not.
        let_go: Seconds since nobody waits for it any more; None while somebody does.
    """

    row: Row
    let_go: float | None = None


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a run.

    Attributes:
        kind: "watcher" or "reaper".
        host: Its host name.
        pid: Its process id there.
    """

    kind: str
    host: str
    pid: int


Judgement = Literal["live", "waiting", "orphan", "reaping", "pending", "final"]
"""What can be said of a run by the database alone.

- live: its lease is renewed
- waiting: its driver is gone, and its grace has not passed
- orphan: its lease has run out, and its grace has passed: a reaper's
- reaping: a reaper, or its own watcher, cancels its jobs
- pending: its jobs could not be resolved yet, and are looked for again
- final: nothing is left to do
"""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run with who holds it.

    Attributes:
        row: The run. Its times are the database's.
        holder: Who holds it.
        seconds_left: How long the lease lasts still; less than 0 since it has run out.
        grace_left: How long the grace lasts still, where it has begun.
        judgement: What follows.
    """

    row: Row
    holder: Holder
    seconds_left: float
    grace_left: float
    judgement: Judgement


@dataclass(frozen=True)
class Census:
    """How many unfinished runs an account has.

    Attributes:
        endpoint: The base URL of the REST API.
        instance: The instance's CRN.
        held: Under a lease that is renewed.
        expired: Under one that has run out; some of them in their grace.
        reaping: Being cancelled.
        pending: To be swept again.
    """

    endpoint: str
    instance: str
    held: int
    expired: int
    reaping: int
    pending: int


def given(kept: Kept) -> dict[str, Any]:
    """A run as `statements.WRITE` takes it."""
    row = kept.row
    is_pending = row.state == "pending" and row.sweep_until is not None
    return {
        "run": row.run,
        "tag": row.tag,
        "driver_tag": row.driver_tag,
        "endpoint": safe_endpoint(row.endpoint),
        "instance": row.instance,
        "session": row.session,
        "session_owner": row.session_owner,
        "answered": row.answered,
        "host": text_of(row.place.host),
        "boot": row.place.boot,
        "pid_ns": row.place.pid_ns,
        "pid": row.pid,
        "start_ticks": row.start_ticks,
        "watcher_pid": row.watcher_pid,
        "watcher_start_ticks": row.watcher_start_ticks,
        "state": row.state,
        "detail": safe_detail(text_of(row.detail)),
        "sweep_for": SWEPT_SECONDS if is_pending else None,
        "retry_in": RETRY_SECONDS if is_pending else None,
        "key": row.key,
        "fingerprint": row.fingerprint,
        "grace": row.grace,
        "holder": row.holder,
        "epoch": row.epoch,
        "let_go": kept.let_go,
        "jobs": {text_of(job): safe_detail(text_of(outcome)) for job, outcome in row.jobs.items()},
    }


def held(found: dict[str, Any]) -> Held:
    """A run as `statements.READ` gives it."""
    now, until = found["now"], found["lease_until"] or 0.0
    row = Row(
        run=found["run"],
        place=HostIdentity("", found["host"], found["boot"], found["pid_ns"]),
        pid=found["pid"],
        start_ticks=found["start_ticks"],
        watcher_pid=found["watcher_pid"],
        watcher_start_ticks=found["watcher_start_ticks"],
        tag=found["tag"],
        driver_tag=found["driver_tag"],
        endpoint=found["endpoint"],
        instance=found["instance"],
        jobs=found["jobs"],
        session=found["session"],
        session_owner=found["session_owner"],
        answered=found["answered"],
        state=found["state"],
        detail=found["detail"],
        sweep_until=found["sweep_until"],
        claimed_by=process_of(found["claimed_by"]),
        claimed_at=found["claimed_at"],
        key=found["key"],
        fingerprint=found["fingerprint"],
        grace=found["grace"],
        holder=found["holder"],
        epoch=found["epoch"],
        lease_until=until,
        let_go_at=found["let_go_at"],
        created_at=found["created_at"],
        updated_at=found["updated_at"],
    )
    grace_ends = (row.let_go_at or until) + row.grace
    judgement: Judgement
    if row.state not in UNFINISHED:
        judgement = "final"
    elif found["retry_at"] is not None:
        judgement = "pending" if row.state == "pending" else "orphan"
    elif row.claimed_by is not None:
        judgement = "reaping" if until > now else "orphan"
    elif row.let_go_at is None and until > now:
        judgement = "live"
    else:
        judgement = "waiting" if grace_ends > now else "orphan" if until <= now else "reaping"
    return Held(
        row=row,
        holder=Holder(kind=found["by_kind"] or "", host=found["by_host"] or "", pid=found["by_pid"] or 0),
        seconds_left=until - now,
        grace_left=grace_ends - now,
        judgement=judgement,
    )


def shifted(row: Row, seconds: float) -> Row:
    """A row with its times by another clock, so many seconds ahead."""

    def moved(moment: float | None) -> float | None:
        return None if moment is None else moment + seconds

    return replace(
        row,
        sweep_until=moved(row.sweep_until),
        claimed_at=moved(row.claimed_at),
        lease_until=moved(row.lease_until),
        let_go_at=moved(row.let_go_at),
        created_at=row.created_at + seconds,
        updated_at=row.updated_at + seconds,
    )


def json_of(process: Process) -> str:
    """A process, as it stands in a column."""
    where = process.place
    return json.dumps(
        {
            "host": text_of(where.host),
            "boot": where.boot,
            "pid_ns": where.pid_ns,
            "pid": process.pid,
            "start_ticks": process.start_ticks,
        }
    )


def process_of(found: dict[str, Any] | None) -> Process | None:
    """A process that stood in a column."""
    if found is None:
        return None
    return Process(HostIdentity("", found["host"], found["boot"], found["pid_ns"]), found["pid"], found["start_ticks"])


def text_of(text: str) -> str:
    """What PostgreSQL's text can hold: neither a NUL nor half a character."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def only(found: Any) -> Any:
    """The one value of a query that has one row."""
    assert found is not None  # the query has one row, whatever it finds
    return found[0]
