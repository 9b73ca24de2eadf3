"""Many runs at once: what they cost does not grow with their number, and a death deals with all of them together."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from qiskit import transpile
from testkit.circuits import BACKEND, ones
from testkit.client import Sampler
from testkit.drivers import Driver
from testkit.processes import wait_for_end
from testkit.watchers import watchers_of

from qx_supervisor import Run, RunError, Status, attach, local, poller, submit
from qx_supervisor.flight.polling import Polling
from qx_supervisor.watcher import cancel, remote

JOBS = "/api/v1/jobs"
ONE_JOB = JOBS + "/" + "?" * 20
CANCEL = JOBS + "/*/cancel"
MANY = cancel.SINGLY + 4

Begin = Callable[..., list[Run]]


@pytest.fixture
def begin(ibm: local.Service, service: Any) -> Iterator[Begin]:
    """Begins so many runs, whose jobs are queued when it returns."""
    poller._pollers.clear()  # one that was refused its lists remembers that for a while
    runs: list[Run] = []
    backend = service.backend(BACKEND)

    def made(number: int = MANY, **arguments: Any) -> list[Run]:
        ibm.hold("queued")
        arguments = {"service": service, "shots": 8, "poll_interval": 0.1, **arguments}
        runs.extend(submit(ones(), backend, **arguments) for _ in range(number))
        ibm.wait_for("POST", JOBS, count=len(runs), answered=True)
        return runs

    yield made
    ibm.hold(None)
    for each in runs:
        each.cancel()


def lists(ibm: local.Service, after: int = 0) -> list[Any]:
    return ibm.journal(method="GET", path=JOBS, after=after)


def test_more_than_ten_are_listed_together(ibm: local.Service, begin: Begin) -> None:
    runs = begin()
    after = ibm.wait_for("GET", JOBS, count=3)[-1].seq  # the first may have missed the last jobs
    latest = ibm.wait_for("GET", JOBS, count=3, after=after)[-1]
    assert {tuple(entry.query["tags"]) for entry in lists(ibm)} == {tuple(ibm.jobs()[0].tags[-1:])}
    read = [entry for entry in ibm.journal(method="GET", path=ONE_JOB, after=after) if entry.seq < latest.seq]
    assert read == []
    ibm.hold(None)
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * MANY
    assert [job.cancel_requests for job in ibm.jobs()] == [0] * MANY


@pytest.mark.long
def test_those_of_another_driver_are_listed_apart(ibm: local.Service, service: Any, begin: Begin) -> None:
    """A job that was attached before is no reason to read each of one's own by itself."""
    ibm.hold("queued")
    tags = {"environment": {"job_tags": ["qxd-another"]}}
    theirs = Sampler(mode=service.backend(BACKEND), options=tags).run([transpile(ones(), service.backend(BACKEND))])
    held = attach(theirs.job_id(), service=service, poll_interval=0.1)
    ibm.wait_for("GET", f"{JOBS}/{theirs.job_id()}", count=3)
    runs = begin()
    after = ibm.wait_for("GET", JOBS, count=3)[-1].seq
    latest = ibm.wait_for("GET", JOBS, count=3, after=after)[-1]
    read = [entry for entry in ibm.journal(method="GET", path=ONE_JOB, after=after) if entry.seq < latest.seq]
    assert {entry.path for entry in read} <= {f"{JOBS}/{theirs.job_id()}"}
    ibm.hold(None)
    assert held.result(60).counts
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * MANY


@pytest.mark.long
def test_up_to_ten_are_read_one_by_one(ibm: local.Service, begin: Begin) -> None:
    begin(cancel.SINGLY)
    ibm.wait_for("GET", ONE_JOB, count=5 * cancel.SINGLY)
    assert not lists(ibm)


def test_one_of_many_that_ends_is_noticed(ibm: local.Service, begin: Begin) -> None:
    """Completed, failed or cancelled by someone: it is in the list no more, and is read by itself."""
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}]})
    runs = begin()
    ibm.wait_for("GET", JOBS, count=2)
    ibm.service().job(ibm.jobs()[1].id).cancel()
    ibm.hold(None)
    assert sorted(map(end_of, runs)) == ["Completed"] * (MANY - 2) + ["JobCancelled", "JobFailed"]


