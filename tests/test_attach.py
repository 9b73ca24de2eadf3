"""`attach`: a job that exists is guarded, waited for, cancelled, let go; nobody takes it from another."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime import QiskitRuntimeService
from testkit.circuits import BACKEND, bell, ones
from testkit.client import Estimator, Sampler
from testkit.drivers import assert_cancelled_once, end, kill_both
from testkit.processes import until, wait_for_first_run
from testkit.watchers import wait_until_written

from qx_supervisor import ConfigError, JobCancelled, JobFailed, Run, RunTimeout, Status, attach, local, reap, submit
from qx_supervisor import service as qiskit_service
from qx_supervisor.reap import reap_in_background
from qx_supervisor.watcher.ledger import Ledger, Row

JOBS = "/api/v1/jobs"
CANCEL = "/api/v1/jobs/*/cancel"
ANOTHER = "d1234567890abcdefghi"


def submitted(service: QiskitRuntimeService, **options: Any) -> str:
    """A job of plain Qiskit's, which nobody guards."""
    backend = service.backend(BACKEND)
    job = Sampler(mode=backend, options=options or None).run([ones(), ones()], shots=16)
    return str(job.job_id())


def bell_isa(backend: Any) -> QuantumCircuit:
    return transpile(bell(), backend)


def estimated(backend: Any) -> Any:
    circuit = transpile(bell(measured=False), backend)
    return Estimator(mode=backend).run([(circuit, SparsePauliOp("ZZ").apply_layout(circuit.layout))])


def attaching(job: str, more: str = "") -> str:
    """A driver that attaches a job, and waits for it."""
    return f"""
    try:
        job = attach({job!r}, service=service(), on_status=tell{more})
        say("attached it", job.job_id)
        result = job.result()
        say("result", result.job_id, result.counts)
    except QxError as error:
        say("refused", type(error).__name__, error)
    """


# The job of another ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.short_only("queued")
def test_a_job_that_is_attached_is_cancelled_when_its_driver_is_killed(ibm, fork, service, where):
    ibm.hold(where)
    job, other = submitted(service), submitted(service)
    ibm.wait_job(job, where.capitalize())
    driver = fork(attaching(job))
    driver.line("attached it ")
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    assert ibm.job(other).cancel_requests == 0
    assert end(driver) != 0
    assert ibm.job(job).cancel_requests == 1
    assert len(ibm.journal(method="POST", path=JOBS)) == 2


@pytest.mark.long
def test_a_job_that_was_let_go_is_attached_by_another_program(ibm, fork):
    """And it has one guard at a time."""
    ibm.hold("queued")
    first = fork("""
    over = threading.Event()
    def hear(status):
        tell(status)
        if status.state == "queued":
            over.set()
    job = submit(isa(), backend(), shots=64, on_status=hear)
    over.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    say("ready")
    signal.sigwait({signal.SIGUSR1})
    job.detach()
    say("let go")
    signal.pause()
    """)
    job = first.queued()
    first.line("ready")
    refused = fork(attaching(job))
    said = " ".join(refused.line("refused "))
    assert said.startswith(f"ConfigError job {job} is guarded by process {first.pid} (")
    assert said.endswith(
        "which lives, and is cancelled when that ends; wait there for it, or have that program detach() it first"
    )
    assert end(refused) == 0
    first.send(10)
    first.line("let go")
    second = fork(attaching(job))
    second.line("attached it ")
    first.kill()
    ibm.hold(None)
    assert second.line("result ")[0] == job
    assert end(second) == 0
    end(first)
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.parametrize("when", ["it was looked who has it", "the run was written"])
@pytest.mark.short_only("it was looked who has it")
def test_of_two_programs_that_attach_a_job_at_once_one_gets_it(ibm, fork, service, when):
    """The one is slow: it holds still after it has looked who has the job, or before its watcher knows the job."""
    ibm.hold("queued")
    job = submitted(service)
    step = "announce" if when == "it was looked who has it" else "await_acknowledgement"
    slow = fork(
        f"""
    from qx_supervisor.flight.submission import Submission
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
    step = Submission.{step}
    def hold_still(*given):
        if {step == "await_acknowledgement"}:
            step(*given)
        say("holds still")
        signal.sigwait({{signal.SIGUSR1}})
        if {step == "announce"}:
            step(*given)
    Submission.{step} = hold_still
    """
        + attaching(job)
    )
    slow.line("holds still")
    refused = fork(attaching(job))
    said = " ".join(refused.line("refused "))
    assert said.startswith(f"ConfigError job {job} is guarded by process {slow.pid} (")
    assert end(refused) == 0
    slow.send(10)
    slow.line("attached it ")
    assert ibm.job(job).cancel_requests == 0
    slow.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
