"""How a job ends, or waits without end, and in which words a run says so."""

from __future__ import annotations

import pickle
import re
import signal
import threading
import weakref
from typing import Any

import pytest
from qiskit_ibm_runtime import QiskitRuntimeService
from testkit.circuits import BACKEND
from testkit.client import ASKS_FOR_THE_USAGE
from testkit.processes import DEADLINE, until
from testkit.runs import Running

from qx_supervisor import JobCancelled, JobFailed, RunError, Status, SubmitError, local, queue_blockers
from qx_supervisor import service as qiskit_service
from qx_supervisor.errors import interrupted
from qx_supervisor.flight import polling
from qx_supervisor.job_errors import ending
from qx_supervisor.watcher import remote

JOBS = "/api/v1/jobs"
ONE_JOB = JOBS + "/" + "?" * 20
RESULTS = JOBS + "/*/results"
CANCEL = JOBS + "/*/cancel"


@pytest.fixture
def running(ibm: local.Service, service: QiskitRuntimeService) -> Running:
    return Running(service)


# What keeps it in the queue

USED_UP = {"limit_seconds": 600, "consumed_seconds": 612}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a job in the queue is asked for at once, and again and again."""
    monkeypatch.setattr(polling, "FIRST_LOOK", 0.0)
    monkeypatch.setattr(queue_blockers, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(
        queue_blockers, "_known_blockers", weakref.WeakValueDictionary()
    )  # what a run before this one found


def refusal(message: str) -> dict[str, Any]:
    return {"path": JOBS, "method": "POST", "status": 403, "message": message}


@pytest.mark.usefixtures("soon")
@pytest.mark.filterwarnings("ignore:.*usage limit:UserWarning", "ignore:.*status of paused:UserWarning")
@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ({"usage": USED_UP}, "the instance has used up its time (612 s of 600 s are used, 0 s are left, its period "),
        ({"backends": {BACKEND: {"status": "offline"}}}, "ibm_brisbane is offline"),
        pytest.param({"backends": {BACKEND: {"status": "paused"}}}, "ibm_brisbane is paused", marks=pytest.mark.long),
    ],
)
def test_what_keeps_a_job_in_the_queue_is_told(
    ibm: local.Service, running: Running, caplog: pytest.LogCaptureFixture, scenario: dict[str, Any], said: str
) -> None:
    """The service takes the job, and has it wait without a word."""
    ibm.hold("queued")
    ibm.scenario(scenario)
    told = threading.Event()

    def hear(status: Status) -> None:
        running.statuses.append(status)
        if status.state == "queued" and status.detail:
            told.set()

    job = running(on_status=hear)
    assert told.wait(DEADLINE)
    [detail] = {status.detail for status in running.statuses if status.state == "queued"} - {""}
    assert detail.startswith(said)
    assert detail.endswith("; the job waits until that changes, unless you cancel it")
    assert f"job {job.job_id} is queued: {detail}" in caplog.text
    assert not job.done()
    ibm.scenario({})
    ibm.hold(None)
    assert job.result().counts == {"1": 16}


def test_what_kept_a_job_yesterday_is_not_told(
    ibm: local.Service, service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = qiskit_service.remote_of(qiskit_service.clients_of(service)[0])
    ibm.scenario({"backends": {BACKEND: {"status": "offline"}}})
    kept = queue_blockers.QueueBlockers(there, BACKEND)
    until(kept.words, bool)
    ibm.scenario({})
    assert kept.words().startswith(f"{BACKEND} is offline")
    monkeypatch.setattr(queue_blockers, "FORGET", 0.0)
    assert not kept.words()


def test_advice_ends_no_submission(ibm: local.Service, running: Running) -> None:
    """Warnings are errors here, as in many a test run; and nothing is wrong with the job."""
    ibm.scenario({"backends": {BACKEND: {"status": "paused"}}})
    assert running().result().counts == {"1": 16}
    assert f"The backend {BACKEND} currently has a status of paused." in [each.detail for each in running.statuses]
    ibm.hold("queued")
    ibm.scenario({"usage": USED_UP})
    before = ibm.cursor()
    job = running()
    ibm.wait_for("GET", ONE_JOB, after=before)
    told = [each.detail for each in running.statuses if "no more time" in each.detail or "limit" in each.detail]
    assert len(told) == (1 if ASKS_FOR_THE_USAGE else 0)
    assert "instances/" not in "".join(told)
    assert job.cancel() == "confirmed"


@pytest.mark.filterwarnings("ignore:.*usage limit:UserWarning")
@pytest.mark.parametrize("status", [402, 403, 409])
@pytest.mark.short_only("403")
def test_a_refusal_says_what_is_left(ibm: local.Service, running: Running, status: int) -> None:
    ibm.scenario({"usage": USED_UP, "http_faults": [{**refusal("Quota exceeded."), "status": status}]})
    with pytest.raises(SubmitError) as caught:
        running().result()
    assert caught.value.reason.startswith(
        f"the job could not be submitted: the service answered {status}: Quota exceeded.; the instance has used up its "
        "time (612 s of 600 s are used, 0 s are left, "
    )
    assert (caught.value.code, caught.value.service_message) == (status, "Quota exceeded.")


# A cancel that comes too late


def test_a_cancel_that_is_accepted_and_comes_too_late(ibm: local.Service, running: Running) -> None:
    """What was executed is billed; and it is there."""
    ibm.hold("running", cancel_lag=None)
    job = running({"cancelling, confirming": lambda: ibm.wait_for("POST", CANCEL, answered=True) and ibm.hold(None)})
    [entry] = ibm.wait_for("POST", JOBS, answered=True)
    ibm.wait_job(str(entry.job_id), "Running")
    assert job.cancel() == "confirmed"
    assert job.result().counts == {"1": 16}
    assert running.states()[-3:] == ["finished before it could be cancelled", "fetching results", "done"]
    assert len(ibm.journal(path=RESULTS)) == 1
    assert job.cancel() == "confirmed"  # and changes nothing
    assert job.result().counts == {"1": 16}


def test_a_cancel_while_the_results_are_fetched(ibm: local.Service, running: Running) -> None:
    ibm.scenario({"http_faults": [{"path": RESULTS, "delay_seconds": 0.5}]})
    job = running()
    ibm.wait_for("GET", RESULTS)
    assert job.cancel() == "confirmed"
    assert job.result().counts == {"1": 16}
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_cancel_of_what_fails_meanwhile(ibm: local.Service, running: Running) -> None:
    ibm.hold("queued", cancel_lag=None)
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "calibration", "reason_code": 7}]})
    job = running({"cancelling, confirming": lambda: ibm.wait_for("POST", CANCEL, answered=True) and ibm.hold(None)})
    ibm.wait_for("GET", ONE_JOB)
    job.cancel()
    with pytest.raises(JobFailed, match=r"failed at IBM Quantum: calibration \(code 7\)") as failed:
        job.result()
    for error in (failed.value, pickle.loads(pickle.dumps(failed.value))):  # what a later cell of a notebook shows
        assert re.search(r"backend<.*ibm_brisbane<.*shots<.*16<", error._repr_html_())


def test_an_interrupt_that_comes_too_late(ibm: local.Service, fork: Any) -> None:
    ibm.hold("running", cancel_lag=None)
    driver = fork(
        """
        try:
            run(bell(), "ibm_brisbane", service=service(), panel=None,
                on_status=lambda status: status.state == "running" and say("running", status.job_id))
        except BaseException as error:
            say("caught", error.cancel, error.job_state, error)
        """
    )
    [job] = driver.line("running ")
    driver.send(signal.SIGINT)
    ibm.wait_for("POST", CANCEL, answered=True)
    ibm.hold(None)
    outcome, state, *said = driver.line("caught ")
    assert (outcome, state) == ("confirmed", "completed")
    assert " ".join(said) == (
        f"interrupted by SIGINT; job {job}: it completed before the cancel could stop it; its result is at "
        f"service.job('{job}').result()"
    )
    assert not ibm.journal(path=RESULTS)  # those of a private job are given once
    assert driver.end() == 0
    copied = pickle.loads(pickle.dumps(interrupted("d1", signal.SIGTERM, "confirmed", "failed")))
    assert str(copied) == "interrupted by SIGTERM; job d1: it failed before it could be cancelled"


# Why it ended


@pytest.mark.parametrize(
    ("ended", "kind", "said", "code"),
    [
        ({"outcome": "cancelled", "reason": "Ran too long"}, JobFailed, "longer than its maximum execution time", 1305),
        (
            {"outcome": "cancelled", "reason": "The backend was retired.", "reason_code": 1220},
            JobCancelled,
            "the job was cancelled, though not by this program: The backend was retired. (code 1220)",
            1220,
        ),
        pytest.param(
            {"outcome": "failed", "reason": "The payload is too large.", "reason_code": 5302},
            JobFailed,
            "the job failed at IBM Quantum: The payload is too large. (code 5302)",
            5302,
            marks=pytest.mark.long,
        ),
        ({"outcome": "failed", "reason": ""}, JobFailed, "no reason given", None),  # out of its results
    ],
)
def test_why_the_service_ended_it(
    ibm: local.Service, running: Running, ended: dict[str, Any], kind: type[RunError], said: str, code: int | None
) -> None:
    ibm.scenario({"next_jobs": [ended], "http_faults": [{"path": RESULTS, "status": 503}]})  # one is got over
    with pytest.raises(kind) as caught:
        running().result()
    assert said in caught.value.reason
    assert caught.value.code == code
    assert caught.value.service_message.endswith(ended["reason"] or "no reason given")


def test_why_a_job_ended_in_all_forms() -> None:
    """As IBM Quantum has told it over the years."""

    def told(text: str = "", **state: Any) -> RunError:
        return ending(remote.JobState.from_reply({"state": state}), "d1", text=text, by=", though not by this program")

    for way in (
        {"status": "Cancelled", "reason": "Ran too long", "reason_code": "1305"},
        {"status": "Cancelled", "reasonCode": 1305},
        {"status": "Cancelled - Ran too long"},
        {"status": "Failed", "reason": "Ran too long"},
    ):
        assert (type(told(**way)), told(**way).code) == (JobFailed, 1305), way
    assert told(status="Cancelled").reason == "the job was cancelled, though not by this program"
    failed = told(status="Failed", reason="Too large", reason_code=5302, reason_solution="Reduce the shots.")
    assert failed.reason == "the job failed at IBM Quantum: Too large. Reduce the shots. (code 5302)"
    traceback = "starting\nTraceback (most recent call last):\n  File \"x.py\", line 1\nQiskitError: 'not supported'\n"
    failed = told(traceback, status="Failed", reason=None)
    assert failed.reason == "the job failed at IBM Quantum: QiskitError: 'not supported'"
    assert failed.service_message.startswith("Traceback")
    assert told(status="Failed").reason == "the job failed at IBM Quantum: Failed"
    copied = pickle.loads(pickle.dumps(failed))
    assert (copied.code, copied.service_message) == (failed.code, failed.service_message)
