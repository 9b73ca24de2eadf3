"""What the watcher writes down, in one ledger or in two, also when some of it can't be written."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from testkit.ledgers import make_row
from testkit.processes import until

from qx_supervisor.watcher import book as books
from qx_supervisor.watcher import writers
from qx_supervisor.watcher.book import Book, Entry, Ledgers
from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.facts import End
from qx_supervisor.watcher.host_identity import start_ticks, this_host
from qx_supervisor.watcher.ledger import (
    Budget,
    Ledger,
    LedgerBusy,
    LedgerError,
    RefusedRow,
    ReservationWish,
    Row,
    Ruling,
    Wish,
    sqlite,
    standing,
)
from qx_supervisor.watcher.ledger.postgres import SharedLedger
from qx_supervisor.watcher.protocol import Lease
from qx_supervisor.watcher.writers import LocalWriter, Owner, SharedWriter


def test_what_is_said_of_no_run_costs_no_other_its_end(state: Path) -> None:
    complaints: list[str] = []
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    ledgers = Ledgers(str(state))
    book = Book(ledgers, me, complaints.append)
    book.guard(Entry(run="known", tag="qxs-1", driver="", endpoint="https://x", instance="crn")).result(60)
    book.job("unknown", "job", "")
    book.finish("unknown", "done", "")
    book.finish("known", "done", "")
    ledgers.close(60)
    assert complaints == []
    with Ledger.open(state) as ledger:
        assert [(row.run, row.state) for row in ledger.rows()] == [("known", "done")]


def test_what_its_driver_has_written_stays(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection broke, and the watcher is late with what the driver had said before."""
    refused = threading.Event()
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0)
    monkeypatch.setattr(writers, "LOCAL_RETRY", 3600.0)
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    ledgers = Ledgers(str(state))
    book = Book(ledgers, me, lambda _: refused.set())
    for run in ("over", "may have duplicates", "goes on"):
        book.guard(Entry(run=run, tag="qxs-1", driver="", endpoint="https://x", instance="crn")).result(60)
    end = End("detached", "program")
    with Ledger.open(state) as driver:
        with driver.batch():
            for run in ("over", "may have duplicates", "goes on"):
                book.job(run, f"job of {run}", "")
            assert refused.wait(60)
        for run in ("over", "may have duplicates"):
            driver.job_outcome(run, f"job of {run}", "kept")
        driver.finish("over", "done", end=end)
        found = book.stood_down(["over", "may have duplicates", "goes on", "unknown"]).result(60)
        assert found == {"over": end, "may have duplicates": None}
        book.finish("over", "done", "", end=found["over"])
        ledgers.close(60)
        rows = {row.run: row for row in driver.rows()}
    assert {run: (row.state, *row.jobs.values()) for run, row in rows.items()} == {
        "over": ("done", "kept"),
        "may have duplicates": ("guarded", "kept"),
        "goes on": ("guarded", ""),
    }
    assert rows["over"].end == end


@pytest.mark.parametrize("then", ["a while later", "at the end"])
def test_what_was_refused_is_written_later(state: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Else a run that was let go would pass for one that was left behind."""
    refused = threading.Event()
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0)
    monkeypatch.setattr(writers, "LOCAL_RETRY", 0.0 if then == "a while later" else 3600.0)
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    ledgers = Ledgers(str(state))
    book = Book(ledgers, me, lambda _: refused.set())
    entry = Entry(run="let go", tag="qxs-1", driver="", endpoint="https://x", instance="crn")
    book.guard(entry).result(60)
    with contextlib.closing(sqlite3.connect(state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        book.job("let go", "job", "kept")
        book.finish("let go", "done", "")
        assert refused.wait(60)
        other.execute("ROLLBACK")
    written = [("done", {"job": "kept"})]
    if then == "a while later":
        with Ledger.open(state) as ledger:
            until(ledger.rows, lambda found: [(row.state, dict(row.jobs)) for row in found] == written)
    ledgers.close(60)
    with Ledger.open(state) as ledger:
        assert [(row.state, dict(row.jobs)) for row in ledger.rows()] == written


def test_that_there_are_budgets_is_known_while_another_writes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one second of it would let a run go unbounded; and only slow, the ledger may be asked again."""
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0)
    wish = ReservationWish(run="r1", post="p", instance="crn", label="", most=9)
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    with Ledger.open(state) as ledger:
        ledger.set_budget(standing(3, "month", "", ""))
        with ledger.batch():  # from before the watcher's start on
            ledgers = Ledgers(str(state))
            book = Book(ledgers, me, lambda _: None)
            with pytest.raises(LedgerBusy):
                book.reserve(wish).result(60)
            assert book.is_limited
        assert book.reserve(wish).result(60)[0].seconds == 3
        assert ledger.remove_budget(standing(1, "month", "", ""))
    assert book.reserve(replace(wish, run="r2")).result(60)[0].seconds is None
    assert book.is_limited is False
    ledgers.close(60)


