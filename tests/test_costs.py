"""What a job has cost is known, to whoever asks and in the ledger, whatever becomes of its driver."""

from __future__ import annotations

import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from testkit.circuits import ones
from testkit.client import needs_pickled_results
from testkit.drivers import RUN as SHOWN
from testkit.drivers import Driver, kill_both
from testkit.processes import DEADLINE, until, wait_for_end
from testkit.watchers import wait_until_written

from qx_supervisor import RunResult, Status, local, reap, run, submit
from qx_supervisor.flight import cost
from qx_supervisor.job_cost import JobCost
from qx_supervisor.watcher.facts import Figures
from qx_supervisor.watcher.ledger import Ledger, Row

BACKEND = "ibm_brisbane"
METRICS = "/api/v1/jobs/*/metrics"

RUN = SHOWN.replace("on_status", "panel=None, on_status")  # a panel asks for the place in the queue, too


def rows(state: Path) -> list[Row]:
    with Ledger.open(state) as book:
        return book.rows()


def charged(state: Path) -> Row:
    """The only row, once it says how the run ended and what its job cost."""
    [row] = until(lambda: rows(state), lambda found: found and found[0].outcome and not found[0].uncharged)
    return row


# A driver that lives ------------------------------------------------------------------------------------------------


def test_whatever_the_panel_a_run_knows_what_its_job_cost(
    ibm: local.Service, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qx_supervisor.job_cost.WAIT_SECONDS", DEADLINE)
    ibm.tell(qpu_seconds_estimated=1.5, qpu_seconds=1.25)
    seen: list[Status] = []
    result = run(ones(), BACKEND, service=service, shots=16, panel=None, on_status=seen.append)
    assert (result.qpu_seconds, result.qpu_seconds_estimated) == (1.25, 1.5)
    assert (seen[-1].state, seen[-1].qpu_seconds, seen[-1].qpu_seconds_estimated) == ("done", 1.25, 1.5)
    began = submit(ones(), BACKEND, service=service, shots=16)
    began.result(DEADLINE)
    assert (began.qpu_seconds, began.qpu_seconds_estimated) == (1.25, 1.5)
    assert until(began.status, lambda status: status.qpu_seconds is not None).qpu_seconds == 1.25
    assert len(ibm.journal(path=METRICS)) == 2  # one for each job


def test_a_result_does_not_wait_for_its_cost(ibm: local.Service, service: Any) -> None:
    ibm.tell(qpu_seconds=1.25)
    slow = {"path": METRICS, "method": "GET", "delay_seconds": 1.5}
    ibm.scenario({"http_faults": [slow]})
    result = run(ones(), BACKEND, service=service, shots=16, panel=None)
    assert not [entry for entry in ibm.journal(path=METRICS) if entry.status]  # it is not answered yet
    assert until(lambda: result.qpu_seconds, lambda known: known is not None) == 1.25


@needs_pickled_results
def test_a_charge_that_is_pending_is_known_later(
    ibm: local.Service, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "PAUSES", (0.05,) * 200)
    ibm.tell(qpu_seconds_estimated=3, qpu_seconds=None)
    result = run(ones(), BACKEND, service=service, shots=16, panel=None)
    assert result.qpu_seconds is None
    unknown = pickle.loads(pickle.dumps(result))
    ibm.tell(qpu_seconds_estimated=3, qpu_seconds=2.5)
    assert until(lambda: result.qpu_seconds, lambda known: known is not None) == 2.5
    again = pickle.loads(pickle.dumps(result))
    assert (again.qpu_seconds, again.qpu_seconds_estimated, again.counts) == (2.5, 3.0, result.counts)
    assert (unknown.qpu_seconds, unknown.qpu_seconds_estimated) == (None, 3.0)


def test_a_charge_that_stays_pending_is_given_up(
    ibm: local.Service, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "PAUSES", (0.01,) * 3)
    ibm.tell(qpu_seconds=None)
    run(ones(), BACKEND, service=service, shots=16, panel=None)
    until(lambda: len(ibm.journal(path=METRICS)), lambda number: number == 4)
    run(ones(), BACKEND, service=service, shots=16, panel=None)
    assert len({entry.path for entry in ibm.journal(path=METRICS)[:4]}) == 1


def test_a_result_that_an_earlier_release_pickled() -> None:
    """Its cost was an attribute."""
    result = RunResult.__new__(RunResult)
    result.__setstate__({"primitive_result": [], "job_id": "j", "backend": "b", "qpu_seconds": 2.0})
    assert (result.qpu_seconds, result.qpu_seconds_estimated, result.is_list) == (2.0, None, None)
    assert "qpu_seconds" in result.__getstate__()


def test_figures_that_are_known_stay_known() -> None:
    known = JobCost()
    assert known.learn(Figures(estimated=2.0))
    assert known.learn(Figures(charged=1.0))
    assert not known.learn(Figures(estimated=2.0))
    assert (known.estimated, known.charged) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("metrics", "known"),
    [
        ({"timestamps": None}, Figures()),
        (
            {"timestamps": {"created": 5, "running": "soon", "finished": "2026-01-31T12:00:00Z"}},
            Figures(ended=1769860800),
        ),
        ({"usage": {"status": "final", "qpu_charge_time_seconds": 0}}, Figures(charged=0.0)),
        ({"usage": {"status": "final", "qpu_charge_time_seconds": float("nan")}}, Figures()),
    ],
)
def test_what_an_answer_says_of_costs_and_times(metrics: dict[str, Any], known: Figures) -> None:
    assert Figures.read({}, metrics) == known


