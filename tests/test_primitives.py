"""`qx_supervisor.primitives`: Qiskit's primitives, whose jobs are guarded runs."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import os
import pickle
import signal
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import QFTGate
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, PrimitiveResult
from qiskit.primitives.base.base_primitive_job import BasePrimitiveJob
from qiskit.providers import JobStatus
from qiskit.providers.jobstatus import JOB_FINAL_STATES
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error
from qiskit_ibm_runtime import Batch, Session
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from testkit import client
from testkit.circuits import BACKEND, bell, ones
from testkit.client import EstimatorOptions, SamplerOptions, pickled
from testkit.drivers import assert_cancelled_once, end
from testkit.processes import DEADLINE

from qx_supervisor import (
    BudgetExceeded,
    ConfigError,
    JobCancelled,
    JobFailed,
    QxError,
    RunTimeout,
    Status,
    budget,
    guard,
    run,
    submit,
    threads,
)
from qx_supervisor.fingerprint import fingerprint
from qx_supervisor.primitives import Estimator, GuardedJob, JobState, Sampler
from qx_supervisor.request import Request, check, frozen
from qx_supervisor.service import isa_circuits_of

PRIMITIVES = """
from qiskit_ibm_runtime import Batch, Session
from qx_supervisor.primitives import Estimator, Sampler
"""

POSTS = {"method": "POST", "path": "/api/v1/jobs"}


@pytest.fixture
def backend(ibm, service):
    return service.backend(BACKEND)


@pytest.fixture
def refused(ibm) -> Callable[[Callable[[], Any]], str]:
    """Does what must be refused, and returns the message."""

    def refused(call: Callable[[], Any]) -> str:
        with pytest.raises(ConfigError) as caught:
            call()
        assert not ibm.journal(**POSTS)
        return caught.value.reason

    return refused


@pytest.fixture
def begin(monkeypatch) -> Callable[[], None]:
    """Has what was submitted begin: until then, all threads that do that are busy."""
    waiting: list[Callable[[], object]] = []
    do = threads.submitting.do
    monkeypatch.setattr(threads.submitting, "do", waiting.append)

    def begin() -> None:
        monkeypatch.setattr(threads.submitting, "do", do)
        for each in waiting:
            do(each)

    return begin


def turned() -> tuple[QuantumCircuit, SparsePauliOp]:
    """A circuit with a parameter, and what is measured of it: its expectation value is the angle's cosine."""
    circuit = QuantumCircuit(1)
    circuit.ry(Parameter("t"), 0)
    return circuit, SparsePauliOp("Z")


# Deaths -----------------------------------------------------------------------------------------------------------


def test_a_killed_program(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        PRIMITIVES
        + """
job = Sampler(backend(), tags=["mine"]).run([isa()], shots=64)
say("queued", job.job_id())
job.result()
"""
    )
    job = driver.queued()
    driver.kill()
    assert "mine" in ibm.wait_job(job, "Cancelled").tags
    assert_cancelled_once(ibm, job)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["Session", "Batch"])
def test_a_killed_program_in_a_session(ibm, fork, mode):
    """All jobs of both primitives are cancelled; the session is closed if `guard` knows of it."""
    ibm.hold("running")
    driver = fork(
        PRIMITIVES
        + f"""
with {mode}(backend()) as session, guard(session):
    sampler, estimator = Sampler(), Estimator(mode=session)
    bare = isa().remove_final_measurements(inplace=False)
    jobs = [sampler.run([isa()]), sampler.run([isa()]), estimator.run([(bare, "Z" * 2)])]
    say("session", session.session_id, *(job.job_id() for job in jobs))
    jobs[0].result()
"""
    )
    session, *jobs = driver.line("session ")
    driver.kill()
    for job in jobs:
        ibm.wait_job(job, "Cancelled")
        assert ibm.job(job).cancel_requests == 1
    ibm.wait_for("DELETE", f"/api/v1/sessions/{session}/close")


