"""Ordinary trouble of the service costs a program that lives no job, no result and no second payment.

While its program lives, a job is cancelled because the program wants it, and for nothing that the service says or fails
to say. Each kind of trouble is a family: the answer, the stage at which it comes, sampler and estimator, one's own call
or Qiskit's in a `guard`. The service's journal is the judge: who was asked to stop, and how many submissions came.
"""

from __future__ import annotations

import json
import pickle
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import requests
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import QiskitRuntimeService, Session
from qiskit_ibm_runtime.exceptions import IBMInputValueError, IBMRuntimeError, RuntimeJobTimeoutError
from testkit.circuits import BACKEND, bell, ones
from testkit.client import Sampler
from testkit.drivers import end
from testkit.gate import Gate
from testkit.processes import until

from qx_supervisor import (
    ConfigError,
    JobCancelled,
    JobFailed,
    RunError,
    RunTimeout,
    Status,
    SubmitError,
    backoff,
    guard,
    local,
    results_fetch,
    run,
    submit,
)
from qx_supervisor.flight import lost_answer, submission
from qx_supervisor.link import link
from qx_supervisor.service import is_of_the_service, is_token_outage, outages

JOBS = "/api/v1/jobs"
ONE_JOB = JOBS + "/" + "?" * 20  # and not its results, nor its cancel
RESULTS = JOBS + "/*/results"
TOKEN = "/identity/token"

Fault = dict[str, Any]
Scenario = Callable[..., None]

