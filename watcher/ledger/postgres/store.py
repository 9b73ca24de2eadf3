"""The shared ledger: what differs from the local one."""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

import functools
import json
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from ... import host_identity
from ...facts import End
from ...host_identity import HostIdentity, IsRunning, Process
from .. import rules
from ..columns import IN_POSTGRES, row_of, values_of
from ..row import Row, RunState, fitted, safe_detail, text_of
from ..rules import LEASE_SECONDS, Liveness, Wish, judge_by_lease
from ..store import RETRY_SECONDS, UNFINISHED_SQL, FromNow, Store, ending
from . import schema
from .connection import Away, Connection, connect, translated
from .statements import CENSUS, CLAIM, FROM_NOW, GIVEN, READ, REGISTER, RENEW, WRITE

Kind = Literal["watcher", "reaper"]

SETTLED_SECONDS = 86400.0
"""After which a process that has no lease on any unfinished run is forgotten."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has the lease on a run.

    Attributes:
        kind: "watcher" or "reaper".
        host: Its host name.
        pid: Its process id there.
    """

    kind: str
    host: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run with who has the lease on it.

    Attributes:
        row: The run. Its times are the database's.
        holder: Who has the lease.
        now: The database's clock.
    """

    row: Row
    holder: Holder
    now: float

    @property
    def seconds_left(self) -> float:
        """How long the lease lasts still; less than 0 since it has run out."""
        return (self.row.lease_until or 0.0) - self.now

    @property
    def grace_left(self) -> float:
        """How long the grace period lasts still, once it has begun."""
        return rules.grace_end(self.row) - self.now

    @property
    def judgement(self) -> Liveness:
        """What can be said of the run."""
        return judge_by_lease(self.row, self.now)


@dataclass(frozen=True)
class Census:
    """How many unfinished runs an account has.

    Attributes:
        endpoint: The base URL of the REST API.
        instance: The instance's CRN.
        held: Under a lease that is renewed.
        expired: Under one that has run out; some of them in their grace period.
        reaping: Being cancelled.
        pending: To be swept again.
    """

    endpoint: str
    instance: str
    held: int
    expired: int
    reaping: int
    pending: int


class SharedLedger(Store):
    """The shared ledger: made by `open`; safe to use from any thread, one question at a time.

    A run is written on condition that this process still has the lease on it, in one statement: `held_by` is this
    process, and `epoch` is the one that this process knows.
    """

    NAME = "The shared ledger"
    RUNS = "qx_runs"
    JOBS = "qx_jobs"
    PREFIX = "qx_"
    SECONDS = "extract(epoch FROM {})::float8"
    COLUMNS = frozenset(column.name for column in IN_POSTGRES)
    NEWEST_FIRST = "created_at DESC, run"
    FROM_NOW = FROM_NOW
    MOMENT = "to_timestamp({})"
    SKIP_LOCKED = " FOR UPDATE SKIP LOCKED"

    def __init__(self, database: Connection, where: HostIdentity, kind: Kind, lease_seconds: float) -> None:
        self.host_identity = where
        self.id = secrets.token_hex(12)
        self.kind = kind
        self.lease_seconds = lease_seconds
        self._database = database
        self._lock = threading.RLock()
        self._is_batch = False
        self._epochs: dict[str, int] = {}  # of the runs that this process has the lease on
        self._me = host_identity.this_process(where)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        kind: Kind = "watcher",
        lease_seconds: float = LEASE_SECONDS,
        where: HostIdentity | None = None,
        earlier: SharedLedger | None = None,
        may_migrate: bool = True,
    ) -> SharedLedger:
        """Connect, and make the tables, or bring them up to date, where that is due.

        Args:
            url: `postgresql://user:password@host:port/database`.
            kind: What this process is.
            lease_seconds: How long a lease lasts without being renewed.
            where: Where this process is.
            earlier: The ledger on a connection that broke, whose leases this one goes on with.
            may_migrate: Whether the tables are made where there are none.
        """
        # Machine ids get copied with images, host names with configurations, so what an earlier boot has left is not
        # judged by its name here, as on one machine: its lease runs out soon enough.
        there = replace(where or host_identity.this_host(), machine="")
        database = connect(url)
        try:
            with translated():
                if may_migrate or schema.version(database):
                    schema.migrate(database)
                made = cls(database, there, kind, lease_seconds)
                if earlier is not None:
                    made.id, made._epochs = earlier.id, earlier._epochs  # noqa: SLF001
                return made
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        with translated():
            self._database.close()

    # A process's own lease

    def renew(self, holders: Collection[str] = ()) -> bool:  # noqa: ARG002
        """Renew this process's lease on all that it has.

        Returns:
            Whether it had run out, or is new: then what it was on may be another's now.
        """
        found = self._execute(RENEW, {"me": self.id}).fetchall()
        if found:
            return bool(found[0][0])
        me = {"me": self.id, "kind": self.kind, "lasts": self.lease_seconds, "start_ticks": self._me.start_ticks}
        host = {
            "host": text_of(self.host_identity.host),
            "boot": self.host_identity.boot,
            "pid_ns": self.host_identity.pid_ns,
        }
        self._execute(REGISTER, me | host | {"pid": self._me.pid})
        return True

    def leave(self) -> None:
        """Let this process's lease run out now: it ends, and what it has is anybody's."""
        self._execute("UPDATE qx_holders SET lease_until = clock_timestamp() WHERE id = :me", {"me": self.id})

    def lost(self) -> set[str]:
        """See `Store.lost`."""
        others = self._execute(
            "SELECT run FROM qx_runs JOIN jsonb_each_text(:epochs::jsonb) g ON g.key = run "
            "WHERE NOT (held_by = :me AND epoch = g.value::bigint)",
            {"epochs": json.dumps(self._epochs), "me": self.id},
        ).fetchall()
        return {each[0] for each in others}

    def version(self) -> int:
        """The version of the tables; 0 where there are none."""
        with self._asking() as database:
            return schema.version(database)

    def clock(self) -> float:
        """The database's clock, in seconds of the Unix clock."""
        [(now,)] = self._execute("SELECT extract(epoch FROM clock_timestamp())::float8", {}).fetchall()
        return float(now)

    def changes(self) -> object:
        """See `Store.changes`: which transactions are over."""
        return self._execute("SELECT txid_current_snapshot()::text", {}).fetchall()[0][0]

    # A watcher's runs

    def write(self, *rows: Row, durable: bool = True) -> set[str]:  # noqa: ARG002
        """See `Store.write`; an earlier watcher of the same driver is followed."""
        given = json.dumps([self._given(row) for row in rows])
        written: dict[str, int] = dict(self._execute(WRITE, {"given": given}).fetchall())
        self._epochs |= written
        for row in rows:
            if row.is_over:
                self._settled(row.run)
        return set(written)

    def _given(self, row: Row) -> dict[str, Any]:
        """A run as `WRITE` takes it."""
        now = time.time()
        is_given_up = row.state == "pending" and row.sweep_until is not None
        row = replace(row, retry_at=now + RETRY_SECONDS if is_given_up else None)
        values = values_of(row) | {"held_by": self.id, "epoch": self._epochs.get(row.run, 1)}
        given = {column.name: values[column.name] for column in GIVEN}
        for column in GIVEN:
            if column.is_time and given[column.name] is not None:
                given[column.name] -= now
        return given | {"jobs": {text_of(job): safe_detail(outcome) for job, outcome in row.jobs.items()}}

    def enter(self, row: Row, *, is_running: IsRunning = host_identity.is_running) -> bool:
        """Write a run with a key that was taken while the database was away.

        Meanwhile the key may have been taken here too. Then both have it: this run is written without its key, so that
        it is protected at least.

        Returns:
            Whether it was written; the run itself may be another's now.
        """
        with self.batch():
            known = self._under_key(row, ())
            same = known if known is not None and known.run == row.run else self._locked(row.run)
            now = self.clock()

            def may_take(found: Row) -> bool:
                wish, is_mine = Wish(row=row), self._is_mine(found)
                return rules.may_take(found, wish, self.host_identity, is_running, now, is_mine=is_mine) is None

            if same is not None:
                if not may_take(same):
                    return False
                self._take_over(same, row)
            elif known is not None and may_take(known):
                self._update("run = :run", {"run": known.run}, durable=True, key=None)
            elif known is not None:
                row = replace(row, key=None)
            return row.run in self.write(row)

    def stand_down(self, run: str, holder: str, jobs: Iterable[str], end: End | None, *, is_over: bool) -> None:
        """Write that a run was stood down, by its driver itself: it has no watcher at the moment, or that may die too.

        Args:
            run: The run.
            holder: Who had the lease on it, if it has a key: if another has it now, nothing is written.
            jobs: The jobs that its driver holds, which are to be spared.
            end: How the run ended, where that is known.
            is_over: Whether no other job of the run may be left.
        """
        with self.batch():
            row = self._locked(run)
            if row is None or row.claimed_by is not None or row.holder != holder:
                return
            me = (self.host_identity.boot, self.host_identity.pid_ns, self._me.pid, self._me.start_ticks)
            if (row.host_identity.boot, row.host_identity.pid_ns, row.pid, row.start_ticks) != me:
                return
            for job in jobs:
                self._execute(
                    "INSERT INTO qx_jobs VALUES (:run, :job, 'kept') "
                    "ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome",
                    {"run": run, "job": text_of(job)},
                )
            if is_over:
                self._update("run = :run", {"run": run}, durable=True, state="done", **ending(end))

    def lock_job(self, job: str) -> None:
        """Keep others that do the same from a job, until the batch around it ends."""
        self._lock_key(job)

    def add_job(self, run: str, job: str) -> None:
        """Write a job of a run, by its driver itself: its watcher has the lease, and learns the job later.

        Nothing happens if the watcher has not written the run.
        """
        self._execute(
            "INSERT INTO qx_jobs (run, job, outcome) SELECT run, :job, '' FROM qx_runs WHERE run = :run "
            "ON CONFLICT (run, job) DO NOTHING",
            {"run": run, "job": text_of(job)},
        )

    def holds(self, run: str, holder: str) -> bool:  # noqa: ARG002
        """See `Store.holds`; what the database does not know is nobody else's."""
        return run in self._epochs and run not in self.lost()

    def _taken(self, run: str, epoch: int) -> None:
        self._epochs[run] = epoch

    def _settled(self, run: str) -> None:
        self._epochs.pop(run, None)

    def _is_mine(self, row: Row) -> bool:
        return row.held_by == self.id and row.epoch == self._epochs.get(row.run)

    # Reading

    def held(self, states: Collection[RunState] | None = None, limit: int | None = None) -> list[Held]:
        """Read runs with who has the lease on them, the newest first.

        Args:
            states: Only runs in these states.
            limit: The most to read.
        """
        return self._read_held(*self._in_states(states, limit))

    def holder(self, run: str) -> Holder | None:
        """Who has the lease on a run."""
        found = self._read_held("run = :run", {"run": run})
        return found[0].holder if found else None

    def _read_held(self, condition: str, values: Mapping[str, Any]) -> list[Held]:
        found = self._execute(READ + condition, values).fetchall()
        return [Held(row=row_of(row), holder=Holder(**holder), now=now) for row, holder, now in found]

    # Reapers

    def due(self, accounts: Collection[tuple[str, str]], watching_since: float, before: float, limit: int) -> list[Row]:
        """Claim runs whose leases and grace periods have run out: of all that try, one gets each.

        Args:
            accounts: The endpoints and instances whose jobs this process can cancel.
            watching_since: Since when this process has had the database at hand without a break, by its clock. While it
                was away no lease was renewed: only what runs out while this process watches counts.
            before: Until when, by the database's clock, this is to be carried out, or not at all: a server that was
                stopped carries it out when it goes on, and has had no renewal meanwhile.
            limit: The most to claim.
        """
        values = {
            "claimant": self._encoded(self._me),
            "endpoints": [endpoint for endpoint, _ in accounts],
            "instances": [instance for _, instance in accounts],
            "since": watching_since,
            "before": before,
            "most": limit,
        }
        with self.batch():
            claimed: dict[str, int] = dict(self._execute(CLAIM, values).fetchall())
            self._epochs |= claimed
            return self._read("run = ANY(:runs)", {"runs": list(claimed)})

    def seize(self, run: str, holder: str) -> bool:
        """Claim one run whose driver and watcher are seen to be dead, on their own machine: its lease may last still.

        Args:
            run: A run with a key.
            holder: Who had the lease, as the local ledger has it.
        """
        self.renew()  # a claim needs a lease
        with self.batch():
            row = self._locked(run)
            if not rules.may_seize(row, holder, self.clock()):
                return False
            assert row is not None
            claim = {"claimed_by": self._me, "claimed_at": FromNow(0.0), "state": "pending", "retry_at": None}
            self._update("run = :run", {"run": run}, durable=True, held_by=self.id, epoch=row.epoch + 1, **claim)
            self._taken(run, row.epoch + 1)
            return True

    def release(self, run: str) -> None:
        """Give a claim back, as if it had not been: anybody may claim it at once."""
        self._update(*self._held(run, ""), durable=True, claimed_by=None, claimed_at=None, retry_at=FromNow(0.0))
        self._settled(run)

    def may_cancel(self, run: str) -> bool:
        """Whether a run that this process has claimed is its own still, by a lease that lasts."""
        condition, values = self._held(run, "")
        leased = "EXISTS (SELECT FROM qx_holders WHERE id = held_by AND lease_until > clock_timestamp())"
        return bool(
            self._execute(
                f"SELECT run FROM qx_runs WHERE {condition} AND {UNFINISHED_SQL} AND {leased}", values
            ).fetchall()
        )

    def longest_lease(self) -> float:
        """The length of the longest lease on unfinished runs that has run out, in seconds; 0 where none has."""
        [(longest,)] = self._execute(
            "SELECT coalesce(max(h.lease_seconds), 0) FROM qx_holders h WHERE h.lease_until < clock_timestamp() "
            f"AND EXISTS (SELECT FROM qx_runs WHERE held_by = h.id AND retry_at IS NULL AND {UNFINISHED_SQL})",
            {},
        ).fetchall()
        return float(longest)

    def census(self) -> list[Census]:
        """How many unfinished runs there are, by account."""
        return [Census(*each) for each in self._execute(CENSUS, {}).fetchall()]

    def forget(self, older_than_seconds: float) -> int:
        """See `Store.forget`; processes without a lease on any unfinished run are forgotten too."""
        deleted = super().forget(older_than_seconds)
        self._execute(
            "DELETE FROM qx_holders h WHERE h.lease_until < clock_timestamp() - :settled * interval '1 second' "
            f"AND NOT EXISTS (SELECT FROM qx_runs WHERE held_by = h.id AND {UNFINISHED_SQL})",
            {"settled": SETTLED_SECONDS},
        )
        return deleted

    # The dialect

    @contextmanager
    def batch(self, *, durable: bool = True) -> Iterator[None]:  # noqa: ARG002
        """See `Store.batch`."""
        with self._asking() as database:
            if self._is_batch:
                yield
                return
            self._is_batch = True
            try:
                with database.transaction():
                    yield
            finally:
                self._is_batch = False

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        with self._lock, translated():
            if self._database.closed:
                raise Away("The shared ledger can't be used: the connection broke.")
            yield self._database

    def _execute(self, sql: str, values: Mapping[str, Any], *, durable: bool | None = None) -> Any:  # noqa: ARG002
        with self._asking() as database:
            return database.execute(_native(sql), {"me": self.id, **values})

    def _read(self, condition: str, values: Mapping[str, Any], *, locked: bool = False) -> list[Row]:
        if locked:  # and then read: what a statement sees of other tables is as of its beginning
            self._execute(f"SELECT FROM qx_runs WHERE {condition} FOR UPDATE", values)
        return [each.row for each in self._read_held(condition, values)]

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, Process):
            host = {
                "host": text_of(value.host_identity.host),
                "boot": value.host_identity.boot,
                "pid_ns": value.host_identity.pid_ns,
            }
            return json.dumps(host | {"pid": value.pid, "start_ticks": value.start_ticks})
        return fitted(value)

    def _held(self, run: str, holder: str) -> tuple[str, dict[str, Any]]:  # noqa: ARG002
        held = {"run": run, "me": self.id, "epoch": self._epochs.get(run)}
        return "run = :run AND held_by = :me AND epoch = :epoch", held

    def _lock_key(self, key: str) -> None:
        # A key that is new has no row to be locked.
        lock = "SELECT pg_advisory_xact_lock(hashtextextended(:key, :lock))"
        self._execute(lock, {"key": text_of(key), "lock": schema.LOCK})

    def _lock_budgets(self) -> None:
        self._execute("SELECT pg_advisory_xact_lock(:lock)", {"lock": schema.BUDGETS_LOCK})

    def _ahead(self, now: float) -> float:
        return time.time() - now


@functools.lru_cache
def _native(sql: str) -> bytes:
    """A statement with its parameters as psycopg has them."""
    return re.sub(r"(?<!:):([a-z]\w*)", r"%(\1)s", sql).encode()