@pytest.mark.long
def test_killed_while_the_submission_is_under_way(ibm, fork):
    """The job whose id nobody has learned is found by its tag."""
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 0.5}]})
    ibm.hold("queued")
    driver = fork(PRIMITIVES + "Sampler(backend()).run([isa()])")
    ibm.wait_for("POST", "/api/v1/jobs")
    driver.kill()
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    assert [job.status for job in ibm.wait_idle()] == ["Cancelled"]


@pytest.mark.long
def test_a_signal_while_the_result_is_waited_for(ibm, fork):
    """As in `Run.result()`: a Ctrl-C ends the wait, the job goes on guarded, and the end of the process cancels it."""
    ibm.hold("queued")
    driver = fork(
        PRIMITIVES
        + """
job = Sampler(backend()).run([isa()])
try:
    say("queued", job.job_id())
    job.result()
except KeyboardInterrupt:
    say("still", job.status())
os.read(0, 1)
"""
    )
    job = driver.queued()
    driver.send(signal.SIGINT)
    assert driver.line("still ") == ["QUEUED"]
    assert not ibm.journal(path="*/cancel")
    driver.send(signal.SIGTERM)
    assert end(driver) == -signal.SIGTERM
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_a_signal_while_it_is_submitted(ibm, fork):
    """Nobody has the job: it is cancelled."""
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 1.0}]})
    ibm.hold("queued")
    driver = fork(
        PRIMITIVES
        + """
try:
    Sampler(backend()).run([isa()])
except KeyboardInterrupt:
    say("interrupted")
from qx_supervisor import threads
while threads.runs():
    threads.runs()[0].outcome.exception()
say("over")
"""
    )
    ibm.wait_for("POST", "/api/v1/jobs")
    driver.send(signal.SIGINT)
    driver.line("interrupted")
    driver.line("over")
    assert driver.end() == 0
    [job] = ibm.jobs()
    assert (job.status, job.cancel_requests) == ("Cancelled", 1)


@pytest.mark.long
def test_a_forked_child(ibm, fork):
    """A job is its process's; a primitive can be used in the child, whose death cancels the child's job alone."""
    ibm.hold("queued")
    driver = fork(
        PRIMITIVES
        + """
sampler = Sampler(backend())
mine = sampler.run([isa()])
child = os.fork()
if child == 0:
    try:
        mine.result()
    except QxError as error:
        say("refused", error)
    own = sampler.run([isa()])
    say("child", own.job_id())
    signal.pause()
say("parent", mine.job_id(), child)
os.waitpid(child, 0)
say("reaped")
mine.result()
"""
    )
    parents, child = driver.line("parent ")
    assert "belongs to process" in " ".join(driver.line("refused "))
    [childs] = driver.line("child ")
    os.kill(int(child), signal.SIGKILL)
    driver.line("reaped")
    ibm.wait_job(childs, "Cancelled")
    assert ibm.job(parents).status == "Queued"
    driver.kill()
    ibm.wait_job(parents, "Cancelled")
    assert [ibm.job(job).cancel_requests for job in (childs, parents)] == [1, 1]


# Jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_sampler(ibm, backend):
    sampler = Sampler(mode=backend, options={"default_shots": 50})
    assert isinstance(sampler, BaseSamplerV2)
    assert sampler.backend() is backend
    job = sampler.run([ones(), (ones(),)])
    assert isinstance(job, BasePrimitiveJob)
    result = job.result()
    assert isinstance(result, PrimitiveResult)
    assert [pub.data.meas.get_counts() for pub in result] == [{"1": 50}] * 2
    assert ibm.job(job.job_id()).status == "Completed"
    assert job.result() is result
    assert sampler.run([ones()], shots=np.int64(7)).result()[0].data.meas.get_counts() == {"1": 7}
    sampler.options.default_shots = 5
    assert sampler.run([ones()]).result()[0].data.meas.num_shots == 5
    sampler.options = SamplerOptions(default_shots=6)
    assert sampler.run([ones()]).result()[0].data.meas.num_shots == 6


