"""A budget of QPU time is never passed, whatever dies."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from testkit import spenders
from testkit.circuits import ones
from testkit.drivers import Driver, kill_both
from testkit.processes import DEADLINE, until
from testkit.watchers import wait_for_watchers

from qx_supervisor import (
    BudgetExceeded,
    ConfigError,
    Err,
    Status,
    budget,
    local,
    run,
    submit,
    try_run,
)
from qx_supervisor.cli import main
from qx_supervisor.watcher.ledger import Budget, Ledger, standing
from qx_supervisor.watcher.ledger.postgres import SharedLedger

BACKEND = "ibm_brisbane"


def charged(ibm: local.Service) -> float:
    """What the service has charged in all."""
    return sum(job.qpu_seconds for job in ibm.jobs())


@pytest.mark.long
def test_runs_of_a_block_take_what_is_left(ibm: local.Service, service: Any) -> None:
    ibm.charge(fixed=4, estimate=None)
    with budget(qpu_seconds=10):
        for bound in (10, 6, 2):
            found = try_run(ones(), BACKEND, service=service, shots=16, panel=None)
            assert ibm.jobs()[-1].max_execution_time == bound
        assert isinstance(found, Err)
        assert isinstance(found.error, BudgetExceeded)
        with pytest.raises(
            BudgetExceeded, match=r"nothing was submitted: 0\.0 s are left of the budget of 10 s"
        ) as error:
            run(ones(), BACKEND, service=service, shots=16, panel=None)
    assert (error.value.limit, error.value.spent, error.value.reserved) == (10, 10, 0)
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.limit, again.spent, str(again)) == (10, 10, str(error.value))
    assert len(ibm.jobs()) == 3
    assert charged(ibm) == 10
    run(ones(), BACKEND, service=service, shots=16, panel=None)  # outside


def test_parallel_runs_share_what_is_left(ibm: local.Service, service: Any) -> None:
    """What runs hold in reserve is nobody else's, and a run that finds it all held says so before its POST."""
    ibm.charge(fixed=2)
    ibm.hold("running")
    with budget(qpu_seconds=10):
        begun = [submit(ones(), BACKEND, service=service, shots=16, max_execution_time=4) for _ in range(3)]
        until(ibm.jobs, lambda jobs: len(jobs) == 3)
        assert sorted(job.max_execution_time for job in ibm.jobs()) == [2, 4, 4]
        with pytest.raises(BudgetExceeded, match="give each run a max_execution_time=") as error:
            run(ones(), BACKEND, service=service, shots=16, panel=None)
        assert (error.value.spent, error.value.reserved) == (0, 10)
        ibm.hold(None)
        for each in begun:
            each.result(DEADLINE)
        run(ones(), BACKEND, service=service, shots=16, panel=None)  # it waits until their charges are known
    assert sorted(job.max_execution_time for job in ibm.jobs()) == [2, 4, 4, 4]


DETACHED = """
queued, seen = threading.Event(), []
with budget(qpu_seconds=10):
    detached = submit(isa(), backend(), shots=16, on_status=lambda status: status.state == "queued" and queued.set())
    assert queued.wait(60)
    detached.detach()
    try:
        run(isa(), backend(), shots=16, panel=None, on_status=lambda status: seen.append(status.state))
    except BudgetExceeded as error:
        say("exceeded", error.spent, error.reserved, "waiting for charges" in seen)
    ibm.hold(None)
    ibm.wait_job(detached.job_id, "Completed")
    run(isa(), backend(), shots=16, panel=None)
"""


@pytest.mark.long
def test_a_job_that_was_detached_holds_its_part_until_it_is_over(ibm: local.Service, fork: Any) -> None:
    """Nobody waits for that: it may be in the queue for days. When it is over, who needs it asks what it cost."""
    ibm.charge(fixed=2, estimate=None)
    ibm.hold("queued")
    driver = fork(DETACHED)
    assert driver.line("exceeded ") == ["0.0", "10.0", "False"]
    assert driver.end() == 0
    assert [job.max_execution_time for job in ibm.jobs()] == [10, 8]


