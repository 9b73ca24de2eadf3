"""What may go wrong at the service and on the way to it, and what a run makes of it."""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ibm_cloud_sdk_core
import pytest
from qiskit_ibm_runtime import QiskitRuntimeService
from testkit.circuits import BACKEND, ones
from testkit.drivers import RUN, kill_both
from testkit.processes import wait_for_end
from testkit.runs import Acts, Running

from qx_supervisor import (
    ConfigError,
    JobCancelled,
    JobFailed,
    QxError,
    RunError,
    RunTimeout,
    SubmitError,
    backoff,
    local,
    results_fetch,
    run,
    threads,
)
from qx_supervisor import service as service_of_ours
from qx_supervisor.flight import submission, time_limits
from qx_supervisor.link import link
from qx_supervisor.watcher import ledger, remote
from qx_supervisor.watcher.facts import Figures

BY_A_CLIENT_THAT_DEPRECATES_IT = pytest.mark.filterwarnings(
    r"ignore:The delete_job\(\) method is deprecated:DeprecationWarning"
)

JOBS = "/api/v1/jobs"
ONE_JOB = JOBS + "/" + "?" * 20  # and not its results, nor its cancel
RESULTS = JOBS + "/*/results"
CANCEL = JOBS + "/*/cancel"

WAYS_TO_FAIL = [
    {"status": 500},
    {"status": 502},
    {"status": 503, "retry_after": 1},
    {"status": 504},
    {"status": 429},
    {"status": 429, "retry_after": 1},
    {"drop_connection": True},
]


def name_of(way: dict[str, Any]) -> str:
    return "-".join(f"{key}-{value}" for key, value in way.items())


@pytest.fixture
def running(ibm: local.Service, service: QiskitRuntimeService) -> Running:
    return Running(service)


@pytest.fixture
def faults(ibm: local.Service) -> Callable[..., None]:
    """Has so many requests to a path go wrong, in each of some ways."""

    def install(method: str, path: str, *ways: dict[str, Any], **scenario: Any) -> None:
        ibm.scenario({"http_faults": [{"path": path, "method": method, **way} for way in ways], **scenario})

    return install


def posted(ibm: local.Service) -> int:
    return len(ibm.journal(method="POST", path=JOBS))


def cancels(ibm: local.Service) -> list[int]:
    return [job.cancel_requests for job in ibm.jobs()]


# While the job is there


@pytest.mark.parametrize("path", [ONE_JOB, RESULTS], ids=["poll", "results"])
@pytest.mark.parametrize("way", WAYS_TO_FAIL, ids=name_of)
def test_a_reading_that_fails_ends_nothing(
    ibm: local.Service, running: Running, faults: Callable[..., None], path: str, way: dict[str, Any]
) -> None:
    faults("GET", path, way)
    result = running().result()
    assert result.counts == {"1": 16}
    states = running.states()
    lost, back = states.index("connection lost, retrying"), states.index("connection back")
    assert lost < back
    stage = "poll" if path == ONE_JOB else "results"
    assert {running.statuses[lost].stage, running.statuses[back].stage} == {stage}
    assert running.statuses[lost].job_id == result.job_id
    if "status" in way:
        assert f"the service answered {way['status']}" in running.statuses[lost].detail
    faulty, next_one = ibm.journal(method="GET", path=path)[:2]
    assert faulty.answered is not None
    assert next_one.arrived - faulty.answered >= (way.get("retry_after", 0.4)) * 1e9
    assert cancels(ibm) == [0]


def test_one_loss_is_told_once(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("GET", ONE_JOB, {"status": 500}, {"drop_connection": True}, {"status": 429})
    running().result()
    assert running.states().count("connection lost, retrying") == 1
    assert running.states().count("connection back") == 1
    assert cancels(ibm) == [0]


def test_a_wait_of_centuries(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    """It is more than the platform can count, and no fault of the run's."""
    ibm.hold("queued")
    faults("GET", ONE_JOB, {"status": 429, "retry_after": 10**12})
    held = running(timeout=1e12, poll_interval=1e12)
    ibm.wait_for("GET", ONE_JOB, answered=True)
    assert held.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        held.result()


def test_a_slow_answer_is_no_loss(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("GET", ONE_JOB, {"delay_seconds": 1.0})
    running().result()
    assert "connection lost, retrying" not in running.states()


def test_a_state_that_can_not_be_read_is_read_again(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    """An answer that is no state at all, such as a proxy's page, is no end of the job."""
    faults("GET", ONE_JOB, {"status": 200, "message": "Please log in"}, {"status": 302})
    assert running().result().counts == {"1": 16}
    assert cancels(ibm) == [0]


def test_failed_remotely(ibm: local.Service, running: Running) -> None:
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "The circuit is cursed.", "reason_code": 7001}]})
    held = running()
    with pytest.raises(JobFailed) as caught:
        held.result()
    assert (caught.value.stage, caught.value.job_id) == ("job", ibm.jobs()[0].id)
    assert caught.value.reason == "the job failed at IBM Quantum: The circuit is cursed. (code 7001)"
    assert str(caught.value) == f"{caught.value.reason} (job {ibm.jobs()[0].id})"
    assert running.states()[-1] == "failed"
    assert cancels(ibm) == [0]