@pytest.mark.parametrize("protection", ["raise", "warn"])
def test_a_program_without_a_watcher_leaves_no_trace_of_a_job_that_it_let_go(ibm, fork, service, protection):
    """Or whoever reaps would cancel it."""
    ibm.hold("queued")
    job = submitted(service)
    first = fork(f"""
    from qx_supervisor import WatcherError
    from qx_supervisor.link import Link
    def refuse(*_):
        raise WatcherError("config", "there is none")
    Link.announce = Link.announce_early = refuse
    try:
        attach({job!r}, service=service(), on_status=tell, on_unprotected={protection!r}).detach()
    except WatcherError as error:
        say("not attached", error)
    say("over")
    """)
    if protection == "raise":
        assert "there is none" in " ".join(first.line("not attached "))
    first.line("over")
    end(first)
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        assert not book.rows(None)
    assert [each.jobs for each in reap(service)] == []
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_job_whose_driver_and_watcher_were_killed_together(ibm, fork):
    """Whoever reaps would cancel it."""
    ibm.hold("queued")
    first = fork("run(isa(), backend(), shots=64, on_status=tell)")
    job = first.queued()
    wait_until_written(first)
    kill_both(first)
    second = fork(attaching(job))
    second.line("attached it ")
    assert [each.jobs for each in reap(ibm.service())] == []
    ibm.hold(None)
    assert second.line("result ")[0] == job
    assert end(second) == 0
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_job_whose_driver_never_learned_its_id(ibm: local.Service, service: QiskitRuntimeService) -> None:
    """The ledger knows its tag alone, by which whoever reaps finds it."""
    ibm.hold("queued")
    job = submitted(service, environment={"job_tags": ["qxs-lost"]})
    [client] = qiskit_service.clients_of(service)
    endpoint, instance = qiskit_service.address(client)
    reap_in_background(client)  # as this process's first run would, which could take what is written next
    wait_for_first_run()
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        gone = Row(
            run="lost",
            host_identity=book.host_identity,
            pid=2**22,
            start_ticks=1,
            tag="qxs-lost",
            endpoint=endpoint,
            instance=instance,
        )
        book.write(gone)
        run = attach(job, service=service)
        # The run's own thread gives its claim on the row back, which may be after attach() has returned.
        until(lambda: book.row("lost").claimed_by, lambda claimant: claimant is None)
    assert [(each.run, each.fate) for each in reap(service)] == [("lost", "pending")]  # another may still turn up
    assert ibm.job(job).cancel_requests == 0
    assert run.cancel() == "confirmed"
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_a_job_that_a_key_keeps(ibm, fork):
    ibm.hold("queued")
    first = fork('run(isa(), backend(), shots=64, on_status=tell, key="step", grace=60)')
    job = first.queued()
    wait_until_written(first)
    first.kill()
    second = fork(attaching(job))
    said = " ".join(second.line("refused "))
    assert said == (
        f"ConfigError job {job} is kept for a driver that comes back with the key 'step'; run again with that key, "
        "which takes it up"
    )
    assert end(second) == 0
    assert ibm.job(job).cancel_requests == 0
    third = fork('run(isa(), backend(), shots=64, on_status=tell, key="step")')
    third.line("taken up again ")
    ibm.hold(None)
    assert end(third) == 0


# In one's own process -------------------------------------------------------------------------------------------


