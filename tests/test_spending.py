"""What is reserved and charged against budgets, in both ledgers: SQLite, and a real PostgreSQL."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from testkit.ledgers import make_row

from qx_supervisor.watcher.facts import End, Figures
from qx_supervisor.watcher.host_identity import HostIdentity
from qx_supervisor.watcher.ledger import Budget, Ledger, ReservationWish, Store, standing
from qx_supervisor.watcher.ledger.budgets import bounds
from qx_supervisor.watcher.ledger.postgres import SharedLedger

HERE = HostIdentity("m" * 32, "host", "boot", 7)

Opener = Callable[[], Store]


@pytest.fixture(params=["local", "shared"])
def opened(request: pytest.FixtureRequest, state: Path) -> Iterator[Opener]:
    """Opens the ledger once more, as another process does; each is closed at the end of the test."""
    url = "" if request.param == "local" else request.getfixturevalue("shared_url")
    made: list[Store] = []

    def begin() -> Store:
        book: Store = SharedLedger.open(url, where=HERE) if url else Ledger.open(state, HERE)
        book.renew()
        made.append(book)
        return book

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def book(opened: Opener) -> Store:
    return opened()


OWN = Budget(name="b", seconds=10)


def wish(run: str, most: int = 4, own: Budget | None = OWN, **values: Any) -> ReservationWish:
    given: dict[str, Any] = {"post": run, "instance": "crn:1", "label": "", **values}
    return ReservationWish(run=run, most=most, own=[own] if own else [], **given)


def begin(book: Store, run: str, **values: Any) -> None:
    book.write(make_row(run, host_identity=HERE, endpoint="https://x", instance="crn:1", tag=f"qxs-{run}", **values))


def reserve(book: Store, run: str, most: int = 4, **values: Any) -> int | None:
    return book.reserve(wish(run, most, **values))[0].seconds


def charge(book: Store, run: str, job: str, seconds: float) -> None:
    book.job_figures(run, job, Figures(charged=seconds))


def test_a_reservation_counts_until_all_its_charges_are_known(book: Store) -> None:
    begin(book, "r1", answered=True, jobs={"j1": "", "j2": ""}, label="a")
    begin(book, "r2", program="driver.py", label="a")
    begin(book, "r3", program="driver.py")
    assert reserve(book, "r1") == 4
    assert reserve(book, "r1") == 4  # asked again, because the answer was lost
    assert reserve(book, "r1", post="again") == 4
    assert book.balance(OWN).reserved == 8
    assert reserve(book, "r2", 4) == 2
    charge(book, "r1", "j1", 1)
    book.finish("r1", "done")
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).reserved, book.balance(OWN).pending) == (0, 10, 8)
    charge(book, "r1", "j2", 2.5)
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).left) == (3.5, 4.5)
    assert reserve(book, "r3", 100) == 4
    found, _ = book.reserve(wish("r4"))
    assert found.tightest is not None
    assert (found.seconds, found.tightest.largest) == (None, (("a", 5.5), ("driver.py", 4)))
    assert book.reserve(wish("r1", 1, post="more"))[0].is_over
    book._update("run = :run", {"run": "r1"}, durable=True, state="guarded")  # as when its key is taken up
    assert (
        reserve(book, "r1", 1, post="more", least=1, own=Budget(name="other", seconds=5)) == 1
    )  # its key has another job


def test_of_a_run_whose_jobs_may_not_all_be_known_nothing_is_freed(book: Store) -> None:
    begin(book, "r1", jobs={"j1": ""})
    assert reserve(book, "r1") == 4
    charge(book, "r1", "j1", 1)
    book.finish("r1", "cancelled")
    book.settle()
    assert book.balance(OWN).reserved == 4
    assert [row.run for row in book.uncharged(60, 10)] == ["r1"]
    book.found_all("r1", ["j1", "j2"])
    book.settle()
    assert book.balance(OWN).reserved == 4
    charge(book, "r1", "j2", 2)
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).reserved) == (3, 0)
    assert not book.uncharged(60, 10)


def test_a_run_that_is_stood_down_without_a_job_has_taken_nothing(book: Store) -> None:
    begin(book, "r1")
    assert reserve(book, "r1") == 4
    book.finish("r1", "done")
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).reserved) == (0, 0)


@pytest.mark.parametrize("by", ["watcher", "reap", "reaper"])
def test_a_run_of_which_others_found_nothing_may_have_made_a_job(book: Store, by: Any) -> None:
    """It may have completed, by then: they look for what is in flight."""
    begin(book, "r1")
    assert reserve(book, "r1") == 4
    book.finish("r1", "done", end=End("cancelled", by))
    book.settle()
    assert book.balance(OWN).reserved == 4
    assert [row.run for row in book.uncharged(60, 10)] == ["r1"]
    book.found_all("r1", ["j1"])
    charge(book, "r1", "j1", 1)
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).reserved) == (1, 0)


def test_a_job_that_was_detached_may_be_in_the_queue_still(book: Store) -> None:
    begin(book, "r1", answered=True, jobs={"j1": ""})
    assert reserve(book, "r1") == 4
    book.finish("r1", "done", end=End("detached", "program"))
    book.settle()
    assert (book.balance(OWN).reserved, book.balance(OWN).pending) == (4, 0)
    charge(book, "r1", "j1", 1)
    book.settle()
    assert (book.balance(OWN).spent, book.balance(OWN).reserved) == (1, 0)


def test_what_is_known_of_a_run_counts_before_all_of_it_is(book: Store) -> None:
    """There may be a job that is not known, since its driver died in the middle of a POST."""
    begin(book, "r1", jobs={"j1": ""})
    charge(book, "r1", "j1", 9)
    book.finish("r1", "cancelled", end=End("cancelled", "watcher"))
    begin(book, "long ago", jobs={"j1": ""})
    book.job_figures("long ago", "j1", Figures(charged=9, ended=0.0))
    book.finish("long ago", "cancelled", end=End("cancelled", "watcher"))
    book.set_budget(standing(10, "month", "", ""))
    assert reserve(book, "r2", 10, own=None) == 1
    book.found_all("r1", ["j1"])
    [balance] = book.balances()
    assert (balance.spent, balance.reserved) == (9, 1)


def test_nothing_is_reserved_for_a_run_that_others_have_ended(book: Store) -> None:
    """What it held is another's by now, although its driver, on a host that was cut off, is about to submit."""
    begin(book, "r1")
    assert reserve(book, "r1", 10) == 10
    book.finish("r1", "done", end=End("cancelled", "reaper"))
    assert book.reserve(wish("r1"))[0].is_over
    book.found_all("r1", [])
    assert reserve(book, "r2", 10) == 10
    for post in ("r1", "another"):
        found, _ = book.reserve(wish("r1", post=post))
        assert (found.seconds, found.is_over) == (None, True)
    assert (book.balance(OWN).spent, book.balance(OWN).reserved) == (0, 10)


