"""A job that failed for IBM Quantum's reasons is submitted again: one at a time, and no more once nobody wants it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from qiskit_ibm_runtime import QiskitRuntimeService
from testkit.client import pickled
from testkit.drivers import end
from testkit.processes import DEADLINE
from testkit.runs import Running

from qx_supervisor import JobCancelled, JobFailed, RunTimeout, backoff, budget, local
from qx_supervisor.flight import retried
from qx_supervisor.job_errors import ending
from qx_supervisor.watcher import remote

JOBS = "/api/v1/jobs"
FAILED = {"outcome": "failed", "reason": "Internal error.", "reason_code": 9999}
AT_ONCE = backoff.Pauses(0.05, 0.05)

QUICK = """
from qx_supervisor import backoff
from qx_supervisor.flight import retried
retried.FAILED_JOB = backoff.Pauses({pause}, {pause})
"""


@pytest.fixture
def running(ibm: local.Service, service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr(retried, "FAILED_JOB", AT_ONCE)
    return Running(service)


def failing(times: int) -> dict[str, Any]:
    return {"next_jobs": [FAILED] * times}


# What is retried ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "is_retryable"),
    [
        ({"status": "Failed", "reason": "Internal error.", "reason_code": 9999}, True),
        ({"status": "Failed", "reason": "Error returned at backend level.", "reason_code": 1010}, True),
        (
            {
                "status": "Failed",
                "reason": "Planned outage. The service is undergoing maintenance.",
                "reason_code": "1999",
            },
            True,
        ),
        (
            {"status": "Failed", "reason": "Something new.", "reason_code": 9701, "reason_solution": "Retry the job."},
            True,
        ),
        ({"status": "Failed", "reason": "It broke. Try to run the job again. If not, ask.", "reason_code": 7}, True),
        ({"status": "Failed", "reason": "Internal server error"}, True),
        ({"status": "Failed", "reason": "An unknown error occurred."}, True),
        ({"status": "Failed", "reason": "Internal error in line 3 of your circuit.", "reason_code": 8006}, False),
        (
            {"status": "Failed", "reason": "Qobj is wrong. Correct your program and try again.", "reason_code": 1106},
            False,
        ),
        ({"status": "Failed", "reason": "The angle is out of range.", "reason_code": 1517}, False),
        ({"status": "Failed", "reason": "Too many shots given.", "reason_code": 6000}, False),
        ({"status": "Failed", "reason": "The angle is out of range."}, False),
        ({"status": "Failed"}, False),
        ({"status": "Cancelled - Ran too long", "reason": "Ran too long. Retry.", "reason_code": 1305}, False),
        ({"status": "Failed", "reason": "Ran too long", "reason_code": 1305}, False),
    ],
)
def test_by_the_services_code_and_words(ended: dict[str, Any], is_retryable: bool) -> None:
    error = ending(remote.JobState.from_reply({"state": ended}), "J", text="", by="")
    assert getattr(error, "is_retryable", None) is is_retryable
    assert pickle.loads(pickle.dumps(error)).is_retryable is is_retryable


# In one's own process -------------------------------------------------------------------------------------------


def test_a_job_that_failed_twice_and_then_did_not(ibm: local.Service, running: Running) -> None:
    ibm.scenario(failing(2))
    ibm.charge(fixed=3)
    job = running(retries=2, label="vqe step 17")
    result = job.result()
    jobs = [each.id for each in ibm.jobs()]
    assert result.counts == {"1": 16}
    assert (result.job_id, list(result.failed_job_ids)) == (jobs[2], jobs[:2])
    assert (list(job.job_ids), list(job.failed_job_ids)) == (jobs[2:], jobs[:2])
    assert [each.status for each in ibm.jobs()] == ["Failed", "Failed", "Completed"]
    assert result.qpu_seconds == job.qpu_seconds == sum(each.qpu_seconds for each in ibm.jobs()) >= 3
    again = [status for status in running.statuses if status.state == "failed, submitting again"]
    assert [(each.job_id, each.detail) for each in again] == [
        (jobs[0], "1 of 2, in 0.05 s; the job failed at IBM Quantum: Internal error. (code 9999)"),
        (jobs[1], "2 of 2, in 0.05 s; the job failed at IBM Quantum: Internal error. (code 9999)"),
    ]
    assert {each.label for each in running.statuses} == {"vqe step 17"}
    assert "failed" not in running.states()
    assert running.states()[-1] == "done"
    assert not ibm.journal(path="/api/v1/jobs/*/cancel")
    assert pickled(result).failed_job_ids == result.failed_job_ids


@pytest.mark.long
def test_when_no_try_is_left_the_error_names_all_jobs(ibm: local.Service, running: Running) -> None:
    ibm.scenario(failing(2))
    with pytest.raises(JobFailed) as caught:
        running(retries=1).result()
    first, second = [each.id for each in ibm.jobs()]
    assert caught.value.job_id == second
    assert caught.value.reason.endswith(f"Internal error. (code 9999); job {first} had failed before")
    assert running.states()[-1] == "failed"
    assert running.states().count("failed") == 1


@pytest.mark.long
def test_what_is_the_circuits_fault_is_not_tried_again(ibm: local.Service, running: Running) -> None:
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "The angle is out of range.", "reason_code": 1517}]})
    with pytest.raises(JobFailed, match="angle"):
        running(retries=3).result()
    assert len(ibm.jobs()) == 1


@pytest.mark.long
def test_a_time_limit_is_for_all_tries(ibm: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried, "FAILED_JOB", backoff.Pauses(DEADLINE, DEADLINE))
    ibm.scenario(failing(1))
    with pytest.raises(RunTimeout, match="but the job had failed by then") as caught:
        running(retries=1, timeout=3).result()
    [job] = ibm.jobs()
    assert caught.value.job_id == job.id


@pytest.mark.long
def test_a_cancel_between_two_tries(ibm: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried, "FAILED_JOB", backoff.Pauses(DEADLINE, DEADLINE))
    ibm.scenario(failing(1))
    outcomes: list[str] = []
    job = running({"failed, submitting again": lambda: outcomes.append(job.cancel())}, retries=1)
    with pytest.raises(JobCancelled, match="cancelled by this program"):
        job.result()
    assert outcomes == ["confirmed"]
    assert len(ibm.jobs()) == 1
    assert not ibm.journal(path="/api/v1/jobs/*/cancel")


@pytest.mark.long
def test_a_cancel_of_the_second_try(ibm: local.Service, running: Running) -> None:
    ibm.scenario(failing(1))
    job = running({"failed, submitting again": lambda: ibm.hold("queued")}, retries=5)
    ibm.wait_for("POST", JOBS, count=2, answered=True)
    first, second = ibm.jobs()
    ibm.wait_for("GET", f"{JOBS}/{second.id}")
    assert job.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        job.result()
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Failed", 0), ("Cancelled", 1)]
    assert (job.failed_job_ids, job.job_ids) == ((first.id,), (second.id,))


@pytest.mark.long
def test_a_failed_jobs_reservation_becomes_its_charge(ibm: local.Service, running: Running) -> None:
    """It failed in the queue, and was charged nothing: all of the budget is there for the next try, which counts."""
    ibm.charge(fixed=4)
    ibm.scenario({"next_jobs": [{**FAILED}]})
    with budget(qpu_seconds=9):
        assert running(retries=1, max_execution_time=6).result().counts == {"1": 16}
        running().result()
    failed, completed, later = ibm.jobs()
    assert [failed.qpu_seconds, completed.qpu_seconds] == [0, 4]
    assert [failed.max_execution_time, completed.max_execution_time, later.max_execution_time] == [6, 6, 5]


# With a death ---------------------------------------------------------------------------------------------------


DRIVER = """
result = run(isa(), backend(), shots=64, on_status=tell, retries=2{more})
say("result", result.job_id, " ".join(result.failed_job_ids))
"""


def test_killed_while_the_second_try_is_queued(ibm, fork):
    """Its watcher knows of each try, and cancels the one that is in flight."""
    ibm.scenario(failing(1))
    driver = fork(
        QUICK.format(pause=0.05)
        + """
    def hear(status):
        if status.state == "failed, submitting again":
            ibm.hold("queued")
        tell(status)
    """.replace("\n    ", "\n")
        + "run(isa(), backend(), shots=64, on_status=hear, retries=2)"
    )
    driver.line("failed, submitting again ")
    second = driver.line("queued ")[0]
    while second == ibm.jobs()[0].id:
        second = driver.line("queued ")[0]
    driver.kill()
    end(driver)
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Failed", 0), ("Cancelled", 1)]


@pytest.mark.long
def test_killed_between_two_tries_nothing_is_left_and_nothing_cancelled(ibm, fork):
    ibm.scenario(failing(1))
    driver = fork(QUICK.format(pause=3600) + DRIVER.format(more=""))
    driver.line("failed, submitting again ")
    driver.kill()
    end(driver)
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Failed", 0)]
    assert len(ibm.journal(method="POST", path=JOBS)) == 1


@pytest.mark.long
def test_interrupted_between_two_tries(ibm, fork):
    ibm.scenario(failing(1))
    driver = fork(
        QUICK.format(pause=3600)
        + """
