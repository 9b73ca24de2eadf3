"""The shared ledger, in a real PostgreSQL: what it holds, who may take it, and that the clock is its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from testkit.postgres import Server
from testkit.processes import until

from qx_supervisor import shared_ledger
from qx_supervisor.watcher.facts import Figures
from qx_supervisor.watcher.host_identity import HostIdentity
from qx_supervisor.watcher.ledger import UNFINISHED, LedgerError, Row, Wish
from qx_supervisor.watcher.ledger.postgres import SharedLedger
from qx_supervisor.watcher.ledger.postgres import schema as schemas

HERE = HostIdentity("", "here", "boot-1", 1)
ACCOUNT = ("https://quantum/api", "crn:1")
LATE = 4e9


Opener = Callable[..., SharedLedger]


@pytest.fixture
def opened(shared_url: str) -> Iterator[Opener]:
    """Opens the ledger, as a watcher on a host does."""
    made: list[SharedLedger] = []

    def begin(host: str = "here", **how: Any) -> SharedLedger:
        where = HostIdentity("", host, f"boot-{host}", 1)
        made.append(SharedLedger.open(shared_url, **{"where": where, "lease_seconds": 30.0} | how))
        made[-1].renew()
        return made[-1]

    yield begin
    for each in made:
        each.close()


def row(run: str = "r1", book: SharedLedger | None = None, **values: Any) -> Row:
    """A run; its driver is a process that no test asks for by pid."""
    given: dict[str, Any] = {
        "run": run,
        "host_identity": book.host_identity if book else HERE,
        "pid": 7,
        "start_ticks": 70,
        "tag": f"qxs-{run}",
        "endpoint": ACCOUNT[0],
        "instance": ACCOUNT[1],
    }
    return Row(**given | values)


def keyed(run: str, book: SharedLedger, holder: str, **values: Any) -> Row:
    return row(run, book, key="step-1", fingerprint="f", holder=holder, answered=True, **values)


def let_go(row: Row, seconds: float) -> Row:
    """Nobody has waited for it for so long."""
    return replace(row, let_go_at=time.time() - seconds)


def epoch(book: SharedLedger, run: str = "r1") -> int:
    found = book.row(run)
    assert found is not None
    return found.epoch


def never(_pid: int, _ticks: int | None) -> bool:
    return False


def end_lease(shared_url: str, book: SharedLedger, seconds: float = 1.0) -> None:
    """As if its watcher had been gone for so long, and the server up for long."""
    with psycopg.connect(shared_url, autocommit=True) as database:
        database.execute(
            "UPDATE qx_holders SET lease_until = clock_timestamp() - %s * interval '1 second' WHERE id = %s",
            (seconds, book.id),
        )


@pytest.fixture
def long_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has been up for long: its own start renews nothing."""
    from qx_supervisor.watcher.ledger.postgres import statements, store

    end = statements.LEASE_END
    monkeypatch.setattr(store, "READ", statements.READ.replace(end, "h.lease_until"))
    monkeypatch.setattr(store, "CLAIM", statements.CLAIM.replace(end, "h.lease_until"))


# Schema -----------------------------------------------------------------------------------------------------------


def test_migrations_are_done_once_by_many_at_once(shared_url: str) -> None:
    gate = threading.Barrier(8)

    def open_one(_: int) -> None:
        gate.wait()
        SharedLedger.open(shared_url).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_one, range(8)))
    SharedLedger.open(shared_url).close()  # and again
    with psycopg.connect(shared_url) as database:
        assert database.execute("SELECT version FROM qx_schema").fetchall() == [
            (number,) for number in range(1, len(schemas.MIGRATIONS) + 1)
        ]