def test_what_an_unfinished_run_has_made_is_not_taken_for_all(book: Store) -> None:
    begin(book, "r1")
    book.found_all("r1", ["j1"])
    row = book.row("r1")
    assert row is not None
    assert not row.answered


def test_a_program_can_not_make_its_budget_more(book: Store) -> None:
    assert reserve(book, "r1", 9) == 9
    assert reserve(book, "r2", 9, own=Budget(name="b", seconds=1000)) == 1


def test_standing_budgets_are_for_what_they_name(book: Store) -> None:
    assert book.reserve(wish("r0", own=None)) == (book.reserve(wish("r0", own=None))[0], False)
    begin(book, "r1", answered=True, jobs={"j1": ""})
    charge(book, "r1", "j1", 3)
    book.finish("r1", "done")
    book.set_budget(standing(6, "month", "", ""))
    book.set_budget(standing(5, "", "crn:2", ""))
    book.set_budget(standing(4, "day", "", "x"))
    assert [each.seconds for each in book.standing_budgets()] == [4, 5, 6]
    assert reserve(book, "r2", 9, own=None) == 3  # what was charged before counts
    assert reserve(book, "r3", 9, own=None) is None
    book.set_budget(standing(20, "month", "", ""))
    assert reserve(book, "r3", 9, own=None, label="x") == 4
    assert reserve(book, "r4", 9, own=None, instance="crn:2") == 5
    assert reserve(book, "r5", 9, own=None, instance="crn:3") == 5
    assert book.remove_budget(standing(1, "month", "", ""))
    assert not book.remove_budget(standing(1, "month", "", ""))
    assert book.reserve(wish("r6", own=None))[1]


@pytest.mark.parametrize("label", ["any", "=any", "="])
def test_any_is_a_label_as_any_other(book: Store, label: str) -> None:
    book.set_budget(standing(60, "day", "", label))
    book.set_budget(standing(90, "day", "", ""))
    assert {each.label: each.seconds for each in book.standing_budgets()} == {label: 60, "": 90}
    assert reserve(book, "r1", 99, own=None, label=label) == 60
    assert reserve(book, "r2", 99, own=None) == 30
    assert book.remove_budget(standing(1, "day", "", label))
    assert [each.label for each in book.standing_budgets()] == [""]


