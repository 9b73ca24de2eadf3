"""More PUBs than a job takes go as several jobs in a batch: joined in order, and none is left if one fails."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime import Batch, QiskitRuntimeService, Session
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from testkit.circuits import BACKEND, bell, ones
from testkit.client import Sampler, pickled
from testkit.drivers import assert_cancelled_once, end
from testkit.processes import DEADLINE, until

from qx_supervisor import (
    BudgetExceeded,
    ConfigError,
    JobCancelled,
    JobFailed,
    RunTimeout,
    Status,
    SubmitError,
    attach,
    backoff,
    budget,
    local,
    run,
    submit,
    threads,
)
from qx_supervisor import service as qiskit_service
from qx_supervisor.flight import Flight, SplitFlight, flight, retried
from qx_supervisor.flight.failures import timed_out
from qx_supervisor.flight.retried import RetriedFlight
from qx_supervisor.flight.submission import Submission
from qx_supervisor.watcher import remote
from qx_supervisor.watcher.ledger import UNFINISHED, Ledger

JOBS = "/api/v1/jobs"
SESSIONS = "/api/v1/sessions"
CANCEL = "/api/v1/jobs/*/cancel"

PARTS = """
def number(n):
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        if n >> qubit & 1:
            circuit.x(qubit)
    circuit.measure_all()
    return circuit
numbers = [number(n) for n in range(6)]
def hear(status):
    tell(status)
    say("detail", status.detail)
"""


def number(value: int) -> QuantumCircuit:
    """A circuit that measures a number of three bits."""
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        if value >> qubit & 1:
            circuit.x(qubit)
    circuit.measure_all()
    return circuit


def split(service: QiskitRuntimeService, pubs: int = 5, **arguments: Any) -> Any:
    """A run of so many PUBs, two to a job."""
    given = {"shots": 16, "split": 2, "service": service, "poll_interval": 0.1, **arguments}
    return submit([number(n) for n in range(pubs)], given.pop("backend", BACKEND), **given)


def closed(ibm: local.Service) -> list[str]:
    """The sessions that were asked to take no more jobs."""
    asked = ibm.journal(method="PATCH", path=f"{SESSIONS}/*")
    return [entry.path.rpartition("/")[2] for entry in asked]


def opened(ibm: local.Service) -> set[str | None]:
    return {job.session_id for job in ibm.jobs()}


# Joined -----------------------------------------------------------------------------------------------------------


def test_the_parts_are_joined_in_order(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.charge(fixed=2)
    seen: list[Status] = []
    result = split(service, on_status=seen.append).result()
    assert result.counts == [{f"{n:03b}": 16} for n in range(5)]
    assert len(result) == 5
    assert result[3].data.meas.get_counts() == {"011": 16}
    assert set(result.job_ids) == {job.id for job in ibm.jobs()}
    assert len(result.job_ids) == 3
    assert result.job_id == result.job_ids[0]
    assert result.failed_job_ids == ()
    assert result.qpu_seconds == 6
    [batch] = opened(ibm)
    assert batch is not None
    assert len(ibm.journal(method="POST", path=SESSIONS)) == 1
    assert closed(ibm) == [batch]
    [client] = qiskit_service.clients_of(service)
    assert client.session_details(batch)["mode"] == "batch"
    assert not ibm.journal(path=CANCEL)
    states = [status.state for status in seen]
    assert states[-1] == "done"
    assert "2 of 3 parts done" in states
    assert [state for state in states if state.endswith("parts done")] == sorted(
        state for state in states if state.endswith("parts done")
    )
    kept = pickled(result)
    assert (kept.job_ids, kept.counts) == (result.job_ids, result.counts)
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        until(lambda: book.rows(UNFINISHED), lambda rows: not rows)  # the watcher writes after the result is there


@pytest.mark.long
def test_of_one_part_it_is_an_ordinary_run(ibm: local.Service, service: QiskitRuntimeService) -> None:
    result = split(service, split=5).result()
    assert len(result) == 5
    [job] = ibm.jobs()
    assert job.session_id is None
    assert result.job_ids == (job.id,)


@pytest.mark.long
@pytest.mark.parametrize("kind", [Batch, Session])
def test_in_the_users_own_session_it_stays_open(ibm: local.Service, service: QiskitRuntimeService, kind: Any) -> None:
    with kind(service.backend(BACKEND)) as session:
        assert len(split(service, backend=session).result()) == 5
        sampler = Sampler(mode=session)
        assert len(split(service, backend=None, primitive=sampler).result()) == 5
        assert not closed(ibm)
        assert opened(ibm) == {session.session_id}
    assert len(ibm.jobs()) == 6


@pytest.mark.long
def test_on_a_local_backend() -> None:
    result = run([number(n) for n in range(5)], AerSimulator(), shots=16, split=2, panel=None)
    assert result.counts == [{f"{n:03b}": 16} for n in range(5)]
    assert len(set(result.job_ids)) == 3


@pytest.mark.long
def test_an_estimator(ibm: local.Service, service: QiskitRuntimeService) -> None:
    pubs = [(bell(measured=False), SparsePauliOp([term])) for term in ("ZZ", "XX", "ZI")]
    result = run(pubs, BACKEND, service=service, primitive="estimator", precision=0.1, split=1, panel=None)
    assert np.allclose(result.expectation_values, [1, 1, 0], atol=0.5)
    assert len(ibm.jobs()) == 3


# Refused, failed, cancelled -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_if_one_fails_all_others_are_cancelled(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("queued")
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "The angle is out of range.", "reason_code": 1517}]})
    job = split(service)
    ibm.wait_for("POST", JOBS, count=3, answered=True)
    ibm.hold(None)
    with pytest.raises(JobFailed) as caught:
        job.result()
    error, jobs = caught.value, ibm.jobs()
    part = job.job_ids.index(error.job_id)
    which = ("PUBs 0 to 1", "PUBs 2 to 3", "PUB 4")[part]
    assert error.reason.startswith(
        f"{which} (part {part + 1} of 3): the job failed at IBM Quantum: The angle is out of"
    )
    assert error.code == 1517
    assert [each.status for each in jobs].count("Failed") == 1
    assert all(each.is_final and each.cancel_requests <= 1 for each in jobs)
    assert closed(ibm) == [*opened(ibm)]


def test_if_one_can_not_be_submitted_all_others_are_cancelled(
    ibm: local.Service, service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are queued when the third one is refused."""
    ibm.hold("queued")
    turns, before_post = itertools.count(), Submission.before_post

    def third_is_refused(self: Submission, asked: int | None) -> int | None:
        if next(turns) == 2:
            ibm.wait_for("POST", JOBS, count=2, answered=True)
            ibm.scenario({"http_faults": [{"path": JOBS, "method": "POST", "status": 403, "message": "Not here."}]})
        return before_post(self, asked)

    monkeypatch.setattr(Submission, "before_post", third_is_refused)
    said = r"PUBs? .* \(part . of 3\): the job could not be submitted: .*Not here.*; the others were cancelled"
    with pytest.raises(SubmitError, match=said):
        split(service).result()
    assert_cancelled_once(ibm, *(job.id for job in ibm.jobs()))
    assert len(ibm.jobs()) == 2
    assert closed(ibm) == [*opened(ibm)]