# Two ledgers --------------------------------------------------------------------------------------------------------

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


class Pair:
    """A book that has a shared ledger, too, and what it has said."""

    def __init__(self, state: Path, url: str) -> None:
        me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
        self.said: list[str] = []
        self.ledgers = Ledgers(str(state))
        self.book = Book(self.ledgers, me, self.said.append)
        self.book.share(url, lambda event, _: self.said.append(event), lambda run, _holder, _: self.said.append(run))

    def take(self, holder: str, run: str = "r1") -> Ruling:
        entry = Entry(run=run, tag="qxs-1", driver="qxd", endpoint="https://x", instance="crn", lease=lease(holder))
        return self.book.take(entry, ("crn",)).result(60)


def lease(holder: str) -> Lease:
    return Lease("k", "f", 5.0, holder)


@pytest.fixture
def pair(state: Path, shared_url: str) -> Iterator[Pair]:
    made = Pair(state, shared_url)
    yield made
    made.ledgers.close(60)
    assert made.said == []


def test_what_a_run_comes_to_is_written_in_both(pair: Pair, state: Path, shared_url: str) -> None:
    ruling = pair.take("h1")
    assert (ruling.answer, ruling.is_new) == ("granted", True)
    with Ledger.open(state) as local, SharedLedger.open(shared_url) as shared:
        assert [row.key for row in (*local.rows(), *shared.rows())] == ["k", "k"]
        assert pair.book.holds("r1", "h1").result(60)
        assert not pair.book.holds("r1", "h2").result(60)
        pair.book.job("r1", "j1", "")
        pair.book.job_outcomes("r1", {"j0": "cancelled"}, "h1")
        pair.book.job_outcomes("r1", {"j9": "cancelled"}, "h2")
        pair.book.finish("r1", "done", "", "h1")
        pair.ledgers.close(60)
        for row in (*local.rows(), *shared.rows()):
            assert (row.state, row.jobs, row.holder) == ("done", {"j0": "cancelled", "j1": ""}, "h1")
        [row] = local.rows()
        assert row.is_shared


def test_a_run_that_is_contested_is_won_in_both(pair: Pair, state: Path, shared_url: str) -> None:
    pair.take("h1")
    assert not pair.book.contest("r1", "h2").result(60)
    assert pair.book.contest("r1", "h1").result(60)
    with Ledger.open(state) as local, SharedLedger.open(shared_url) as shared:
        for row in (*local.rows(), *shared.rows()):
            assert row.state == "pending"
            assert row.claimed_by is not None
            assert row.let_go_at is not None
        pair.book.job("r1", "j1", "cancelled")
        pair.book.finish("r1", "cancelled", "", "h1")
        pair.ledgers.close(60)
        for row in (*local.rows(), *shared.rows()):
            assert (row.state, row.claimed_by, row.jobs) == ("cancelled", None, {"j1": "cancelled"})


def test_a_contest_that_is_lost_on_this_machine_is_undone_in_the_shared_ledger(
    pair: Pair, state: Path, shared_url: str
) -> None:
    pair.take("h1")
    with Ledger.open(state) as local, SharedLedger.open(shared_url) as shared:
        pair.book.let_go("r1", "h1")
        until(local.rows, lambda rows: rows[0].let_go_at is not None)
        [row] = local.rows()
        assert local.take(Wish(row=replace(row, run="r2", holder="h2", let_go_at=None))).answer == "granted"
        assert not pair.book.contest("r1", "h1").result(60)
        until(shared.rows, lambda rows: rows[0].state == "guarded" and rows[0].claimed_by is None)