def test_the_ledger_knows_what_a_run_cost_and_when_it_ran(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.tell(qpu_seconds_estimated=1.5, qpu_seconds=1.25)
    before = time.time()
    driver = fork(RUN + "\ntime.sleep(3600)")
    driver.line("done ")
    row = charged(state)
    [figures] = row.figures.values()
    assert (row.estimated, row.charged) == (1.5, 1.25)
    assert figures.queued is not None
    assert figures.ran is not None
    assert figures.ended is not None
    assert before - 1 < figures.queued <= figures.ran <= figures.ended <= time.time() + 1
    assert row.began_at is not None
    assert row.ended_at is not None
    assert before - 1 < row.began_at <= row.ended_at <= time.time() + 1
    driver.kill()
    assert len(ibm.journal(path=METRICS)) == 1


@pytest.mark.long
def test_what_is_expected_of_a_job_is_written_down_while_it_waits(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.tell(qpu_seconds_estimated=60)
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    [row] = until(lambda: rows(state), lambda found: found and found[0].estimated is not None)
    assert (row.estimated, row.charged) == (60.0, None)
    driver.kill()


# A driver that is dead ----------------------------------------------------------------------------------------------


def test_what_a_death_cost(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.tell(qpu_seconds=7.5)
    ibm.hold("running")
    driver = fork(RUN)
    job = driver.line("running ")[0]
    watcher = driver.watcher()
    driver.kill()
    wait_for_end(watcher)
    [row] = rows(state)
    assert (row.outcome, row.ended_by, row.charged) == ("cancelled", "watcher", 7.5)
    assert ibm.job(job).cancel_requests == 1
    assert len(ibm.journal(path=METRICS)) == 1


def test_after_a_signal_the_watcher_reads_what_the_job_cost(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.tell(qpu_seconds=7.5)
    ibm.hold("running")
    driver = fork(RUN)
    driver.line("running ")
    watcher = driver.watcher()
    driver.send(signal.SIGTERM)
    assert driver.end() == 128 + signal.SIGTERM
    wait_for_end(watcher)
    [row] = rows(state)
    assert (row.outcome, row.ended_by, row.signum, row.charged) == ("cancelled", "signal", signal.SIGTERM, 7.5)
    assert len(ibm.journal(path=METRICS)) == 1


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "ends"])
def test_a_charge_that_is_pending_at_a_death_is_waited_for(
    ibm: local.Service, fork: Any, state: Path, how: str
) -> None:
    ibm.tell(qpu_seconds=None)
    ibm.hold("running")
    driver = fork(RUN)
    driver.line("running ")
    watcher = driver.watcher()
    if how == "killed":
        driver.kill()
    else:
        ibm.hold(None)
        assert driver.end() == 0
    ibm.wait_for("GET", METRICS)
    ibm.tell(qpu_seconds=7.5)
    wait_for_end(watcher)
    [row] = rows(state)
    assert (row.outcome, row.charged) == ("cancelled" if how == "killed" else "finished", 7.5)


def dead_with_its_watcher(ibm: local.Service, driver: Driver) -> str:
    job = driver.line("running ")[0]
    wait_until_written(driver)
    kill_both(driver)
    return job


def test_what_the_deaths_of_both_cost(ibm: local.Service, fork: Any, state: Path) -> None:
    """The service says it late: whoever reaps next asks again."""
    ibm.tell(qpu_seconds=None)
    ibm.hold("running")
    job = dead_with_its_watcher(ibm, fork(RUN))
    assert [each.fate for each in reap(ibm.service())] == ["cancelled"]
    [row] = rows(state)
    assert (row.outcome, row.ended_by, row.uncharged) == ("cancelled", "reap", [job])
    ibm.tell(qpu_seconds=7.5)
    cursor = ibm.cursor()
    assert reap(ibm.service()) == []
    assert rows(state)[0].charged == 7.5
    assert reap(ibm.service()) == []
    assert [(entry.method, entry.path) for entry in ibm.journal(after=cursor, path=METRICS)] == [
        ("GET", f"/api/v1/jobs/{job}/metrics")
    ]


def test_no_account_is_needed_for_charges_alone(ibm: local.Service, fork: Any, state: Path) -> None:
    from qx_supervisor import QxError
    from qx_supervisor.reap import reap_with

    ibm.tell(qpu_seconds=None)
    ibm.hold("running")
    dead_with_its_watcher(ibm, fork(RUN))
    reap(ibm.service())

    def none() -> Any:
        raise QxError("no account")

    assert reap_with(none) == []
