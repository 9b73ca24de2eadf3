"""Executors and noise learners: taken by `run`, `submit` and `guard`, like samplers and estimators."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from testkit.circuits import BACKEND, bell, ones
from testkit.client import IS_CURRENT
from testkit.drivers import assert_cancelled_once

from qx_supervisor import ConfigError, JobFailed, SubmitError, attach, run, submit
from qx_supervisor.service import programs

if not IS_CURRENT:
    pytest.skip("this client has no such programs, or others", allow_module_level=True)

from qiskit_ibm_runtime import Executor, NoiseLearner, NoiseLearnerV3, QuantumProgram, Session
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.results.noise_learner_v3 import NoiseLearnerV3Results
from qiskit_ibm_runtime.results.quantum_program import QuantumProgramResult

pytestmark = pytest.mark.long

PROGRAMS = """
import warnings
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Executor, NoiseLearner, NoiseLearnerV3, QuantumProgram
from qiskit_ibm_runtime.executor_sampler import Sampler
def program():
    made = QuantumProgram(shots=32)
    made.append_circuit_item(isa())
    return made
def layers():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    sampler = Sampler(backend(), {"twirling": {"enable_gates": True}})
    return sampler.find_unique_layers([generate_preset_pass_manager(0, backend()).run(circuit)])
warnings.simplefilter("ignore", DeprecationWarning)
"""
WAYS = {
    "an executor": ("Executor", "program()"),
    "a noise learner": ("NoiseLearnerV3", "layers()"),
    "a deprecated noise learner": ("NoiseLearner", "[isa()]"),
}


@pytest.fixture
def backend(ibm, service):
    return service.backend(BACKEND)


@pytest.fixture
def refused(ibm) -> Callable[..., str]:
    def refused(given: Any, **arguments: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            run(given, panel=None, **arguments)
        assert not ibm.journal(method="POST", path="/api/v1/jobs")
        return caught.value.reason

    return refused


def program(shots: int = 32) -> QuantumProgram:
    """Two circuits of this backend's gates, on its first qubit."""
    made = QuantumProgram(shots=shots)
    for _ in range(2):
        made.append_circuit_item(ones())
    return made


def layers(backend: Any) -> list[Any]:
    """The boxed layers of a transpiled circuit."""
    sampler = Sampler(backend, {"twirling": {"enable_gates": True}})
    return sampler.find_unique_layers([generate_preset_pass_manager(0, backend).run(bell())])


def learner(backend: Any) -> NoiseLearner:
    """The deprecated one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return NoiseLearner(backend)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["run", "submit", "guard"])
def test_a_killed_program(ibm, fork, way, how):
    primitive, given = WAYS[way]
    wait = {
        "run": f"run({given}, primitive={primitive}(backend()), on_status=tell)",
        "submit": f"made = submit({given}, primitive={primitive}(backend()), on_status=tell)\nmade.result()",
        "guard": f"job = {primitive}(backend()).run({given})\n"
        "with guard(job):\n    say('queued', job.job_id())\n    job.result()",
    }
    ibm.hold("queued")
    driver = fork(PROGRAMS + wait[how])
    job = driver.queued()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)


@pytest.mark.parametrize("samplomatic", ["older", "newer"])
def test_a_program_of_a_client_before_050(monkeypatch, samplomatic):
    """It is no kind of samplomatic's, which may have none."""
    if samplomatic == "older":
        monkeypatch.setitem(sys.modules, "samplomatic.quantum_program", None)
    made = type("QuantumProgram", (), {"__module__": "qiskit_ibm_runtime.quantum_program", "items": [1]})()
    assert programs._program(made) is made
    with pytest.raises(ConfigError, match="takes one QuantumProgram, not SimpleNamespace"):
        programs._program(SimpleNamespace(items=[1]))


@pytest.mark.parametrize("mode", ["job", "session", "local"])
def test_an_executor(ibm, backend, mode):
    made = program()
    where = {"job": lambda: backend, "session": lambda: Session(backend), "local": AerSimulator}[mode]()
    with where if mode == "session" else warnings.catch_warnings():
        result = run(made, primitive=Executor(where), tags=["mine"], panel=None)
    assert isinstance(result.primitive_result, QuantumProgramResult)
    assert [item["meas"].shape for item in result] == [(32, 1), (32, 1)]
    assert result[0]["meas"].all()
    assert repr(result).startswith("RunResult(2 items, ")
    assert "chunk_timing" in result.metadata
    assert "2 items" in result._repr_html_()
    assert pickle.loads(pickle.dumps(result))[1]["meas"].all()
    for name in ("counts", "expectation_values"):
        with pytest.raises(AttributeError, match=f"has no {name}; see primitive_result"):
            getattr(result, name)
    assert [job.tags[0] for job in ibm.jobs()] == ([] if mode == "local" else ["mine"])


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("kind", [QuantumProgramResult, NoiseLearnerV3Results])
def test_one_that_was_let_go_is_attached(ibm, service, backend, kind, is_over):
    """Its results are read as its program writes them."""
    ibm.hold("queued")
    if kind is QuantumProgramResult:
        begun = submit(program(), primitive=Executor(backend))
    else:
        begun = submit(layers(backend), primitive=NoiseLearnerV3(backend))
    job = begun.wait_for_job()
    begun.detach()
    if is_over:
        ibm.hold(None)
        ibm.wait_job(job, "Completed")
    attached = attach(job, service=service)
    ibm.hold(None)
    assert isinstance(attached.result().primitive_result, kind)
    assert [made.id for made in ibm.jobs()] == [job]