def test_while_the_shared_ledger_is_away_the_local_one_decides(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FIRST_RETRY", 3600.0)
    pair = Pair(state, NOWHERE)
    assert pair.take("h1").answer == "granted"
    assert pair.take("h2", "r2").answer == "held"
    entry = Entry(run="r1", tag="qxs-1", driver="", endpoint="https://x", instance="crn", lease=lease("h1"))
    pair.book.guard(entry).result(60)
    assert pair.book.holds("r1", "h1").result(60)
    with pytest.raises(LedgerError, match="refused"):  # whether another host has it can't be known
        pair.book.contest("r1", "h1").result(60)
    with monkeypatch.context() as later:
        later.setattr(books, "UNDECIDED_SECONDS", 0.0)
        assert not pair.book.contest("r1", "h1").result(60)
    pair.ledgers.close(0)  # the shared one has yet to be written, and its server is away for good
    assert pair.ledgers.local.close(60)
    assert pair.said == ["away"]


def test_the_local_ledger_is_complained_of_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    ledgers = Ledgers(str(tmp_path / "file"))
    book = Book(ledgers, DriverIdentity(os.getpid(), 0), said.append)
    for number in range(3):
        entry = Entry(run=f"r{number}", tag="qxs-1", driver="", endpoint="https://x", instance="crn")
        book.guard(entry).result(60)
    with pytest.raises(LedgerError, match="not a directory"):
        book.holds("r1", "").result(60)
    ledgers.close(60)
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_a_row_that_is_refused_keeps_no_other_from_being_written(
    state: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    said: list[str] = []
    writer: LocalWriter | SharedWriter
    if kind == "local":
        writer = LocalWriter(str(state), 30.0)
    else:
        writer = SharedWriter(request.getfixturevalue("shared_url"), 30.0)
    mine, others = (Owner(lambda event, _, who=who: said.append(f"{who}: {event}")) for who in ("mine", "others"))
    writer.join(mine)
    writer.join(others)
    may_go_on = threading.Event()
    writer.ask(lambda _: may_go_on.wait(60))
    refused = make_row("r1", grace=math.nan, key="k", holder="h")
    told = [writer.guard(replace(refused, key=None), mine), writer.guard(make_row("r2"), others)]
    taken = writer.take(refused, (), mine)
    may_go_on.set()
    for each in told:
        each.result(60)
    with pytest.raises(RefusedRow):
        taken.result(60)
    writer.change("r1", "", lambda row: replace(row, detail="again"))
    writer.change("r2", "", lambda row: replace(row, detail="again"))
    found = writer.ask(lambda ledger: [(row.run, row.detail) for row in ledger.rows()])
    assert found.result(60) == [("r2", "again")]
    writer.change("r1", "", lambda row: replace(row, state="done"))
    assert writer.close(60)
    assert said == ["mine: away"]


class SlowStore:
    """A ledger that writes when it is told to."""

    host_identity = this_host()

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self.may_end = threading.Semaphore(0)

    def write(self, *rows: Row, durable: bool) -> set[str]:
        self.begun.put((rows[0].detail, durable))
        assert self.may_end.acquire(timeout=60)
        return {row.run for row in rows}

    def standing_budgets(self) -> list[Budget]:
        return []

    def close(self) -> None: ...


def test_who_waits_waits_until_its_own_version_is_written(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    """No POST leaves on an acknowledgement of what was written before."""
    slow = SlowStore()
    monkeypatch.setattr(LocalWriter, "_open", lambda _: slow)
    writer, owner = LocalWriter(str(state), 30.0), Owner(lambda *_: None)
    writer.join(owner)
    first = writer.guard(make_row(detail="first"), owner)
    assert slow.begun.get(timeout=60) == ("first", True)
    writer.change("r1", "", lambda row: replace(row, detail="second"))
    slow.may_end.release()
    first.result(60)
    assert slow.begun.get(timeout=60)[0] == "second"
    third = writer.guard(make_row(detail="third"), owner)
    slow.may_end.release()
    assert slow.begun.get(timeout=60) == ("third", True)
    assert not third.done()
    slow.may_end.release()
    third.result(60)
    assert writer.close(60)
