"""`guard`: jobs, sessions and batches that the user made with Qiskit itself."""

from __future__ import annotations

import pytest
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, Session
from testkit.circuits import bell
from testkit.client import Sampler

from qx_supervisor import ConfigError, guard, run

SESSION = """
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, Session
backend, isa = backend(), isa()
"""


@pytest.fixture
def backend(ibm):
    return ibm.service().backend("ibm_brisbane")


@pytest.fixture
def isa(backend):
    return generate_preset_pass_manager(0, backend).run(bell())


@pytest.mark.parametrize("mode", ["Session", "Batch"])
@pytest.mark.client
@pytest.mark.short_only("Session")
def test_death_cancels_all_of_a_session_and_closes_it(ibm, fork, mode):
    """Queued and running jobs, by plain Qiskit and by `run`, each with one request."""
    ibm.hold("running")
    driver = fork(
        SESSION
        + f"""
session = {mode}(backend)
with guard(session):
    sampler = Sampler(mode=session)
    ids = [sampler.run([isa]).job_id() for _ in range(3)]
    say("session", session.session_id, *ids)
    run(isa, session, on_status=tell)
"""
    )
    session, *jobs = driver.line("session ")
    jobs.append(driver.line("running ")[0])
    driver.kill()
    for job in jobs:
        assert ibm.wait_job(job).status == "Cancelled"
        assert ibm.job(job).cancel_requests == 1
    ibm.wait_for("DELETE", f"/api/v1/sessions/{session}/close")


@pytest.mark.client
def test_a_job_whose_id_the_driver_never_learned(ibm, fork):
    """The POST to a guarded session is in flight when its driver dies; what comes of it is cancelled, or refused."""
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 0.5}]})
    ibm.hold("queued")
    driver = fork(
        SESSION
        + """
session = Session(backend)
with guard(session):
    say("session", session.session_id)
    Sampler(mode=session).run([isa])
"""
    )
    driver.line("session ")
    ibm.wait_for("POST", "/api/v1/jobs")
    driver.kill()
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    assert all(job.status == "Cancelled" for job in ibm.wait_idle())


@pytest.mark.client
def test_an_exception_cancels_and_is_not_swallowed(ibm, backend, isa):
    ibm.hold("running")
    session = Session(backend)
    with pytest.raises(ZeroDivisionError), guard(session):
        jobs = [Sampler(mode=session).run([isa]).job_id() for _ in range(2)]
        raise ZeroDivisionError
    assert [ibm.job(job).status for job in jobs] == ["Cancelled", "Cancelled"]
    assert [ibm.job(job).cancel_requests for job in jobs] == [1, 1]
    assert ibm.journal(method="DELETE", path="/api/v1/sessions/*/close")


def test_left_normally_it_does_what_qiskit_does(ibm, backend, isa):
    with Session(backend) as session, guard(session):
        job = Sampler().run([isa])
    assert len(job.result()) == 1
    assert not ibm.journal(path="*/cancel")
    assert not ibm.journal(method="DELETE")


@pytest.mark.client
def test_plain_jobs(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        SESSION
        + """
jobs = [Sampler(mode=backend).run([isa]) for _ in range(2)]
with guard(*jobs):
    say("jobs", *(job.job_id() for job in jobs))
    jobs[0].result()
"""
    )
    jobs = driver.line("jobs ")
    driver.kill()
    for job in jobs:
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_someone_elses_session_stays_open(ibm, fork, backend, isa):
    """Two drivers share a session; one is killed; the other's jobs run to their results."""
    ibm.hold("running")
    session = Session(backend)
    other = Sampler(mode=session).run([isa])
    driver = fork(
        SESSION
        + f"""
session = Session.from_id("{session.session_id}", backend.service)
with guard(session, owner=False):
    say("jobs", *(Sampler(mode=session).run([isa]).job_id() for _ in range(2)))
    run(isa, session, on_status=tell)
"""
    )
    jobs = driver.line("jobs ")
    jobs.append(driver.line("running ")[0])
    driver.kill()
    for job in jobs:
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    ibm.hold(None)
    assert len(other.result()) == 1
    assert session.details()["accepting_jobs"]
    session.close()


@pytest.mark.long
def test_someone_elses_batch_and_an_exception(ibm, backend, isa):
    ibm.hold("queued")
    batch = Batch(backend)
    other = Sampler(mode=batch).run([isa])
    with pytest.raises(ZeroDivisionError), guard(batch, owner=False):
        mine = Sampler(mode=batch).run([isa])
        raise ZeroDivisionError
    assert ibm.job(mine.job_id()).status == "Cancelled"
    assert ibm.job(other.job_id()).cancel_requests == 0
    ibm.hold(None)
    assert len(other.result()) == 1
    batch.close()


@pytest.mark.long
def test_tags_of_plain_jobs_stay_within_what_is_allowed(ibm, backend, isa):
    with Session(backend) as session, guard(session):
        sampler = Sampler()
        sampler.options.environment.job_tags = [f"t{i}" for i in range(8)]
        full = sampler.run([isa])
        sampler.options.environment.job_tags = ["mine"]
        ours = sampler.run([isa])
    assert ibm.job(full.job_id()).tags == [f"t{i}" for i in range(8)]
    assert ibm.job(ours.job_id()).tags[0] == "mine"
    assert len(ibm.job(ours.job_id()).tags) == 2
    assert sampler.options.environment.job_tags == ["mine"]


@pytest.mark.parametrize(("target", "said"), [(3, "not int"), ("job-id", "not str")])
def test_what_can_not_be_guarded(target, said):
    with pytest.raises(ConfigError, match=said), guard(target):
        pass


def test_nothing_to_guard():
    with pytest.raises(ConfigError, match="nothing to guard"):
        guard()


def test_a_closed_session_is_refused(ibm, backend):
    session = Session(backend)
    session.close()
    with pytest.raises(ConfigError, match="closed"), guard(session):
        pass


@pytest.mark.client
def test_run_in_a_session(ibm, backend, isa):
    with Session(backend) as session, guard(session):
        assert sum(run(isa, session, shots=32, panel=None).counts.values()) == 32


@pytest.mark.long
def test_blocks_in_blocks_for_one_session(ibm, fork):
    """The end of the inner block leaves the outer one as it was; a job submitted in both belongs to both."""
    ibm.hold("queued")
    driver = fork(
        SESSION
        + """
session = Session(backend)
def submitted():
    return Sampler(mode=session).run([isa]).job_id()
with guard(session, owner=False):
    before = submitted()
    with guard(session, owner=False):
        inner = submitted()
        try:
            with guard(session, owner=False):
                say("wanted no more", submitted())
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        also_inner = submitted()
    say("jobs", before, inner, also_inner, submitted())
    signal.pause()
say("left")
"""
    )
    [dropped] = driver.line("wanted no more ")
    jobs = driver.line("jobs ")
    assert [ibm.job(job).cancel_requests for job in (dropped, *jobs)] == [1, 0, 0, 0, 0]
    assert [len(ibm.job(job).tags) for job in (dropped, *jobs)] == [3, 1, 2, 2, 1]
    driver.kill()
    for job in (dropped, *jobs):
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
