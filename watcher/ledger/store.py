"""Reading and writing the ledger.

What must survive a power failure is synchronized to the disk when the call returns: an intent, because the job may
run a millisecond later; on request the end of a run, because a detached job must not be cancelled by the next boot.
All else need only survive the death of this process, and costs no synchronization. If the power fails before a later
one carries it along, the ledger knows less and does no harm: a lost job id is found again by its tag, and the cancel
of a run whose `done` was lost finds it final.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .. import host_identity
from ..host_identity import INITIAL_PID_NAMESPACE, HostIdentity, IsRunning, Process
from . import schema
from .errors import LedgerError, UnknownRun
from .file import File, prepare
from .lease import CLAIM_LEASE_SECONDS, LEASE_SECONDS, Ruling, Wish, contend
from .row import UNFINISHED, Row, State, safe_detail, safe_endpoint

BUSY_SECONDS = 1.0
"""How long to wait for another process's lock. A run waits for its intent: better no ledger than a hang."""

CLAIM_SECONDS = 3600.0
"""After which the claim of a process that can't be seen from here no longer counts. A cancel gives up after minutes."""

BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

FORGET_AT_ONCE = 250
"""The most rows that one `forget` deletes, so that it never holds the lock for long."""

T = TypeVar("T")


class Ledger:
    """The ledger of one state directory: made by `open`, used by the thread that opened it, and not after a fork.

    Whatever goes wrong in any of its methods is a `LedgerError`.

    Attributes:
        path: The file.
        place: Where this process is, as rows written here should have it, and as rows are judged from here.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        file: File,
        place: HostIdentity,
        *,
        has_wal: bool,
        clock: Callable[[], float],
        lease_seconds: float,
    ) -> None:
        self.path = file.path
        self.place = place
        self._database = database
        self._inode = file.inode
        self._has_wal = has_wal
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._is_full = True  # PRAGMA synchronous

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        place: HostIdentity | None = None,
        *,
        clock: Callable[[], float] = time.time,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Ledger:
        """Open the ledger of a directory; make it, or bring it up to date, where that is due.

        Args:
            directory: The state directory, absolute (`state_directory()`).
            place: Where this process is; `here()` if that is not known yet.
            clock: The Unix clock.
            lease_seconds: How long a lease is held without being renewed.
        """
        place = place or host_identity.this_host()
        file = prepare(Path(directory), place.host)
        if not file.is_local and place.pid_ns != INITIAL_PID_NAMESPACE:
            # A container's machine id comes with its image and its host name with its configuration: two machines may
            # run the same, and share this directory. Then a new boot id must not pass for the same machine's.
            place = replace(place, machine="")
        with _translated(file.path):
            # Transactions are begun by hand: the module's own begin only at the first write. Locks are waited for by
            # hand too: SQLite sleeps longer and longer, and among a few dozen processes some starve.
            database = sqlite3.connect(file.path, timeout=0, isolation_level=None)
            try:
                has_wal = _patiently(lambda: _set_up(database, file.path, wants_wal=file.is_local))
                return cls(database, file, place, has_wal=has_wal, clock=clock, lease_seconds=lease_seconds)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        """Close the file; what is in a batch is dropped."""
        with _translated(self.path):
            self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing: the watcher

    def intent(self, *rows: Row) -> None:
        """Write rows, all durable when it returns.

        A row that is there is brought up to date, as a new watcher does that has its runs told again: the job ids
        and the session that are known stay known, the moment it was written first stays, and it is guarded again.
        """
        now = self._clock()
        with self._writing(durable=True) as database:
            for row in rows:
                self._insert(row, now)
                for job, outcome in row.jobs.items():
                    database.execute(_UPSERT_JOB, (row.run, job, safe_detail(outcome)))

    def job(self, run: str, job: str) -> None:
        """Add a job to a run; nothing happens if it is there."""
        self.job_outcome(run, job, "")

    def job_outcome(self, run: str, job: str, outcome: str) -> None:
        """Write what became of a job: "cancelled", for instance. An outcome never becomes unknown again."""
        with self._writing() as database:
            self._update(run)
            database.execute(_UPSERT_JOB, (run, job, safe_detail(outcome)))

    def session(self, run: str, session: str, *, owner: bool) -> None:
        """Write which session a run uses, and whether it is the driver's own."""
        with self._writing():
            self._update(run, session=session, session_owner=owner)

    def answered(self, run: str, *, holder: str = "") -> None:
        """Write that every submission of a run was answered at the first try: no job of it is unknown.

        Args:
            run: The run.
            holder: See `finish`.
        """
        with self._writing():
            if self._is_held(run, holder):
                self._update(run, answered=True)

    def watcher(self, run: str, pid: int, start_ticks: int | None) -> None:
        """Write which watcher guards a run."""
        with self._writing():
            self._update(run, watcher_pid=pid, watcher_start_ticks=start_ticks)

    def finish(
        self,
        run: str,
        state: State,
        detail: str = "",
        *,
        sweep_until: float | None = None,
        durable: bool = False,
        holder: str = "",
    ) -> None:
        """Write what a run has come to.

        Args:
            run: The run.
            state: Its new state.
            detail: Why, in a sentence. What looks like a secret in it is left out.
            sweep_until: For a pending run: until when it is swept again, in seconds of the Unix clock.
            durable: Whether it must survive a power failure at once. It must where the job lives on without its
                driver (detached), for the next boot would cancel it.
            holder: Who held the lease on it, if it has a key: where that is another's now, nothing is written.
        """
        with self._writing(durable=durable):
            if self._is_held(run, holder):
                # Whoever worked on it does so no more: a claim that stayed would keep its key from all others.
                self._update(
                    run,
                    state=state,
                    detail=safe_detail(detail),
                    sweep_until=sweep_until,
                    claimed_by=None,
                    claimed_at=None,
                )

    # Leases: runs with a key

    def take(self, wish: Wish, *, is_running: IsRunning = host_identity.is_running) -> Ruling:
        """Take the lease on a key, if it can be had. Durable when it returns.

        A row that is there stays the key's: its run's id, tag and jobs are what the new holder goes on with.

        Args:
            wish: What is wished.
            is_running: See `judge`.
        """
        now = self._clock()
        new = wish.row
        with self._writing(durable=True) as database:
            known = self._keyed(database, wish)
            if known is None:
                self._insert(new, now)
                return Ruling(answer="granted", row=self._required(new.run), is_new=True)
            refusal = contend(known, wish, self.place, is_running, now)
            if refusal is not None:
                return refusal
            if known.instance != new.instance:
                return Ruling(answer="other instance", row=known)
            self._update(
                known.run,
                machine=new.place.machine,
                host=new.place.host,
                boot=new.place.boot,
                pid_ns=new.place.pid_ns,
                pid=new.pid,
                start_ticks=new.start_ticks,
                watcher_pid=new.watcher_pid,
                watcher_start_ticks=new.watcher_start_ticks,
                state="guarded",
                detail="",
                sweep_until=None,
                claimed_by=None,
                claimed_at=None,
                fingerprint=new.fingerprint,
                grace=new.grace,
                is_shared=new.is_shared,
                holder=new.holder,
                epoch=known.epoch + (known.holder != new.holder),
                lease_until=now + self._lease_seconds,
                let_go_at=None,
                answered=known.answered or known.state in ("done", "cancelled"),
            )
            # What was let go is guarded again.
            database.execute("UPDATE jobs SET outcome = '' WHERE run = ? AND outcome = 'kept'", (known.run,))
            return Ruling(answer="granted", row=self._required(known.run), let_go_at=known.let_go_at)

    def adopt(self, row: Row) -> None:
        """Write a run with a key as the shared ledger has it, which decides, whatever was known here of either."""
        with self._writing(durable=True) as database:
            database.execute(
                "UPDATE runs SET key = NULL WHERE key = ? AND endpoint = ? AND instance = ? AND run <> ?",
                (row.key, safe_endpoint(row.endpoint), row.instance, row.run),
            )
            database.execute("DELETE FROM runs WHERE run = ?", (row.run,))
            self._insert(row, self._clock())
            for job, outcome in row.jobs.items():
                database.execute(_UPSERT_JOB, (row.run, job, safe_detail(outcome)))

    def anew(self, run: str, outcomes: Mapping[str, str], *, holder: str) -> None:
        """Write what became of the jobs that a run with a key had so far: another one will be submitted."""
        with self._writing() as database:
            if self._required(run).holder == holder:
                for job, outcome in outcomes.items():
                    database.execute(_UPSERT_JOB, (run, job, safe_detail(outcome)))

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run with a key any more, unless that is known or its lease is another's."""
        now = self._clock()
        with self._writing(durable=True) as database:
            database.execute(
                "UPDATE runs SET let_go_at = ?, updated_at = ? WHERE run = ? AND holder = ? AND let_go_at IS NULL",
                (now, now, run, holder),
            )

    def contest(self, run: str, holder: str, claimant: Process) -> bool:
        """Win the lease once more, to cancel; False where a driver that came back has it.

        Nobody waits for the run from here on, even if its driver lives: once its jobs are cancelled, or that was tried
        for long enough, the key is free.

        Args:
            run: A run with a key, whose driver is gone, or wants its jobs cancelled.
            holder: Who held the lease.
            claimant: The process that will cancel.
        """
        now = self._clock()
        with self._writing(durable=True) as database:
            won = database.execute(
                "UPDATE runs SET state = 'pending', claimed_by = ?, claimed_at = ?, lease_until = ?, updated_at = ?, "  # noqa: S608
                f"let_go_at = coalesce(let_go_at, ?) WHERE run = ? AND holder = ? AND {schema.UNFINISHED_SQL}",
                (_json(claimant), now, now + CLAIM_LEASE_SECONDS, now, now, run, holder),
            ).rowcount
            return bool(won)

    def renew(self, holders: Collection[str]) -> None:
        """Hold leases for longer."""
        until = self._clock() + self._lease_seconds
        with self._writing() as database:
            for holder in holders:
                database.execute(
                    "UPDATE runs SET lease_until = ? WHERE holder = ? AND let_go_at IS NULL", (until, holder)
                )

    def _keyed(self, database: sqlite3.Connection, wish: Wish) -> Row | None:
        """The row under a key: with the instance that is wished, else with another one that the driver can use."""
        new = wish.row
        found = database.execute(
            "SELECT run, instance FROM runs WHERE key = ? AND endpoint = ?", (new.key, safe_endpoint(new.endpoint))
        ).fetchall()
        runs = {each["instance"]: each["run"] for each in found}
        for instance in (new.instance, *wish.instances):
            if instance in runs:
                return self._required(runs[instance])
        return None

    def _is_held(self, run: str, holder: str) -> bool:
        """Whether a run with a key is its holder's still; one without has none."""
        held = "SELECT 1 FROM runs WHERE run = ? AND holder = ?"
        return not holder or self._database.execute(held, (run, holder)).fetchone() is not None

    def _required(self, run: str) -> Row:
        found = self.row(run)
        if found is None:
            raise UnknownRun(f"The ledger {self.path} has no run {run}.")
        return found

    def _insert(self, row: Row, now: float) -> None:
        until = None if row.key is None else now + self._lease_seconds
        self._database.execute(_UPSERT, {**_columns(row), "lease_until": until, "now": now})

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

    # Judging and claiming: whoever comes later

    def rows(self, states: Collection[State] | None = None, limit: int | None = None) -> list[Row]:
        """Read rows, the newest first.

        Args:
            states: Only rows in these states. `UNFINISHED` is fast however long the ledger is.
            limit: The most rows to read.
        """
        values: list[str] = []
        if states is None:
            condition = "1"
        elif frozenset(states) == UNFINISHED:
            condition = schema.UNFINISHED_SQL
        else:
            values = list(states)
            condition = f"state IN ({', '.join('?' * len(values))})"
        query = f"SELECT * FROM runs WHERE {condition} ORDER BY rowid DESC LIMIT ?"  # noqa: S608 - of our own words
        return self._read(query, *values, -1 if limit is None else limit)

    def row(self, run: str) -> Row | None:
        """Read the row of a run, if there is one."""
        found = self._read("SELECT * FROM runs WHERE run = ?", run)
        return found[0] if found else None

    def claim(self, run: str, claimant: Process, *, is_running: IsRunning = host_identity.is_running) -> bool:
        """Claim an unfinished run for a process: of all that try, one gets it.

        The claim of a process that is dead is taken over. One of a process that can't be seen from here counts for
        `CLAIM_SECONDS`: to cancel an orphan twice does little harm, and never to cancel it would.

        Args:
            run: The run, which was judged to be an orphan.
            claimant: The process that will cancel: `this_process(ledger.place)`.
            is_running: See `judge`.
        """
        now = self._clock()
        with self._writing() as database:
            found = database.execute(
                f"SELECT claimed_by, claimed_at FROM runs WHERE run = ? AND {schema.UNFINISHED_SQL}",  # noqa: S608
                (run,),
            ).fetchone()
            if found is None:
                return False
            holder = _process(found["claimed_by"])
            if holder is not None:
                view = self.place.view_of(holder.place)
                if view == "same" and is_running(holder.pid, holder.start_ticks):
                    return False
                if view == "elsewhere" and abs(now - (found["claimed_at"] or 0.0)) < CLAIM_SECONDS:
                    return False
            self._update(run, claimed_by=_json(claimant), claimed_at=now, lease_until=now + CLAIM_LEASE_SECONDS)
            return True

    def release(self, run: str, claimant: Process) -> None:
        """Give a claim back, if it is still this process's."""
        with self._writing() as database:
            database.execute(
                "UPDATE runs SET claimed_by = NULL, claimed_at = NULL WHERE run = ? AND claimed_by = ?",
                (run, _json(claimant)),
            )

    def forget(self, older_than_seconds: float) -> int:
        """Delete rows that were final for so long, at most `FORGET_AT_ONCE` of them; returns how many it deleted."""
        with self._writing() as database:
            return database.execute(
                "DELETE FROM runs WHERE rowid IN (SELECT rowid FROM runs "  # noqa: S608 - of our own words
                f"WHERE {schema.FINAL_SQL} AND updated_at < ? ORDER BY updated_at LIMIT {FORGET_AT_ONCE})",
                (self._clock() - older_than_seconds,),
            ).rowcount

    # Transactions

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        with _translated(self.path):
            if self._database.in_transaction:  # in a batch, and its end will write it
                yield self._database
                return
            self._begin(durable=durable)
            try:
                yield self._database
                self._commit()
            finally:
                self._roll_back()

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

    def _update(self, run: str, **values: str | float | None) -> None:
        values["updated_at"] = self._clock()
        assignments = ", ".join(f"{column} = ?" for column in values)
        changed = self._database.execute(
            f"UPDATE runs SET {assignments} WHERE run = ?",  # noqa: S608 - of our own words
            (*values.values(), run),
        ).rowcount
        if not changed:
            raise UnknownRun(f"The ledger {self.path} has no run {run}.")

    def _read(self, query: str, *values: str | float) -> list[Row]:
        with _translated(self.path):
            database = self._database
            is_batch = database.in_transaction
            if not is_batch:
                database.execute("BEGIN")  # the rows and their jobs as of one moment
            try:
                found = _patiently(lambda: database.execute(query, values).fetchall())
                jobs = "SELECT job, outcome FROM jobs WHERE run = ?"
                return [_row(each, dict(database.execute(jobs, (each["run"],)))) for each in found]
            finally:
                if not is_batch:
                    self._roll_back()


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
    if version < len(schema.MIGRATIONS):
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
    """Let nothing of SQLite's out but a sentence."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise LedgerError(_sentence(path, error)) from error


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


# Rows and columns

_UPSERT = """
INSERT INTO runs (
    run, tag, driver_tag, endpoint, instance, session, session_owner, answered, machine, host, boot, pid_ns, pid,
    start_ticks, watcher_pid, watcher_start_ticks, state, detail, sweep_until, key, fingerprint, grace, holder, epoch,
    is_shared, lease_until, created_at, updated_at
) VALUES (
    :run, :tag, :driver_tag, :endpoint, :instance, :session, :session_owner, :answered, :machine, :host, :boot, :pid_ns,
    :pid, :start_ticks, :watcher_pid, :watcher_start_ticks, :state, :detail, :sweep_until,
    :key, :fingerprint, :grace, :holder, :epoch, :is_shared, :lease_until, :now, :now
)
ON CONFLICT (run) DO UPDATE SET
    tag = coalesce(excluded.tag, tag), driver_tag = coalesce(excluded.driver_tag, driver_tag),
    endpoint = excluded.endpoint, instance = excluded.instance,
    session_owner = CASE WHEN excluded.session IS NULL THEN session_owner ELSE excluded.session_owner END,
    session = coalesce(excluded.session, session), answered = excluded.answered,
    machine = excluded.machine, host = excluded.host, boot = excluded.boot, pid_ns = excluded.pid_ns,
    pid = excluded.pid, start_ticks = excluded.start_ticks,
    watcher_pid = excluded.watcher_pid, watcher_start_ticks = excluded.watcher_start_ticks,
    state = excluded.state, detail = excluded.detail, sweep_until = excluded.sweep_until,
    is_shared = excluded.is_shared, lease_until = excluded.lease_until, updated_at = excluded.updated_at