def test_a_noise_learner(ibm, backend):
    found = layers(backend)
    begun = submit(found, primitive=NoiseLearnerV3(backend))
    result = begun.result()
    assert isinstance(result.primitive_result, NoiseLearnerV3Results)
    assert len(result) == len(found)
    assert result[0].to_pauli_lindblad_map().rates.max() == 0
    assert result.metadata == {}
    alone = run(found[0], primitive=NoiseLearnerV3(backend), panel=None)
    assert len(alone) == 1
    assert [job.status for job in ibm.jobs()] == ["Completed"] * 2


def test_what_it_learned_goes_to_an_estimator(ibm, backend):
    """The whole way, as its documentation has it."""
    from qiskit_ibm_runtime.executor_estimator import Estimator

    isa = generate_preset_pass_manager(0, backend).run(bell(measured=False))
    estimator = Estimator(backend, {"resilience": {"pec_mitigation": True}})
    found = estimator.find_unique_layers([(isa, "I" * 125 + "ZZ")])
    learned = run(found, primitive=NoiseLearnerV3(backend), panel=None).primitive_result.to_pauli_lindblad_maps()
    assert len(learned) == len(found)


def test_the_deprecated_noise_learner(ibm, backend):
    """The embedded service takes its job, and does not execute it."""
    isa = generate_preset_pass_manager(0, backend).run(bell())
    with pytest.raises(JobFailed, match="only jobs of NoiseLearnerV3 are executed here"):
        run([isa], primitive=learner(backend), panel=None)


def test_with_noise_none_is_learned(ibm, backend):
    ibm.scenario({"noise": True})
    with pytest.raises(JobFailed, match="Noise that is simulated can't be learned here"):
        run(layers(backend), primitive=NoiseLearnerV3(backend), panel=None)


def test_wrong_use(refused, backend):
    executor, learns = Executor(backend), NoiseLearnerV3(backend)
    assert refused(ones(), primitive=executor) == (
        "an Executor takes one QuantumProgram, not QuantumCircuit; append circuits to a program, or run them with "
        'primitive="sampler"'
    )
    assert "takes one QuantumProgram, not list" in refused([program()], primitive=executor)
    assert "the quantum program is empty" in refused(QuantumProgram(shots=1), primitive=executor)
    assert refused(program(), primitive=executor, shots=5) == (
        "shots= is for samplers and estimators; a job of Executor has those of QuantumProgram(shots=...)"
    )
    for name, value in {
        "key": "one",
        "precision": 0.1,
        "split": 2,
        "initial_layout": [1],
        "seed_transpiler": 1,
    }.items():
        assert refused(program(), primitive=executor, **{name: value}) == (
            f"{name}= is for samplers and estimators; omit it for Executor, which runs what it is given"
        )
    assert "omit backend=" in refused(program(), backend=backend, primitive=executor)
    assert "on your own primitive" in refused(program(), primitive=executor, options={})
    assert "NoiseLearnerV3 takes the boxed instructions of circuits" in refused([bell()], primitive=learns)
    assert "not QuantumCircuit (number 1)" in refused([layers(backend)[0], bell()], primitive=learns)
    assert "not int" in refused(5, primitive=learns)
    assert "the list is empty" in refused([], primitive=learns)
    assert "the options shots_per_randomization" in refused(layers(backend), primitive=learns, shots=5)
    assert "NoiseLearner takes circuits" in refused([5], primitive=learner(backend))
    assert refused(program(), backend=backend).endswith(
        "not QuantumProgram; give primitive=Executor(backend) to run it"
    )
    with pytest.raises(ConfigError, match="a primitive object"):
        run(program(), backend, primitive=object(), panel=None)


def test_what_the_client_refuses(ibm, backend):
    """Before anything is submitted: a circuit that is not of the backend's gates is not transpiled here."""
    with pytest.raises(SubmitError, match="nothing was submitted"):
        run([bell()], primitive=learner(backend), panel=None)
    untwirled = QuantumCircuit(2)
    with untwirled.box():
        untwirled.cx(0, 1)
    with pytest.raises(SubmitError, match=r"nothing was submitted: .*Twirl"):
        run(untwirled.data, primitive=NoiseLearnerV3(backend), panel=None)
    assert not ibm.journal(method="POST", path="/api/v1/jobs")
