"""Reading and writing the shared ledger."""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, LiteralString

from ... import host_identity
from ...host_identity import HostIdentity, IsRunning, Process
from ..errors import LedgerError
from ..lease import LEASE_SECONDS, Ruling, Wish, contend
from ..row import UNFINISHED, Row, State, safe_detail, safe_endpoint
from . import schema
from .connection import Away, Connection, connect, translated
from .runs import RETRY_SECONDS, Census, Held, Holder, Kept, given, held, json_of, only, shifted, text_of
from .statements import CENSUS, CLAIM, READ, WRITE

Kind = Literal["watcher", "reaper"]

SETTLED_SECONDS = 86400.0
"""After which a holder that holds nothing any more is forgotten."""

FORGET_AT_ONCE = 250
"""The most rows that one `forget` deletes."""


class SharedLedger:
    """The ledger of many hosts: made by `open`; safe to use from any thread, one question at a time.

    Whatever goes wrong in any of its methods is a `LedgerError`.

    Attributes:
        place: Where this process is, as rows written here have it.
        id: This process's name as a holder: no other process has it, nor had it ever.
    """

    def __init__(self, database: Connection, place: HostIdentity, kind: Kind, lease_seconds: float) -> None:
        self.place = place
        self.id = secrets.token_hex(12)
        self.kind = kind
        self.lease_seconds = lease_seconds
        self._database = database
        self._lock = threading.RLock()
        self._epochs: dict[str, int] = {}  # of what this process has claimed, as a reaper
        self._pid = os.getpid()
        self._start_ticks = host_identity.start_ticks(self._pid)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        kind: Kind = "watcher",
        lease_seconds: float = LEASE_SECONDS,
        place: HostIdentity | None = None,
        identity: str = "",
        may_migrate: bool = True,
    ) -> SharedLedger:
        """Connect, and make the tables, or bring them up to date, where that is due.

        Args:
            url: `postgresql://user:password@host:port/database`.
            kind: What this process is.
            lease_seconds: How long a lease is held without being renewed.
            place: Where this process is.
            identity: The `id` that this process had on an earlier connection.
            may_migrate: Whether the tables are made where there are none.
        """
        # Machine ids get copied with images, host names with configurations, so what an earlier boot has left is not
        # judged by its name here, as on one machine: its lease runs out soon enough.
        where = replace(place or host_identity.this_host(), machine="")
        database = connect(url)
        try:
            with translated():
                if may_migrate:
                    schema.migrate(database)
                book = cls(database, where, kind, lease_seconds)
                book.id = identity or book.id
                return book
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        with translated():
            self._database.close()

    def __enter__(self) -> SharedLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # A holder's own lease

    def renew(self) -> bool:
        """Hold this process's lease for longer.

        Returns:
            Whether it had run out, or is new: then what it held may be another's now.
        """
        with self._asking() as database:
            # The row is locked first, and by who claims as well. So either the claim comes first, and this one sees
            # that the lease had run out; or this comes first, and the claim sees that it has not.
            found = database.execute(
                """
                UPDATE qx_holders h SET lease_until = clock_timestamp() + h.lease_seconds * interval '1 second'
                FROM (SELECT lease_until AS was FROM qx_holders WHERE id = %(id)s FOR UPDATE) o
                WHERE h.id = %(id)s RETURNING o.was < clock_timestamp()
                """,
                {"id": self.id},
            ).fetchone()
            if found is not None:
                return bool(found[0])
            database.execute(
                """
                INSERT INTO qx_holders (
                    id, kind, host, boot, pid_ns, pid, start_ticks, lease_seconds, lease_until, since
                ) VALUES (
                    %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp() + %s * interval '1 second', clock_timestamp()
                ) ON CONFLICT (id) DO NOTHING
                """,
                (
                    self.id,
                    self.kind,
                    text_of(self.place.host),
                    self.place.boot,
                    self.place.pid_ns,
                    self._pid,
                    self._start_ticks,
                    self.lease_seconds,
                    self.lease_seconds,
                ),
            )
            return True

    def leave(self) -> None:
        """Let this process's lease run out now: it ends, and what it holds is anybody's."""
        with self._asking() as database:
            database.execute("UPDATE qx_holders SET lease_until = clock_timestamp() WHERE id = %s", (self.id,))

    def version(self) -> int:
        """The version of the tables; 0 where there are none."""
        with self._asking() as database:
            return schema.version(database)

    def clock(self) -> float:
        """The database's clock, in seconds of the Unix clock."""
        with self._asking() as database:
            return float(only(database.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()))

    # A watcher's runs

    def write(self, kept: Iterable[Kept]) -> dict[str, int]:
        """Write runs, as far as they are held by this process, or by an earlier watcher of the same driver.

        Returns:
            For each that was written: its epoch. Any other is held by another process now.
        """
        runs = json.dumps([given(each) for each in kept])
        with self._asking() as database:
            return dict(database.execute(WRITE, {"given": runs, "me": self.id}).fetchall())

    def mine(self, runs: Mapping[str, int]) -> set[str]:
        """Which of some runs are held by this process in these epochs still, or are not known at all."""
        with self._asking() as database:
            others = database.execute(
                """
                SELECT r.run FROM qx_runs r JOIN jsonb_each_text(%(runs)s::jsonb) g ON g.key = r.run
                WHERE NOT (r.held_by = %(me)s AND r.epoch = g.value::bigint)
                """,
                {"runs": json.dumps(dict(runs)), "me": self.id},
            ).fetchall()
        return set(runs) - {each[0] for each in others}

    def bury(self) -> None:
        """Write that the driver of all that this process holds is dead: nobody waits for any of it."""
        with self._asking() as database:
            database.execute(
                "UPDATE qx_runs r SET let_go_at = clock_timestamp() "
                "WHERE held_by = %s AND let_go_at IS NULL AND " + schema.UNFINISHED_SQL,
                (self.id,),
            )

    def stand_down(self, run: str, jobs: Iterable[str], *, is_over: bool) -> None:
        """Write that a run was stood down, by its driver itself, which has no watcher at the moment.

        Args:
            run: The run.
            jobs: The jobs that its driver holds, which are to be spared.
            is_over: Whether no other job of the run may be left.
        """
        me = (self.place.boot, self.place.pid_ns, self._pid, self._start_ticks)
        with self._asking() as database, database.transaction():
            is_mine = database.execute(
                "SELECT FROM qx_runs WHERE run = %s AND claimed_by IS NULL AND boot = %s AND pid_ns = %s AND pid = %s "
                "AND start_ticks IS NOT DISTINCT FROM %s FOR UPDATE",
                (run, *me),
            ).fetchone()
            if is_mine is None:
                return
            for job in jobs:
                database.execute(
                    "INSERT INTO qx_jobs VALUES (%s, %s, 'kept') "
                    "ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome",
                    (run, text_of(job)),
                )
            if is_over:
                database.execute(
                    "UPDATE qx_runs SET state = 'done', updated_at = clock_timestamp() WHERE run = %s", (run,)
                )

    def contest(self, run: str, epoch: int, claimant: Process) -> bool:
        """Win the lease on a run once more, to cancel; False where another has it.

        Args:
            run: A run whose driver is gone.
            epoch: The epoch in which it was held.
            claimant: The process that will cancel.
        """
        with self._asking() as database:
            return bool(
                database.execute(
                    "UPDATE qx_runs r SET state = 'pending', claimed_by = %s, claimed_at = clock_timestamp(), "
                    "updated_at = clock_timestamp() WHERE run = %s AND held_by = %s AND epoch = %s AND "
                    + schema.UNFINISHED_SQL,
                    (json_of(claimant), run, self.id, epoch),
                ).rowcount
            )

    def take(self, wish: Wish, *, is_running: IsRunning = host_identity.is_running) -> Ruling:
        """Take the lease on a key, if it can be had.

        A row that is there stays the key's: its run's id, tag and jobs are what the new holder goes on with. The times
        of the ruling's row are of this host's clock.

        Args:
            wish: What is wished.
            is_running: See `watcher.ledger.judge`.
        """
        new = wish.row
        with self._asking(), self._database.transaction():
            known = self._keyed(new, wish.instances)
            if known is None:
                [(_, epoch)] = self.write([Kept(row=replace(new, epoch=1))]).items()
                return Ruling(answer="granted", row=replace(new, epoch=epoch), is_new=True)
            now = self.clock()
            ahead = time.time() - now
            refusal = self._contend(known, wish, is_running, now)
            if refusal is None and known.instance != new.instance:
                refusal = Ruling(answer="other instance", row=known)
            if refusal is not None:
                # The lease's end stays the database's: who asks again compares both, and a late answer is no renewal.
                return replace(refusal, row=replace(shifted(known, ahead), lease_until=known.lease_until))
            self._take_over(known, new)
            taken = shifted(self._required(known.run), ahead)
            since = None if known.let_go_at is None else known.let_go_at + ahead
            return Ruling(answer="granted", row=taken, let_go_at=since)

    def enter(self, kept: Kept, *, is_running: IsRunning = host_identity.is_running) -> int | None:
        """Write a run with a key that was taken while the database was away.

        Meanwhile the key may have been taken here too. Then both have it: this run is written without its key, so that
        it is protected at least.

        Returns:
            Its epoch; None where the run itself is another's now.
        """
        new = kept.row
        with self._asking(), self._database.transaction():
            known = self._keyed(new, ()) if new.key is not None else None
            same = self.row(new.run) if known is None or known.run != new.run else known
            wish, now = Wish(row=new), self.clock()
            if same is not None:
                if self._contend(same, wish, is_running, now) is not None:
                    return None
                self._take_over(same, new)
                kept = replace(kept, row=replace(new, epoch=self._required(new.run).epoch, key=same.key))
            elif known is not None:
                if self._contend(known, wish, is_running, now) is None:
                    self._database.execute("UPDATE qx_runs SET key = NULL WHERE run = %s", (known.run,))
                else:
                    kept = replace(kept, row=replace(new, key=None))
            return self.write([kept]).get(new.run)

    def _contend(self, row: Row, wish: Wish, is_running: IsRunning, now: float) -> Ruling | None:
        """`contend`, and a reaper's claim counts, even against a driver that held the run before."""
        is_claimed = row.claimed_by is not None and (row.lease_until or 0.0) > now
        if is_claimed and row.holder == wish.row.holder and not self.mine({row.run: row.epoch}):
            return Ruling(answer="busy", row=row)
        return contend(row, wish, self.place, is_running, now)

    def _keyed(self, new: Row, instances: Sequence[str]) -> Row | None:
        """The row under a key, locked: with the instance that is wished, else another one that the driver can use."""
        endpoint = safe_endpoint(new.endpoint)
        # A key that is new has no row to be locked.
        self._database.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", (new.key, schema.LOCK))
        found: dict[str, str] = dict(
            self._database.execute(
                "SELECT instance, run FROM qx_runs WHERE key = %s AND endpoint = %s FOR UPDATE", (new.key, endpoint)
            ).fetchall()
        )
        for instance in (new.instance, *instances):
            if instance in found:
                return self._required(found[instance])
        return None

    def _take_over(self, known: Row, new: Row) -> None:
        """Make a run that is locked this process's, for a new driver."""
        self._database.execute(
            """
            UPDATE qx_runs SET
                held_by = %(me)s, epoch = epoch + (held_by <> %(me)s OR holder <> %(holder)s)::int,
                host = %(host)s, boot = %(boot)s, pid_ns = %(pid_ns)s, pid = %(pid)s, start_ticks = %(start_ticks)s,
                watcher_pid = %(watcher_pid)s, watcher_start_ticks = %(watcher_start_ticks)s,
                state = 'guarded', detail = '', sweep_until = NULL, retry_at = NULL, claimed_by = NULL,
                claimed_at = NULL, fingerprint = %(fingerprint)s, grace = %(grace)s, holder = %(holder)s,
                let_go_at = NULL, answered = answered OR state IN ('done', 'cancelled'),
                updated_at = clock_timestamp()
            WHERE run = %(run)s
            """,
            {
                "me": self.id,
                "run": known.run,
                "host": text_of(new.place.host),
                "boot": new.place.boot,
                "pid_ns": new.place.pid_ns,
                "pid": new.pid,
                "start_ticks": new.start_ticks,
                "watcher_pid": new.watcher_pid,
                "watcher_start_ticks": new.watcher_start_ticks,
                "fingerprint": new.fingerprint,
                "grace": new.grace,
                "holder": new.holder,
            },
        )
        # What was let go is guarded again.
        self._database.execute("UPDATE qx_jobs SET outcome = '' WHERE run = %s AND outcome = 'kept'", (known.run,))

    def give_back(self, run: str, epoch: int) -> None:
        """Undo a `contest`: its driver's place is taken, and not by way of this ledger."""
        with self._asking() as database:
            database.execute(
                "UPDATE qx_runs SET state = 'guarded', claimed_by = NULL, claimed_at = NULL "
                "WHERE run = %s AND held_by = %s AND epoch = %s",
                (run, self.id, epoch),
            )

    # Reading

    def rows(self, states: Collection[State] | None = None, limit: int | None = None) -> list[Row]:
        """Read rows, the newest first; their times are the database's."""
        return [each.row for each in self.held(states, limit)]

    def row(self, run: str) -> Row | None:
        """Read the row of a run, if there is one."""
        found = self._read("WHERE r.run = %(run)s", {"run": run})
        return found[0].row if found else None

    def held(self, states: Collection[State] | None = None, limit: int | None = None) -> list[Held]:
        """Read runs with who holds them, the newest first.

        Args:
            states: Only runs in these states.
            limit: The most to read.
        """
        where: LiteralString = "WHERE true"
        if states is not None and frozenset(states) == UNFINISHED:
            where = "WHERE " + schema.UNFINISHED_SQL  # a partial index serves only a query with its condition
        elif states is not None:
            where = "WHERE r.state = ANY(%(states)s)"
        order: LiteralString = " ORDER BY r.created_at DESC, r.run LIMIT %(limit)s"
        return self._read(where + order, {"states": list(states or ()), "limit": limit})

    def holder(self, run: str) -> Holder | None:
        """Who holds a run."""
        found = self._read("WHERE r.run = %(run)s", {"run": run})
        return found[0].holder if found else None

    def _required(self, run: str) -> Row:
        found = self.row(run)
        if found is None:
            raise LedgerError(f"The shared ledger has no run {run}.")
        return found

    def _read(self, where: LiteralString, values: Mapping[str, Any]) -> list[Held]:
        with self._asking() as database:
            found = database.execute(READ + where, values).fetchall()
        return [held(each[0]) for each in found]

    # A reaper's

    def due(self, accounts: Collection[tuple[str, str]], watching_since: float, before: float, limit: int) -> list[Row]:
        """Claim runs that nobody holds any more and whose grace has passed: of all that try, one gets each.

        Args:
            accounts: The endpoints and instances whose jobs this process can cancel.
            watching_since: Since when this process has had the database at hand without a break, by its clock. While it
                was away no lease was renewed: only what runs out before these eyes counts.
            before: Until when, by the database's clock, this is to be carried out, or not at all: a server that was
                stopped carries it out when it goes on, and has had no renewal meanwhile.
            limit: The most to claim.
        """
        with self._asking() as database, database.transaction():
            claimed = database.execute(
                CLAIM,
                {
                    "me": self.id,
                    "claimant": json_of(Process(self.place, self._pid, self._start_ticks)),
                    "endpoints": [endpoint for endpoint, _ in accounts],
                    "instances": [instance for _, instance in accounts],
                    "since": watching_since,
                    "before": before,
                    "limit": limit,
                },
            ).fetchall()
            self._epochs.update(claimed)
            return [each.row for each in self._read("WHERE r.run = ANY(%(runs)s)", {"runs": [r for r, _ in claimed]})]

    def seize(self, run: str, holder: str) -> bool:
        """Claim one run whose driver and watcher are seen to be dead, on their own machine: its lease may last still.

        Not while somebody else cancels its jobs, whose lease lasts.

        Args:
            run: A run with a key.
            holder: Who held it, as the machine's own ledger has it; if another does by now, nothing is claimed.
        """
        self.renew()  # a claim needs a holder
        with self._asking() as database:
            claimed = database.execute(
                "UPDATE qx_runs r SET held_by = %s, epoch = epoch + 1, state = 'pending', claimed_by = %s, "
                "claimed_at = clock_timestamp(), retry_at = NULL, updated_at = clock_timestamp() "
                "WHERE run = %s AND holder = %s AND (claimed_by IS NULL OR NOT EXISTS (SELECT FROM qx_holders h "
                "WHERE h.id = r.held_by AND h.lease_until > clock_timestamp())) AND "
                + schema.UNFINISHED_SQL
                + " RETURNING run, epoch",
                (self.id, json_of(Process(self.place, self._pid, self._start_ticks)), run, holder),
            ).fetchall()
            self._epochs.update(claimed)
            return bool(claimed)

    def longest_lease(self) -> float:
        """The length of the longest lease on unfinished runs that has run out, in seconds; 0 where none has."""
        with self._asking() as database:
            found = database.execute(
                "SELECT coalesce(max(h.lease_seconds), 0) FROM qx_holders h WHERE h.lease_until < clock_timestamp() "
                "AND EXISTS (SELECT FROM qx_runs r WHERE r.held_by = h.id AND r.retry_at IS NULL AND "
                + schema.UNFINISHED_SQL
                + ")"
            ).fetchone()
            return float(only(found))

    def census(self) -> list[Census]:
        """How many unfinished runs there are, by account."""
        with self._asking() as database:
            return [Census(*each) for each in database.execute(CENSUS).fetchall()]

    def holds(self, run: str) -> bool:
        """Whether a run that this process claimed is its own still, by a lease that lasts."""
        with self._asking() as database:
            return (
                database.execute(
                    "SELECT FROM qx_runs r JOIN qx_holders h ON h.id = r.held_by WHERE r.run = %s AND r.held_by = %s "
                    "AND r.epoch = %s AND h.lease_until > clock_timestamp() AND " + schema.UNFINISHED_SQL,
                    (run, self.id, self._epochs.get(run)),
                ).fetchone()
                is not None
            )

    def job_outcome(self, run: str, job: str, outcome: str) -> None:
        """Write what became of a job of a run that this process claimed; nothing happens if it holds it no more."""
        with self._asking() as database:
            database.execute(
                """
                INSERT INTO qx_jobs (run, job, outcome)
                SELECT r.run, %(job)s, %(outcome)s FROM qx_runs r
                WHERE r.run = %(run)s AND r.held_by = %(me)s AND r.epoch = %(epoch)s
                ON CONFLICT (run, job) DO UPDATE SET outcome = excluded.outcome WHERE excluded.outcome <> ''
                """,
                {
                    "run": run,
                    "job": text_of(job),
                    "outcome": safe_detail(text_of(outcome)),
                    "me": self.id,
                    "epoch": self._epochs.get(run),
                },
            )

    def finish(
        self,
        run: str,
        state: State,
        detail: str = "",
        *,
        sweep_until: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> bool:
        """Write what a run that this process claimed has come to, and hold it no more.

        Args:
            run: The run.
            state: Its new state.
            detail: Why, in a sentence. What looks like a secret in it is left out.
            sweep_until: For a pending run: until when it is swept again, by the database's clock.
            retry_seconds: For a pending run: when it may be claimed again.

        Returns:
            Whether this process held it still.
        """
        with self._asking() as database:
            is_mine = bool(
                database.execute(
                    """
                    UPDATE qx_runs SET state = %(state)s, detail = %(detail)s, claimed_by = NULL, claimed_at = NULL,
                        sweep_until = to_timestamp(%(until)s), updated_at = clock_timestamp(),
                        retry_at = CASE WHEN %(state)s = 'pending'
                                        THEN clock_timestamp() + %(retry)s * interval '1 second' END
                    WHERE run = %(run)s AND held_by = %(me)s AND epoch = %(epoch)s
                    """,
                    {
                        "state": state,
                        "detail": safe_detail(text_of(detail)),
                        "until": sweep_until,
                        "retry": retry_seconds,
                        "run": run,
                        "me": self.id,
                        "epoch": self._epochs.get(run),
                    },
                ).rowcount
            )
        self._epochs.pop(run, None)  # not where that failed: it may be tried once more
        return is_mine

    def release(self, run: str) -> None:
        """Give a claim back, as if it had not been: anybody may claim it at once."""
        with self._asking() as database:
            database.execute(
                "UPDATE qx_runs SET claimed_by = NULL, claimed_at = NULL, retry_at = clock_timestamp() "
                "WHERE run = %s AND held_by = %s AND epoch = %s",
                (run, self.id, self._epochs.get(run)),
            )
        self._epochs.pop(run, None)

    def forget(self, older_than_seconds: float) -> int:
        """Delete runs that were final for so long, at most `FORGET_AT_ONCE`, and holders that hold nothing."""
        with self._asking() as database:
            deleted = database.execute(
                "DELETE FROM qx_runs WHERE run IN (SELECT r.run FROM qx_runs r WHERE "
                + schema.FINAL_SQL
                + " AND r.updated_at < clock_timestamp() - %s * interval '1 second' "
                "ORDER BY r.updated_at LIMIT %s FOR UPDATE SKIP LOCKED)",
                (older_than_seconds, FORGET_AT_ONCE),
            ).rowcount
            database.execute(
                "DELETE FROM qx_holders h WHERE h.lease_until < clock_timestamp() - %s * interval '1 second' "
                "AND NOT EXISTS (SELECT FROM qx_runs r WHERE r.held_by = h.id AND " + schema.UNFINISHED_SQL + ")",
                (SETTLED_SECONDS,),
            )
            return deleted

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        with self._lock, translated():
            if self._database.closed:
                raise Away("The shared ledger can't be used: the connection broke.")
            yield self._database