@pytest.mark.parametrize("kind", [Flight, RetriedFlight])
def test_parts_that_have_not_begun_when_one_fails_end_with_it(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """The first one fails at once, and all others are ended before they begin."""
    begun, ended = itertools.count(), threading.Semaphore(0)
    start, abandon_failed = kind.start, SplitFlight._abandon_failed

    def start_late(self: Any, begin: Any) -> None:
        if next(begun) == 1:
            assert all(ended.acquire(timeout=DEADLINE) for _ in range(2))
        start(self, begin)

    def abandon(self: SplitFlight, number: int, why: str) -> None:
        abandon_failed(self, number, why)
        ended.release()

    monkeypatch.setattr(kind, "start", start_late)
    monkeypatch.setattr(SplitFlight, "_abandon_failed", abandon)
    wide = QuantumCircuit(7)
    wide.measure_all()
    held = submit([wide] * 3, FakeManilaV2(), split=1, retries=int(kind is RetriedFlight))
    with pytest.raises(ConfigError, match="a circuit has 7 qubits"):
        held.result(DEADLINE)
    whole: Any = held._flight
    mine = {whole, *whole._parts, *whole.flights}
    until(lambda: mine.intersection(threads.runs()), lambda left: not left)


@pytest.mark.long
def test_a_cancel_is_for_all_parts(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("queued")
    job = split(service)
    ibm.wait_for("POST", JOBS, count=3, answered=True)
    part = ibm.jobs()[0].id
    while part not in job.job_ids:
        ibm.wait_for("GET", f"{JOBS}/{part}")
    with pytest.raises(ConfigError, match="is one of a run of this process already; wait for that run"):
        attach(part, service=service)
    assert job.cancel() == "confirmed"
    with pytest.raises(JobCancelled, match="cancelled by this program"):
        job.result()
    assert_cancelled_once(ibm, *job.job_ids)
    assert len(closed(ibm)) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "several", [{"split": None}, {"retries": 1, "split": None}, {"split": 2}, {"retries": 1}], ids=str
)
def test_a_cancel_says_the_same_of_one_job_and_of_several(
    ibm: local.Service, service: QiskitRuntimeService, several: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a job is final, or there is none, or the watcher is at work: so too when it is asked for once more."""
    done = split(service, **several)
    jobs = len(done.result().job_ids)
    assert done.cancel() == done.cancel() == "confirmed"  # it is final
    assert len(done.result()) == 5
    refused = split(service, backend="ibm_none", **several)
    with pytest.raises(ConfigError):
        refused.result()
    assert refused.cancel() == refused.cancel() == "nothing to cancel"
    assert not ibm.journal(path=CANCEL)
    ibm.hold("running", cancel_lag=5.0)
    held = split(service, **several)
    ibm.wait_for("POST", JOBS, count=2 * jobs, answered=True)
    held.wait_for_job()
    monkeypatch.setattr(flight, "CANCEL_SECONDS", 0.1)
    monkeypatch.setattr(flight, "HAND_OVER_SECONDS", 60.0)  # a loaded machine may be silent for a second
    assert held.cancel() == held.cancel() == "handed over"
    for job in held.job_ids:
        ibm.wait_job(job, "Cancelled")


@pytest.mark.long
@pytest.mark.parametrize("how", ["cancel", "time limit"])
@pytest.mark.parametrize("several", [{"split": None}, {"retries": 1, "split": None}, {"split": 2}], ids=str)
def test_a_request_that_is_not_answered_keeps_nobody_waiting(
    ibm: local.Service,
    service: QiskitRuntimeService,
    several: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The service may take half a minute for that: meanwhile the watcher cancels, by connections of its own."""
    answered, ask = threading.Event(), remote.Remote.cancel

    def ask_in_vain(self: remote.Remote, job: str) -> int:
        answered.wait()
        return ask(self, job)

    monkeypatch.setattr(remote.Remote, "cancel", ask_in_vain)
    monkeypatch.setattr(flight, "CANCEL_SECONDS", 0.1)
    monkeypatch.setattr(flight, "HAND_OVER_SECONDS", 5.0)  # a loaded machine may be silent for a second
    ibm.hold("queued")
    held = split(service, timeout=3600, **several)
    whole: Any = held._flight
    try:
        until(lambda: len(held.job_ids), lambda known: known == len(getattr(whole, "_parts", [whole])))
        if how == "cancel":
            assert held.cancel() == held.cancel() == "handed over"
            with pytest.raises(JobCancelled, match="cancelled by this program"):
                held.result(DEADLINE)
        else:
            (whole._time_limits.time_out if isinstance(whole, Flight) else whole._time_out)()
            with pytest.raises(RunTimeout, match="watcher"):
                held.result(DEADLINE)
        last = held.status()
        for job in held.job_ids:
            ibm.wait_job(job, "Cancelled")
    finally:
        answered.set()
    until(lambda: {each.name for each in threading.enumerate()}, lambda names: "qx-cancel" not in names)
    assert (held.status().state, held.status().detail) == (last.state, last.detail)  # though they are seen to be over


@pytest.mark.long
@pytest.mark.parametrize("retries", [0, 1])
def test_a_cancel_says_the_same_when_one_part_is_done_and_nothing_was_submitted_of_the_other(
    ibm: local.Service, service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    turns, goes_on, before_post = itertools.count(), threading.Event(), Submission.before_post

    def second_waits(self: Submission, asked: int | None) -> int | None:
        if next(turns) == 1:
            goes_on.wait()
        return before_post(self, asked)

    monkeypatch.setattr(Submission, "before_post", second_waits)
    try:
        held = split(service, pubs=4, retries=retries)
        until(lambda: held._flight._state.done, bool)
        assert held.cancel() == held.cancel() == "confirmed"
        with pytest.raises(JobCancelled, match="cancelled by this program"):
            held.result()
    finally:
        goes_on.set()
    assert len(ibm.jobs()) == 1
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_time_limit_is_for_all_parts(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("running")
    job = split(service, timeout=3600)
    ibm.wait_for("POST", JOBS, count=3, answered=True)
    job._flight._time_out()  # an hour has passed
    with pytest.raises(RunTimeout, match="no result within 3600 s, so the jobs were cancelled"):
        job.result()
    assert_cancelled_once(ibm, *job.job_ids)


@pytest.mark.long
def test_let_go_its_jobs_go_on(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("queued")
    job = split(service)
    ibm.wait_for("POST", JOBS, count=3, answered=True)
    job.detach()
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        until(lambda: book.rows(UNFINISHED), lambda rows: all(row.session for row in rows))
    ibm.hold(None)
    assert len(job.result()) == 5


@pytest.mark.long
@pytest.mark.parametrize("several", [{"split": None}, {"retries": 1, "split": None}, {"split": 2}], ids=str)
def test_a_time_limit_does_not_end_what_was_let_go(
    ibm: local.Service, service: QiskitRuntimeService, several: dict[str, Any]
) -> None:
    """Though it had fired: it waited for a thread, as others' limits were over too."""
    ibm.hold("queued")
    job = split(service, timeout=3600, running_timeout=3600, **several)
    job.wait_for_job()
    job.detach()
    if isinstance(job._flight, Flight):
        job._flight._time_limits.time_out()
        job._flight._time_limits.run_out()
    else:
        job._flight._time_out()
        for part in job._flight.flights:
            part._time_limits.run_out()
    assert not job.done()
    ibm.hold(None)
    assert len(job.result()) == 5
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_budget_is_for_all_parts(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("queued")
    with budget(qpu_seconds=8):
        with pytest.raises(ConfigError, match=r"give each its share with max_execution_time="):
            split(service)
        with pytest.raises(BudgetExceeded, match=r"\(part . of 3\): nothing was submitted: 0\.0 s are left"):
            split(service, max_execution_time=4).result()
    assert all(each.is_final and each.max_execution_time == 4 for each in ibm.jobs())
    assert len(closed(ibm)) == 1


@pytest.mark.long
def test_a_part_is_submitted_again(
    ibm: local.Service, service: QiskitRuntimeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retried, "FAILED_JOB", backoff.Pauses(0.05, 0.05))
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "Internal error.", "reason_code": 9999}]})
    result = split(service, retries=1).result()
    assert result.counts == [{f"{n:03b}": 16} for n in range(5)]
    assert len(ibm.jobs()) == 4
    assert len(result.failed_job_ids) == 1
    assert len(closed(ibm)) == len(opened(ibm)) == 1


@pytest.mark.long
def test_a_primitive_of_ones_own_needs_a_batch(ibm: local.Service, service: QiskitRuntimeService) -> None:
    sampler = Sampler(mode=service.backend(BACKEND))
    with pytest.raises(ConfigError, match=r"make it with mode=Batch\(backend\)"):
        run([ones(), ones()], primitive=sampler, split=1, panel=None)
    assert not ibm.jobs()


# With a death -------------------------------------------------------------------------------------------------------

DRIVER = (
    PARTS
    + """
try:
    result = run(numbers, "ibm_brisbane", service=service(), shots=64, split=2, on_status=hear{more})
    say("result", " ".join(result.job_ids), ";", " ".join(next(iter(each)) for each in result.counts))
except Interrupted as error:
    say("interrupted", error.cancel, " ".join(error.job_ids))
"""
)


def in_flight(ibm: local.Service, number: int = 3) -> list[str]:
    """Wait until so many jobs were submitted."""
    ibm.wait_for("POST", JOBS, count=number, answered=True)
    return [job.id for job in ibm.jobs()]


@pytest.mark.long
def test_killed_with_all_parts_in_flight(ibm, fork):
    ibm.hold("queued")
    driver = fork(DRIVER.format(more=""))
    jobs = in_flight(ibm)
    driver.kill()
    end(driver)
    assert_cancelled_once(ibm, *jobs)
    assert closed(ibm) == [*opened(ibm)]


def test_killed_in_the_middle_of_the_submissions(ibm, fork):
    """One part is submitted, another is about to be, a third is not."""
    ibm.hold("queued")
    driver = fork(
        """
from qx_supervisor.flight.submission import Submission
posted = Submission.posted
turn = threading.Lock()
def first_alone(self, job_id):
    turn.acquire()  # for good: who comes second waits with its answer in hand
    posted(self, job_id)
    say("posted", job_id)
Submission.posted = first_alone
"""
        + DRIVER.format(more="")
    )
    driver.line("posted ")
    ibm.wait_for("POST", JOBS, count=2, answered=True)
    driver.kill()
    end(driver)
    assert all((job.status, job.cancel_requests) == ("Cancelled", 1) for job in ibm.jobs())
    assert closed(ibm) == [*opened(ibm)]
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        assert not book.rows(UNFINISHED)


def assert_interrupted(ibm, driver, jobs):
    """It says so, its jobs are cancelled once each, and its batch is closed."""
    said = driver.line("interrupted ")
    assert said[0] == "confirmed"
    assert sorted(said[1:]) == sorted(jobs)
    assert end(driver) == 0
    assert_cancelled_once(ibm, *jobs)
    assert closed(ibm) == [*opened(ibm)]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(ibm, fork, number):
    ibm.hold("queued")
    driver = fork(DRIVER.format(more=""))
    jobs = in_flight(ibm)
    driver.send(number)
    assert_interrupted(ibm, driver, jobs)


@pytest.mark.long
def test_interrupted_again_while_the_batch_is_being_closed(ibm, fork):
    """Nobody waits for that any more; what became of the jobs is known, and the watcher closes the batch."""
    ibm.hold("queued")
    driver = fork(
        """
from qx_supervisor.flight.together import Together
def stuck(self):
    say("closing")
    threading.Event().wait()
Together.close = stuck
"""
        + DRIVER.format(more="")
    )
    jobs = in_flight(ibm)
    driver.send(signal.SIGINT)
    driver.line("closing")
    driver.send(signal.SIGINT)
    assert_interrupted(ibm, driver, jobs)


@pytest.mark.long
def test_with_a_key_what_is_done_is_not_done_again(ibm, fork):
    """The driver is killed when one part is done and two are in flight; and its jobs are left to their grace."""
    ibm.hold("queued")
    code = DRIVER.format(more=', key="sweep", grace=60')
    first = fork(code)
    jobs = in_flight(ibm)
    first.kill()
    ibm.hold(None)
    ibm.wait_job(jobs[0], "Completed")
    second = fork(code)
    said = " ".join(second.line("result ")).split(" ; ")
    assert sorted(said[0].split()) == sorted(jobs)
    assert said[1].split() == [f"{n:03b}" for n in range(6)]
    assert end(second) == 0
    end(first)
    assert len(ibm.jobs()) == 3
    assert not ibm.journal(path=CANCEL)
    assert len(ibm.journal(method="POST", path=SESSIONS)) == 1  # it had nothing to submit


@pytest.mark.long
@pytest.mark.parametrize("several", [{"split": 2}, {"retries": 1, "split": None}, {"split": 2, "retries": 1}], ids=str)
def test_a_run_of_several_jobs_has_the_face_of_one(
    ibm: local.Service, service: QiskitRuntimeService, several: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown of it, in a card that begins later too; and a second Ctrl-C while it is cancelled."""
    ibm.hold("running", cancel_lag=5.0)
    held = split(service, label="all", **several)
    assert held.wait_for_job() == held.job_id
    until(held.running, bool)
    flight_ = held._flight
    heard: list[Status] = []
    ended: list[Any] = []

    def then(outcome: Any, work: Any) -> None:
        ended.append(outcome)
        work()

    flight_.listen(heard.append, then)
    assert heard[0].label == "all"
    assert "all" in held._repr_html_()
    assert (held.done(), flight_.job_state, held.failed_job_ids) == (False, None, ())
    monkeypatch.setattr(flight, "HAND_OVER_SECONDS", 60.0)  # a loaded machine may be silent for a second
    cancels = len(ibm.jobs())
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(held.cancel()))
    thread.start()
    ibm.wait_for("POST", CANCEL, count=cancels, answered=True)
    assert flight_.hurry() == "handed over"
    thread.join()
    assert outcomes == ["handed over"]
    with pytest.raises(JobCancelled):
        held.result()
    assert isinstance(ended[0], JobCancelled)
    assert "JobCancelled" in held._repr_html_()
    assert not held.running()
    for job in ibm.jobs():
        ibm.wait_job(job.id, "Cancelled")


def test_a_timeout_after_the_first_parts_says_that_they_were_submitted() -> None:
    some = SimpleNamespace(job_ids=("d1", "d2"), job_state=None)
    error = timed_out(some, "no result within 5 s", "", "nothing to cancel")
    assert error.reason == "no result within 5 s, and nothing more had been submitted"