@pytest.mark.long
def test_an_estimator(ibm, backend):
    """In shapes as Qiskit has them; circuits are transpiled, and observables laid out with them."""
    estimator = Estimator(backend, {"resilience_level": 0})
    assert isinstance(estimator, BaseEstimatorV2)
    circuit, observable = turned()
    result = estimator.run([(circuit, observable, [[0.0], [np.pi]])], precision=0.1).result()
    assert result[0].data.evs == pytest.approx([1, -1])
    assert result.metadata["target_precision"] == pytest.approx(0.1)
    own = estimator.run([(circuit, observable, [0.0], 0.2)], precision=0.1).result()
    assert own.metadata["target_precision"] == pytest.approx(0.2)


@pytest.mark.long
def test_states(ibm, backend):
    """Equal to what jobs of the client return, and to Qiskit's enumeration."""
    ibm.hold("queued")
    heard: list[Status] = []
    queued, running = threading.Event(), threading.Event()

    def hear(status: Status) -> None:
        heard.append(status)
        {"queued": queued, "running": running}.get(status.state, threading.Event()).set()

    job = Sampler(backend, on_status=hear, poll_interval=0.1, label="mine").run([ones()])
    assert queued.wait(DEADLINE)
    assert job.status() == "QUEUED" == job.status().name
    assert job.status() == JobStatus.QUEUED
    assert [job.status() != JobStatus.QUEUED, job.in_final_state(), job.running()] == [False] * 3
    assert repr(job) == f"GuardedJob(state='QUEUED', job_id={job.job_id()!r})"
    assert job.error_message() is None
    with pytest.raises(TimeoutError):
        job.result(timeout=0)
    ibm.hold("running")
    assert running.wait(DEADLINE)
    assert job.running()
    ibm.hold(None)
    job.wait_for_final_state()
    assert job.done()
    assert job.status() in JOB_FINAL_STATES
    assert job.status() in {JobStatus.DONE}
    assert [job.cancelled(), job.errored()] == [False] * 2
    assert heard[-1].label == "mine"
    assert job.usage() == (job.qpu_seconds or 0)


def test_states_are_equal_to_both_kinds():
    for status in JobStatus:
        state = JobState(status.name)
        assert [state == status, status == state, state == status.name] == [True] * 3
        assert hash(state) == hash(status)
    assert JobState("DONE") != JobStatus.ERROR
    assert JobState("DONE") != "ERROR"
    assert JobState("DONE") != 4


@pytest.mark.long
def test_a_cancelled_job(ibm, backend):
    ibm.hold("queued")
    job = Sampler(backend).run([ones()])
    assert job.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        job.result()
    assert job.cancelled()
    assert job.in_final_state()
    assert ibm.job(job.job_id()).cancel_requests == 1


@pytest.mark.long
def test_a_failed_job(ibm, backend):
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}]})
    job = Sampler(backend).run([ones()])
    with pytest.raises(JobFailed, match="luck"):
        job.result()
    assert job.errored()
    assert "luck" in job.error_message()


@pytest.mark.long
def test_a_job_that_takes_too_long(ibm, backend):
    ibm.hold("running")
    job = Sampler(backend, running_timeout=1, poll_interval=0.1).run([ones()])
    with pytest.raises(RunTimeout):
        job.result()
    assert job.cancelled()
    assert ibm.job(job.job_id()).cancel_requests == 1


@pytest.mark.long
def test_a_refused_submission(ibm, backend):
    """It is raised by `run`, as Qiskit's primitives do."""
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "status": 400}]})
    with pytest.raises(QxError, match="could not be submitted"):
        Sampler(backend).run([ones()])


@pytest.mark.long
def test_a_detached_job(ibm, fork):
    ibm.hold("queued")
    driver = fork(PRIMITIVES + "job = Sampler(backend()).run([isa()])\njob.detach()\nsay('queued', job.job_id())")
    job = driver.queued()
    assert end(driver) == 0
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_await(ibm, backend):
    """Several at once; cancelling the task cancels its job."""
    sampler = Sampler(backend)

    async def work() -> None:
        results = await asyncio.gather(*(sampler.run([ones()], shots=shots) for shots in (3, 4)))
        assert all(isinstance(result, PrimitiveResult) for result in results)
        assert [result[0].data.meas.num_shots for result in results] == [3, 4]
        ibm.hold("queued")
        job = sampler.run([ones()])
        task = asyncio.ensure_future(wait(job))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (ibm.job(job.job_id()).status, ibm.job(job.job_id()).cancel_requests) == ("Cancelled", 1)

    async def wait(job: GuardedJob) -> Any:
        return await job

    asyncio.run(work())