WHERE holder = excluded.holder
"""

_UPSERT_JOB = """
INSERT INTO jobs (run, job, outcome) VALUES (?, ?, ?)
ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome WHERE excluded.outcome <> ''
"""


def _columns(row: Row) -> dict[str, str | float | None]:
    return {
        "run": row.run,
        "tag": row.tag,
        "driver_tag": row.driver_tag,
        "endpoint": safe_endpoint(row.endpoint),
        "instance": row.instance,
        "session": row.session,
        "session_owner": row.session_owner,
        "answered": row.answered,
        "machine": row.place.machine,
        "host": row.place.host,
        "boot": row.place.boot,
        "pid_ns": row.place.pid_ns,
        "pid": row.pid,
        "start_ticks": row.start_ticks,
        "watcher_pid": row.watcher_pid,
        "watcher_start_ticks": row.watcher_start_ticks,
        "state": row.state,
        "detail": safe_detail(row.detail),
        "sweep_until": row.sweep_until,
        "key": row.key,
        "fingerprint": row.fingerprint,
        "grace": row.grace,
        "holder": row.holder,
        "epoch": row.epoch,
        "is_shared": row.is_shared,
    }


def _row(found: sqlite3.Row, jobs: dict[str, str]) -> Row:
    return Row(
        run=found["run"],
        place=HostIdentity(found["machine"], found["host"], found["boot"], found["pid_ns"]),
        pid=found["pid"],
        start_ticks=found["start_ticks"],
        watcher_pid=found["watcher_pid"],
        watcher_start_ticks=found["watcher_start_ticks"],
        tag=found["tag"],
        driver_tag=found["driver_tag"],
        endpoint=found["endpoint"],
        instance=found["instance"],
        jobs=jobs,
        session=found["session"],
        session_owner=bool(found["session_owner"]),
        answered=bool(found["answered"]),
        state=found["state"],
        detail=found["detail"],
        sweep_until=found["sweep_until"],
        claimed_by=_process(found["claimed_by"]),
        claimed_at=found["claimed_at"],
        key=found["key"],
        fingerprint=found["fingerprint"],
        grace=found["grace"],
        holder=found["holder"],
        epoch=found["epoch"],
        lease_until=found["lease_until"],
        let_go_at=found["let_go_at"],
        is_shared=bool(found["is_shared"]),
        created_at=found["created_at"],
        updated_at=found["updated_at"],
    )


def _json(process: Process) -> str:
    return json.dumps(asdict(process), sort_keys=True)


def _process(text: str | None) -> Process | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Process(HostIdentity(**found["place"]), found["pid"], found["start_ticks"])
    except (ValueError, TypeError, KeyError):
        return None  # a claim that can't be read is nobody's