def test_a_job_that_is_over_gives_its_result_at_once(ibm: local.Service, service: QiskitRuntimeService) -> None:
    job = submitted(service)
    ibm.wait_job(job, "Completed")
    seen: list[Status] = []
    run = attach(job, service=service, on_status=seen.append)
    result = run.result()
    assert (result.job_id, result.job_ids, result.backend) == (job, (job,), BACKEND)
    assert result.counts == [{"1": 16}, {"1": 16}]
    assert [status.state for status in seen] == ["connecting", "attached", "fetching results", "done"]
    assert all(status.taken_up for status in seen[1:])
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        assert not book.rows(None)  # nobody needs to guard it
    assert run.cancel() == "confirmed"
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda backend: Sampler(mode=backend).run([bell_isa(backend)], shots=8), lambda result: result.counts),
        (
            estimated,
            lambda result: result.expectation_values.shape,
        ),
    ],
    ids=["sampler", "estimator"],
)
def test_the_results_of_any_program(
    ibm: local.Service, service: QiskitRuntimeService, make: Callable[[Any], Any], read: Callable[[Any], Any]
) -> None:
    plain = make(service.backend(BACKEND))
    ibm.wait_job(plain.job_id(), "Completed")
    assert read(attach(plain.job_id(), service=service).result()) is not None


@pytest.mark.long
def test_a_job_that_has_failed(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "Internal error.", "reason_code": 9999}]})
    job = submitted(service)
    ibm.wait_job(job, "Failed")
    with pytest.raises(JobFailed, match="Internal error") as caught:
        attach(job, service=service).result()
    assert (caught.value.job_id, caught.value.code, caught.value.is_retryable) == (job, 9999, True)


@pytest.mark.long
def test_it_can_be_cancelled_and_has_a_time_limit(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("running")
    one, two = submitted(service), submitted(service)
    run = attach(one, service=service)
    assert run.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        run.result()
    with pytest.raises(RunTimeout, match=r"no result within 5 s, so the job was cancelled"):
        attach(two, service=service, timeout=5).result()  # time enough to attach it
    assert_cancelled_once(ibm, one, two)


@pytest.mark.long
def test_of_a_run_of_this_process_it_is_the_same_run(ibm: local.Service, service: QiskitRuntimeService) -> None:
    ibm.hold("queued")
    job = submit(ones(), BACKEND, service=service, shots=16)
    [entry] = ibm.wait_for("POST", JOBS, answered=True)
    while job.job_id is None:
        ibm.wait_for("GET", f"{JOBS}/*")
    run = attach(job.job_id, service=service)
    assert isinstance(run, Run)
    with pytest.raises(ConfigError, match="is one of a run of this process already; omit timeout="):
        attach(job.job_id, service=service, timeout=3)
    run.detach()
    run = attach(job.job_id, service=service)  # it is guarded again
    assert run.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        run.result()
    assert_cancelled_once(ibm, str(entry.job_id))


def test_what_is_no_job_is_refused(ibm: local.Service, service: QiskitRuntimeService) -> None:
    def refused(job: Any, **more: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            attach(job, **{"service": service, **more})
        return str(caught.value)

    before = ibm.cursor()
    assert refused(3) == "job_id must be a string, not int; give the id that job_id() returns"
    assert refused("../instances") == (
        "'../instances' can't be a job's id; qx-supervisor ps --all lists the ids of this machine's jobs"
    )
    assert (
        refused("qxs-12345678") == "qxs-12345678 is a tag, and not a job's id; qx-supervisor ps lists ids beside tags"
    )
    assert refused(ANOTHER, service=3) == "service must be a QiskitRuntimeService, not int"
    assert ibm.cursor() == before
    [client] = qiskit_service.clients_of(service)
    assert refused(ANOTHER) == (
        f"there is no job {ANOTHER} at the instance {qiskit_service.address(client)[1]} of the given service; check "
        "the id, or give the instance that it was submitted to, with instance= or service="
    )
    assert not ibm.journal(method="POST", path=JOBS)