def test_a_budget_that_an_earlier_release_has_set_is_found(book: Store) -> None:
    earlier = replace(standing(60, "day", "", ""), label="any")  # the name of the one for all
    book.set_budget(earlier)
    book.set_budget(standing(90, "day", "", ""))
    assert {each.label: each.seconds for each in book.standing_budgets()} == {"any": 60, "": 90}
    book.set_budget(standing(70, "day", "", "any"))
    assert {each.label: each.seconds for each in book.standing_budgets()} == {"any": 70, "": 90}
    assert book.remove_budget(standing(1, "day", "", ""))
    book.set_budget(earlier)
    assert book.remove_budget(standing(1, "day", "", "any"))


def test_a_key_that_is_submitted_anew_counts_for_the_label_that_it_has_then(book: Store) -> None:
    book.set_budget(standing(100, "", "", ""))
    book.set_budget(standing(10, "day", "", "tests"))
    begin(book, "r1")
    assert reserve(book, "r1", 3, own=None, label="dev") == 3
    assert reserve(book, "r1", 6, own=None, label="tests", post="anew") == 6
    assert reserve(book, "r2", 10, own=None, label="tests") == 1


def test_a_charge_counts_in_the_period_in_which_its_job_ended(state: Path) -> None:
    def at(*words: int) -> float:
        return datetime.datetime(*words, tzinfo=datetime.UTC).timestamp()  # type: ignore[misc]

    now = at(2026, 1, 31, 12)
    with Ledger.open(state, HERE, clock=lambda: now) as book:
        book.set_budget(standing(10, "month", "", ""))
        for run in ("r1", "r2"):
            begin(book, run, answered=True, jobs={"j": ""})
            assert reserve(book, run, own=None) == 4
        book.job_figures("r1", "j", Figures(charged=3, ended=at(2026, 1, 31, 13)))
        book.finish("r1", "done")
        now = at(2026, 2, 1)
        [balance] = book.balances()
        assert (balance.spent, balance.reserved, balance.ends) == (0, 4, at(2026, 3, 1))  # the other may run still
        now = at(2026, 4, 1)
        book.finish("r2", "done")
        now = at(2026, 5, 1)
        book.forget(0)
        assert not book.rows()
        [balance] = book.balances()
        assert (balance.spent, balance.reserved) == (0, 0)


@pytest.mark.parametrize("period", ["", "day"])
def test_a_clock_that_is_ahead_of_the_services_loses_no_charge(state: Path, period: Any) -> None:
    """As those have it that end jobs, these ended before the period began, and before they were submitted."""
    now = datetime.datetime(2026, 1, 31, 0, 30, tzinfo=datetime.UTC).timestamp()

    def end(book: Store, run: str) -> None:
        book.job_figures(run, "j", Figures(charged=4, ended=now - 3600))
        book.finish(run, "done")

    with Ledger.open(state, HERE, clock=lambda: now) as book:
        begin(book, "in flight", answered=True, jobs={"j": ""})
        now += 60
        book.set_budget(standing(10, period, "", ""))
        end(book, "in flight")
        for run, most in (("r1", 4), ("r2", 2), ("r3", None)):
            now += 60
            begin(book, run, answered=True, jobs={"j": ""})
            assert reserve(book, run, own=None) == most
            end(book, run)


@pytest.mark.parametrize(
    ("period", "began", "ends"),
    [
        ("day", (2026, 12, 31), (2027, 1, 1)),
        ("week", (2026, 12, 28), (2027, 1, 4)),
        ("month", (2026, 12, 1), (2027, 1, 1)),
    ],
)
def test_when_a_period_begins(period: Any, began: tuple[int, int, int], ends: tuple[int, int, int]) -> None:
    now = datetime.datetime(2026, 12, 31, 23, 59, 59, tzinfo=datetime.UTC).timestamp()
    found = bounds(standing(1, period, "", ""), now)
    assert [datetime.datetime.fromtimestamp(each or 0, datetime.UTC).date() for each in found] == [
        datetime.date(*began),
        datetime.date(*ends),
    ]


@pytest.mark.parametrize("kind", ["local", "shared", "shared, by snapshots"])
def test_of_many_at_once_all_together_get_no_more_than_there_is(
    request: pytest.FixtureRequest, state: Path, kind: str
) -> None:
    url = "" if kind == "local" else request.getfixturevalue("shared_url")
    if kind == "shared, by snapshots":  # what its administrator has set for all that connect
        with psycopg.connect(url, autocommit=True) as database:
            database.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'").format(
                    sql.Identifier(database.info.dbname)
                )
            )
    barrier = threading.Barrier(4, timeout=60)
    budget = Budget(name="b", seconds=31)

    def take(number: int) -> int:
        with SharedLedger.open(url, where=HERE) if url else Ledger.open(state, HERE) as book:
            barrier.wait()
            return sum(reserve(book, f"r{number}-{each}", 3, own=budget) or 0 for each in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, range(4))) == 31