def test_ran_too_long(ibm: local.Service, running: Running) -> None:
    """The service says "cancelled", and by its code means something else."""
    ibm.scenario({"next_jobs": [{"outcome": "cancelled", "reason": "Time is up.", "reason_code": 1305}]})
    with pytest.raises(JobFailed, match="ran longer than its maximum execution time: Time is up"):
        running().result()
    assert cancels(ibm) == [0]


def test_cancelled_by_someone_else(ibm: local.Service, running: Running) -> None:
    ibm.hold("queued")
    held = running({"queued": lambda: running.service.job(ibm.jobs()[0].id).cancel()})
    with pytest.raises(JobCancelled, match="though not by this program") as caught:
        held.result()
    assert (caught.value.stage, caught.value.job_id) == ("job", ibm.jobs()[0].id)
    assert cancels(ibm) == [1]  # someone else's


@BY_A_CLIENT_THAT_DEPRECATES_IT
def test_deleted_by_someone_else_before_its_driver_died(ibm: local.Service, service: Any, fork: Any) -> None:
    """Its driver dies: that there is no such job might be a gateway's word, so it is looked for again."""
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    service.delete_job(job)
    watcher = driver.watcher()
    driver.kill()
    [cancel] = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", answered=True)
    read = ibm.wait_for("GET", f"/api/v1/jobs/{job}", after=cancel.seq, count=2, answered=True)
    assert {entry.status for entry in [cancel, *read]} == {404}
    watcher.send_signal(signal.SIGKILL)  # it would go on for fifteen minutes
    wait_for_end(watcher)
    with ledger.Ledger.open(ledger.state_directory()) as book:
        assert [row.jobs for row in book.rows()] == [{job: ""}]


@BY_A_CLIENT_THAT_DEPRECATES_IT
def test_deleted_by_someone_else(ibm: local.Service, running: Running) -> None:
    """404 is no proof of it: a gateway may say that too. So it is asked again, until the program wants no more."""
    ibm.hold("queued")
    refused = threading.Event()
    held = running({"queued": lambda: running.service.delete_job(ibm.jobs()[0].id), "refused, retrying": refused.set})
    assert refused.wait(60)
    told = running.status("refused, retrying")
    assert (told.stage, told.job_id) == ("poll", held.job_id)
    assert "answered 404" in told.detail
    assert "look whether the job was deleted" in told.detail
    assert not ibm.journal(path=CANCEL)
    held.cancel()
    with pytest.raises(JobCancelled):
        held.result()