@pytest.mark.long
def test_callbacks(ibm, backend):
    called: list[GuardedJob] = []
    over = threading.Event()
    job = Sampler(backend).run([ones()])
    job.add_done_callback(lambda its: (called.append(its), over.set()))
    assert over.wait(DEADLINE)
    assert called == [job]


@pytest.mark.long
def test_threads_share_a_primitive(ibm, backend):
    estimator = Estimator(backend, {"resilience_level": 0})
    circuit, observable = turned()
    angles = np.linspace(0, np.pi, 6)
    values: dict[float, float] = {}

    def work(angle: float) -> None:
        values[angle] = float(estimator.run([(circuit, observable, [angle])]).result()[0].data.evs)

    working = [threading.Thread(target=work, args=(angle,)) for angle in angles]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(DEADLINE)
    assert [values[angle] for angle in angles] == pytest.approx(list(np.cos(angles)), abs=0.1)
    assert len(ibm.jobs()) == len(angles)


@pytest.mark.long
def test_a_batch_that_closes_after_the_last_submission(ibm, backend):
    """`run` returns when the service has the job, so that the end of the block can't come before a POST."""
    with Batch(backend):
        jobs = [Sampler().run([ones()], shots=8) for _ in range(3)]
    assert [job.result()[0].data.meas.num_shots for job in jobs] == [8] * 3


@pytest.mark.long
def test_a_budget_is_for_all_its_jobs_together(ibm, backend):
    """Whether it is the primitive's own or that of a block."""
    ibm.charge(fixed=4, estimate=None)
    sampler = Sampler(backend, budget=10)
    for bound in (10, 6, 2):
        with contextlib.suppress(BudgetExceeded):  # the last one takes more
            sampler.run([ones()]).result()
        assert ibm.jobs()[-1].max_execution_time == bound
    with pytest.raises(BudgetExceeded, match="nothing was submitted"):
        sampler.run([ones()])
    with budget(qpu_seconds=4):
        Sampler(backend).run([ones()]).result()
        with pytest.raises(BudgetExceeded, match="nothing was submitted"):
            Sampler(backend).run([ones()])
    assert len(ibm.jobs()) == 4


@pytest.mark.long
def test_local_backends(ibm):
    """In Qiskit's local testing mode: nothing is submitted, and what `run` was given is not changed by what follows."""
    circuit, observable = turned()
    for backend in (FakeManilaV2(), AerSimulator.from_backend(FakeManilaV2())):
        sampler = Sampler(backend=backend, options={"default_shots": 9})
        job = sampler.run([ones()])
        sampler.options.default_shots = 8
        assert job.result()[0].data.meas.num_shots == 9
        assert job.done()
        assert len(job.job_id()) > 20
        values = (
            Estimator(backend=backend, options={"resilience_level": 0})
            .run([(circuit, observable, [0.0])])
            .result()[0]
            .data.evs
        )
        assert values == pytest.approx(1, abs=0.2)
    assert not ibm.journal()


def steps(make: Callable[[Any, np.ndarray], Any]) -> list[Any]:
    """Three jobs of a circuit that is turned by half a turn more each time, in place, and emptied in the end."""
    circuit, _ = turned()
    circuit.measure_all()
    angles = np.zeros(1)
    jobs = []
    for _ in range(3):
        jobs.append(make(circuit, angles))
        angles += np.pi
    circuit.clear()
    return jobs


def test_a_local_job_is_what_was_given_to_it(begin):
    """Whatever the program does with that before it is its turn."""
    sampler = Sampler(AerSimulator())
    jobs = steps(lambda circuit, angles: sampler.run([(circuit, angles)], shots=5))
    begin()
    assert [job.result()[0].data.meas.get_counts() for job in jobs] == [{"0": 5}, {"1": 5}, {"0": 5}]


