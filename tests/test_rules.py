"""The rules of the ledger, tried over every state, holder and life of its processes: what must never be, never is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from qx_supervisor.watcher.host_identity import HostIdentity, Process
from qx_supervisor.watcher.ledger import FINAL, UNFINISHED, Row, RunState, Wish, judge, judge_by_lease
from qx_supervisor.watcher.ledger.rules import CLAIM_SECONDS, may_claim, may_contest, may_seize, may_take

HERE = HostIdentity("m" * 32, "host", "boot", 7)
REBOOTED = HostIdentity(HERE.machine, HERE.host, "an earlier boot", 7)
ELSEWHERE = HostIdentity("n" * 32, "other", "another boot", 7)
NOW = 1000.0
ALIVE = {"driver": 1, "watcher": 2, "claimant": 3}
DEAD = {"driver": 11, "watcher": 12, "claimant": 13}


class Case(NamedTuple):
    """A row, and what is true of it."""

    row: Row
    driver: bool | None  # whether it is alive; None: that can't be seen
    watcher: bool | None
    claimant: bool | None  # None with no claim, too
    is_leased: bool


def process(name: str, place: HostIdentity, *, alive: bool) -> Process:
    pid = (ALIVE if alive else DEAD)[name]
    return Process(place, pid, pid * 10)


def is_running(pid: int, ticks: int | None) -> bool:
    assert ticks == pid * 10
    return pid in ALIVE.values()


def is_seen(place: HostIdentity, *, alive: bool) -> bool | None:
    return None if place == ELSEWHERE else alive and place == HERE


def every_case() -> Iterator[Case]:
    states: tuple[RunState, ...] = (*sorted(UNFINISHED), *sorted(FINAL))
    claimants = [None, *itertools.product((HERE, REBOOTED, ELSEWHERE), (True, False))]
    for state, place, driver, watcher, claim, is_leased, let_go, retry in itertools.product(
        states,
        (HERE, REBOOTED, ELSEWHERE),
        (True, False),
        (True, False, None),
        claimants,
        (True, False),
        (None, NOW - 50.0, NOW - 5.0),
        (None, NOW + 9.0),
    ):
        claimant = None if claim is None else process("claimant", claim[0], alive=claim[1])
        its_driver = process("driver", place, alive=driver)
        its_watcher = None if watcher is None else process("watcher", place, alive=watcher)
        row = Row(
            run="r",
            host_identity=place,
            pid=its_driver.pid,
            start_ticks=its_driver.start_ticks,
            watcher_pid=its_watcher and its_watcher.pid,
            watcher_start_ticks=its_watcher and its_watcher.start_ticks,
            state=state,
            key="k",
            fingerprint="f",
            grace=10.0,
            holder="h1",
            jobs={"j": ""},
            claimed_by=claimant,
            claimed_at=None if claimant is None else NOW - 1.0,
            lease_until=NOW + 5.0 if is_leased else NOW - 20.0,
            let_go_at=let_go,
            retry_at=retry,
        )
        yield Case(
            row,
            is_seen(place, alive=driver),
            False if watcher is None else is_seen(place, alive=watcher),
            None if claim is None else is_seen(claim[0], alive=claim[1]),
            is_leased,
        )


CASES = list(every_case())


def test_there_are_all_cases() -> None:
    assert len(CASES) == 5 * 3 * 2 * 3 * 7 * 2 * 3 * 2


def taken(row: Row, holder: str = "h2", fingerprint: str = "f", *, is_mine: bool = True) -> str:
    wish = Wish(
        row=Row(run="new", host_identity=HERE, pid=1, start_ticks=None, key="k", fingerprint=fingerprint, holder=holder)
    )
    ruling = may_take(row, wish, HERE, is_running, NOW, is_mine=is_mine)
    return "granted" if ruling is None else ruling.answer


def test_nobody_takes_a_key_from_a_driver_that_is_alive_or_may_be() -> None:
    for case in CASES:
        if case.row.state in UNFINISHED and case.row.let_go_at is None:
            may_be_alive = case.driver or (case.driver is None and case.is_leased)
            assert not may_be_alive or taken(case.row) != "granted", case


def test_nobody_takes_a_key_whose_jobs_are_being_cancelled_or_may_be() -> None:
    for case in CASES:
        if case.row.state in UNFINISHED and case.row.claimed_by is not None:
            may_be_cancelled = case.claimant or (case.claimant is None and case.is_leased)
            assert (taken(case.row) == "busy") == bool(may_be_cancelled), case


def test_a_key_is_free_if_nothing_stands_in_its_way() -> None:
    for case in CASES:
        is_claimed = case.claimant or (case.row.claimed_by is not None and case.claimant is None and case.is_leased)
        is_held = case.row.let_go_at is None and (case.driver or (case.driver is None and case.is_leased))
        is_free = case.row.state in FINAL or not (is_claimed or is_held)
        assert (taken(case.row) == "granted") == is_free, case


def test_what_is_over_is_free_and_another_submission_never_has_it() -> None:
    for case in CASES:
        assert case.row.state in UNFINISHED or taken(case.row) == "granted"
        assert taken(case.row, fingerprint="g") == "differs"


def test_a_driver_that_asks_twice_has_it_still_unless_a_reaper_has_claimed_it() -> None:
    for case in CASES:
        assert taken(case.row, holder="h1") == "granted"
        is_claimed = case.row.claimed_by is not None and case.is_leased
        assert taken(case.row, holder="h1", is_mine=False) == ("busy" if is_claimed else "granted"), case


def test_whose_driver_has_an_unfinished_run_wins_it_once_more() -> None:
    for case in CASES:
        assert may_contest(case.row) == (case.row.state in UNFINISHED)


def test_once_won_to_cancel_nobody_takes_it() -> None:
    """That a watcher can't win what a driver has taken is the ledger's to see, in the same transaction."""
    for case in CASES:
        if may_contest(case.row):
            won = replace(case.row, claimed_by=process("watcher", HERE, alive=True))
            assert taken(won) == "busy"


def test_a_claim_is_taken_over_only_from_one_that_is_gone() -> None:
    for case in CASES:
        is_free = case.row.state in UNFINISHED and (case.row.claimed_by is None or case.claimant is False)
        assert may_claim(case.row, HERE, is_running, NOW) == is_free, case
        later = may_claim(case.row, HERE, is_running, NOW + CLAIM_SECONDS)
        assert later == (case.row.state in UNFINISHED and case.claimant is not True), case
    assert not may_claim(None, HERE, is_running, NOW)


def test_what_is_seized_in_the_shared_ledger_is_the_dead_holders_and_nobody_cancels_it() -> None:
    for case in CASES:
        is_free = case.row.state in UNFINISHED and (case.row.claimed_by is None or not case.is_leased)
        assert may_seize(case.row, "h1", NOW) == is_free, case
        assert not may_seize(case.row, "h2", NOW)
    assert not may_seize(None, "h1", NOW)


def test_an_orphan_has_neither_driver_nor_watcher() -> None:
    for case in CASES:
        liveness = judge(case.row, HERE, is_running)
        if case.row.state in FINAL:
            assert liveness == "final"
        elif case.driver is None:
            assert liveness == "elsewhere"
        else:
            assert liveness == ("live" if case.driver else "ending" if case.watcher else "orphan"), case


@pytest.mark.parametrize("is_leased", [True, False])
def test_by_its_lease_a_run_is_an_orphan_only_when_lease_and_grace_are_over(is_leased: bool) -> None:
    for case in CASES:
        liveness = judge_by_lease(case.row, NOW)
        assert (liveness == "final") == (case.row.state in FINAL)
        if case.is_leased is not is_leased or case.row.state in FINAL:
            continue
        if case.row.retry_at is not None:
            assert liveness == ("pending" if case.row.state == "pending" else "orphan")
        elif case.row.claimed_by is not None:
            assert liveness == ("reaping" if is_leased else "orphan")
            own = Process(case.row.host_identity, case.row.watcher_pid or 0, case.row.watcher_start_ticks)
            assert judge_by_lease(replace(case.row, claimed_by=own), NOW) in ("ending", "orphan", "reaping")
        elif case.row.let_go_at is None:
            assert liveness == ("live" if is_leased else "orphan")  # the grace period is over too: 10 s of 20
        elif case.row.let_go_at > NOW - 10.0:
            assert liveness == "waiting"
        else:
            assert liveness == ("ending" if is_leased else "orphan")
