"""The tables, and how an older file becomes a newer one.

A new column needs no migration: it is added where it is missing (`columns.ADDED`), and must have a default, since
programs of earlier releases go on writing rows. `PRAGMA user_version` counts the migrations that a file has seen, and
programs that know fewer refuse it: a change that they could not live with is a migration. Never change one that was
released, and rename and drop nothing: a watcher of the version before may have the file open. Only what SQLite 3.24
knows is used: the library is the system's, and some are old.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from .columns import IN_SQLITE, JOB_COLUMNS, missing
from .errors import LedgerError
from .spending import FINAL_SQL, tables
from .store import UNFINISHED_SQL

APPLICATION_ID = 0x51785376
"""Tells a ledger from any other SQLite file: "QxSv"."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"CREATE TABLE runs ({', '.join(f'{each.name} {each.sqlite}' for each in IN_SQLITE if each.since == 1)})",
        """
        CREATE TABLE jobs (
            run     TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
            job     TEXT NOT NULL,
            outcome TEXT NOT NULL,
            PRIMARY KEY (run, job)
        ) WITHOUT ROWID
        """,
        f"CREATE INDEX unfinished ON runs (state) WHERE {UNFINISHED_SQL}",
        f"CREATE INDEX finished ON runs (updated_at) WHERE {FINAL_SQL}",
    ),
    (
        *(f"ALTER TABLE runs ADD COLUMN {each.name} {each.sqlite}" for each in IN_SQLITE if each.since == 2),
        "CREATE UNIQUE INDEX keys ON runs (key, endpoint, instance) WHERE key IS NOT NULL",
    ),
)


def read_version(database: sqlite3.Connection, path: Path) -> int:
    """The version of a file, which is 0 for a new one.

    Raises:
        LedgerError: It is newer than this program, or no ledger.
    """
    # In one transaction: between two looks another process may have made the tables.
    is_inner = database.in_transaction
    if not is_inner:
        database.execute("BEGIN")
    try:
        version: int = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            is_ledger = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        else:
            is_ledger = database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    finally:
        if not is_inner and database.in_transaction:
            database.execute("ROLLBACK")
    if not is_ledger:
        raise LedgerError(f"The file {path} is not a ledger: move it away, and one is made.")
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"The ledger {path} was written by a newer qx_supervisor (its version is {version}, "
            f"the newest known here {len(MIGRATIONS)}): update this one."
        )
    return version


def is_current(database: sqlite3.Connection, version: int) -> bool:
    """Whether a file of a version has all columns."""
    return version == len(MIGRATIONS) and not _additions(database)


def migrate(database: sqlite3.Connection, path: Path) -> None:
    """Bring a file up to date, in one transaction; of two processes one waits, and finds it done."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[read_version(database, path) :]:
            for statement in statements:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        for statement in _additions(database):
            database.execute(statement)
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _additions(database: sqlite3.Connection) -> list[str]:
    """What adds the columns and tables that a file does not have yet."""
    there = {each[0] for each in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    added = [each for name, those in tables("", "TEXT", "REAL").items() if name not in there for each in those]
    return added + [
        f"ALTER TABLE {table} ADD COLUMN {column.name} {column.sqlite}"
        for table, columns in (("runs", IN_SQLITE), ("jobs", JOB_COLUMNS))
        for column in missing(columns, {each[1] for each in database.execute(f"PRAGMA table_info({table})")})
    ]