def test_an_older_one_is_brought_up_to_date_by_many_at_once(
    shared_url: str, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes to it at the time goes on."""
    old = opened()
    old.write(row())
    later = ("ALTER TABLE qx_runs ADD COLUMN later integer NOT NULL DEFAULT 0",)
    monkeypatch.setattr(schemas, "MIGRATIONS", (*schemas.MIGRATIONS, later))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: SharedLedger.open(shared_url).close(), range(8)))
    assert old.version() == len(schemas.MIGRATIONS)
    old.write(row(jobs={"j": ""}))
    [found] = old.rows()
    assert (found.run, dict(found.jobs)) == ("r1", {"j": ""})


EARLIER = """
INSERT INTO qx_runs (run, held_by, endpoint, instance, session_owner, answered, host, boot, pid_ns, pid, state, detail,
    created_at, updated_at, fingerprint, grace, holder, epoch)
VALUES (%s, 'x', 'e', 'i', false, true, 'h', 'b', 7, 8, 'guarded', '', now(), now(), '', 0, '', 1)
ON CONFLICT (run) DO UPDATE SET state = 'done'
"""
"""As an earlier release writes a row: it knows fewer columns."""


def test_columns_are_added_beside_a_host_of_an_earlier_release(shared_url: str) -> None:
    """It may connect again: the version of the tables is what that release has made."""
    with psycopg.connect(shared_url, autocommit=True) as older:
        older.execute("CREATE TABLE qx_schema (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)")
        older.execute("INSERT INTO qx_schema VALUES (1, now())")
        for statement in schemas.MIGRATIONS[0]:
            older.execute(statement.encode())
        older.execute(EARLIER, ("r1",))
        older.execute("INSERT INTO qx_jobs VALUES ('r1', 'j1', '')")
        with ThreadPoolExecutor(8) as pool:  # of many at once, one does it
            books = list(pool.map(lambda _: SharedLedger.open(shared_url, may_migrate=False), range(8)))
        [row] = books[0].rows()
        assert (row.outcome, row.label, row.tags, row.began_at, row.figures) == ("", "", (), None, {})
        books[1].job_figures("r1", "j1", Figures(charged=1.0))
        for run in ("r1", "r2"):
            older.execute(EARLIER, (run,))
        older.execute("INSERT INTO qx_jobs VALUES ('r2', 'j2', '')")
        assert {row.run: (row.state, row.charged) for row in books[2].rows()} == {
            "r1": ("done", 1.0),
            "r2": ("guarded", None),
        }
        assert older.execute("SELECT max(version) FROM qx_schema").fetchall() == [(1,)]
        for book in books:
            book.close()


def test_a_newer_one_is_left_alone(shared_url: str) -> None:
    SharedLedger.open(shared_url).close()
    with psycopg.connect(shared_url) as database:
        database.execute("INSERT INTO qx_schema VALUES (999, now())")
    with pytest.raises(LedgerError, match="update this one"):
        SharedLedger.open(shared_url)


def test_who_may_only_read_and_write_finds_the_tables_made(postgres: Server, shared_url: str) -> None:
    """A watcher needs no right to make tables, once they are there."""
    SharedLedger.open(shared_url).close()
    with psycopg.connect(shared_url, autocommit=True) as database:
        database.execute("CREATE ROLE driver LOGIN PASSWORD 'x'")
        database.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON qx_holders, qx_runs, qx_jobs TO driver")
        database.execute("GRANT SELECT ON qx_schema TO driver")
    try:
        with SharedLedger.open(shared_url.replace(f"qx:{postgres.password}", "driver:x")) as book:
            book.renew()
            assert book.write(row()) == {"r1"}
            assert epoch(book) == 1
    finally:
        with psycopg.connect(shared_url, autocommit=True) as database:
            database.execute("DROP OWNED BY driver")
            database.execute("DROP ROLE driver")


# Rows -------------------------------------------------------------------------------------------------------------


def test_whoever_writes_a_run_holds_it(opened: Opener) -> None:
    """That the rest of a row comes back as it was written, `test_store` sees in both ledgers."""
    book = opened()
    assert book.write(row("r1", book, key="k", fingerprint="f", grace=12.5, holder="h")) == {"r1"}
    assert epoch(book) == 1
    found = book.row("r1")
    assert found is not None
    assert (found.held_by, found.epoch) == (book.id, 1)


def test_what_text_can_not_hold_costs_nothing(opened: Opener) -> None:
    book = opened()
    assert book.write(row(detail="a\0b\ud800", jobs={"j\0": "x"})) == {"r1"}
    assert epoch(book) == 1
    found = book.row("r1")
    assert found is not None
    assert (found.detail, dict(found.jobs)) == ("ab?", {"j": "x"})


# Who may write ----------------------------------------------------------------------------------------------------


def test_who_was_cut_off_writes_over_nobody(shared_url: str, opened: Opener, long_up: None) -> None:
    old, reaper = opened("old"), opened("elsewhere", kind="reaper")
    old.write(row("r1", old), row("r2", old))
    end_lease(shared_url, old)
    [claimed] = reaper.due([ACCOUNT], 0.0, LATE, 1)
    kept, lost = ("r2", "r1") if claimed.run == "r1" else ("r1", "r2")
    assert old.renew()  # it had run out
    assert old.lost() == {lost}
    assert old.write(*(row(run, old, state="done", jobs={"late": ""}) for run in ("r1", "r2"))) == {kept}
    found = reaper.row(lost)
    assert found is not None
    assert (found.state, dict(found.jobs), found.epoch) == ("guarded", {}, 2)


def test_another_watcher_of_the_same_driver_takes_over(opened: Opener) -> None:
    first, second, other = opened(), opened(), opened("elsewhere")
    first.write(row("r1", first, jobs={"j1": ""}))
    assert other.write(row("r1", other)) == set()
    assert second.write(row("r1", second)) == {"r1"}
    assert epoch(second) == 2
    second._epochs.clear()  # the answer was lost, and so it is said again
    assert second.write(row("r1", second)) == {"r1"}
    assert epoch(second) == 2
    assert first.write(row("r1", first, state="done")) == {"r1"}  # alive, it would take it back
    assert epoch(first) == 3
    assert second.lost() == {"r1"}


def test_a_lease_that_had_run_out_and_that_nobody_took_goes_on(shared_url: str, opened: Opener) -> None:
    book = opened()
    book.write(row())
    assert not book.renew()
    end_lease(shared_url, book)
    assert book.renew()
    assert book.lost() == set()
    assert not book.renew()


def test_a_renewal_writes_no_index(shared_url: str, opened: Opener) -> None:
    """It is done a hundred times a second where there are a thousand drivers."""
    book = opened()
    for _ in range(50):
        book.renew()
    with psycopg.connect(shared_url, autocommit=True) as database:
        book._database.execute("SELECT pg_stat_force_next_flush()")
        book.clock()
        [(updated, hot)] = database.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'qx_holders'"
        ).fetchall()
    assert updated == hot == 50


def test_of_drivers_that_want_one_job_one_sees_that_it_is_free(opened: Opener) -> None:
    """Each writes to a run of its own, on which its watcher has the lease."""
    watcher = opened()
    runs = [f"r{number}" for number in range(8)]
    watcher.write(*(row(run, watcher) for run in runs))
    gate = threading.Barrier(8)

    def take(run: str) -> bool:
        driver = opened()
        gate.wait()
        with driver.batch():
            driver.lock_job("job-1")
            is_free = not any(each.jobs for each in driver.rows(UNFINISHED))
            if is_free:
                driver.add_job(run, "job-1")
            return is_free

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(take, runs))
    assert sum(got) == 1
    assert [run for run, is_its in zip(runs, got, strict=True) if is_its] == [
        each.run for each in watcher.rows(UNFINISHED) if each.jobs == {"job-1": ""}
    ]
    watcher.add_job("never written", "job-1")
    assert watcher.row("never written") is None


# Keys -------------------------------------------------------------------------------------------------------------


def test_a_late_answer_is_no_renewal(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a key that is held elsewhere compares the ends of its lease."""
    first, second = opened("one"), opened("two")
    first.take(Wish(row=keyed("r1", first, "h1")))
    clock = time.time
    found = []
    for late in (0.0, 5.0):
        monkeypatch.setattr(time, "time", lambda late=late: clock() + late)
        found.append(second.take(Wish(row=keyed("r2", second, "h2")), is_running=never))
    assert [ruling.answer for ruling in found] == ["held", "held"]
    assert found[0].row.lease_until == found[1].row.lease_until


def test_a_key_of_a_dead_host_is_had_when_its_lease_runs_out(shared_url: str, opened: Opener, long_up: None) -> None:
    dead, other = opened("dead"), opened("other")
    assert dead.take(Wish(row=keyed("r1", dead, "h1"))).is_new
    dead.write(replace(keyed("r1", dead, "h1"), jobs={"j1": ""}))
    held = other.take(Wish(row=keyed("r2", other, "h2")), is_running=never)
    assert (held.answer, held.is_seen) == ("held", False)
    assert 0 < held.seconds_left <= 30
    end_lease(shared_url, dead)
    ruling = other.take(Wish(row=keyed("r2", other, "h2")), is_running=never)
    assert (ruling.answer, ruling.row.run, dict(ruling.row.jobs), ruling.row.epoch) == ("granted", "r1", {"j1": ""}, 2)
    assert dead.write(keyed("r1", dead, "h1", state="done")) == set()


def test_while_the_server_was_away_no_lease_ran_out(shared_url: str, opened: Opener) -> None:
    """It has just been started: whoever holds a lease gets the time to renew it."""
    dead, other = opened("dead"), opened("other")
    dead.take(Wish(row=keyed("r1", dead, "h1")))
    with psycopg.connect(shared_url, autocommit=True) as database:
        database.execute("UPDATE qx_holders SET lease_seconds = 100000")
    end_lease(shared_url, dead)
    assert other.take(Wish(row=keyed("r2", other, "h2")), is_running=never).answer == "held"
    assert other.due([ACCOUNT], 0.0, LATE, 9) == []


def test_a_key_that_was_taken_while_the_database_was_away(shared_url: str, opened: Opener, long_up: None) -> None:
    first, second = opened("one"), opened("two")
    first.take(Wish(row=keyed("r1", first, "h1")))
    # Another run under the same key: its holder lives, so this one is written without the key.
    assert second.enter(keyed("r2", second, "h2"), is_running=never)
    assert epoch(second, "r2") == 1
    assert [(each.run, each.key) for each in second.rows()] in (
        [("r2", None), ("r1", "step-1")],
        [("r1", "step-1"), ("r2", None)],
    )
    # Its holder is gone: the key is this one's.
    end_lease(shared_url, first)
    assert second.enter(keyed("r3", second, "h3"), is_running=never)
    assert epoch(second, "r3") == 1
    assert {each.run: each.key for each in second.rows()} == {"r1": None, "r2": None, "r3": "step-1"}
    # The very run, taken up again by a driver on the same machine: it changes hands.
    third = opened("two")
    assert third.enter(keyed("r3", third, "h4", jobs={"j": ""}), is_running=never)
    assert epoch(third, "r3") == 2
    found = third.row("r3")
    assert found is not None
    assert (found.holder, dict(found.jobs)) == ("h4", {"j": ""})
    # And not while its holder lives.
    assert not second.enter(keyed("r3", second, "h5"), is_running=lambda *_: True)


def test_a_reapers_claim_counts_against_who_held_the_run(shared_url: str, opened: Opener, long_up: None) -> None:
    """Another watcher of the driver, which has only just been told of its runs."""
    first, reaper, second = opened(), opened("r", kind="reaper"), opened()
    first.take(Wish(row=keyed("r1", first, "h1")))
    end_lease(shared_url, first)
    assert len(reaper.due([ACCOUNT], 0.0, LATE, 9)) == 1
    assert not second.enter(keyed("r1", second, "h1"))
    assert second.take(Wish(row=keyed("r1", second, "h1"))).answer == "busy"
    end_lease(shared_url, reaper)
    assert second.enter(keyed("r1", second, "h1"))
    assert epoch(second, "r1") == 3


# Reapers ----------------------------------------------------------------------------------------------------------


def test_only_what_has_run_out_is_claimed(shared_url: str, opened: Opener, long_up: None) -> None:
    live, dead, reaper = opened("live"), opened("dead"), opened("r", kind="reaper")
    live.write(row("r1", live))
    dead.write(
        row("r2", dead),
        row("r3", dead, grace=3600.0),
        row("r4", dead, state="done"),
        row("r5", dead, instance="crn:2"),
        let_go(row("r6", dead, grace=600.0), 700.0),
    )
    end_lease(shared_url, dead)
    assert [each.run for each in reaper.due([], 0.0, LATE, 9)] == []
    assert [each.run for each in reaper.due([ACCOUNT], reaper.clock(), LATE, 9)] == []  # it has seen nothing run out
    claimed = reaper.due([ACCOUNT], 0.0, LATE, 9)
    assert sorted(each.run for each in claimed) == ["r2", "r6"]
    assert all(reaper.may_cancel(each.run) for each in claimed)
    assert {each.row.run: each.judgement for each in reaper.held(UNFINISHED)} == {
        "r1": "live",
        "r2": "reaping",
        "r3": "waiting",
        "r5": "orphan",
        "r6": "reaping",
    }


def test_of_many_reapers_one_gets_each(shared_url: str, opened: Opener, long_up: None) -> None:
    dead = opened("dead")
    dead.write(*(row(f"r{number}", dead) for number in range(200)))
    end_lease(shared_url, dead)
    reapers = [opened(f"r{number}", kind="reaper") for number in range(4)]
    gate = threading.Barrier(4)

    def claim(reaper: SharedLedger) -> list[str]:
        got: list[str] = []
        gate.wait()
        while found := reaper.due([ACCOUNT], 0.0, LATE, 7):
            got += [each.run for each in found]
        return got

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(claim, reapers))
    assert sorted(run for share in shares for run in share) == sorted(f"r{number}" for number in range(200))


