"""The columns of a run: one table, from which both schemas, reading and writing follow.

To add a column, add a line here, and a migration in each of the two `schema.py` that has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..host_identity import HostIdentity, Process
from .row import Row, safe_detail, safe_endpoint


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name, which is an attribute's of `Row` or of its `place`.
        sqlite: Its type in the local ledger; "" if it has no such column.
        postgres: Its type in the shared ledger; "" if it has no such column.
        again: Its value when a row is written that is there already, as SQL of {new} and {old}; "" if it stays.
        since: The migration of the local ledger that added it.
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
)

IN_SQLITE = tuple(column for column in COLUMNS if column.sqlite)
IN_POSTGRES = tuple(column for column in COLUMNS if column.postgres)

PLACE = ("machine", "host", "boot", "pid_ns")
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
    """A row as the values of its columns, without any secret."""
    values = {column.name: getattr(row.place if column.name in PLACE else row, column.name) for column in COLUMNS}
    return values | {"endpoint": safe_endpoint(row.endpoint), "detail": safe_detail(row.detail)}


def row_of(found: Mapping[str, Any]) -> Row:
    """A row from the values of its columns, and its jobs; times are in seconds of the Unix clock."""
    values = {column.name: found[column.name] for column in COLUMNS if column.name in found}
    place = HostIdentity(*(values.pop(name, "") for name in PLACE))
    flags = {name: bool(values[name]) for name in FLAGS if name in values}
    claimant = process_of(values["claimed_by"])
    return Row(**values | flags | {"place": place, "claimed_by": claimant, "jobs": found["jobs"]})


def process_of(found: str | Mapping[str, Any] | None) -> Process | None:
    """The process that a column names; both ledgers' notations are read."""
    try:
        process = json.loads(found) if isinstance(found, str) else found
        if process is None:
            return None
        place = process.get("place", process)
        identity = HostIdentity(place.get("machine", ""), place["host"], place["boot"], place["pid_ns"])
        return Process(identity, process["pid"], process["start_ticks"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # a claim that can't be read is nobody's