PAGE = {"body": "<html><head><title>Sign in to GuestWifi</title></head></html>"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that grow to half a minute would be most of a test."""
    monkeypatch.setattr(backoff, "UNANSWERED", backoff.Pauses(0.02, 0.2))


@pytest.fixture
def faults(ibm: local.Service) -> Scenario:
    """Has requests to a path go wrong."""

    def install(method: str | None, path: str, *ways: Fault) -> None:
        ibm.scenario({"http_faults": [{"path": path, "method": method, **way} for way in ways]})

    return install


class Call:
    """A run of one of the two kinds, and what was told of it."""

    def __init__(self, service: QiskitRuntimeService, kind: str) -> None:
        self.service = service
        self.kind = kind
        self.told: list[Status] = []
        self._heard = threading.Condition()

    def begin(self, backend: Any = BACKEND, **more: Any) -> Any:
        pub = ones() if self.kind == "sampler" else (bell(measured=False), "ZZ")
        arguments = {"primitive": self.kind, "shots": 16, "poll_interval": 0.1, "on_status": self._hear, **more}
        return submit(pub, backend, service=self.service, **arguments)

    def is_right(self, result: Any) -> bool:
        """Whether it is the result of what was asked for."""
        if self.kind == "sampler":
            return bool(result.counts == {"1": 16})
        return abs(float(result.expectation_values) - 1) < 0.2

    def until(self, state: str) -> Status:
        """Wait until a state is told."""
        with self._heard:
            assert self._heard.wait_for(lambda: state in self.states(), 60), self.states()
        return next(status for status in self.told if status.state == state)

    def states(self) -> list[str]:
        return [status.state for status in self.told]

    def _hear(self, status: Status) -> None:
        with self._heard:
            self.told.append(status)
            self._heard.notify_all()


@pytest.fixture(params=["sampler", pytest.param("estimator", marks=pytest.mark.long)])
def call(request: pytest.FixtureRequest, ibm: local.Service, service: QiskitRuntimeService) -> Call:
    return Call(service, request.param)


def assert_one_job(ibm: local.Service, result: Any, posts: int = 1) -> None:
    """The run made one job, which nobody asked to stop."""
    assert [(job.id, job.status, job.cancel_requests) for job in ibm.wait_idle()] == [(result.job_id, "Completed", 0)]
    assert len(ibm.journal(method="POST", path=JOBS)) == posts


# A refusal is no wish

REFUSALS: dict[str, Fault] = {
    "403 of a gateway": {"status": 403, **PAGE},
    "401": {"status": 401},
    "403": {"status": 403},
    "404": {"status": 404},
    "451": {"status": 451},
    "400": {"status": 400},
    "410": {"status": 410},
}


def is_long(names: Any) -> list[Any]:
    """The first of a family is in the short run."""
    return [name if i == 0 else pytest.param(name, marks=pytest.mark.long) for i, name in enumerate(names)]


@pytest.mark.parametrize("refusal", is_long(REFUSALS))
def test_a_refusal_in_flight_ends_nothing_however_long(
    ibm: local.Service, call: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    monkeypatch.setattr(backoff, "REFUSED_SECONDS", 0.1)  # it lasts longer than what is believed to be a hiccup
    ibm.hold("queued")
    held = call.begin()
    call.until("queued")
    cursor = ibm.cursor()
    faults(None, JOBS + "*", {**REFUSALS[refusal], "times": 10_000})
    ibm.wait_for("GET", JOBS + "*", after=cursor, count=12, answered=True)
    told = call.until("refused, retrying")
    assert (told.stage, told.job_id) == ("poll", held.job_id)
    assert "nothing is cancelled for it" in told.detail or "cancel() or timeout= ends the run" in told.detail
    assert not held.done()
    assert link.is_guarded(held._flight.core.run_id)
    ibm.scenario({})
    ibm.hold(None)
    result = held.result(60)
    assert call.is_right(result)
    assert "connection back" in call.states()
    assert not ibm.journal(path=JOBS + "/*/cancel")
    assert_one_job(ibm, result)


def test_a_refusing_token_service_ends_nothing(tokens: local.Service, call: Call) -> None:
    tokens.hold("queued")
    held = call.begin()
    call.until("queued")
    tokens.auth(reject_tokens=True)
    tokens.expire_tokens()
    tokens.wait_for("POST", TOKEN, after=tokens.cursor(), count=4, answered=True)
    assert "check the account's API key" in call.until("refused, retrying").detail
    tokens.auth(reject_tokens=False)
    tokens.hold(None)
    result = held.result(60)
    assert call.is_right(result)
    assert_one_job(tokens, result)


@pytest.mark.long
def test_a_timeout_ends_a_run_that_is_refused(ibm: local.Service, call: Call, faults: Scenario) -> None:
    """That is the program's own wish: the watcher sees to it once the service lets it."""
    ibm.hold("queued")
    held = call.begin(timeout=3600)
    call.until("queued")
    faults("GET", ONE_JOB, {"status": 403, "times": 10_000})
    call.until("refused, retrying")
    threading.Thread(target=held._flight._time_limits.time_out).start()
    ibm.wait_for("POST", JOBS + "/*/cancel")
    ibm.scenario({})
    with pytest.raises(RunTimeout, match="cancel"):
        held.result(60)
    assert ibm.wait_job(held.job_id).status == "Cancelled"


@pytest.mark.long
def test_an_answer_about_something_else_is_no_state(ibm: local.Service, call: Call, faults: Scenario) -> None:
    """A gateway that says "failed", in JSON, says it of itself."""
    ibm.hold("queued")
    held = call.begin()
    call.until("queued")
    ways = [{"status": "Failed"}, {"id": "another", "state": {"status": "Failed"}}, {"state": {}}]
    faults("GET", ONE_JOB, *({"body": json.dumps(way), "content_type": "application/json"} for way in ways))
    call.until("connection lost, retrying")
    ibm.hold(None)
    assert call.is_right(held.result(60))


# `guard`: whose an exception is

SERVICES_OWN = [
    requests.ConnectionError("no route"),
    requests.Timeout("slow"),
    ConnectionResetError(104, "reset"),
    IBMRuntimeError("Failed to retrieve job: 403"),
    JobFailed("job", "it failed", "d1"),
    SubmitError("submit", "it got no answer"),
    ExceptionGroup("tasks", [requests.ConnectionError("no route"), IBMRuntimeError("403")]),
]
PROGRAMS_OWN = [
    ZeroDivisionError(),
    TimeoutError("a limit of asyncio's"),
    KeyboardInterrupt(),
    SystemExit(1),
    RuntimeJobTimeoutError("Timed out waiting for job to complete after 5 secs."),
    IBMInputValueError("no such option"),
    ConfigError("config", "no such option"),
    RunTimeout("timeout", "too late", "d1"),
    ExceptionGroup("tasks", [requests.ConnectionError("no route"), ZeroDivisionError()]),
]


@pytest.mark.parametrize("error", SERVICES_OWN, ids=lambda error: type(error).__name__)
def test_an_exception_of_the_services(error: Exception) -> None:
    assert is_of_the_service(error)
    wrapped = RuntimeError("my program's words for it")
    wrapped.__cause__ = error
    assert is_of_the_service(wrapped)


@pytest.mark.parametrize("error", PROGRAMS_OWN, ids=lambda error: type(error).__name__)
def test_an_exception_of_the_programs(error: BaseException) -> None:
    assert not is_of_the_service(error)


def test_a_fault_while_an_outage_is_handled_is_the_programs() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        try:
            raise requests.ConnectionError("no route")
        except requests.ConnectionError:
            _ = 1 / 0
    assert not is_of_the_service(caught.value)


@pytest.mark.client
def test_a_page_where_json_was_to_be_is_the_services(ibm: local.Service, service: Any, faults: Scenario) -> None:
    faults("GET", "/api/v1/instances/usage", PAGE)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - json's, of no own kind
        service.usage()
    assert is_of_the_service(caught.value)


def test_text_that_the_program_could_not_read_is_its_own() -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert not is_of_the_service(caught.value)


@pytest.fixture
def isa(service: QiskitRuntimeService) -> Any:
    return generate_preset_pass_manager(0, service.backend(BACKEND)).run(bell())


@pytest.mark.parametrize("what", is_long(["job", "session"]))
def test_an_outage_in_a_guarded_block_cancels_nothing(ibm: local.Service, isa: Any, what: str) -> None:
    """The program catches it, asks again, guarded anew, and has its result; no cancel, no closed session."""
    ibm.hold("queued")
    with Gate(ibm.port) as gate:
        backend = gate.service().backend(BACKEND)
        session = Session(backend) if what == "session" else None
        job = Sampler(mode=session or backend).run([isa], shots=16)
        closing = threading.Timer(0.0, lambda: (ibm.wait_for("GET", JOBS + "/*"), gate.close()))
        closing.start()
        with pytest.raises(Exception) as caught, guard(session or job):  # noqa: PT011 - whatever Qiskit raises
            job.result()
        closing.join()
        assert is_of_the_service(caught.value)
        assert link.all_guarded()
        gate.open()
        ibm.hold(None)
        with guard(session or job):
            assert len(job.result()) == 1
        assert not link.all_guarded()
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Completed", 0)]
    assert not ibm.journal(method="DELETE")


@pytest.mark.long
def test_what_such_a_block_leaves_is_cancelled_with_the_program(ibm: local.Service, fork: Any) -> None:
    """It stays guarded: the program ends without having asked again."""
    ibm.hold("queued")
    driver = fork(
        """
        job = Sampler(mode=backend()).run([isa()])
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/" + job.job_id(), "status": 403, "times": 1}]})
        try:
            with guard(job):
                job.result()
        except Exception as error:
            say("caught", type(error).__name__, job.job_id())
        signal.pause()
        """
    )
    _, job = driver.line("caught ")
    assert ibm.job(job).cancel_requests == 0
    driver.kill()
    assert ibm.wait_job(job).status == "Cancelled"
    end(driver)
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_what_such_a_block_leaves_is_not_asked_to_stop_once_it_is_over(ibm: local.Service, fork: Any) -> None:
    driver = fork(
        """
        ibm.hold("queued")
        job = Sampler(mode=backend()).run([isa()])
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/" + job.job_id(), "status": 403, "times": 1}]})
        try:
            with guard(job):
                job.result()
        except Exception:
            ibm.hold(None)
        say("result", len(job.result()))
        """
    )
    assert driver.line("result ") == ["1"]
    end(driver)
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Completed", 0)]


def test_the_job_of_such_a_block_is_soon_asked_after_again(
    ibm: local.Service, service: Any, isa: Any, faults: Scenario
) -> None:
    """Its state can't be read at first, as is to be expected after an outage."""
    job = Sampler(mode=service.backend(BACKEND)).run([isa], shots=16)
    with pytest.raises(requests.ConnectionError), guard(job):
        ibm.wait_job(job.job_id())
        faults("GET", ONE_JOB, {"status": 503, "times": 3})
        raise requests.ConnectionError("no route")
    until(link.all_guarded, lambda guarded: not guarded)
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Completed", 0)]


# Results once billed are not lost

ANSWERS: dict[str, Fault] = {
    "a login page": PAGE,
    "nothing": {"body": ""},
    "half of it": {"cut": 40, "phase": "after"},
    "no JSON object": {"body": "[]", "content_type": "application/json"},
    "another object": {"body": '{"not": "a result"}', "content_type": "application/json"},
    "204": {"status": 204, "body": ""},
    "a redirect": {"status": 302},
    **{str(status): {"status": status} for status in (400, 401, 403, 404, 409, 410, 425, 429, 500, 503)},
    "no answer": {"drop_connection": True},
}


@pytest.mark.client
def test_whatever_the_first_answers_to_the_results_are(ibm: local.Service, call: Call, faults: Scenario) -> None:
    """All of them, one after the other, and then the results."""
    faults("GET", RESULTS, *ANSWERS.values())
    result = call.begin().result(60)
    assert call.is_right(result)
    assert len(ibm.journal(method="GET", path=RESULTS)) == len(ANSWERS) + 1
    assert {"results spoilt, retrying", "refused, retrying", "connection lost, retrying"} <= set(call.states())
    assert_one_job(ibm, result)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["sampler", "estimator"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_each_first_answer_to_the_results(ibm: local.Service, service: Any, kind: str, answer: str) -> None:
    """Of the deprecated primitives too, whose decoder hands a text on that is no JSON."""
    import qiskit_ibm_runtime

    call = Call(service, kind)
    primitive = getattr(qiskit_ibm_runtime, f"{kind.capitalize()}V2")(mode=service.backend(BACKEND))
    ibm.scenario({"http_faults": [{"path": RESULTS, "method": "GET", "times": 2, **ANSWERS[answer]}]})
    shots = {"shots": 16 if kind == "sampler" else None}
    if kind == "estimator":
        primitive.options.default_shots = 16
    result = call.begin(None, primitive=primitive, **shots).result(60)
    assert call.is_right(result)
    assert_one_job(ibm, result)


def test_results_that_are_given_once_are_never_thrown_away(
    ibm: local.Service, call: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They came, could not be decoded, and are deleted: their text is in the error, also in another process."""
    monkeypatch.setattr(results_fetch, "RESULTS_SECONDS", 0.5)  # instead of ten minutes
    text = '{"schema_version": "of a later release", "data": [1, 2, 3]}'
    once = {"body": text, "content_type": "application/json"}
    faults("GET", RESULTS, PAGE, once, {"status": 404, "times": 10_000})
    with pytest.raises(RunError) as caught:
        call.begin().result(60)
    assert (caught.value.stage, caught.value.raw) == ("results", text)
    assert "error.raw" in caught.value.reason
    assert "answered 404" in caught.value.reason
    assert pickle.loads(pickle.dumps(caught.value)).raw == text
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Completed", 0)]


@pytest.mark.long
def test_their_text_is_in_the_timeout_too(ibm: local.Service, call: Call, faults: Scenario) -> None:
    faults("GET", RESULTS, {"body": "spoilt", "times": 10_000})
    held = call.begin(timeout=3600)
    call.until("results spoilt, retrying")
    held._flight._time_limits.time_out()
    with pytest.raises(RunTimeout, match="had finished by then") as caught:
        held.result(60)
    assert caught.value.raw == "spoilt"


def test_results_are_asked_for_long_enough() -> None:
    assert results_fetch.RESULTS_SECONDS >= 600


@pytest.mark.long
def test_a_command_waits_for_results_as_well(
    ibm: local.Service, service: Any, faults: Scenario, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from qx_supervisor.cli import account, main

    monkeypatch.setattr(account, "connect", lambda *_: service)
    job = run(ones(), BACKEND, service=service, shots=16, panel=None).job_id
    faults("GET", RESULTS, PAGE, {"status": 409}, {"body": ""})
    with pytest.raises(SystemExit, match="0"):
        main(["wait", job])
    assert "16" in capsys.readouterr().out


# A lost answer is looked for, and its job adopted

LOST: dict[str, Fault] = {
    "dropped": {"drop_connection": True},
    "never": {"drop_connection": True, "delay_seconds": 600.0},
    "a login page": PAGE,
    "nothing": {"body": ""},
    "501": {"status": 501},
    "408": {"status": 408},
}


@pytest.fixture(params=["by a proxy", pytest.param("directly", marks=pytest.mark.long)])
def way(request: pytest.FixtureRequest, call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """By a plain proxy the client sends again what was lost; directly, as most connect, it does not."""
    if request.param == "directly":
        service = call.service
        for client in [service._active_api_client, *service._api_clients.values()]:
            for adapter in client._session.adapters.values():
                monkeypatch.setattr(adapter, "max_retries", adapter.max_retries.new(other=0))
    return call


@pytest.mark.parametrize("answer", is_long(LOST))
def test_a_job_whose_answer_is_lost_is_the_runs(
    ibm: local.Service, way: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(outages, "ANSWER_SECONDS", 0.5)
    ibm.hold("queued")
    faults("POST", JOBS, {**LOST[answer], "phase": "after"})
    held = way.begin()
    told = way.until("submitted")
    assert (told.job_id, told.detail) == (ibm.jobs()[0].id, "found by its tag: the answer was lost")
    assert "looking for the job" in way.states()
    ibm.hold(None)
    result = held.result(60)
    assert way.is_right(result)
    assert_one_job(ibm, result)


@pytest.mark.parametrize("answer", is_long(LOST))
@pytest.mark.client
def test_a_post_that_made_no_job_is_sent_again(
    ibm: local.Service, way: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(outages, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(lost_answer, "LOOK_SECONDS", 0.5)
    faults("POST", JOBS, LOST[answer])
    result = way.begin().result(60)
    assert way.is_right(result)
    assert_one_job(ibm, result, posts=2)


@pytest.mark.long
def test_an_answer_that_is_lost_twice_ends_the_run(
    ibm: local.Service, way: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_answer, "LOOK_SECONDS", 0.2)
    faults("POST", JOBS, {"drop_connection": True, "times": 2})
    with pytest.raises(SubmitError, match="the submission got no answer"):
        way.begin().result(60)
    assert len(ibm.journal(method="POST", path=JOBS)) == 2
    assert not ibm.jobs()


@pytest.mark.long
def test_a_job_that_turns_up_late_is_found(
    ibm: local.Service, way: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The POST is given up before the service has made its job of it."""
    monkeypatch.setattr(outages, "ANSWER_SECONDS", 0.3)
    faults("POST", JOBS, {"delay_seconds": 1.0})
    result = way.begin().result(60)
    assert way.is_right(result)
    assert_one_job(ibm, result)


@pytest.mark.long
def test_six_answers_of_which_each_made_a_job(ibm: local.Service, way: Call, faults: Scenario) -> None:
    """One of them is the run's; the others are cancelled, each with one request."""
    ibm.hold("queued")
    faults("POST", JOBS, {"status": 500, "phase": "after", "times": 6})
    held = way.begin()
    mine = way.until("submitted").job_id
    others = [job.id for job in ibm.jobs() if job.id != mine]
    assert len(others) == 5
    for other in others:
        assert ibm.wait_job(other).status == "Cancelled"
    ibm.hold(None)
    assert held.result(60).job_id == mine
    assert {job.id: job.cancel_requests for job in ibm.jobs()} == {mine: 0} | dict.fromkeys(others, 1)


@pytest.mark.long
def test_the_search_outlasts_an_outage(ibm: local.Service, faults: Scenario) -> None:
    """Only a list says that there is no job: while nobody answers, nothing is sent again."""
    with Gate(ibm.port) as gate:
        call = Call(gate.service(), "sampler")
        ibm.hold("queued")
        faults("POST", JOBS, {"delay_seconds": 1.0, "phase": "after"})
        held = call.begin()
        ibm.wait_for("POST", JOBS)
        gate.close()
        call.until("connection lost, retrying")
        gate.open()
        call.until("queued")
        ibm.hold(None)
        result = held.result(60)
    assert_one_job(ibm, result)


@pytest.mark.long
def test_given_up_while_it_is_looked_for(ibm: local.Service, way: Call, faults: Scenario) -> None:
    """The watcher goes on with it."""
    ibm.hold("queued")
    lists = {"path": JOBS, "method": "GET", "status": 503, "times": 10_000}
    ibm.scenario({"http_faults": [{"path": JOBS, "method": "POST", "drop_connection": True, "phase": "after"}, lists]})
    held = way.begin()
    way.until("connection lost, retrying")
    assert held.cancel() in ("handed over", "unconfirmed")
    ibm.scenario({})
    with pytest.raises(JobCancelled):
        held.result(60)
    assert [job.status for job in ibm.wait_idle()] == ["Cancelled"]
    assert [job.cancel_requests for job in ibm.jobs()] == [1]


@pytest.mark.long
def test_a_lost_answer_with_a_key(ibm: local.Service, way: Call, faults: Scenario) -> None:
    """The job of an earlier call, which was cancelled, is under the same tag and is not it."""
    ibm.hold("queued")
    key = f"once-{uuid.uuid4()}"  # the ledger is that of the watcher, which may be of an earlier test
    first = way.begin(key=key)
    way.until("queued")
    assert first.cancel() == "confirmed"
    faults("POST", JOBS, {"drop_connection": True, "phase": "after"})
    again = Call(way.service, way.kind)
    held = again.begin(key=key)
    told = again.until("submitted")
    assert told.job_id == ibm.jobs()[1].id
    ibm.hold(None)
    assert held.result(60).job_id == told.job_id
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1), ("Completed", 0)]


@pytest.mark.long
def test_killed_while_it_is_looked_for(ibm: local.Service, fork: Any) -> None:
    ibm.hold("queued")
    post = {"path": JOBS, "method": "POST", "drop_connection": True, "phase": "after"}
    lists = {"path": JOBS, "method": "GET", "status": 503, "times": 2}
    ibm.scenario({"http_faults": [post, lists]})
    driver = fork("run(isa(), backend(), shots=64, on_status=tell)")
    driver.line("looking for the job")
    driver.kill()
    end(driver)
    assert [(job.status, job.cancel_requests) for job in ibm.wait_idle()] == [("Cancelled", 1)]


# Nothing submitted, nothing lost

STEPS = {
    "status": "/api/v1/backends/*/status",
    "configuration": "/api/v1/backends/*/configuration",
    "properties": "/api/v1/backends/*/properties",
    "usage": "/api/v1/instances/usage",
    "the POST": JOBS,
}
OUTAGES: dict[str, Fault] = {
    "503": {"status": 503, "times": 7},  # the client itself asks six times
    "dropped": {"drop_connection": True, "times": 7},
    "a page": {**PAGE, "times": 2},
    "429": {"status": 429, "times": 2},
}


@pytest.mark.parametrize("backend", is_long(["a name", "an object", "none"]))
@pytest.mark.client
def test_an_outage_before_the_submission_is_waited_out(ibm: local.Service, backend: str) -> None:
    """No connection is to be had, whatever is asked first."""
    with Gate(ibm.port) as gate:
        call = Call(gate.service(), "sampler")
        asked_for = {"a name": BACKEND, "an object": call.service.backend(BACKEND), "none": None}[backend]
        gate.close()
        held = call.begin(asked_for)
        call.until("connection lost, retrying")
        assert not held.done()
        gate.open()
        result = held.result(120)
    assert call.is_right(result)
    assert "connection back" in call.states()
    assert_one_job(ibm, result)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sampler", "estimator"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_at_each_step_before_the_submission(
    ibm: local.Service, faults: Scenario, monkeypatch: pytest.MonkeyPatch, kind: str, step: str, outage: str
) -> None:
    monkeypatch.setattr(lost_answer, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(submission, "RATE_LIMIT_PAUSE", 0.1)
    call = Call(ibm.service(), kind)  # one that has read nothing yet
    times = {"times": 1} if step == "the POST" and outage != "503" else {}
    faults("POST" if step == "the POST" else "GET", STEPS[step], {**OUTAGES[outage], **times})
    result = call.begin().result(120)
    assert call.is_right(result)
    assert [(job.id, job.cancel_requests) for job in ibm.wait_idle()] == [(result.job_id, 0)]


@pytest.mark.long
def test_a_request_that_is_never_answered_is_made_again(
    ibm: local.Service, faults: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client itself would wait for ever."""
    from qx_supervisor.watcher import remote

    monkeypatch.setattr(remote, "READ_TIMEOUT", 0.5)
    call = Call(ibm.service(), "sampler")
    for step in ("configuration", "status", "usage"):
        faults("GET", STEPS[step], {"drop_connection": True, "delay_seconds": 600.0})
        assert call.is_right(call.begin().result(60))
        assert "connection lost, retrying" in call.states()
        call.told.clear()


@pytest.mark.long
def test_an_outage_of_the_token_service_before_the_submission(tokens: local.Service) -> None:
    """The client presents the bare key then, and is refused: that is no word on the account."""
    call = Call(tokens.service("a key of its own"), "sampler")
    call.begin().result(60)
    tokens.reset()
    tokens.scenario({"http_faults": [{"path": TOKEN, "status": 429, "times": 4}]})
    tokens.expire_tokens()
    for client in [call.service._active_api_client, *call.service._api_clients.values()]:
        client._session.auth.tm.expire_time = client._session.auth.tm.request_time = 0
    result = call.begin().result(120)
    assert call.is_right(result)
    assert_one_job(tokens, result)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("the token service answered 503", True),
        ("the token service answered 429", True),
        ("the token service could not be asked (ConnectionError)", True),
        ("nothing was submitted, because the key 'k' can't be held: the token service answered 500", True),
        ("the token service answered 400", False),
        ("the watcher ended as it started", False),
    ],
)
def test_what_a_watcher_says_of_the_token_service(reason: str, expected: Any) -> None:
    assert is_token_outage(reason) is expected


def test_a_reserved_backend_is_waited_for(
    ibm: local.Service, call: Call, faults: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """423 waits as 429 does."""
    monkeypatch.setattr(submission, "RATE_LIMIT_PAUSE", 0.1)
    faults("POST", JOBS, {"status": 423, "times": 2}, {"status": 423, "retry_after": 0})
    result = call.begin().result(60)
    assert call.states().count("backend reserved, waiting") == 3
    assert_one_job(ibm, result, posts=4)