def test_an_estimate_above_what_is_left_cancels_in_the_queue(ibm: local.Service, service: Any) -> None:
    ibm.charge(fixed=20)
    ibm.hold("queued")
    with pytest.raises(BudgetExceeded, match=r"expects the job to take 20\.0 s, and 5 s are left") as error:
        run(ones(), BACKEND, service=service, shots=16, panel=None, budget=5)
    [job] = ibm.jobs()
    assert (job.id, job.status, job.qpu_seconds, job.cancel_requests) == (error.value.job_id, "Cancelled", 0, 1)


def test_a_job_that_takes_all_that_is_left_is_ended_by_the_service(ibm: local.Service, service: Any) -> None:
    ibm.charge(fixed=20, estimate=None)
    with pytest.raises(BudgetExceeded, match="taken the 5 s that were left") as error:
        run(ones(), BACKEND, service=service, shots=16, panel=None, budget=5)
    [job] = ibm.jobs()
    assert (job.id, job.qpu_seconds, error.value.code) == (error.value.job_id, 5, 1305)


@pytest.mark.long
def test_what_a_run_asks_for_itself_is_not_made_more(ibm: local.Service, service: Any) -> None:
    ibm.charge(fixed=1)
    seen: list[Status] = []
    with budget(100), budget(qpu_seconds=7) as inner:
        run(ones(), BACKEND, service=service, shots=16, panel=None, max_execution_time=3, on_status=seen.append)
        [submitting] = [status.detail for status in seen if status.state == "submitting"]
        assert submitting == "to ibm_brisbane, for 3 s at most: 7.0 s are left of its budget"
        run(ones(), BACKEND, service=service, shots=16, panel=None, running_timeout=2.5)
        run(ones(), BACKEND, service=service, shots=16, panel=None)
    run(ones(), BACKEND, service=service, shots=16, panel=None, budget=inner)
    run(ones(), BACKEND, service=service, shots=16, panel=None)
    assert [job.max_execution_time for job in ibm.jobs()] == [3, 3, 5, 4, 10800]


def test_threads_without_a_block_of_their_own_are_in_the_open_one(ibm: local.Service, service: Any) -> None:
    ibm.charge(fixed=1)
    with budget(qpu_seconds=9), ThreadPoolExecutor(1) as pool:
        pool.submit(run, ones(), BACKEND, service=service, shots=16, panel=None).result()
        copy = pickle.loads(pickle.dumps(budget(5)))
        with copy, pytest.raises(ConfigError, match="budget must be a number of seconds of at least 1, not 0"):
            run(ones(), BACKEND, service=service, panel=None, budget=0)
    assert [job.max_execution_time for job in ibm.jobs()] == [9]


@pytest.mark.parametrize("value", ["-1", "0.5", "nan", "five minutes"])
def test_a_setting_that_is_no_amount(monkeypatch: pytest.MonkeyPatch, value: str, service: Any) -> None:
    monkeypatch.setenv("QX_BUDGET", value)
    with pytest.raises(ConfigError, match="QX_BUDGET must be a number of seconds"):
        run(ones(), BACKEND, service=service, panel=None)


AGAIN = {"method": "POST", "path": "/api/v1/jobs", "status": 500, "phase": "after", "times": 1}


def test_a_submission_that_is_sent_again_is_reserved_for_again(ibm: local.Service, service: Any) -> None:
    """Both POSTs make a job, and both together are held to the budget."""
    ibm.charge(fixed=3, estimate=None)
    ibm.scenario({"http_faults": [AGAIN]})
    with budget(10):
        first = submit(ones(), BACKEND, service=service, shots=16, max_execution_time=4)
        until(ibm.jobs, lambda jobs: len(jobs) == 2)
        with pytest.raises(BudgetExceeded) as error:
            run(ones(), BACKEND, service=service, shots=16, panel=None, max_execution_time=4)
            run(ones(), BACKEND, service=service, shots=16, panel=None, max_execution_time=4)
        assert error.value.limit == 10
        first.result(DEADLINE)
    assert [job.max_execution_time for job in ibm.jobs()][:3] == [4, 4, 2]
    assert charged(ibm) <= 10


