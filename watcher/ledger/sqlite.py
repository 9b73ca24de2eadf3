"""The local ledger: a file of SQLite's for each machine.

What must survive a power failure is synchronized to the disk when the call returns: a guarded run, because the job may
run a millisecond later; on request the end of a run, because a detached job must not be cancelled by the next boot.
All else need only survive the death of this process, and costs no synchronization. If the power fails before a later
one carries it along, the ledger knows less and does no harm: a lost job id is found again by its tag, and the cancel
of a run whose `done` was lost finds it final.
"""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import host_identity
from ..host_identity import INITIAL_PID_NAMESPACE, HostIdentity, IsRunning, Process
from . import rules, schema
from .columns import IN_SQLITE, on_conflict, row_of, values_of
from .errors import LedgerBusy, LedgerError, RefusedRow
from .file import File, prepare
from .row import Row, fitted, safe_detail, safe_endpoint, text_of
from .rules import CLAIM_LEASE_SECONDS, LEASE_SECONDS
from .spending import FINAL_SQL
from .store import FromNow, Store

BUSY_SECONDS = 1.0
"""How long to wait for another process's lock. A run waits for its intent: better no ledger than a hang."""

BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

INSERTED = [column.name for column in IN_SQLITE if column.is_inserted]

UPSERT = f"""
INSERT INTO runs ({", ".join(INSERTED)}) VALUES ({", ".join(f":{name}" for name in INSERTED)})
ON CONFLICT (run) DO UPDATE SET {on_conflict(IN_SQLITE, "runs")} WHERE runs.holder = excluded.holder
    AND NOT (runs.{FINAL_SQL} AND excluded.state = 'guarded')
"""
"""What is over stays over: a driver whose connection broke may have written that itself, and its watcher, to whom it
could not be said, be late with what was before."""

UPSERT_JOB = """
INSERT INTO jobs (run, job, outcome) VALUES (:run, :job, :outcome)
ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome WHERE excluded.outcome <> ''
"""

T = TypeVar("T")