try:
    run(isa(), backend(), shots=64, on_status=tell, retries=2)
except Interrupted as error:
    say("interrupted", error.cancel, error.job_state, error)
"""
    )
    driver.line("failed, submitting again ")
    driver.send(2)
    said = driver.line("interrupted ")
    assert said[:2] == ["confirmed", "failed"]
    assert " ".join(said[2:]).endswith("it failed before it could be cancelled")
    assert end(driver) == 0
    assert len(ibm.jobs()) == 1


@pytest.mark.long
def test_with_a_key_a_driver_that_was_killed_between_two_tries_comes_back(ibm, fork):
    ibm.scenario(failing(1))
    first = fork(QUICK.format(pause=3600) + DRIVER.format(more=', key="step", grace=60'))
    first.line("failed, submitting again ")
    first.kill()
    end(first)
    second = fork(DRIVER.format(more=', key="step", grace=60'))
    job = second.line("result ")[0]
    assert end(second) == 0
    assert [each.status for each in ibm.jobs()] == ["Failed", "Completed"]
    assert job == ibm.jobs()[1].id


@pytest.mark.long
def test_with_a_key_the_newest_job_is_taken_up(ibm, fork):
    """And the key is the same in each try."""
    ibm.scenario(failing(1))
    code = (
        QUICK.format(pause=0.05)
        + """
def hear(status):
    if status.state == "failed, submitting again":
        ibm.hold("queued")
    tell(status)
result = run(isa(), backend(), shots=64, on_status=hear, retries=2, key="step", grace=60)
say("result", result.job_id)
"""
    )
    first = fork(code)
    first.line("failed, submitting again ")
    ibm.wait_for("POST", JOBS, count=2, answered=True)
    newest = ibm.jobs()[1].id
    ibm.wait_for("GET", f"{JOBS}/{newest}")
    first.kill()
    second = fork(code)
    assert second.line("taken up again ")[0] == newest
    ibm.hold(None)
    assert second.line("result ")[0] == newest
    assert end(second) == 0
    end(first)
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Failed", 0), ("Completed", 0)]
    assert len({tag for each in ibm.jobs() for tag in each.tags if tag.startswith("qxk-")}) == 1
