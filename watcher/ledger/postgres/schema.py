"""The tables, and how older ones become newer ones.

A new column needs no migration: it is added where it is missing (`columns.ADDED`), and must have a default, since hosts
with earlier releases go on writing rows. `qx_schema` has a row for each migration that was done, and programs that know
fewer refuse the tables: a change that they could not live with is a migration. Never change one that was released, and
rename and drop nothing. All names begin with `qx_`: the database may hold other tables too.
"""

from __future__ import annotations

from ..columns import ADDED, IN_POSTGRES, JOB_COLUMNS, missing
from ..errors import LedgerError
from ..spending import FINAL_SQL, tables
from ..store import UNFINISHED_SQL
from .connection import Connection

LOCK = 0x51785376
"""The advisory lock that migrations are done under: of many at once, one does them and the others find them done."""

BUDGETS_LOCK = 0x51785377
"""The advisory lock that QPU time is reserved under: of many at once, each sees what the others have reserved."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # Renewed three times in the length of a lease, each: a page has room for the new version of a row, and no index
        # has a column that is renewed, so that no index is written.
        """
        CREATE TABLE qx_holders (
            id            text PRIMARY KEY,
            kind          text NOT NULL,
            host          text NOT NULL,
            boot          text NOT NULL,
            pid_ns        bigint NOT NULL,
            pid           bigint NOT NULL,
            start_ticks   bigint,
            lease_seconds double precision NOT NULL,
            lease_until   timestamptz NOT NULL,
            since         timestamptz NOT NULL
        ) WITH (fillfactor = 50)
        """,
        f"CREATE TABLE qx_runs ({', '.join(f'{c.name} {c.postgres}' for c in IN_POSTGRES if c.since < ADDED)})",
        """
        CREATE TABLE qx_jobs (
            run     text NOT NULL REFERENCES qx_runs (run) ON DELETE CASCADE,
            job     text NOT NULL,
            outcome text NOT NULL,
            PRIMARY KEY (run, job)
        )
        """,
        f"CREATE INDEX qx_runs_unfinished ON qx_runs (held_by) WHERE {UNFINISHED_SQL}",
        f"CREATE INDEX qx_runs_finished ON qx_runs (updated_at) WHERE {FINAL_SQL}",
        "CREATE UNIQUE INDEX qx_runs_keys ON qx_runs (key, endpoint, instance) WHERE key IS NOT NULL",
    ),
)


def version(database: Connection) -> int:
    """How many migrations a database has seen.

    Raises:
        LedgerError: It is newer than this program.
    """
    found = database.execute("SELECT to_regclass('qx_schema') IS NOT NULL").fetchone()
    if not found or not found[0]:
        return 0
    newest = database.execute("SELECT coalesce(max(version), 0) FROM qx_schema").fetchone()
    number: int = newest[0] if newest else 0
    if number > len(MIGRATIONS):
        raise LedgerError(
            f"The shared ledger was made by a newer qx_supervisor (its version is {number}, the newest known here "
            f"{len(MIGRATIONS)}): update this one."
        )
    return number


def migrate(database: Connection) -> None:
    """Bring the tables up to date, in one transaction; of many at once, one does it."""
    if version(database) == len(MIGRATIONS) and not _additions(database):
        return
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        # Behind a dump that reads the tables for an hour, a column would keep all others waiting. It is tried again.
        database.execute(b"SET LOCAL lock_timeout = '2s'")
        database.execute(
            "CREATE TABLE IF NOT EXISTS qx_schema (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)"
        )
        done = version(database)
        for number, statements in enumerate(MIGRATIONS[done:], done + 1):
            for statement in statements:
                database.execute(statement.encode())
            database.execute("INSERT INTO qx_schema VALUES (%s, clock_timestamp())", (number,))
        for statement in _additions(database):
            database.execute(statement.encode())


def _additions(database: Connection) -> list[str]:
    """What adds the columns and tables that are not there yet."""
    found = database.execute(
        "SELECT attrelid::regclass::text, attname FROM pg_attribute "
        "WHERE attrelid IN (to_regclass('qx_runs'), to_regclass('qx_jobs')) AND attnum > 0 AND NOT attisdropped"
    ).fetchall()
    statements = [
        statement
        for name, those in tables("qx_", "text", "double precision").items()
        if database.execute("SELECT to_regclass(%s)", (name,)).fetchone() in (None, (None,))
        for statement in those
    ]
    for table, columns in (("qx_runs", IN_POSTGRES), ("qx_jobs", JOB_COLUMNS)):
        added = missing(columns, {name for of, name in found if of.rpartition(".")[2] == table})
        if added:
            statements.append(f"ALTER TABLE {table} {', '.join(f'ADD COLUMN {c.name} {c.postgres}' for c in added)}")
    return statements