def end_of(held: Run) -> str:
    try:
        held.result(60)
    except RunError as error:
        return type(error).__name__
    return "Completed"


@pytest.mark.long
@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_service_that_refuses_to_list(ibm: local.Service, begin: Begin, status: int) -> None:
    ibm.scenario({"http_faults": [{"method": "GET", "path": JOBS, "status": status}]})
    runs = begin()
    after = ibm.wait_for("GET", JOBS)[0].seq
    ibm.wait_for("GET", ONE_JOB, count=5 * MANY, after=after)
    ibm.hold(None)
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * MANY
    assert len(lists(ibm)) == 1


@pytest.mark.parametrize("way", [{"status": 503}, {"status": 429, "retry_after": 1}, {"drop_connection": True}])
@pytest.mark.short_only("way0")
def test_a_list_that_fails_ends_nothing(ibm: local.Service, begin: Begin, way: dict[str, Any]) -> None:
    ibm.scenario({"http_faults": [{"method": "GET", "path": JOBS, **way}] * 2})
    heard: list[Status] = []
    runs = begin(on_status=heard.append)
    ibm.wait_for("GET", JOBS, count=3, answered=True)
    ibm.hold(None)
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * MANY
    assert {"connection lost, retrying", "connection back"} <= {status.state for status in heard}