class Ledger(Store):
    """The ledger of one state directory: made by `open`, used by the thread that opened it, and not after a fork.

    Attributes:
        path: The file.
    """

    RUNS = "runs"
    JOBS = "jobs"
    PREFIX = ""
    SECONDS = "{}"
    COLUMNS = frozenset(column.name for column in IN_SQLITE)
    NEWEST_FIRST = "rowid DESC"
    FROM_NOW = "(:now + {})"
    MOMENT = "{}"

    def __init__(
        self,
        database: sqlite3.Connection,
        file: File,
        where: HostIdentity,
        *,
        has_wal: bool,
        clock: Callable[[], float],
        lease_seconds: float,
    ) -> None:
        self.NAME = f"The ledger {file.path}"
        self.path = file.path
        self.host_identity = where
        self.lease_seconds = lease_seconds
        self._database = database
        self._inode = file.inode
        self._has_wal = has_wal
        self._clock = clock
        self._is_full = True  # PRAGMA synchronous

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        where: HostIdentity | None = None,
        *,
        clock: Callable[[], float] = time.time,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Ledger:
        """Open the ledger of a directory; make it, or bring it up to date, where that is due.

        Args:
            directory: The state directory, absolute (`state_directory()`).
            where: Where this process is; `this_host()` by default.
            clock: The Unix clock.
            lease_seconds: How long a lease lasts without being renewed.
        """
        where = where or host_identity.this_host()
        file = prepare(Path(directory), where.host)
        if not file.is_local and where.pid_ns != INITIAL_PID_NAMESPACE:
            # A container's machine id comes with its image and its host name with its configuration: two machines may
            # run the same, and share this directory. Then a new boot id must not pass for the same machine's.
            where = replace(where, machine="")
        with _translated(file.path):
            # Transactions are begun by hand: the module's own begin only at the first write. Locks are waited for by
            # hand too: SQLite sleeps longer and longer, and among a few dozen processes some starve.
            database = sqlite3.connect(file.path, timeout=0, isolation_level=None)
            try:
                has_wal = _patiently(lambda: _set_up(database, file.path, wants_wal=file.is_local))
                return cls(database, file, where, has_wal=has_wal, clock=clock, lease_seconds=lease_seconds)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        """Close the file; what is in a batch is dropped."""
        with _translated(self.path):
            self._database.close()

    # Writing

    def write(self, *rows: Row, durable: bool = True) -> set[str]:
        """See `Store.write`."""
        with self._writing(durable=durable):
            return {row.run for row in rows if self._upsert(row)}

    def enter(self, row: Row, *, is_running: IsRunning = host_identity.is_running) -> bool:  # noqa: ARG002
        """Write a run with a key as the shared ledger has it, which decides, whatever was known here of either."""
        with self._writing(durable=True) as database:
            database.execute(
                "UPDATE runs SET key = NULL WHERE key = ? AND endpoint = ? AND instance = ? AND run <> ?",
                (row.key, safe_endpoint(row.endpoint), row.instance, row.run),
            )
            database.execute("DELETE FROM runs WHERE run = ?", (row.run,))
            return self._upsert(row)

    def withdraw(self, run: str) -> None:
        """Delete a run that its driver itself has written, unless a watcher has by then: it is the watcher's."""
        self._execute("DELETE FROM runs WHERE run = :run AND watcher_pid IS NULL", {"run": run}, durable=False)

    def renew(self, holders: Collection[str] = ()) -> bool:
        """See `Store.renew`; the processes of this machine go by each other, and not by the ends of leases."""
        with self._writing():
            for holder in holders:
                self._execute(
                    "UPDATE runs SET lease_until = :now + :lasts WHERE holder = :held AND let_go_at IS NULL",
                    {"held": holder, "lasts": self.lease_seconds},
                    durable=False,
                )
        return False

    def clock(self) -> float:
        """The Unix clock."""
        return self._clock()

    def changes(self) -> object:
        """See `Store.changes`."""
        with _translated(self.path):
            self._check_file()
            return self._database.execute("PRAGMA data_version").fetchone()[0]

    def _upsert(self, row: Row) -> bool:
        now = self._clock()
        lease_until = None if row.key is None else now + self.lease_seconds
        values = values_of(row) | {"lease_until": lease_until, "created_at": now, "updated_at": now}
        if not self._database.execute(UPSERT, {name: values[name] for name in INSERTED}).rowcount:
            return False
        for job, outcome in row.jobs.items():
            made = {"run": values["run"], "job": text_of(job), "outcome": safe_detail(outcome)}
            self._database.execute(UPSERT_JOB, made)
        return True

    # Reapers

    def claim(self, run: str, claimant: Process, *, is_running: IsRunning = host_identity.is_running) -> bool:
        """Claim an unfinished run for a process: of all that try, one gets it.

        Args:
            run: The run, which was judged to be an orphan.
            claimant: The process that will cancel: `this_process(ledger.host_identity)`.
            is_running: See `judge`.
        """
        with self.batch(durable=False):
            if not rules.may_claim(self._locked(run), self.host_identity, is_running, self._clock()):
                return False
            self._update(
                "run = :run",
                {"run": run},
                durable=False,
                claimed_by=claimant,
                claimed_at=FromNow(0.0),
                lease_until=FromNow(CLAIM_LEASE_SECONDS),
            )
            return True

    def release(self, run: str, claimant: Process) -> None:
        """Give a claim back, if it is still this process's."""
        claimed = {"run": run, "claimant": self._encoded(claimant)}
        self._update("run = :run AND claimed_by = :claimant", claimed, durable=False, claimed_by=None, claimed_at=None)

    # Transactions

    @contextmanager
    def batch(self, *, durable: bool = True) -> Iterator[None]:
        """Make everything in the block one write: durable at its end and not before, or undone if it raises."""
        with _translated(self.path):
            self._begin(durable=durable)
        try:
            yield
            with _translated(self.path):
                self._commit()
        finally:
            with _translated(self.path):
                self._roll_back()

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        with _translated(self.path):
            if self._database.in_transaction:  # in a batch, and its end will write it
                yield self._database
            else:
                with self.batch(durable=durable):
                    yield self._database

    def _begin(self, *, durable: bool) -> None:
        self._check_file()
        # A rollback journal is safe only with every synchronization; a write-ahead log keeps its order without.
        is_full = durable or not self._has_wal
        if is_full != self._is_full:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if is_full else 'NORMAL'}")
            self._is_full = is_full
        # IMMEDIATE: a transaction that reads first and locks later may find that it can't, and SQLite would not wait.
        _patiently(lambda: self._database.execute("BEGIN IMMEDIATE"))

    def _commit(self) -> None:
        # With a rollback journal it waits until nobody reads.
        _patiently(lambda: self._database.execute("COMMIT"))

    def _roll_back(self) -> None:
        """Undo what was not committed, if there is any."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _check_file(self) -> None:
        # SQLite writes on into a file that was deleted, and a row that nobody can find protects nobody.
        try:
            is_there = self.path.stat().st_ino == self._inode
        except OSError:
            is_there = False
        if not is_there:
            raise LedgerError(f"The ledger {self.path} was deleted or replaced while it was in use.")

    def _execute(self, sql: str, values: Mapping[str, Any], *, durable: bool | None = None) -> sqlite3.Cursor:
        values = {"now": self._clock(), **values}
        if durable is None and not self._database.in_transaction:  # in a write-ahead log who reads waits for no writer
            with _translated(self.path):
                self._check_file()
                return _patiently(lambda: self._database.execute(sql, values))
        with self._writing(durable=bool(durable)) as database:
            return database.execute(sql, values)

    def _read(self, condition: str, values: Mapping[str, Any], *, locked: bool = False) -> list[Row]:  # noqa: ARG002
        query = f"SELECT * FROM runs WHERE {condition}"
        jobs = "SELECT * FROM jobs WHERE run = ?"
        with _translated(self.path):
            database = self._database
            is_batch = database.in_transaction
            if not is_batch:
                database.execute("BEGIN")  # the rows and their jobs as of one moment
            try:
                found = _patiently(lambda: database.execute(query, values).fetchall())
                return [row_of({**each, "jobs": database.execute(jobs, (each["run"],)).fetchall()}) for each in found]
            finally:
                if not is_batch:
                    self._roll_back()

    def _encoded(self, value: Any) -> Any:
        if not isinstance(value, Process):
            return fitted(value)
        # "place", as earlier versions read it; sorted, for a claim is compared as text.
        claim = {"place": asdict(value.host_identity), "pid": value.pid, "start_ticks": value.start_ticks}
        return json.dumps(claim, sort_keys=True)

    def _held(self, run: str, holder: str) -> tuple[str, dict[str, Any]]:
        # A run without a key has no holder.
        return ("run = :run AND holder = :held" if holder else "run = :run"), {"run": run, "held": holder}

    def _lock_key(self, key: str) -> None:
        """A transaction that writes has the whole file."""

    def _lock_budgets(self) -> None:
        """As for `_lock_key`."""


def _set_up(database: sqlite3.Connection, path: Path, *, wants_wal: bool) -> bool:
    """Set a connection up; returns whether it has a write-ahead log."""
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    # First, for a newer file is to be left as it is.
    version = schema.read_version(database, path)
    # TRUNCATE and not DELETE: with synchronous=FULL the truncation is synchronized, the deletion is not, and a commit
    # would be undone by a power failure right after it.
    mode = "WAL" if wants_wal else "TRUNCATE"
    has_wal: bool = database.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == "wal"
    database.execute("PRAGMA synchronous = FULL")
    if sys.platform == "darwin":  # whose fsync(2) leaves data in the drive's cache (F_FULLFSYNC of fcntl(2))
        database.execute("PRAGMA fullfsync = ON")
    if not schema.is_current(database, version):
        schema.migrate(database, path)
    return has_wal


def _patiently(attempt: Callable[[], T]) -> T:
    """Try until no other process's lock is in the way, for `BUSY_SECONDS`."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in BUSY or time.monotonic() >= deadline:
                raise
        # 1 to 5 ms: a commit takes about one. The clock's last digits spread those who wait (`random` takes 5 ms to
        # import).
        time.sleep(0.001 + time.perf_counter_ns() % 4_000_000 / 1e9)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a sentence of our own."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, UnicodeError) as error:
        raise RefusedRow(_sentence(path, error)) from error
    except sqlite3.Error as error:
        is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY
        raise (LedgerBusy if is_busy else LedgerError)(_sentence(path, error)) from error


def _sentence(path: Path, error: Exception) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case code if code in BUSY:
            return f"The ledger {path} is locked by another process."
        case sqlite3.SQLITE_FULL:
            return f"The ledger {path} can't be written: the disk is full."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"The ledger {path} is damaged: move it away, and a new one is made."
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"The ledger {path} can't be opened for writing."
    reason = getattr(error, "sqlite_errorname", "") or type(error).__name__
    return f"The ledger {path} can't be used: {error} ({reason})."