def test_a_submission_is_not_sent_again_without_a_reservation(ibm: local.Service, service: Any) -> None:
    """The first POST holds all that is left, and has made a job, which is found."""
    ibm.charge(fixed=3, estimate=None)
    ibm.scenario({"http_faults": [AGAIN]})
    assert run(ones(), BACKEND, service=service, shots=16, panel=None, budget=5).job_id == ibm.jobs()[0].id
    assert [job.max_execution_time for job in ibm.jobs()] == [5]


CUT_OFF = """
from qx_supervisor.watcher.facts import End
from qx_supervisor.watcher.ledger import Ledger, state_directory
def cut_off(status):
    if status.state == "rate limited, waiting":
        with Ledger.open(state_directory()) as book:
            [row] = book.rows()
            book.finish(row.run, "done", end=End("cancelled", "reaper"))
            book.found_all(row.run, [])
try:
    run(isa(), backend(), shots=16, panel=None, budget=5, on_status=cut_off)
except WatcherError as error:
    say("raised", error)
"""


@pytest.mark.long
def test_a_submission_that_had_to_wait_is_not_sent_without_its_reservation(ibm: local.Service, fork: Any) -> None:
    """While it waits, its run is ended as a reaper does that takes its host for lost."""
    limited = {"method": "POST", "path": "/api/v1/jobs", "status": 429, "retry_after": 3, "times": 1}
    ibm.scenario({"http_faults": [limited]})
    driver = fork(CUT_OFF)
    said = " ".join(driver.line("raised "))
    assert "nothing was submitted: the ledger says that this run is over" in said
    assert driver.end() == 0
    assert len(ibm.journal(method="POST", path="/api/v1/jobs")) == 1
    assert not ibm.jobs()


@pytest.mark.long
def test_a_submission_that_had_to_wait_waits_for_the_ledger_too(ibm: local.Service, fork: Any) -> None:
    limited = {"method": "POST", "path": "/api/v1/jobs", "status": 429, "retry_after": 0, "times": 1}
    ibm.scenario({"http_faults": [limited]})
    driver = fork(
        """
        from qx_supervisor.link import link
        ask, asked, seen = link.reserve, [], []
        def reserve(wanted):
            asked.append(wanted)
            found = ask(wanted)
            return found if len(asked) != 2 else {**found, "seconds": None, "trouble": "The ledger is away."}
        link.reserve = reserve
        run(isa(), backend(), shots=16, panel=None, budget=5, on_status=lambda status: seen.append(status.state))
        say("done", seen.count("waiting for the ledger"), len({each.post for each in asked}), len(asked))
        """
    )
    assert driver.line("done ") == ["1", "1", "3"]
    assert driver.end() == 0
    assert [job.max_execution_time for job in ibm.jobs()] == [5]


PROGRAM = """
import os
os.environ["QX_BUDGET"] = "{seconds}"
os.environ["QX_BUDGET_ID"] = "one"
try:
    run(isa(), backend(), shots=16, panel=None, on_status=tell, max_execution_time={most})
except BudgetExceeded as error:
    say("exceeded", error)
else:
    say("done")
"""


def test_a_killed_driver_frees_what_its_job_is_not_charged(ibm: local.Service, fork: Any) -> None:
    ibm.charge(fixed=3, estimate=None)
    ibm.hold("running")
    first = fork(PROGRAM.format(seconds=10, most=8))
    job = first.line("running ")[0]
    second = fork(PROGRAM.format(seconds=10, most=8))
    second.line("running ")
    third = fork(PROGRAM.format(seconds=10, most=8))
    assert "0.0 s are left" in " ".join(third.line("exceeded "))
    ibm.spend(1, job)
    first.kill()
    wait_for_watchers(first)  # it has cancelled, and read the charge
    ibm.hold(None)
    fourth = fork(PROGRAM.format(seconds=10, most=8))
    fourth.line("done")
    for each in (second, third, fourth):
        each.end()
    assert [job.max_execution_time for job in ibm.jobs()] == [8, 2, 7]
    assert charged(ibm) <= 10


UNCHANGED = """
from qiskit_ibm_runtime import SamplerV2
for _ in range(3):
    try:
        job = SamplerV2(mode=backend()).run([isa()], shots=16)
        job.result()
        say("done")
    except Exception as error:
        say("raised", type(error).__name__, error)
"""