def test_what_is_submitted_is_what_was_given(begin):
    """So are options, those of a primitive object too."""
    options = {"default_shots": 5}
    own = client.Sampler(mode=AerSimulator())
    own.options.default_shots = 7
    guarded = Sampler(AerSimulator(), {"default_shots": 9})
    backend = AerSimulator()
    runs = [
        *steps(lambda circuit, angles: submit((circuit, angles), backend, options=options)),
        *steps(lambda circuit, angles: submit((circuit, angles), primitive=own)),
        *steps(lambda circuit, angles: submit((circuit, angles), primitive=guarded)),
    ]
    options["default_shots"] = own.options.default_shots = guarded.options.default_shots = 1
    begin()
    assert [each.result().counts for each in runs] == [{bit: shots} for shots in (5, 7, 9) for bit in ("0", "1", "0")]


@pytest.mark.parametrize("mode", [Session, Batch])
def test_a_local_session_that_is_over_before_its_jobs_begin(begin, mode, caplog):
    """They run in it all the same. What is submitted after its end is refused, as at the service."""
    with mode(backend=FakeManilaV2()) as session:
        guarded, own = Sampler(), client.Sampler(mode=session)
        job = guarded.run([ones()], shots=5)
        runs = [submit(ones(), shots=5), submit(ones(), session, shots=5), submit(ones(), primitive=own, shots=5)]
    begin()
    for result in (job.result(), *(each.result() for each in runs)):
        assert result[0].data.meas.num_shots == 5
    assert "job mode" not in caplog.text  # as an older client warns where a primitive is in another session
    for primitive in (guarded, own):
        with pytest.raises(ConfigError, match="the session None is closed; open a new one"):
            submit(ones(), primitive=primitive)


def test_a_batch_that_is_over_before_a_run_begins(ibm, backend, begin):
    """The refusal says that the `with` block was too short, and not that the batch was closed from the start."""
    with Batch(backend) as batch:
        runs = [submit(ones()), submit(ones(), batch)]
    begin()
    for each in runs:
        with pytest.raises(ConfigError) as caught:
            each.result()
        assert caught.value.reason == (
            f"the session {batch.session_id} was closed before this run was submitted; open a new one, and have what "
            "submit() returns wait_for_job() before the `with` block ends"
        )
    assert not ibm.journal(**POSTS)


def test_an_estimators_pubs_are_what_was_given(begin):
    circuit, observable = turned()
    angles = np.zeros(1)
    runs = []
    for _ in range(2):
        runs.append(submit((circuit, observable, angles), AerSimulator(), primitive="estimator"))
        angles += np.pi
    begin()
    assert [each.result().expectation_values for each in runs] == [pytest.approx(1), pytest.approx(-1)]


def test_a_frozen_call_is_the_same():
    """Its circuits are copied once each, and it has the fingerprint that it had."""
    circuit, observable = turned()
    other = circuit.copy()
    pubs = [(circuit, observable, [0.1]), (other, "X", [[0.2], [0.3]]), (circuit, ["Y", "Z"], {"t": 0.4}, 0.5)]
    estimator = Estimator(FakeManilaV2(), {"default_shots": 9})
    request = called(estimator, pubs=pubs)
    copied = frozen(request)
    first, second, third = (pub.circuit for pub in copied.pubs)
    assert first is third is not second
    assert first == circuit
    assert first is not circuit
    assert fingerprint(copied) == fingerprint(request)
    assert isa_circuits_of(copied.primitive) is isa_circuits_of(estimator.qx_primitive) is not None


