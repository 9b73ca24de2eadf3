"""The columns of a run: one table, from which both schemas, reading and writing follow.

To add a column, add a line here: it is added to the tables where it is missing (`Column.since`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..facts import Figures
from ..host_identity import HostIdentity, Process
from .row import Row, fitted, safe_detail, safe_endpoint


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name, which is an attribute's of `Row` or of its `host_identity`.
        sqlite: Its type in the local ledger; "" if it has no such column.
        postgres: Its type in the shared ledger; "" if it has no such column.
        again: Its value when a row is written that is there already, as SQL of {new} and {old}; "" if it stays.
        since: The migration of the local ledger that added it; `ADDED` for one that is added wherever it is missing.
        is_inserted: Whether a new row has a value for it.
    """

    name: str
    sqlite: str
    postgres: str
    again: str = ""
    since: int = 1
    is_inserted: bool = True

    @property
    def is_time(self) -> bool:
        """Whether its values are moments."""
        return self.name.endswith(("_at", "_until"))


ADDED = 3
"""Columns that no migration adds. They are added where they are missing, and the version of the tables stays: a program
of an earlier release refuses tables of a later version, and would lose its leases while its driver lives."""

NEW = "{new}"
IF_GIVEN = "coalesce({new}, {old})"

# Whoever has won the lease in order to cancel keeps its claim until it has said what became of the run.
WHILE_CANCELLING = "CASE WHEN excluded.state = 'pending' AND excluded.sweep_until IS NULL THEN {old} END"