@pytest.mark.long
def test_a_program_that_can_not_be_changed_is_held_to_it(ibm: local.Service, start: Any, monkeypatch: Any) -> None:
    ibm.charge(fixed=4, estimate=None)
    monkeypatch.setenv("QX_BUDGET", "8")
    driver = start(UNCHANGED, wrap=lambda command: [sys.executable, "-m", "qx_supervisor", "exec", "--", *command])
    driver.line("done")
    driver.line("done")
    assert "0.0 s are left" in " ".join(driver.line("raised BudgetExceeded"))
    driver.end()
    assert [job.max_execution_time for job in ibm.jobs()] == [8, 4]


# A ledger's budgets --------------------------------------------------------------------------------------------------


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls `qx-supervisor budget`; returns its exit code, and what it wrote to stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["budget", *words])
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_a_standing_budget_is_for_all_drivers(ibm: local.Service, fork: Any, command: Call) -> None:
    ibm.charge(fixed=5, estimate=None)

    def spend(arguments: str = "") -> str:
        """What a driver of its own is told, if its run is refused."""
        driver = fork(f"""
            try:
                run(isa(), backend(), shots=16, panel=None, {arguments})
                say("over")
            except BudgetExceeded as error:
                say("over", error)
            """)
        told = " ".join(driver.line("over"))
        driver.end()
        return told

    assert spend() == ""
    assert command("set", "--seconds", "20", "--per", "month")[0] == 0
    assert command("set", "--seconds", "8", "--label", "x")[0] == 0
    assert spend("label='x'") == ""
    assert spend() == ""
    assert [job.max_execution_time for job in ibm.jobs()] == [10800, 8, 10]

    def shown() -> list[Any]:
        return [json.loads(line) for line in command("--json")[1].splitlines()]

    until(lambda: shown()[1], lambda found: found["spent"] == 15)
    by_label, by_month = shown()
    assert (by_label["label"], by_label["left"], by_label["until"]) == ("x", 3, None)
    assert (by_month["per"], by_month["left"], by_month["reserved"]) == ("month", 5, 0)
    assert "the 3 s that were left" in spend("label='x', max_execution_time=4")
    told = spend("label='x'")
    assert re.search(r"the budget of 8 s for the label 'x': 8\.0 s are spent .*; give it more", told), told
    assert len(ibm.jobs()) == 4
    assert command("remove", "--label", "x")[0] == 0
    assert len(shown()) == 1


def test_wrong_use_is_one_sentence(command: Call) -> None:
    for words, said in [
        (("set", "--seconds", "0.5"), "--seconds must be at least 1"),
        (("set",), "--seconds"),
        (("set", "--seconds", "9", "--instance", "my-instance"), "--instance takes a CRN, not 'my-instance'"),
        (("set", "--seconds", "9", "--label", " "), "label must be a string that is not empty"),
        (("remove",), "there is no such budget"),
    ]:
        code, out, err = command(*words)
        assert (code != 0, out, err.count("\n")) == (True, "", 1)
        assert said in err


def test_a_variable_that_is_not_set_does_not_remove_everybodys_budget(command: Call) -> None:
    assert command("set", "--seconds", "9", "--per", "month")[0] == 0
    for empty in ("--label", "--instance"):
        code, out, err = command("remove", "--per", "month", empty, "")
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert json.loads(command("--json")[1])["seconds"] == 9


def test_a_label_is_that_of_runs(command: Call) -> None:
    assert command("set", "--seconds", "9", "--label", " tests ")[0] == 0
    assert json.loads(command("--json")[1])["label"] == "tests"
    assert command("remove", "--label", " tests ")[0] == 0


def test_without_the_ledger_nothing_is_submitted(ibm: local.Service, fork: Any, state: Path) -> None:
    state.mkdir(mode=0o700)
    (state / "ledger.db").mkdir()
    driver = fork(
        """
        import logging
        logging.basicConfig(format="logged %(message)s", stream=sys.stdout)
        try:
            run(isa(), backend(), shots=16, panel=None, budget=5)
        except WatcherError as error:
            say("raised", error)
        run(isa(), backend(), shots=16, panel=None, max_execution_time=7)  # it is protected all the same
        """
    )
    said = " ".join(driver.line("raised "))
    assert "nothing was submitted, because what is left of its budget is not known: the ledger can't be asked" in said
    driver.line("logged if a budget is set for all programs, this run is not held to it: the ledger can't be asked")
    assert driver.end() == 0
    assert [job.max_execution_time for job in ibm.jobs()] == [7]