@pytest.mark.parametrize("number", [2, MANY])
@pytest.mark.short_only("2")
def test_a_fault_of_the_programs_log_ends_no_run(
    ibm: local.Service, begin: Begin, caplog: Any, capfd: Any, number: int
) -> None:
    """Whether jobs are read one by one or listed."""

    class Faulty(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the log's server is away")

    faulty, log = Faulty(), logging.getLogger("qx_supervisor")
    log.addHandler(faulty)
    try:
        with caplog.at_level(logging.INFO, "qx_supervisor"):
            runs = begin(number)
            ibm.wait_for("GET", ONE_JOB if number == 2 else JOBS, count=3)
            ibm.hold(None)
            assert [each.result(60).counts for each in runs] == [{"1": 8}] * number
    finally:
        log.removeHandler(faulty)
    assert "the log's server is away" in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("number", [2, MANY])
def test_a_fault_of_our_own_ends_no_polling(
    ibm: local.Service, begin: Begin, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """One of its answers is not understood: it is read again, and so are all others."""
    turns, saw = itertools.count(), Polling._saw

    def once_not(self: Polling, state: remote.JobState) -> float | None:
        if next(turns) == 0:
            raise LookupError(state.status)
        return saw(self, state)

    monkeypatch.setattr(poller, "LONGEST_INTERVAL", 0.1)
    monkeypatch.setattr(Polling, "_saw", once_not)
    runs = begin(number)
    ibm.wait_for("GET", ONE_JOB if number == 2 else JOBS, count=3)
    ibm.hold(None)
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * number


@pytest.mark.long
def test_a_void_token_is_renewed_once_for_all(tokens: local.Service, begin: Begin) -> None:
    runs = begin()
    tokens.wait_for("GET", JOBS, count=2)
    after = tokens.cursor()  # before: the poll of the next moment asks for a token already
    tokens.expire_tokens()
    tokens.hold(None)
    assert [each.result(60).counts for each in runs] == [{"1": 8}] * MANY
    assert len(tokens.journal(path="/identity/token", after=after)) == 1


@pytest.mark.long
def test_the_threads_are_few(ibm: local.Service, begin: Begin) -> None:
    before = threading.active_count()
    begin(40)
    ibm.wait_for("GET", JOBS, count=2)
    few = threading.active_count()
    begin(40)
    ibm.wait_for("GET", JOBS, count=2, after=ibm.cursor())
    assert threading.active_count() <= max(few, before + 16)


def test_an_abandoned_one_is_read_no_more(ibm: local.Service, begin: Begin) -> None:
    [held] = begin(1)
    ibm.wait_for("GET", ONE_JOB, count=2)
    assert held.cancel() == "confirmed"
    begin(1)  # another one, which is read meanwhile
    other = ibm.jobs()[-1].id
    after = ibm.wait_for("GET", f"{JOBS}/{other}", count=2)[-1].seq  # a last reading may have been on its way
    ibm.wait_for("GET", f"{JOBS}/{other}", count=5, after=after)
    assert not ibm.journal(path=f"{JOBS}/{held.job_id}", after=after)


def test_an_on_status_that_does_not_return_keeps_no_other_waiting(ibm: local.Service, begin: Begin) -> None:
    gate = threading.Event()
    stuck = begin(2, on_status=lambda status: gate.wait())
    fine = begin(3)[2:]
    ibm.hold(None)
    assert [each.result(60).counts for each in fine] == [{"1": 8}] * 3
    assert stuck[0].done() or ibm.wait_idle(60)
    gate.set()
    assert stuck[0].result(60).counts == {"1": 8}


# The death of a driver with many in flight ------------------------------------------------------------------------

FLEET = f"""
queued = threading.Semaphore(0)
def note(status):
    if status.state == "queued":
        queued.release()
runs = [submit(isa(), backend(), shots=8, poll_interval=30, on_status=note) for _ in range({MANY})]
for _ in runs:
    queued.acquire()
say("all queued")
signal.pause()
"""


def killed(ibm: local.Service, driver: Driver) -> int:
    """The cursor at the kill, once the watcher has ended."""
    driver.line("all queued")
    after = ibm.cursor()
    [watcher] = watchers_of(driver)
    driver.kill()
    wait_for_end(watcher)
    return after


def test_each_is_cancelled_once_and_they_are_read_together(ibm: local.Service, fork: Any) -> None:
    ibm.hold("queued")
    after = killed(ibm, fork(FLEET))
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1)] * MANY
    # The driver's last readings may still arrive, on its own connections. What only a driver asks for, such as the
    # backend's status, may come on new ones.
    drivers = {entry.connection for entry in ibm.journal() if entry.seq <= after}
    asked = [*ibm.journal(path="/api/v1/jobs", after=after), *ibm.journal(path=ONE_JOB, after=after)]
    asked += ibm.journal(path=CANCEL, after=after)
    seen = [entry for entry in asked if entry.connection not in drivers]
    assert len({entry.connection for entry in seen}) <= remote.CONNECTIONS
    # The last of the crowd may be read singly, as any so few are.
    single = [entry for entry in seen if entry.method == "GET" and entry.path != "/api/v1/jobs"]
    assert len(single) < MANY
    assert len([entry for entry in seen if entry.path == "/api/v1/jobs"]) < MANY  # by ones and twos on a slow machine


def test_the_pace_is_the_services(ibm: local.Service, fork: Any) -> None:
    """What is asked for by one answer is kept by all requests."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": CANCEL, "status": 429, "retry_after": 1}] * 3})
    after = killed(ibm, fork(FLEET))
    assert [job.status for job in ibm.jobs()] == ["Cancelled"] * MANY
    seen = ibm.journal(after=after)
    refused = [entry for entry in seen if entry.status == 429]
    assert len(refused) == 3
    # Others may be on their way when the last answer comes.
    last = max(entry.answered for entry in refused)
    patient = [entry for entry in seen if last + 0.5e9 < entry.arrived < last + 0.9e9]
    assert patient == []


@pytest.mark.long
def test_a_slow_end_is_confirmed_for_all(ibm: local.Service, fork: Any) -> None:
    ibm.hold("running", 0.3)
    fleet = FLEET.replace('"queued"', '"running"').replace("poll_interval=30", "poll_interval=1")  # first seen queued
    after = killed(ibm, fork(fleet))
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1)] * MANY
    assert len(ibm.journal(method="GET", path=ONE_JOB, after=after)) < 10 * MANY