@pytest.mark.long
def test_a_renewal_and_a_claim_at_once(shared_url: str, opened: Opener, long_up: None) -> None:
    """Whichever comes first: never is a run claimed whose watcher was told that its lease goes on."""
    reaper = opened("r", kind="reaper")
    for number in range(40):
        book = opened(f"host{number}")
        book.write(row(f"r{number}", book))
        end_lease(shared_url, book)
        gate = threading.Barrier(2)

        def renew(book: SharedLedger = book, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return book.renew()

        with ThreadPoolExecutor(1) as pool:
            renewed = pool.submit(renew)
            gate.wait()
            claimed = [each.run for each in reaper.due([ACCOUNT], 0.0, LATE, 9)]
            had_run_out = renewed.result()
        assert had_run_out  # so it looks
        assert book.lost() == ({f"r{number}"} if claimed else set())
        book.close()


def test_a_reaper_that_died_is_followed_by_another(shared_url: str, opened: Opener, long_up: None) -> None:
    dead, first, second = opened("dead"), opened("r1", kind="reaper"), opened("r2", kind="reaper")
    dead.write(row("r1", dead, jobs={"j1": ""}))
    end_lease(shared_url, dead)
    assert len(first.due([ACCOUNT], 0.0, LATE, 9)) == 1
    assert second.due([ACCOUNT], 0.0, LATE, 9) == []
    end_lease(shared_url, first)
    assert not first.may_cancel("r1")
    assert len(second.due([ACCOUNT], 0.0, LATE, 9)) == 1
    # It was only cut off, and comes back.
    first.renew()
    assert not first.may_cancel("r1")
    first.job_outcome("r1", "j1", "cancelled")
    assert not first.finish("r1", "cancelled")
    second.job_outcome("r1", "j1", "finished")
    assert second.finish("r1", "done")
    found = second.row("r1")
    assert found is not None
    assert (found.state, dict(found.jobs), found.epoch) == ("done", {"j1": "finished"}, 3)


def test_what_is_pending_is_claimed_again_in_its_time(shared_url: str, opened: Opener, long_up: None) -> None:
    dead, reaper, other = opened("dead"), opened("r1", kind="reaper"), opened("r2", kind="reaper")
    dead.write(keyed("r1", dead, "h"))
    end_lease(shared_url, dead)
    reaper.due([ACCOUNT], 0.0, LATE, 9)
    reaper.finish("r1", "pending", "later", sweep_until=reaper.clock() + 86400, retry_seconds=3600.0)
    assert other.due([ACCOUNT], 0.0, LATE, 9) == []
    assert [each.judgement for each in other.held()] == ["pending"]
    with psycopg.connect(shared_url, autocommit=True) as database:
        database.execute("UPDATE qx_runs SET retry_at = clock_timestamp()")
    assert len(other.due([ACCOUNT], 0.0, LATE, 9)) == 1
    other.release("r1")
    # A driver that comes back for its key needs to wait for nobody.
    assert dead.take(Wish(row=keyed("r2", dead, "h2")), is_running=never).answer == "granted"


def test_what_was_final_for_long_is_forgotten(shared_url: str, opened: Opener) -> None:
    book, gone = opened(), opened("gone")
    book.write(row("r1", state="done", jobs={"j": ""}), row("r2"))
    end_lease(shared_url, gone, 90000.0)
    with psycopg.connect(shared_url, autocommit=True) as database:
        database.execute("UPDATE qx_runs SET updated_at = updated_at - interval '31 days'")
    assert book.forget(30 * 86400.0) == 1
    assert [each.run for each in book.rows()] == ["r2"]
    with psycopg.connect(shared_url) as database:
        assert database.execute("SELECT id FROM qx_holders").fetchall() == [(book.id,)]


# Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda url: url.replace("sentinel", "sentin/el"),
        lambda url: url.replace("sentinel", "sentin@el"),
        lambda url: url.replace("sentinel", "sentin?el"),
        lambda url: url.replace("sentinel", "sentin%el"),
        lambda url: url.replace("sentinel", "wrong-sentinel"),
        lambda url: url + "?sentinel=1",
        lambda url: url + "-sentinel",
        lambda url: url.replace("127.0.0.1", "host.invalid"),
        lambda url: url[: url.index("@127")] + "@127.0.0.1:9/x",
        lambda url: "sentinel",
    ],
)
def test_a_fault_is_told_without_the_url(shared_url: str, spoil: Callable[[str], str]) -> None:
    with pytest.raises(LedgerError) as caught:
        SharedLedger.open(spoil(shared_url))
    assert "sentin" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert str(caught.value).startswith(("The shared ledger can't be used: ", "The URL of the shared ledger can't"))