@pytest.mark.long
@pytest.mark.parametrize("gates", [["ry"], ["p", "h"], ["u"], ["rx"]], ids=str)
def test_a_simulator_that_has_every_gate(gates):
    """The client's current estimator takes no parameters of `ry`: circuits are transpiled for it."""
    angle = Parameter("t")
    circuit = QuantumCircuit(2)
    for gate in gates:
        getattr(circuit, gate)(*{"h": (), "u": (angle, 0, 0)}.get(gate, (angle,)), 0)
    circuit.cx(0, 1)
    measured = circuit.measure_all(inplace=False)
    [value] = [pub.data.evs for pub in Estimator(AerSimulator()).run([(circuit, "ZZ", [np.pi])]).result()]
    assert value == pytest.approx(1, abs=0.2)
    assert Sampler(AerSimulator()).run([(measured, [np.pi])], shots=8).result()[0].data.meas.num_shots == 8
    assert run((circuit, "ZZ", [np.pi]), AerSimulator(), primitive="estimator", panel=None).backend == "aer_simulator"


@pytest.mark.long
def test_a_simulators_noise_is_of_the_gates_as_they_are():
    noise = NoiseModel(basis_gates=["ry", "rz", "cz"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.9, 2), ["cz"])
    angle = Parameter("t")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cz(0, 1)
    estimator = Estimator(AerSimulator(noise_model=noise))
    [value] = [pub.data.evs for pub in estimator.run([(circuit, "ZZ", [np.pi])]).result()]
    assert value == pytest.approx(-0.1, abs=0.2)


@pytest.mark.long
def test_a_simulators_circuits_keep_what_is_no_rotation():
    """A reset, a delay, and what is transpiled for another reason."""
    angle = Parameter("t")
    circuit = QuantumCircuit(2)
    circuit.reset(0)
    circuit.append(QFTGate(2), [0, 1])
    circuit.reset([0, 1])
    circuit.ry(angle, 0)
    circuit.delay(100, 0)
    [value] = [pub.data.evs for pub in Estimator(AerSimulator()).run([(circuit, "ZZ", [np.pi])]).result()]
    assert value == pytest.approx(-1, abs=0.2)


@pytest.mark.long
def test_run_takes_one(ibm, backend):
    """As it takes Qiskit's own."""
    sampler = Sampler(backend, {"default_shots": 11}, budget=10, tags=["its"])
    result = run(ones(), primitive=sampler, tags=["mine"], panel=None)
    assert result.counts == {"1": 11}
    [job] = ibm.jobs()
    assert job.max_execution_time == 10
    assert {"its", "mine"} <= {*job.tags}


def test_circuits_are_transpiled_as_each_call_asks(monkeypatch):
    """What was transpiled for another call is used only if that asked for the same."""
    sampler = Sampler(FakeManilaV2())
    monkeypatch.setattr(sampler.qx_primitive, "run", (runs := Mock(wraps=sampler.qx_primitive.run)))
    circuit = QuantumCircuit(1)
    circuit.y(0)
    circuit.y(0)
    circuit.measure_all()

    def transpiled(**how: Any) -> tuple[bool, list[int]]:
        """Whether it has gates then, and the physical qubits that it is laid out on."""
        run(circuit, primitive=sampler, panel=None, **how)
        [pub] = runs.call_args.args[0]
        return not pub.circuit.count_ops().keys() <= {"barrier", "measure"}, pub.circuit.layout.final_index_layout()

    manager = generate_preset_pass_manager(0, FakeManilaV2(), initial_layout=[2])
    assert transpiled(optimization_level=0, initial_layout=[3]) == (True, [3])
    has_gates, chosen = transpiled()
    assert not has_gates
    assert transpiled(initial_layout=[4]) == (False, [4])
    assert transpiled(pass_manager=manager) == (True, [2])
    assert transpiled() == (False, chosen)


def test_equal_circuits_of_a_job_are_transpiled_once(monkeypatch):
    sampler = Sampler(FakeManilaV2())
    monkeypatch.setattr(sampler.qx_primitive, "run", (runs := Mock(wraps=sampler.qx_primitive.run)))
    one, same, other = bell(), bell().copy(name="same"), bell().reverse_bits()
    run([one, same, one, other], primitive=sampler, panel=None)
    first, second, third, fourth = (pub.circuit for pub in runs.call_args.args[0])
    assert first is third
    assert second == first != fourth
    assert second.name == "same"