@pytest.mark.parametrize("text", ['{"not": "a result"}', "<html>", "", "[]"])
def test_results_that_can_not_be_read_for_good(
    ibm: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(results_fetch, "RESULTS_SECONDS", 1.0)  # instead of ten minutes
    monkeypatch.setattr(backoff, "UNANSWERED", backoff.Pauses(0.1, 30.0))
    asked: list[str] = []
    monkeypatch.setattr(remote.Remote, "results", lambda self, job: asked.append(job) or text)
    with pytest.raises(RunError) as caught:
        running().result()
    job = ibm.jobs()[0].id
    assert (caught.value.stage, caught.value.job_id) == ("results", job)
    assert caught.value.reason.startswith("the results can't be read: ")
    assert f"service.job({job!r}).result()" in caught.value.reason
    assert caught.value.raw == (text or None)
    assert ("json.loads(error.raw, cls=qiskit_ibm_runtime.RuntimeDecoder)" in caught.value.reason) == bool(text)
    assert len(asked) >= 3
    assert "results spoilt, retrying" in running.states()
    assert cancels(ibm) == [0]


# Tokens


@pytest.mark.parametrize("at", ["submitted", "queued", "running", "fetching results"])
@pytest.mark.client
def test_a_token_that_is_void_is_renewed(
    tokens: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    is_void, results = threading.Event(), remote.Remote.results

    def after_that(there: remote.Remote, job: str) -> str:
        assert is_void.wait(60)
        return results(there, job)

    tokens.hold("queued" if at in ("submitted", "queued") else "running")

    voided: list[int] = []

    def void() -> None:
        voided.append(tokens.cursor())  # before: the poll of the next moment asks for a token already
        tokens.expire_tokens()
        tokens.hold(None)
        is_void.set()

    acts: Acts = {at: void}
    if at == "fetching results":
        acts["running"] = lambda: tokens.hold(None)
        monkeypatch.setattr(remote.Remote, "results", after_that)  # else they are there before the token is void
    assert running(acts).result().counts == {"1": 16}
    assert "connection lost, retrying" not in running.states()
    assert len(tokens.journal(path="/identity/token", after=voided[0])) == 1
    assert cancels(tokens) == [0]


def test_a_token_is_renewed_while_the_token_service_is_down(tokens: local.Service, running: Running) -> None:
    tokens.hold("running")

    def void() -> None:
        fault = {"path": "/identity/token", "status": 400}  # IBM's library retries a 5xx for half a minute
        tokens.scenario({"http_faults": [fault]})
        tokens.expire_tokens()
        tokens.hold(None)

    assert running({"running": void}).result().counts == {"1": 16}
    assert cancels(tokens) == [0]


def test_a_key_that_is_refused_for_good(
    tokens: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is told, and louder after a while; the job is left as it is, guarded, and its result comes all the same."""
    monkeypatch.setattr(backoff, "REFUSED_SECONDS", 0.0)  # instead of a minute
    tokens.hold("running")
    refused = threading.Event()

    def void() -> None:
        tokens.auth(reject_tokens=True)
        tokens.expire_tokens()

    with caplog.at_level(logging.WARNING, "qx_supervisor"):
        held = running({"running": void, "refused, retrying": refused.set})
        assert refused.wait(60)
    assert "check the account's API key" in running.status("refused, retrying").detail
    assert f"job {held.job_id}: IBM Quantum refuses: " in caplog.text
    assert link.is_guarded(held._flight.core.run_id)
    assert tokens.job(held.job_id).status == "Running"
    tokens.auth(reject_tokens=False)
    tokens.hold(None)
    assert held.result().counts == {"1": 16}
    assert cancels(tokens) == [0]


def test_a_token_that_lasts_for_decades(ibm: local.Service, fork: Any) -> None:
    """Its renewal is further away than the watcher's wait can be long."""
    ibm.token_lifetime(10**9)
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": CANCEL, "delay_seconds": 0.5}]})
    driver = fork(RUN)
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job).status == "Cancelled"


# The submission


@pytest.mark.client
def test_rate_limited(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("POST", JOBS, {"status": 429, "retry_after": 1, "times": 2})
    assert running().result().counts == {"1": 16}
    first, second, third = ibm.journal(method="POST", path=JOBS)
    assert [entry.job_id for entry in (first, second)] == [None, None]
    assert [job.id for job in ibm.jobs()] == [third.job_id]
    assert first.tags == second.tags == third.tags
    assert second.arrived - first.arrived >= 1e9 <= third.arrived - second.arrived
    waits = [status for status in running.statuses if status.state == "rate limited, waiting"]
    assert [(wait.stage, wait.detail) for wait in waits] == [("submit", "1 s")] * 2
    assert running.states().count("submitting") == 1
    assert cancels(ibm) == [0]


def test_rate_limited_without_a_word_for_how_long(
    ibm: local.Service, running: Running, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submission.RATE_LIMIT_PAUSE >= 12  # five jobs a minute
    monkeypatch.setattr(submission, "RATE_LIMIT_PAUSE", 0.2)
    faults("POST", JOBS, {"status": 429})
    assert running().result().counts == {"1": 16}
    assert "rate limited, waiting" in running.states()
    assert len(ibm.jobs()) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_refused(ibm: local.Service, running: Running, faults: Callable[..., None], status: int) -> None:
    faults("POST", JOBS, {"status": status, "message": "Your plan has no such thing."})
    with pytest.raises(SubmitError) as caught:
        running().result()
    assert (caught.value.stage, caught.value.job_id) == ("submit", None)
    assert "the job could not be submitted" in caught.value.reason
    assert "Your plan has no such thing." in caught.value.reason
    cause = caught.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is not None  # it begins in the client, and not in our threads
    assert cause.__traceback__.tb_frame.f_globals["__name__"].startswith("qiskit_ibm_runtime.")
    assert posted(ibm) == 1
    assert not ibm.journal(path=CANCEL)
    assert not ibm.journal(method="GET", path=JOBS)  # nor is it looked for


@pytest.mark.client
def test_refused_for_the_key(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("POST", JOBS, {"status": 401})
    with pytest.raises(SubmitError, match="IBM Quantum does not accept this account") as caught:
        running().result()
    assert (caught.value.stage, caught.value.job_id) == ("auth", None)
    assert posted(ibm) == 1
    assert not ibm.journal(path=CANCEL)


def test_refused_for_the_key_before_the_post(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("GET", "/api/v1/backends/*/status", {"status": 401})
    with pytest.raises(SubmitError, match="nothing was submitted: IBM Quantum does not accept this account") as caught:
        running().result()
    assert (caught.value.stage, caught.value.job_id) == ("auth", None)
    assert posted(ibm) == 0


@pytest.mark.client
def test_lost_answers_make_duplicates_that_are_cancelled(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    """Three POSTs make three jobs. The caller holds the last; the watcher finds the others by their tag."""
    ibm.hold("queued")
    faults("POST", JOBS, {"status": 500, "phase": "after", "times": 2})
    held = running({"duplicate cancelled": lambda: None})
    first, second, mine = (entry.job_id for entry in ibm.wait_for("POST", JOBS, count=3, answered=True))
    for lost in (first, second):
        assert ibm.wait_job(lost).status == "Cancelled"
    assert ibm.job(mine).status == "Queued"
    ibm.hold(None)
    result = held.result()
    assert (result.job_id, result.counts) == (mine, {"1": 16})
    assert {job.id: (job.status, job.cancel_requests) for job in ibm.wait_idle()} == {
        first: ("Cancelled", 1),
        second: ("Cancelled", 1),
        mine: ("Completed", 0),
    }
    assert running.states().count("submission failed, retrying") == 2
    told = [status for status in running.statuses if status.state == "duplicate cancelled"]
    assert {re.search("d[0-9a-f]{19}", status.detail)[0] for status in told} <= {first, second}  # type: ignore[index]


def test_a_duplicate_is_told(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    ibm.hold("queued")
    faults("POST", JOBS, {"status": 502, "phase": "after"})
    result = running({"duplicate cancelled": lambda: ibm.hold(None)}).result()
    lost = ibm.journal(method="POST", path=JOBS)[0].job_id
    told = running.status("duplicate cancelled")
    assert (told.stage, told.job_id) == ("submit", result.job_id)
    assert told.detail == f"a retried submission had made {lost} too"
    assert cancels(ibm) == [1, 0]


def test_a_retry_that_was_needless(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    """The first POST made nothing: there is nothing to cancel."""
    faults("POST", JOBS, {"status": 500})
    result = running().result()
    assert [job.id for job in ibm.jobs()] == [result.job_id]
    assert "duplicate cancelled" not in running.states()
    assert cancels(ibm) == [0]


@pytest.fixture
def direct(service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the real service: a POST whose connection is lost is not sent again. Through a plain proxy it is."""
    for client in [service._active_api_client, *service._api_clients.values()]:
        for adapter in client._session.adapters.values():
            monkeypatch.setattr(adapter, "max_retries", adapter.max_retries.new(other=0))


@pytest.mark.usefixtures("direct")
@pytest.mark.client
def test_an_answer_that_never_comes(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    """The job was made and its id is lost: it is found by its tag, and the run's."""
    ibm.hold("queued")
    faults("POST", JOBS, {"drop_connection": True, "phase": "after"})
    result = running({"queued": lambda: ibm.hold(None)}).result()
    [entry] = ibm.journal(method="POST", path=JOBS)
    assert (result.job_id, result.counts) == (entry.job_id, {"1": 16})
    assert "looking for the job" in running.states()
    assert running.status("submitted").detail == "found by its tag: the answer was lost"
    assert "submission failed, retrying" not in running.states()
    assert cancels(ibm) == [0]


def test_a_connection_lost_through_a_plain_proxy(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    """There the client would send the POST again by itself, which would make a second job."""
    ibm.hold("queued")
    faults("POST", JOBS, {"drop_connection": True, "phase": "after"})
    result = running({"queued": lambda: ibm.hold(None)}).result()
    assert posted(ibm) == 1
    assert result.job_id == ibm.jobs()[0].id
    assert cancels(ibm) == [0]


def test_a_lost_answer_and_then_a_refusal(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    """A refusal makes no job, but the POST before it did."""
    ibm.hold("queued")
    faults("POST", JOBS, {"status": 500, "phase": "after"}, {"status": 403})
    result = running({"queued": lambda: ibm.hold(None)}).result()
    lost, refused = ibm.journal(method="POST", path=JOBS)
    assert refused.job_id is None
    assert result.job_id == lost.job_id
    assert cancels(ibm) == [0]


def test_a_lost_answer_and_then_a_rate_limit(
    ibm: local.Service, running: Running, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up in the pause: the POST before it may have made a job."""
    monkeypatch.setattr(
        "qx_supervisor.flight.flight.HAND_OVER_SECONDS", 60.0
    )  # a loaded machine may be silent for a second
    ibm.hold("queued")
    faults("POST", JOBS, {"status": 500, "phase": "after"}, {"status": 429, "retry_after": 3600})
    held = running()
    ibm.wait_for("POST", JOBS, count=2, answered=True)
    assert held.cancel() == "handed over"
    with pytest.raises(JobCancelled):
        held.result()
    lost = ibm.journal(method="POST", path=JOBS)[0]
    assert ibm.wait_job(str(lost.job_id)).status == "Cancelled"
    assert cancels(ibm) == [1]
    assert posted(ibm) == 2


def test_given_up_while_rate_limited(ibm: local.Service, running: Running, faults: Callable[..., None]) -> None:
    faults("POST", JOBS, {"status": 429, "retry_after": 3600})
    held = running({"rate limited, waiting": lambda: None})
    ibm.wait_for("POST", JOBS, answered=True)
    assert held.cancel() in ("nothing to cancel", "handed over")
    with pytest.raises(JobCancelled):
        held.result()
    assert not ibm.jobs()
    assert posted(ibm) == 1


# The timeout


def time_out(ibm: local.Service, held: Any, status: str) -> None:
    """Let the time pass for a run whose job has come to a status."""
    [entry] = ibm.wait_for("POST", JOBS, answered=True)
    ibm.wait_job(str(entry.job_id), status)
    held._flight._time_limits.time_out()


def test_timeout(ibm: local.Service, running: Running) -> None:
    ibm.hold("running")
    held = running(timeout=3600)
    time_out(ibm, held, "Running")
    with pytest.raises(RunTimeout) as caught:
        held.result()
    [job] = ibm.jobs()
    assert (caught.value.stage, caught.value.job_id) == ("timeout", job.id)
    assert caught.value.reason == "no result within 3600 s, so the job was cancelled"
    assert (job.status, job.cancel_requests) == ("Cancelled", 1)


def test_a_timeout_waits_for_the_real_cancel(ibm: local.Service, running: Running) -> None:
    """The service answers a cancel long before it happens."""
    ibm.hold("running", cancel_lag=1.0)
    held = running(timeout=3600)
    time_out(ibm, held, "Running")
    with pytest.raises(RunTimeout, match="so the job was cancelled"):
        held.result()
    [job] = ibm.jobs()
    assert (job.status, job.cancel_requests) == ("Cancelled", 1)


def test_a_timeout_whose_cancel_fails_at_first(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    ibm.hold("running")
    faults("POST", CANCEL, {"status": 500, "times": 2}, {"drop_connection": True}, {"status": 429})
    held = running(timeout=3600)
    time_out(ibm, held, "Running")
    with pytest.raises(RunTimeout, match="so the job was cancelled"):
        held.result()
    assert ibm.jobs()[0].status == "Cancelled"
    assert cancels(ibm) == [5]


def test_a_timeout_whose_cancel_is_lost_but_done(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    """After a lost answer the state is read before the cancel is asked for again."""
    ibm.hold("running")
    faults("POST", CANCEL, {"drop_connection": True, "phase": "after"})
    held = running(timeout=3600)
    time_out(ibm, held, "Running")
    with pytest.raises(RunTimeout, match="so the job was cancelled"):
        held.result()
    assert cancels(ibm) == [1]


def test_a_timeout_that_the_job_did_not_need(ibm: local.Service, running: Running) -> None:
    """It finished unseen, between two readings: the results are there, and the message says so."""
    ibm.hold("queued")
    held = running({"queued": lambda: ibm.hold(None)}, timeout=3600, poll_interval=60.0)
    time_out(ibm, held, "Completed")
    with pytest.raises(RunTimeout, match="but the job had finished by then") as caught:
        held.result()
    [job] = ibm.jobs()
    assert job.status == "Completed"
    assert f"service.job('{job.id}')" in str(caught.value)


# A job that runs too long


def test_a_job_may_run_for_so_long_and_its_time_in_the_queue_is_not_counted(
    ibm: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted from the moment at which the job is seen running, and the job is cancelled like any other."""
    counted: list[float] = []

    def after(seconds: float, work: Callable[[], object]) -> threads.Timer:
        counted.append(seconds)
        return timer_after(seconds, work)

    timer_after = threads.ending.after
    monkeypatch.setattr(threads.ending, "after", after)
    ibm.hold("queued")
    held = running(
        {"queued": lambda: (counted.append(0), ibm.hold("running")), "running": lambda: counted.append(1)},
        running_timeout=0.7,
    )
    with pytest.raises(RunTimeout) as caught:
        held.result()
    [job] = ibm.jobs()
    assert counted[-3:] in ([0, 0.7, 1], [0, 1, 0.7])
    assert (caught.value.stage, caught.value.job_id, caught.value.code) == ("timeout", job.id, None)
    assert caught.value.reason == (
        "the job has run for the 0.7 s of its running_timeout, so the job was cancelled; give it more, or submit less "
        "at once"
    )
    assert (job.status, job.cancel_requests, job.max_execution_time) == ("Cancelled", 1, 1)


@pytest.mark.parametrize(
    ("theirs", "ours", "left"), [(3000, 3000, 600), (3000, 0, 3600), (0, 3000, 3600), (-3000, -3000, 3600)]
)
@pytest.mark.short_only("3000-0-3600")
def test_one_wrong_clock_shortens_no_job_that_is_taken_up(
    ibm: local.Service, running: Running, monkeypatch: pytest.MonkeyPatch, theirs: int, ours: int, left: int
) -> None:
    ibm.hold("running")
    held = running(running_timeout=3600)
    [entry] = ibm.wait_for("POST", JOBS, answered=True)
    ibm.wait_job(str(entry.job_id), "Running")
    core = held._flight.core
    began = Figures.read({}, core.there.metrics(core.job_id)).ran
    assert began is not None
    monkeypatch.setattr(service_of_ours, "server_clock", lambda *_: began + theirs)
    monkeypatch.setattr(time_limits, "time", SimpleNamespace(time=lambda: began + ours))
    limits = time_limits.TimeLimits(core, lambda *_: None)
    left_now: list[float] = []
    monkeypatch.setattr(limits, "_set", lambda seconds, _: left_now.append(seconds))
    limits._count_earlier(3600)
    assert left_now == [left]
    held.cancel()


def test_a_job_whose_results_are_fetched_has_not_run_too_long(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    faults("GET", RESULTS, {"status": 503})
    held = running(running_timeout=3600)
    ibm.wait_for("GET", RESULTS)
    held._flight._time_limits.run_out()
    assert held.result().counts == {"1": 16}


@pytest.mark.parametrize(
    ("limits", "posted", "error"),
    [
        ({"running_timeout": 2.5}, 3, RunTimeout),
        ({"running_timeout": 3, "max_execution_time": 7}, 3, RunTimeout),
        ({"running_timeout": 3, "options": {"max_execution_time": 3}}, 3, RunTimeout),
        ({"running_timeout": 7, "max_execution_time": 3}, 3, JobFailed),
        ({"running_timeout": 7, "options": {"max_execution_time": 3}}, 3, JobFailed),
        ({"max_execution_time": 3, "options": {"max_execution_time": 2}}, 3, JobFailed),
    ],
)
@pytest.mark.short_only("limits0-*")
def test_ibm_ends_a_job_that_takes_more_qpu_time_than_it_may_run(
    ibm: local.Service, running: Running, limits: dict[str, Any], posted: int, error: type[RunError]
) -> None:
    """Whoever is left to see it: IBM's bound is posted with the job."""
    ibm.hold("running")
    held = running({"running": lambda: ibm.spend(100.0)}, **limits)
    with pytest.raises(error) as caught:
        held.result()
    [job] = ibm.jobs()
    assert (job.max_execution_time, job.qpu_seconds, job.cancel_requests) == (posted, posted, 0)
    assert (caught.value.code, caught.value.job_id) == (remote.RAN_TOO_LONG, job.id)
    if error is RunTimeout:
        assert "of its running_timeout, of QPU time alone, so IBM Quantum cancelled it" in caught.value.reason


def test_a_job_runs_no_longer_than_it_may_though_nobody_is_left_to_see_it(ibm: local.Service, fork: Any) -> None:
    """Driver and watcher are dead, and nobody reaps: IBM itself ends the job."""
    ibm.hold("running")
    driver = fork(RUN.replace("shots=64", "shots=64, running_timeout=30"))
    job = driver.line("running ")[0]
    kill_both(driver)
    ibm.spend(29.0)
    assert ibm.job(job).status == "Running"
    ibm.spend(3600.0)
    ended = ibm.job(job)
    assert (ended.status, ended.qpu_seconds, ended.cancel_requests) == ("Cancelled", 30.0, 0)


def test_a_bound_above_ibms_own_is_not_posted(ibm: local.Service, running: Running) -> None:
    assert running(running_timeout=20_000).result()
    assert ibm.jobs()[0].max_execution_time == 10_800


def test_a_timeout_before_anything_was_submitted(
    ibm: local.Service, running: Running, faults: Callable[..., None]
) -> None:
    faults("POST", JOBS, {"status": 429, "retry_after": 3600})
    with pytest.raises(RunTimeout) as caught:
        running(timeout=1.5).result()
    assert caught.value.reason == "no result within 1.5 s, and nothing had been submitted"
    assert caught.value.job_id is None


# Backends


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_backend_that_can_not_be_read(ibm: local.Service, faults: Callable[..., None], status: int) -> None:
    """Its name is right, and the message must not say that it is wrong."""
    running = Running(ibm.service())
    faults("GET", "/api/v1/backends/*/configuration", {"status": status, "times": 9})
    with pytest.raises(RunError, match="the backend 'ibm_brisbane' could not be read") as caught:
        running().result()
    assert not isinstance(caught.value, ConfigError)
    assert caught.value.stage == "backend"
    assert posted(ibm) == 0


def test_no_backend_is_online(ibm: local.Service, running: Running) -> None:
    ibm.scenario({"backends": {BACKEND: {"status": "offline"}}})
    with pytest.raises(ConfigError, match="no backend of this account is online and has 1 qubits"):
        run(ones(), service=running.service, panel=None)
    assert posted(ibm) == 0


# Two services


@pytest.mark.long
def test_the_watcher_asks_the_service_where_the_job_is(running: Running) -> None:
    """Two embedded services differ in nothing but the way to them."""
    running().result()
    with local.start() as other:
        there = Running(other.service())
        other.hold("queued")
        other.scenario({"http_faults": [{"path": JOBS, "method": "POST", "status": 500, "phase": "after"}]})
        held = there({"duplicate cancelled": lambda: other.hold(None)})
        assert held.result().counts == {"1": 16}
        assert cancels(other) == [1, 0]


# Without a watcher


def test_no_watcher(ibm: local.Service, fork: Any, tmp_path: Path) -> None:
    """There is no interpreter to run it in, or none that can: nothing is submitted, or all the same with a warning."""
    false = tmp_path / "python"
    false.symlink_to("/bin/false")
    driver = fork(
        f"""
        import logging
        here = service()
        logging.basicConfig(stream=sys.stdout, format="log %(name)s %(message)s")
        sys._base_executable, sys.base_exec_prefix = "", "/no/such"
        def refuse(executable):
            sys.executable = executable
            try:
                run(bell(), "ibm_brisbane", service=here, shots=16, panel=None)
            except WatcherError as error:
                say("refused", error.stage, error.job_id, error)
        works = sys.executable
        for executable in ("/no/such/python", "", "/bin/false", {str(false)!r}):
            refuse(executable)
        sys.frozen = True
        refuse(works)
        say("warned", len(run(bell(), "ibm_brisbane", service=here, shots=16, panel=None, on_unprotected="warn")))
        del sys.frozen
        sys.executable = works
        say("then", len(run(bell(), "ibm_brisbane", service=here, shots=16, panel=None)))
        """
    )
    refusals = [" ".join(driver.line("refused ")) for _ in range(5)]
    for refusal in refusals:
        assert refusal.startswith("submit None nothing was submitted, because the watcher can't protect this run: ")
        assert refusal.endswith('on_unprotected="warn" submits all the same')
    assert ["sys.executable names none" in refusal for refusal in refusals] == [True, True, True, False, False]
    assert "the watcher ended as it started" in refusals[3]
    assert "this program is frozen" in refusals[4]
    assert driver.line("warned ") == ["1"]
    assert "this program is frozen" in " ".join(driver.line("log qx_supervisor this run is not protected: "))
    assert driver.line("then ") == ["1"]
    assert driver.end() == 0, driver.errors
    assert posted(ibm) == 2


@pytest.mark.long
def test_a_watcher_without_a_token(
    tokens: local.Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver's token is good for a while; the watcher, which may need one for days, is refused."""
    from qx_supervisor.service import access

    of_the_driver = access._token

    def refuse(manager: Any) -> str:
        raise ibm_cloud_sdk_core.ApiException(400, message="there is no token to hand over")

    running = Running(tokens.service("a key of its own"))
    running().result()

    def withdraw() -> None:
        tokens.auth(reject_tokens=True)
        monkeypatch.setattr(access, "_token", refuse)

    unknown = Running(tokens.service("a key that is withdrawn"))
    withdraw()
    with pytest.raises(RunError, match=r"nothing was submitted.*the token service answered 400") as caught:
        unknown().result()
    assert type(caught.value).__name__ == "WatcherError"
    assert posted(tokens) == 1
    monkeypatch.setattr(access, "_token", of_the_driver)
    tokens.auth(reject_tokens=False)

    unprotected = Running(tokens.service("another key that is withdrawn"))
    withdraw()
    acts: Acts = {"not protected": lambda: monkeypatch.setattr(access, "_token", of_the_driver)}
    with caplog.at_level(logging.WARNING, "qx_supervisor"):
        assert unprotected(acts, on_unprotected="warn").result().counts == {"1": 16}
    assert "this run is not protected: the token service answered 400" in caplog.text
    assert "not protected" in unprotected.states()


# Errors as they are


def every_error() -> list[QxError]:
    import qx_supervisor

    kinds = [getattr(qx_supervisor, name) for name in qx_supervisor.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, RunError)]
    assert len(kinds) >= 7
    return [kind("poll", "it went wrong", job) for kind in kinds for job in (None, "d1")]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: f"{type(error).__name__}-{error.job_id}")
def test_every_error_pickles(error: RunError) -> None:
    import copy
    import pickle

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (again.stage, again.reason, again.job_id) == ("poll", "it went wrong", error.job_id)
        assert (str(again), repr(again)) == (str(error), repr(error))
    assert isinstance(error, QxError)
    assert "it went wrong" in repr(error)
    assert str(error) == ("it went wrong (job d1)" if error.job_id else "it went wrong")


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143), (signal.SIGHUP, SystemExit, 129)],
)
@pytest.mark.parametrize("outcome", ["confirmed", "handed over", "unconfirmed", "nothing to cancel", "kept"])
def test_an_interrupt_pickles(number: signal.Signals, kind: type, code: int | None, outcome: Any) -> None:
    import copy
    import pickle

    from qx_supervisor import Interrupted
    from qx_supervisor.errors import interrupted

    error = interrupted("d1", number, outcome)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert isinstance(again, Interrupted)
        assert isinstance(again, kind)
        assert not isinstance(again, Exception)
        assert type(again).__name__ == "Interrupted"
        assert (again.job_id, again.signum, again.cancel) == ("d1", number, outcome)
        assert getattr(again, "code", None) == code
        assert str(again).startswith(f"interrupted by {number.name}; job d1: ")


def test_the_public_names() -> None:
    import qx_supervisor

    assert list(qx_supervisor.__all__) == sorted(qx_supervisor.__all__)
    for name in qx_supervisor.__all__:
        assert getattr(qx_supervisor, name).__doc__, name
    wanted = {"run", "try_run", "submit", "Run", "RunResult", "Ok", "Err", "Status", "guard", "reap", "Reaped"}
    wanted |= {"QxError", "RunError", "ConfigError", "WatcherError", "SubmitError", "JobFailed", "JobCancelled"}
    wanted |= {"RunTimeout", "Interrupted"}
    assert wanted <= set(qx_supervisor.__all__)