def test_a_claim_that_comes_late_is_none(shared_url: str, opened: Opener, long_up: None) -> None:
    """The server was stopped before it could carry it out: meanwhile nobody could renew."""
    dead, reaper = opened("dead"), opened("r", kind="reaper")
    dead.write(row("r1", dead))
    end_lease(shared_url, dead)
    assert reaper.due([ACCOUNT], 0.0, reaper.clock() - 0.01, 9) == []
    assert len(reaper.due([ACCOUNT], 0.0, reaper.clock() + 60, 9)) == 1


def test_a_server_that_does_not_answer_is_given_up(postgres: Server, shared_url: str, monkeypatch: Any) -> None:
    from qx_supervisor.watcher.ledger.postgres import connection

    with SharedLedger.open(shared_url) as book:
        book.renew()
        monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
        postgres.freeze()
        try:
            with pytest.raises(LedgerError, match="does not answer"):
                book.renew()
            with pytest.raises(LedgerError, match="broke"):
                book.renew()
        finally:
            postgres.thaw()


def test_a_host_that_is_lost_in_the_middle_of_a_transaction_holds_nobody_up(opened: Opener, monkeypatch: Any) -> None:
    """Its connection is never closed. The server ends it, and its locks, before anybody who waits gives up."""
    from qx_supervisor.watcher.ledger.postgres import connection

    lost, other = opened("lost"), opened("other")
    lost.take(Wish(row=keyed("r1", lost, "h1")))
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout), monkeypatch.context() as soon:
        soon.setattr(connection, "_LOST_SOON", connection._LOST_SOON.replace("2500", "300"))
        with lost._database.transaction():
            soon.undo()  # all others have the time that they always have
            lost._database.execute("SELECT FROM qx_runs FOR UPDATE")
            assert other.take(Wish(row=keyed("r2", other, "h2")), is_running=never).answer == "held"


def test_what_breaks_is_a_ledger_error(postgres: Server, shared_url: str) -> None:
    with SharedLedger.open(shared_url) as book:
        book.renew()
        postgres.kill()
        try:
            with pytest.raises(LedgerError):
                book.renew()
            with pytest.raises(LedgerError, match="refused"):
                SharedLedger.open(shared_url)
        finally:
            postgres.start()


def test_what_drivers_write_themselves_waits_for_the_database_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are let go while it does not answer: the first waits, and all go over one connection at last."""
    answers, written = threading.Event(), []

    class Book:
        def __enter__(self) -> Book:
            written.append("connected")
            assert answers.wait(60)
            return self

        def __exit__(self, *_: object) -> None: ...

        def stand_down(self, run: str, **_: object) -> None:
            written.append(run)

    monkeypatch.setattr(shared_ledger, "opened", Book)
    writing = shared_ledger._Writing()
    for number in range(4):
        writing.write([shared_ledger.StoodDown(f"r{number}", "", (), None, is_over=True)], logging.WARNING, 0.01)
        until(lambda: written, lambda said: said == ["connected"])
    answers.set()
    until(lambda: writing._busy_since, lambda since: since is None)
    assert written == ["connected", "r0", "connected", "r1", "r2", "r3"]
