"""The tables, and how older ones become newer ones.

`qx_schema` has a row for each migration that was done. To change the tables, add a migration; never change one that was
released. Watchers of the version before go on while the tables are migrated, so their statements must still work: add
columns with a default, rename and drop none. All names begin with `qx_`: the database may hold other tables too.
"""

from __future__ import annotations

from ..columns import IN_POSTGRES
from ..errors import LedgerError
from ..store import FINAL_SQL, UNFINISHED_SQL
from .connection import Connection

LOCK = 0x51785376
"""The advisory lock that migrations are done under: of many at once, one does them and the others find them done."""

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
        f"CREATE TABLE qx_runs ({', '.join(f'{column.name} {column.postgres}' for column in IN_POSTGRES)})",
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
    """Bring the tables to the newest version, in one transaction; of many at once, one does it."""
    if version(database) == len(MIGRATIONS):
        return
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        database.execute(
            "CREATE TABLE IF NOT EXISTS qx_schema (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)"
        )
        done = version(database)
        for number, statements in enumerate(MIGRATIONS[done:], done + 1):
            for statement in statements:
                database.execute(statement.encode())
            database.execute("INSERT INTO qx_schema VALUES (%s, clock_timestamp())", (number,))