def test_the_shots_of_one_run_are_not_set_in_the_options_that_it_was_given():
    options = EstimatorOptions()
    before = copy.deepcopy(options)
    pub = (*turned(), [0.0])
    run(pub, FakeManilaV2(), primitive="estimator", shots=50, options=options, panel=None)
    assert options == before


def called(sampler: Sampler, **given: Any) -> Request:
    """What a call of `run` comes to."""
    arguments = {name: each.default for name, each in inspect.signature(run).parameters.items() if name != "panel"}
    return check({**arguments, "pubs": ones(), "primitive": sampler, **given})


def test_run_takes_what_one_says_of_each_job():
    """Where the call says nothing itself. Tags and budgets of both count."""
    hear = print
    all_jobs, this_one = budget(qpu_seconds=50), budget(qpu_seconds=5)
    each: dict[str, Any] = {
        "label": "its",
        "timeout": 3.0,
        "running_timeout": 2.0,
        "poll_interval": 0.7,
        "optimization_level": 3,
        "seed_transpiler": 7,
        "on_status": hear,
    }
    sampler = Sampler(FakeManilaV2(), tags=["its", "both"], budget=all_jobs, on_unprotected="warn", **each)
    request = called(sampler)
    assert {name: getattr(request, name) for name in each} == each
    assert request.tags == ("its", "both")
    assert request.budgets == (all_jobs,)
    assert request.on_unprotected == "raise"  # the call has to allow that
    own = {**each, "label": "mine", "timeout": 4.0, "optimization_level": 0, "seed_transpiler": 0}
    request = called(sampler, **own, tags=["both", "mine"], budget=this_one)
    assert {name: getattr(request, name) for name in own} == own
    assert request.tags == ("its", "both", "mine")
    assert {*request.budgets} == {all_jobs, this_one}
    manager = generate_preset_pass_manager(1, FakeManilaV2())
    assert called(sampler, pass_manager=manager).seed_transpiler is None
    with pytest.raises(ConfigError, match="6 tags are too many"):
        called(sampler, tags=["1", "2", "3", "4"])


# Copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_copies(ibm, backend):
    """A copy is for the same backend, with options of its own. Neither a primitive nor a job can be pickled."""
    sampler = Sampler(backend, tags=["mine"], options={"default_shots": 5})
    for copied in (copy.copy(sampler), copy.deepcopy(sampler)):
        copied.options.default_shots = 6
        assert sampler.options.default_shots == 5
        assert copied.run([ones()]).result()[0].data.meas.num_shots == 6
    assert ["mine" in job.tags for job in ibm.jobs()] == [True, True]
    with pytest.raises(QxError, match="make one where it is used: Sampler"):
        pickle.dumps(sampler)
    job = sampler.run([ones()])
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(QxError, match="pass on its job_id"):
            copied(job)
    assert pickled(job.result())[0].data.meas.num_shots == 5


# Wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_where_it_is_made(refused, backend):
    assert refused(Sampler) == "Sampler needs a backend object, an open Session or a Batch; give one of them as mode="
    assert refused(lambda: Estimator("ibm_brisbane")) == (
        "Estimator needs a backend object, not its name; give service.backend('ibm_brisbane')"
    )
    assert "mode= and backend= name the same thing" in refused(lambda: Sampler(backend, backend=backend))
    assert "not int" in refused(lambda: Sampler(5))
    assert "the options do not fit Sampler" in refused(lambda: Sampler(backend, {"resilience_level": 1}))
    sampler = Sampler(backend)
    with pytest.raises(ConfigError, match="the options do not fit Sampler"):
        sampler.options = 5
    assert "tags must be several strings" in refused(lambda: Sampler(backend, tags="one"))
    assert "label must be" in refused(lambda: Sampler(backend, label=5))
    assert "budget must be" in refused(lambda: Sampler(backend, budget=0))


