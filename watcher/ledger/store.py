"""The contract of a ledger, and all that is the same in both: the local one (SQLite) and the shared one (PostgreSQL).

Statements are written here once, in the SQL that both understand, with parameters as `:name`. A dialect brings its
tables' names, its clock, its transactions and locks, and the upsert of many rows.
"""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Self

from ..facts import End, Figures
from ..host_identity import HostIdentity, IsRunning, Process, is_running
from . import rules
from .columns import COLUMNS, HOST_IDENTITY
from .errors import LedgerError
from .row import UNFINISHED, Row, RunState, safe_detail, safe_endpoint
from .rules import CLAIM_LEASE_SECONDS, Ruling, Wish
from .spending import FINAL_SQL, Answer, Spending

UNFINISHED_SQL = "state IN ('guarded', 'pending')"
# A partial index serves a query only if the query has its condition word for word.

RETRY_SECONDS = 60.0
"""After which a reaper may claim what a watcher could not resolve."""

FORGET_AT_ONCE = 250
"""The most rows that one `forget` deletes, so that it never holds its locks for long."""

IS_TIME = {column.name: column.is_time for column in COLUMNS}


class FromNow(float):
    """A moment, in seconds from now by the ledger's clock; less than 0 if it has passed."""


class Store(Spending, ABC):
    """A ledger. Whatever goes wrong in any of its methods is a `LedgerError`.

    Attributes:
        host_identity: Where this process is, as rows written here have it, and as rows are judged from here.
        id: In the shared ledger: this process's name, as the rows that it has the lease on have it.
        lease_seconds: How long a lease lasts without being renewed.
    """

    NAME: str
    """What a message calls the ledger."""

    RUNS: ClassVar[str]
    JOBS: ClassVar[str]
    COLUMNS: ClassVar[frozenset[str]]
    NEWEST_FIRST: ClassVar[str]
    FROM_NOW: ClassVar[str]
    """A moment as many seconds from now as a parameter says."""
    MOMENT: ClassVar[str]
    """A moment as a parameter says, in seconds of the Unix clock."""
    SKIP_LOCKED: ClassVar[str] = ""

    host_identity: HostIdentity
    id: str = ""
    lease_seconds: float

    # What a dialect brings

    @abstractmethod
    def batch(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """Make everything in the block one write, or undo all of it if the block raises."""

    @abstractmethod
    def clock(self) -> float:
        """The ledger's clock, in seconds of the Unix clock."""

    @abstractmethod
    def write(self, *rows: Row, durable: bool = True) -> set[str]:
        """Write runs as they are to be, if the lease on them is this process's.

        A row that is there is brought up to date: the jobs and the session that are known stay known, an outcome never
        becomes unknown again, and the moment it was written first stays.

        Args:
            rows: The runs. Their times are those of this host's clock.
            durable: Whether they must survive a power failure at once.

        Returns:
            The runs that were written; another process has the lease on any other.
        """

    @abstractmethod
    def enter(self, row: Row, *, is_running: IsRunning = is_running) -> bool:
        """Write a run with a key that the other ledger has granted; False if it is another's here."""

    @abstractmethod
    def renew(self, holders: Collection[str] = ()) -> bool:
        """Renew leases.

        Args:
            holders: The holders of keys. In the shared ledger a process renews all that it has at once.

        Returns:
            Whether any had run out, so that what it was on may be another's now.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it; what is in a batch is dropped."""

    @abstractmethod
    def _execute(self, sql: str, values: Mapping[str, Any], *, durable: bool | None = None) -> Answer:
        """Execute a statement; `durable` is given if it writes."""

    @abstractmethod
    def _read(self, condition: str, values: Mapping[str, Any], *, locked: bool = False) -> list[Row]:
        """The rows that a condition is true of; locked until the batch around it ends."""

    @abstractmethod
    def _encoded(self, value: Any) -> Any:
        """A value as the database takes it."""

    @abstractmethod
    def _held(self, run: str, holder: str) -> tuple[str, dict[str, Any]]:
        """The condition under which this process still has the lease on a run, and its values."""

    @abstractmethod
    def _lock_key(self, key: str) -> None:
        """Keep others from inserting a run under a key until the batch around it ends."""

    def _taken(self, run: str, epoch: int) -> None:
        """This process has the lease on a run."""

    def _settled(self, run: str) -> None:
        """This process has nothing left to write of a run."""

    def lost(self) -> set[str]:
        """The runs that this process had the lease on and that another has; in the local ledger none runs out."""
        return set()

    def _is_mine(self, row: Row) -> bool:
        """Whether this process has a row whose holder it is."""
        return row.held_by == self.id

    def _ahead(self, now: float) -> float:  # noqa: ARG002 - the local ledger's clock is this host's
        """How far this host's clock is ahead of the ledger's."""
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    def rows(self, states: Collection[RunState] | None = None, limit: int | None = None) -> list[Row]:
        """Read rows, the newest first; times are those of the ledger's clock.

        Args:
            states: Only rows in these states. `UNFINISHED` is fast however long the ledger is.
            limit: The most rows to read.
        """
        return self._read(*self._in_states(states, limit))

    def row(self, run: str) -> Row | None:
        """Read the row of a run, if there is one."""
        return _first(self._read("run = :run", {"run": run}))

    def ended_since(self, moment: float, limit: int) -> list[Row]:
        """Read runs that are over and were written later than a moment, the latest first.

        Args:
            moment: By the ledger's clock.
            limit: The most to read.
        """
        condition = f"{FINAL_SQL} AND updated_at > {self.MOMENT.format(':moment')} ORDER BY updated_at DESC LIMIT :most"
        return self._read(condition, {"moment": moment, "most": limit})

    @abstractmethod
    def changes(self) -> object:
        """A word that is another one after others have written; it may be another one although nobody has."""

    def _in_states(self, states: Collection[RunState] | None, limit: int | None) -> tuple[str, dict[str, Any]]:
        values: dict[str, Any] = {f"state_{number}": state for number, state in enumerate(states or ())}
        if states is None:
            condition = "1 = 1"
        elif frozenset(states) == UNFINISHED:
            condition = UNFINISHED_SQL
        elif states:
            condition = f"state IN ({', '.join(f':{name}' for name in values)})"
        else:
            condition = "1 = 0"
        most = "" if limit is None else " LIMIT :most"
        return f"{condition} ORDER BY {self.NEWEST_FIRST}{most}", values | {"most": limit}

    def _required(self, run: str) -> Row:
        found = self.row(run)
        if found is None:
            raise LedgerError(f"{self.NAME} has no run {run}.")
        return found

    def _locked(self, run: str) -> Row | None:
        return _first(self._read("run = :run", {"run": run}, locked=True))

    # Leases: runs with a key

    def take(self, wish: Wish, *, is_running: IsRunning = is_running) -> Ruling:
        """Take the lease on a key, if it can be had. Durable when it returns.

        A row that is there stays the key's: its run's id, tag and jobs are what the new holder goes on with. The times
        of the ruling's row are those of this host's clock; but the end of a lease that is in the way stays that of the
        ledger's, for whoever asks again compares the two, and a slow answer is no renewal.

        Args:
            wish: What is asked for.
            is_running: See `judge`.
        """
        new = wish.row
        with self.batch(durable=True):
            known = self._under_key(new, wish.instances)
            if known is None:
                self.write(new)
                now = self.clock()
                return Ruling(answer="granted", row=_shifted(self._required(new.run), self._ahead(now)), is_new=True)
            now = self.clock()
            ahead = self._ahead(now)
            refusal = rules.may_take(known, wish, self.host_identity, is_running, now, is_mine=self._is_mine(known))
            if refusal is None and known.instance != new.instance:
                refusal = Ruling(answer="other instance", row=known)
            if refusal is not None:
                return replace(refusal, row=replace(_shifted(known, ahead), lease_until=known.lease_until))
            self._take_over(known, new)
            since = None if known.let_go_at is None else known.let_go_at + ahead
            return Ruling(answer="granted", row=_shifted(self._required(known.run), ahead), let_go_at=since)

    def _under_key(self, new: Row, instances: Iterable[str]) -> Row | None:
        """The row under a key, locked: with the instance that is asked for, else another that the driver can use."""
        assert new.key is not None
        self._lock_key(new.key)
        values = {"key": new.key, "endpoint": safe_endpoint(new.endpoint)}
        found = self._read("key = :key AND endpoint = :endpoint", values, locked=True)
        by_instance = {row.instance: row for row in found}
        return next((by_instance[each] for each in (new.instance, *instances) if each in by_instance), None)

    def _take_over(self, known: Row, new: Row) -> None:
        """Give a run that is locked to a new driver."""
        epoch = known.epoch + (known.holder != new.holder or not self._is_mine(known))
        self._update(
            "run = :known",
            {"known": known.run},
            durable=True,
            **{name: getattr(new.host_identity, name) for name in HOST_IDENTITY},
            pid=new.pid,
            start_ticks=new.start_ticks,
            watcher_pid=new.watcher_pid,
            watcher_start_ticks=new.watcher_start_ticks,
            state="guarded",
            detail="",
            sweep_until=None,
            retry_at=None,
            claimed_by=None,
            claimed_at=None,
            fingerprint=new.fingerprint,
            grace=new.grace,
            is_shared=new.is_shared,
            holder=new.holder,
            held_by=self.id,
            epoch=epoch,
            lease_until=FromNow(self.lease_seconds),
            let_go_at=None,
            answered=known.answered or known.state in ("done", "cancelled"),
            outcome="",
            ended_by="",
            signum=None,
            reason="",
            ended_at=None,
            # Who has it now; what was submitted under the key stays as it was.
            label=new.label,
            program=new.program,
            command=safe_detail(new.command),
            began_at=None if new.began_at is None else FromNow(new.began_at - time.time()),
        )
        # What was let go is guarded again.
        spared = f"UPDATE {self.JOBS} SET outcome = '' WHERE run = :run AND outcome = 'kept'"
        self._execute(spared, {"run": known.run}, durable=True)
        self._taken(known.run, epoch)

    def contest(self, run: str, holder: str, claimant: Process) -> bool:
        """Win the lease once more, to cancel; False if another has it.

        Nobody waits for the run from here on, even if its driver is alive: once its jobs are cancelled, or that was
        tried for long enough, the key is free.

        Args:
            run: A run whose driver is gone, or wants its jobs cancelled.
            holder: Who had the lease.
            claimant: The process that will cancel.
        """
        with self.batch(durable=True):
            condition, values = self._held(run, holder)
            row = _first(self._read(condition, values, locked=True))
            if row is None or not rules.may_contest(row):
                return False
            self._update(
                condition,
                values,
                durable=True,
                state="pending",
                claimed_by=claimant,
                claimed_at=FromNow(0.0),
                lease_until=FromNow(CLAIM_LEASE_SECONDS),
                let_go_at=FromNow(0.0) if row.let_go_at is None else row.let_go_at,
            )
            return True

    def undo_contest(self, run: str, holder: str) -> None:
        """Undo a `contest` that was won here and lost in the other ledger."""
        self._update(*self._held(run, holder), durable=True, state="guarded", claimed_by=None, claimed_at=None)

    def let_go(self, run: str, holder: str) -> None:
        """Write that nobody waits for a run any more, unless that is known or the lease is another's."""
        condition, values = self._held(run, holder)
        self._update(f"{condition} AND let_go_at IS NULL", values, durable=True, let_go_at=FromNow(0.0))

    def holds(self, run: str, holder: str) -> bool:
        """Whether the lease on a run is still this process's."""
        return bool(self._read(*self._held(run, holder)))

    # What became of a run

    def job_outcome(self, run: str, job: str, outcome: str, *, holder: str = "") -> bool:
        """Write what became of a job of a run: "cancelled", for instance; "" adds it.

        Args:
            run: The run.
            job: The job.
            outcome: What became of it.
            holder: See `finish`.

        Returns:
            Whether it was written.
        """
        condition, values = self._held(run, holder)
        written = self._execute(
            f"INSERT INTO {self.JOBS} (run, job, outcome) SELECT run, :job, :outcome FROM {self.RUNS} "
            f"WHERE {condition} ON CONFLICT (run, job) DO UPDATE SET outcome = CASE WHEN excluded.outcome <> '' "
            f"THEN excluded.outcome ELSE {self.JOBS}.outcome END",
            values | {"job": self._encoded(job), "outcome": self._encoded(safe_detail(outcome))},
            durable=False,
        )
        return bool(written.rowcount) or self._refused(run)

    def finish(
        self,
        run: str,
        state: RunState,
        detail: str = "",
        *,
        sweep_until: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
        durable: bool = False,
        holder: str = "",
        end: End | None = None,
    ) -> bool:
        """Write what a run has come to. Whoever worked on it does so no more.

        Args:
            run: The run.
            state: Its new state.
            detail: Why, in a sentence. What looks like a secret in it is left out.
            sweep_until: For a pending run: until when it is swept again, by the ledger's clock.
            retry_seconds: For a pending run: when a reaper may claim it again.
            durable: Whether it must survive a power failure at once. It must if the job lives on without its driver
                (detached), for the next boot would cancel it.
            holder: Who had the lease on it, if it has a key: if another has it now, nothing is written.
            end: How it ended, where that is known.

        Returns:
            Whether it was written.
        """
        written = self._update(
            *self._held(run, holder),
            durable=durable,
            state=state,
            detail=safe_detail(detail),
            sweep_until=sweep_until,
            retry_at=FromNow(retry_seconds) if state == "pending" else None,
            # A claim that stayed would keep the key from all others.
            claimed_by=None,
            claimed_at=None,
            **ending(end),
        )
        self._settled(run)
        return bool(written) or self._refused(run)

    def job_figures(self, run: str, job: str, figures: Figures) -> None:
        """Write what is known of a job's cost and times, whoever has the lease on its run: nothing is decided by it."""
        known = {name: value for name, value in figures._asdict().items() if value is not None}
        if known:
            assignments = ", ".join(f"{name} = :{name}" for name in known)
            self._execute(
                f"UPDATE {self.JOBS} SET {assignments} WHERE run = :run AND job = :job",
                known | {"run": run, "job": self._encoded(job)},
                durable=False,
            )

    def uncharged(self, younger_than_seconds: float, limit: int) -> list[Row]:
        """Read runs that have been over for less time and whose charge is not known, the newest first.

        A job's is not; or QPU time is reserved for the run, and there may be a job that is not known (`found_all`).
        """
        since = self.FROM_NOW.format(":ago")
        return self._read(
            f"{FINAL_SQL} AND updated_at > {since} "
            f"AND (run IN (SELECT run FROM {self.JOBS} WHERE charged IS NULL AND outcome <> 'gone') "
            f"OR (NOT answered AND run IN (SELECT run FROM {self.PREFIX}reservations WHERE charged IS NULL))) "
            f"ORDER BY {self.NEWEST_FIRST} LIMIT :most",
            {"now": self.clock(), "ago": -younger_than_seconds, "most": limit},
        )

    def _refused(self, run: str) -> bool:
        """False: another has the lease; or an error, if there is no such run."""
        self._required(run)
        return False

    # Reapers

    def forget(self, older_than_seconds: float) -> int:
        """Delete runs that were final for so long, at most `FORGET_AT_ONCE` of them; returns how many it deleted."""
        with self.batch(durable=False):
            self._forget_spending()
        return self._execute(
            f"DELETE FROM {self.RUNS} WHERE run IN (SELECT run FROM {self.RUNS} WHERE {FINAL_SQL} "
            f"AND updated_at < {self.FROM_NOW.format(':ago')} ORDER BY updated_at LIMIT {FORGET_AT_ONCE}"
            f"{self.SKIP_LOCKED})",
            {"ago": -older_than_seconds},
            durable=False,
        ).rowcount

    # Writing

    def _update(self, where: str, which: Mapping[str, Any], *, durable: bool, **values: Any) -> int:
        """Give columns of the rows that a condition is true of values; one that this dialect lacks is skipped."""
        values = {"updated_at": FromNow(0.0)} | {name: each for name, each in values.items() if name in self.COLUMNS}
        assignments = ", ".join(f"{name} = {self._sql(name, value)}" for name, value in values.items())
        encoded = {f"new_{name}": self._encoded(value) for name, value in values.items()}
        return self._execute(
            f"UPDATE {self.RUNS} SET {assignments} WHERE {where}", {**which, **encoded}, durable=durable
        ).rowcount

    def _sql(self, name: str, value: Any) -> str:
        if isinstance(value, FromNow):
            return self.FROM_NOW.format(f":new_{name}")
        return self.MOMENT.format(f":new_{name}") if IS_TIME[name] else f":new_{name}"


def ending(end: End | None) -> dict[str, Any]:
    """The columns that say how a run ended."""
    if end is None:
        return {}
    return {
        "outcome": end.outcome,
        "ended_by": end.by,
        "signum": end.signum,
        "reason": safe_detail(end.reason),
        "ended_at": FromNow(0.0),
    }


def _first(rows: list[Row]) -> Row | None:
    return rows[0] if rows else None


def _shifted(row: Row, seconds: float) -> Row:
    """A row with its times by another clock, which is ahead by some seconds."""
    times = {name: getattr(row, name) for name, is_time in IS_TIME.items() if is_time}
    moved: dict[str, Any] = {name: None if moment is None else moment + seconds for name, moment in times.items()}
    return replace(row, **moved)