COLUMNS = (
    Column("run", "TEXT PRIMARY KEY NOT NULL", "text PRIMARY KEY"),
    Column("held_by", "", "text NOT NULL", NEW),
    Column("tag", "TEXT", "text", IF_GIVEN),
    Column("driver_tag", "TEXT", "text", IF_GIVEN),
    Column("endpoint", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column("instance", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column(
        "session_owner",
        "INTEGER NOT NULL",
        "boolean NOT NULL",
        "CASE WHEN excluded.session IS NULL THEN {old} ELSE {new} END",
    ),
    Column("session", "TEXT", "text", IF_GIVEN),
    Column("answered", "INTEGER NOT NULL", "boolean NOT NULL", NEW),
    Column("machine", "TEXT NOT NULL", "", NEW),
    Column("host", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column("boot", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column("pid_ns", "INTEGER NOT NULL", "bigint NOT NULL", NEW),
    Column("pid", "INTEGER NOT NULL", "bigint NOT NULL", NEW),
    Column("start_ticks", "INTEGER", "bigint", NEW),
    Column("watcher_pid", "INTEGER", "bigint", NEW),
    Column("watcher_start_ticks", "INTEGER", "bigint", NEW),
    Column("state", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column("detail", "TEXT NOT NULL", "text NOT NULL", NEW),
    Column("sweep_until", "REAL", "timestamptz", NEW),
    Column("retry_at", "", "timestamptz", NEW),
    Column("claimed_by", "TEXT", "jsonb", WHILE_CANCELLING, is_inserted=False),
    Column("claimed_at", "REAL", "timestamptz", WHILE_CANCELLING, is_inserted=False),
    Column("created_at", "REAL NOT NULL", "timestamptz NOT NULL"),
    Column("updated_at", "REAL NOT NULL", "timestamptz NOT NULL", NEW),
    Column("key", "TEXT", "text", since=2),
    Column("fingerprint", "TEXT NOT NULL DEFAULT ''", "text NOT NULL", since=2),
    Column("grace", "REAL NOT NULL DEFAULT 0", "double precision NOT NULL", since=2),
    Column("holder", "TEXT NOT NULL DEFAULT ''", "text NOT NULL", since=2),
    Column("epoch", "INTEGER NOT NULL DEFAULT 0", "bigint NOT NULL", since=2),
    Column(
        "lease_until",
        "REAL",
        "",
        # A claim's lease is longer than a driver's.
        "CASE WHEN excluded.state = 'guarded' AND excluded.let_go_at IS NULL THEN {new} ELSE {old} END",
        since=2,
    ),
    Column(
        "let_go_at",
        "REAL",
        "timestamptz",
        # It counts from the first time.
        "CASE WHEN {new} IS NOT NULL THEN coalesce({old}, {new}) END",
        since=2,
    ),
    Column("is_shared", "INTEGER NOT NULL DEFAULT 0", "", NEW, since=2),
    # What it is, for those who read the ledger (`facts.About`).
    Column("backend", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("primitive", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("pubs", "INTEGER", "bigint", NEW, since=ADDED),
    Column("shots", "INTEGER", "bigint", NEW, since=ADDED),
    Column("label", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("tags", "TEXT NOT NULL DEFAULT '[]'", "text NOT NULL DEFAULT '[]'", NEW, since=ADDED),
    Column("program", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("command", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("began_at", "REAL", "timestamptz", NEW, since=ADDED),
    # How it ended (`facts.End`).
    Column("outcome", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("ended_by", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("signum", "INTEGER", "bigint", NEW, since=ADDED),
    Column("reason", "TEXT NOT NULL DEFAULT ''", "text NOT NULL DEFAULT ''", NEW, since=ADDED),
    Column("ended_at", "REAL", "timestamptz", NEW, since=ADDED),
)

# Of a job: the service's own figures and times (`facts.Figures`), by its clock, which is none of ours: see `spending`.
JOB_COLUMNS = tuple(Column(name, "REAL", "double precision", since=ADDED) for name in Figures._fields)

IN_SQLITE = tuple(column for column in COLUMNS if column.sqlite)
IN_POSTGRES = tuple(column for column in COLUMNS if column.postgres)

HOST_IDENTITY = ("machine", "host", "boot", "pid_ns")
FLAGS = ("session_owner", "answered", "is_shared")


def on_conflict(columns: tuple[Column, ...], table: str, **instead: str) -> str:
    """What becomes of the columns of a row that is there already.

    Args:
        columns: The columns of the table.
        table: Its name.
        instead: The values of some, where they are not as the table of columns has it.
    """
    values = {column.name: instead.get(column.name, column.again) for column in columns}
    return ", ".join(
        f"{name} = {value.format(new=f'excluded.{name}', old=f'{table}.{name}')}"
        for name, value in values.items()
        if value
    )


def values_of(row: Row) -> dict[str, Any]:
    """A row as the values of its columns, each of which can hold its own, without any secret."""
    values = {
        column.name: fitted(getattr(row.host_identity if column.name in HOST_IDENTITY else row, column.name))
        for column in COLUMNS
    }
    safe = {name: safe_detail(values[name]) for name in ("detail", "reason", "command")}
    return values | safe | {"endpoint": safe_endpoint(values["endpoint"]), "tags": json.dumps(row.tags)}


def row_of(found: Mapping[str, Any]) -> Row:
    """A row from the values of its columns, and those of its jobs; times are in seconds of the Unix clock."""
    values = {column.name: found[column.name] for column in COLUMNS if column.name in found}
    host_identity = HostIdentity(*(values.pop(name, "") for name in HOST_IDENTITY))
    flags = {name: bool(values[name]) for name in FLAGS if name in values}
    jobs: Collection[Mapping[str, Any]] = found["jobs"]
    # JSON, in which PostgreSQL answers, has one kind of number.
    figures = {
        job["job"]: Figures(*(None if job[name] is None else float(job[name]) for name in Figures._fields))
        for job in jobs
    }
    special = {
        "host_identity": host_identity,
        "claimed_by": process_of(values["claimed_by"]),
        "tags": tuple(json.loads(values["tags"])),
        "jobs": {job["job"]: job["outcome"] for job in jobs},
        "figures": {job: each for job, each in figures.items() if each != Figures()},
    }
    return Row(**values | flags | special)


def missing(columns: Iterable[Column], there: Collection[str]) -> list[Column]:
    """The columns that a table does not have yet."""
    return [column for column in columns if column.since == ADDED and column.name not in there]


def process_of(found: str | Mapping[str, Any] | None) -> Process | None:
    """The process that a column names; both ledgers' notations are read."""
    try:
        process = json.loads(found) if isinstance(found, str) else found
        if process is None:
            return None
        host = process.get("place", process)  # the local ledger's name for it
        identity = HostIdentity(host.get("machine", ""), host["host"], host["boot"], host["pid_ns"])
        return Process(identity, process["pid"], process["start_ticks"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # a claim that can't be read is nobody's