BUSY = """
from qx_supervisor.link import link
ask = link.reserve
def reserve(wanted):
    say("asks")
    return ask(wanted)
link.reserve = reserve
try:
    run(isa(), backend(), shots=16, panel=None, on_status=tell)
except WatcherError as error:
    say("raised", error)
"""


@pytest.fixture
def busy(state: Path) -> Iterator[sqlite3.Connection]:
    """Another process that writes to the ledger, which has a budget of 3 s for all programs, and does not end."""
    with Ledger.open(state) as book:
        book.set_budget(standing(3, "month", "", ""))
        with contextlib.closing(sqlite3.connect(book.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield other


@pytest.mark.long
def test_who_may_have_a_budget_waits_for_a_ledger_that_is_busy(
    ibm: local.Service, fork: Any, busy: sqlite3.Connection, state: Path
) -> None:
    driver = fork(BUSY)
    driver.line("asks")
    with (
        contextlib.closing(sqlite3.connect(state / "ledger.db", timeout=3)) as patient,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        patient.execute("BEGIN IMMEDIATE")  # for longer than a run waits that has no budget
    assert not ibm.jobs()
    busy.execute("ROLLBACK")
    assert driver.end() == 0
    assert [job.max_execution_time for job in ibm.jobs()] == [3]


@pytest.mark.long
@pytest.mark.usefixtures("busy")
def test_with_a_budget_for_all_nothing_is_submitted_past_a_ledger_that_stays_busy(
    ibm: local.Service, fork: Any
) -> None:
    driver = fork(BUSY)
    said = " ".join(driver.line("raised "))
    assert "nothing was submitted, because what is left of its budget is not known: the ledger can't be asked" in said
    assert driver.end() == 0
    assert not ibm.jobs()


# Whatever dies ------------------------------------------------------------------------------------------------------


@pytest.mark.short_only("local-0")
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("kind", ["local", "hosts"])
def test_whatever_dies_the_charges_never_pass_the_budget(
    request: pytest.FixtureRequest, ibm: local.Service, fork: Any, state: Path, kind: str, number: int
) -> None:
    """`scripts/drill --only "a budget: its" --tries 500` goes on with it."""
    url = request.getfixturevalue("shared_url") if kind == "hosts" else ""
    name = f"budget-{kind}-{number}"

    def start(program: str, host: int) -> Driver:
        here = f'os.environ["QX_STATE_DIR"] = {f"{state}{host}"!r}\n'
        there = f'os.environ["QX_LEDGER"] = {url!r}\n' if url else ""
        return cast(Driver, fork(here + there + program))

    spent = spenders.spend(random.Random(name), ibm, name, start, hosts=2 if url else 1)
    assert spent <= spenders.SECONDS
    with SharedLedger.open(url) if url else Ledger.open(f"{state}0") as book:
        budget = Budget(name=name, seconds=spenders.SECONDS)
        balance = book.balance(budget)
        assert spent <= balance.spent + balance.reserved <= spenders.SECONDS


@pytest.mark.long
def test_a_key_that_is_submitted_anew_is_reserved_for_anew(ibm: local.Service, fork: Any) -> None:
    """Both jobs are of one run: the first one's reservation is not the second one's."""
    ibm.charge(fixed=20, estimate=None)
    ibm.hold("running")
    program = PROGRAM.replace("shots=16", "shots=16, key='step'")
    first = fork(program.format(seconds=10, most=6))
    job = first.line("running ")[0]
    ibm.spend(3, job)
    kill_both(first)
    fork("reap(service())").end()
    ibm.hold(None)
    second = fork(program.format(seconds=10, most=8))
    second.line("exceeded ")
    second.end()
    assert [job.max_execution_time for job in ibm.jobs()] == [6, 7]
    assert charged(ibm) == 10