@pytest.mark.long
def test_what_it_is_given(refused, backend):
    sampler, estimator = Sampler(backend), Estimator(backend)
    assert "measures nothing" in refused(lambda: sampler.run([bell(measured=False)]))
    assert "shots must be" in refused(lambda: sampler.run([bell()], shots=0))
    assert "an estimator needs observables too" in refused(lambda: estimator.run([bell(measured=False)]))
    for wrong in (0, -1, "fine", float("nan"), True):
        assert "precision must be" in refused(lambda wrong=wrong: estimator.run([turned()], precision=wrong))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"timeout": "1h"}, "timeout must be a number of seconds above 0, not '1h'"),
        ({"running_timeout": 0}, "running_timeout must be a number of seconds above 0, not 0"),
        ({"poll_interval": 0.01}, "poll_interval must be a number of seconds of at least 0.1, not 0.01"),
        ({"optimization_level": 4}, "optimization_level must be 0, 1, 2 or 3, not 4"),
        ({"seed_transpiler": -1}, "seed_transpiler must be a whole number of at least 0, not -1"),
        ({"on_status": 3}, "on_status must be callable, not int"),
        ({"on_unprotected": "no"}, 'on_unprotected must be "raise" or "warn", not \'no\''),
        ({"budget": "5"}, "budget must be a number of seconds of at least 1, not '5'"),
        ({"options": {"default_shots": -4}}, "default_shots must be a whole number of at least 1, not -4"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_where_they_are_given(wrong: dict[str, Any], said: str) -> None:
    """In the words of `run`."""
    for make in (Sampler, Estimator):
        with pytest.raises(ConfigError) as caught:
            make(FakeManilaV2(), **wrong)
        assert caught.value.reason == said
    with pytest.raises(ConfigError) as caught:
        run(bell(), FakeManilaV2(), panel=None, **wrong)
    assert caught.value.reason == said


@pytest.mark.parametrize("number", [np.int64(5), np.float32(5), Fraction(5), 5], ids=repr)
def test_seconds_are_any_real_number(number: Any) -> None:
    """The watcher is told them as JSON, which has no number of NumPy's."""
    seconds = ("timeout", "running_timeout", "poll_interval")
    given: dict[str, Any] = dict.fromkeys(seconds, number)
    sampler = Sampler(FakeManilaV2(), **given)
    for request in (called(sampler), called(sampler, **given, key="k", grace=number)):
        assert [type(getattr(request, name)) for name in seconds] == [float] * 3
        assert [getattr(request, name) for name in seconds] == [5.0] * 3
    assert (type(request.grace), request.grace) == (float, 5.0)


def test_wrong_values_that_are_set_later() -> None:
    sampler, estimator = Sampler(FakeManilaV2()), Estimator(FakeManilaV2())
    sampler.options.default_shots = -4
    estimator.options.default_precision = float("inf")
    with pytest.raises(ConfigError, match="default_shots must be a whole number of at least 1, not -4"):
        sampler.run([bell()])
    with pytest.raises(ConfigError, match="default_precision must be a number above 0, the wanted standard error"):
        estimator.run([(*turned(), [0.1])])


@pytest.mark.long
def test_a_closed_session(refused, backend):
    with Session(backend) as session:
        sampler = Sampler()
    assert f"the session {session.session_id} is closed" in refused(lambda: sampler.run([ones()]))
    assert f"the session {session.session_id} is closed" in refused(lambda: Sampler(session))


@pytest.mark.long
def test_guard_takes_none_of_its_jobs(ibm, backend):
    """They are guarded already: another guard would cancel each once more."""
    for job in (Sampler(backend).run([ones()]), submit(ones(), backend)):
        with pytest.raises(ConfigError, match="is guarded already; leave it away here"):
            guard(job)
        job.result()


@pytest.mark.long
def test_it_is_shown_what_it_is(ibm, backend):
    assert repr(Sampler(backend)) == f"Sampler(backend={BACKEND!r})"
    with Session(backend) as session, guard(session):
        assert repr(Estimator()) == f"Estimator(session={session.session_id!r})"
        assert Estimator().mode is session


@pytest.fixture(autouse=True)
def all_over():
    """No test leaves a run."""
    before = threads.runs()
    yield
    for left in threads.runs():
        if left not in before:
            left.outcome.exception(DEADLINE)
