"""Runs that go well: whatever Qiskit's primitives take and give, `run` takes and gives."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import logging
import pickle
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import qiskit_ibm_runtime
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qpy, transpile
from qiskit.circuit import Parameter
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, EstimatorV2, QiskitRuntimeService, SamplerV2, Session
from qiskit_ibm_runtime.api.session import RetrySession
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from testkit.circuits import BACKEND, bell, ones
from testkit.client import (
    IS_CURRENT,
    Estimator,
    Sampler,
    SamplerOptions,
    needs_current_primitives,
    needs_pickled_results,
    needs_the_least_busy,
    pickled,
)
from testkit.watchers import watchers_of

from qx_supervisor import Ok, QxError, RunResult, Status, local, run, submit, try_run
from qx_supervisor.queue_info import QueueInfo, read

SHOTS = 20
PLAIN = {"resilience": {"measure_mitigation": False}, "twirling": {"enable_measure": False}}
"""Options of an estimator that runs the circuit as it stands, which is soon simulated."""

NEVER = {"next_jobs": [{"outcome": "failed", "reason": "this job is of no interest"}]}


class Run:
    """`run`, quiet and on the embedded service."""

    def __init__(self, service: QiskitRuntimeService) -> None:
        self.service = service
        self.statuses: list[Status] = []

    def __call__(self, pubs: Any, backend: Any = BACKEND, **arguments: Any) -> RunResult:
        self.statuses.clear()
        arguments = {"service": self.service, "panel": None, "on_status": self.statuses.append, **arguments}
        return run(pubs, backend, **arguments)

    def states(self) -> list[str]:
        return [status.state for status in self.statuses]


@pytest.fixture
def running(ibm: local.Service, service: QiskitRuntimeService) -> Run:
    return Run(service)


@pytest.fixture
def backend(ibm: local.Service, service: QiskitRuntimeService) -> Any:
    return service.backend(BACKEND)


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The bodies of the POSTs that make jobs."""
    seen: list[dict[str, Any]] = []
    request = RetrySession.request

    def recording(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if (method, url) == ("POST", "/jobs"):
            seen.append(json.loads(kwargs["data"]))
        return request(self, method, url, *args, **kwargs)

    monkeypatch.setattr(RetrySession, "request", recording)
    return seen


def posted_circuits(post: dict[str, Any]) -> list[QuantumCircuit]:
    """The circuits of a POST."""
    data = post["params"]["quantum_program"]["circuits"]["b64_data"]
    return list(qpy.load(io.BytesIO(zlib.decompress(base64.b64decode(data)))))


# Circuits and PUBs


def flipped(*, measured: bool = False) -> QuantumCircuit:
    """Of three qubits the first is 1; each pair is connected, so no layout fits as it stands."""
    circuit = QuantumCircuit(3)
    circuit.x(0)
    for pair in ((0, 1), (1, 2), (0, 2)):
        circuit.cx(*pair)
        circuit.cx(*pair)
    if measured:
        circuit.measure_all()
    return circuit


def turned(*names: str) -> QuantumCircuit:
    """One qubit, turned about x by each parameter, and measured."""
    circuit = QuantumCircuit(1)
    for name in names:
        circuit.rx(Parameter(name), 0)
    circuit.measure_all()
    return circuit


@pytest.mark.client
def test_a_circuit(running: Run) -> None:
    result = running(bell(), shots=200)
    assert set(result.counts) == {"00", "11"}
    assert sum(result.counts.values()) == 200
    assert result[0].data.meas.num_shots == 200


def test_the_primitives_default_is_the_default_of_shots(running: Run) -> None:
    # A client that has none sends none, and the service has its own.
    default = SamplerOptions().default_shots if IS_CURRENT else 4096
    assert sum(running(ones()).counts.values()) == default


@pytest.mark.parametrize(
    "pubs",
    [
        [ones(2), ones(1)],
        (ones(2), ones(1)),
        iter([ones(2), ones(1)]),
        [(ones(2),), SamplerPub(ones(1), shots=SHOTS)],
    ],
)
def test_several_circuits_in_one_job(ibm: local.Service, running: Run, pubs: Any) -> None:
    result = running(pubs, shots=SHOTS)
    assert result.counts == [{"11": SHOTS}, {"1": SHOTS}]
    assert len(result) == 2
    assert len(ibm.jobs()) == 1


@pytest.mark.parametrize("pub", [(ones(), None, SHOTS), [(ones(), None, SHOTS)], SamplerPub(ones(), shots=SHOTS)])
def test_a_pubs_own_shots_win(running: Run, pub: Any) -> None:
    assert sum(running(pub, shots=7)[0].data.meas.get_counts().values()) == SHOTS


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ({"a": [0, np.pi, 0]}, (3,)),
        ([0, np.pi, 0], (3,)),
        ([[[0.0], [np.pi]], [[np.pi], [0.0]]], (2, 2)),
        ({"a": np.pi}, ()),
    ],
)
@pytest.mark.client
def test_a_parameter_sweep(running: Run, values: Any, shape: tuple[int, ...]) -> None:
    result = running((turned("a"), values), shots=SHOTS)
    data = result[0].data.meas
    assert data.shape == shape
    given = np.ravel(next(iter(values.values())) if isinstance(values, dict) else values)
    for i, value in enumerate(given):
        assert data.reshape(given.size)[i].get_counts() == {str(round(value / np.pi)): SHOTS}
    assert sum(result.counts.values()) == SHOTS * given.size
    assert result.counts == result[0].join_data().get_counts()


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("values", [{"a": [0, np.pi], "b": [1.0, 2.0]}, {("b", "a"): [[1.0, 0], [2.0, np.pi]]}])
def test_a_parameter_that_the_transpiler_removes(running: Run, values: Any, level: int) -> None:
    """A turn about z right before a measurement changes nothing."""
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    circuit.rz(Parameter("b"), 0)
    circuit.measure_all()
    data = running((circuit, values), shots=SHOTS, optimization_level=level)[0].data.meas
    assert [data[i].get_counts() for i in range(2)] == [{"0": SHOTS}, {"1": SHOTS}]


def test_every_parameter_is_removed(running: Run) -> None:
    circuit = QuantumCircuit(1)
    circuit.rz(Parameter("b"), 0)
    circuit.measure_all()
    result = running((circuit, [[1.0], [2.0], [3.0]]), shots=SHOTS)
    assert result[0].data.meas.shape == (3,)
    assert result.counts == {"0": 3 * SHOTS}


def test_several_classical_registers(running: Run) -> None:
    qubits, x, y = QuantumRegister(3), ClassicalRegister(1, "x"), ClassicalRegister(2, "y")
    circuit = QuantumCircuit(qubits, x, y)
    circuit.x([0, 2])
    circuit.measure([0, 1, 2], [x[0], y[0], y[1]])
    result = running(circuit, shots=SHOTS)
    assert result.counts == {"101": SHOTS} == result[0].join_data().get_counts()
    assert result[0].data.x.get_counts() == {"1": SHOTS}
    assert result[0].data.y.get_counts() == {"10": SHOTS}


def test_a_dynamic_circuit(running: Run) -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    assert set(running(circuit, shots=200).counts) == {"00", "11"}


def test_a_measurement_in_mid_circuit(running: Run) -> None:
    circuit = QuantumCircuit(1, 2)
    circuit.x(0)
    circuit.measure(0, 0)
    circuit.reset(0)
    circuit.measure(0, 1)
    assert running(circuit, shots=SHOTS).counts == {"01": SHOTS}


# Transpiling


def test_an_isa_circuit_is_not_transpiled_again(running: Run, backend: Any) -> None:
    isa = transpile(ones(3), backend, initial_layout=[9, 8, 7])
    result = running([isa, isa], backend, shots=SHOTS, optimization_level=3)
    assert "transpiling" not in running.states()
    assert result.counts == [{"111": SHOTS}] * 2
    assert running([isa, flipped(measured=True)], shots=SHOTS).counts == [{"111": SHOTS}, {"001": SHOTS}]
    assert running.states().count("transpiling") == 1


@needs_current_primitives
@pytest.mark.parametrize("how", ["initial_layout", "pass_manager"])
def test_the_qubits_that_were_asked_for(running: Run, posts: list[dict[str, Any]], backend: Any, how: str) -> None:
    """Circuits are transpiled for that even if the backend could execute them as they stand."""
    given: dict[str, Any] = {"initial_layout": np.array([9, 8, 7])}
    if how == "pass_manager":
        given = {how: generate_preset_pass_manager(1, backend, initial_layout=[9, 8, 7])}
    result = running([ones(3), ones(3)], backend, shots=SHOTS, **given)
    assert result.counts == [{"111": SHOTS}] * 2
    assert running.states().count("transpiling") == 1
    [details] = [status.detail for status in running.statuses if status.state == "submitting"]
    assert details == "2 PUBs to ibm_brisbane"
    for circuit in posted_circuits(posts[-1]):
        measured = [each for each in circuit.data if each.operation.name == "measure"]
        places = {circuit.find_bit(each.clbits[0]).index: circuit.find_bit(each.qubits[0]).index for each in measured}
        assert places == {0: 9, 1: 8, 2: 7}


@needs_current_primitives
def test_the_transpilers_seed_and_level(ibm: local.Service, running: Run, posts: list[dict[str, Any]]) -> None:
    wide = QuantumCircuit(6)
    for i in range(6):
        for j in range(i):
            wide.cx(i, j)
    wide.measure_all()

    def posted(**arguments: Any) -> QuantumCircuit:
        ibm.scenario(NEVER)
        assert not try_run(wide, BACKEND, service=running.service, panel=None, **arguments)
        [circuit] = posted_circuits(posts[-1])
        return circuit

    first = posted(seed_transpiler=7)
    assert posted(seed_transpiler=7) == first
    assert posted(seed_transpiler=8) != first
    assert posted(seed_transpiler=7, optimization_level=0) != first


# Estimator


@pytest.fixture
def estimating(running: Run) -> Any:
    def estimate(pubs: Any, **arguments: Any) -> RunResult:
        return running(pubs, primitive="estimator", **{"options": PLAIN, "shots": 100, **arguments})

    return estimate


def test_expectation_values(estimating: Any) -> None:
    result = estimating((flipped(), SparsePauliOp("IIZ")))
    assert result.expectation_values.shape == ()
    assert result.expectation_values == pytest.approx(-1)
    assert result.standard_errors.shape == ()
    assert result.standard_errors == pytest.approx(0)
    assert len(result) == 1


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.client
def test_several_observables_follow_the_layout(estimating: Any, level: int) -> None:
    observables = [SparsePauliOp("IIZ"), SparsePauliOp("IZI"), SparsePauliOp("ZII"), SparsePauliOp("ZZZ", 2.0)]
    result = estimating((flipped(), observables), optimization_level=level)
    assert result.expectation_values == pytest.approx(np.array([-1, 1, 1, -2]))
    assert result.expectation_values.shape == result.standard_errors.shape == (4,)


def test_observables_against_parameter_values(estimating: Any) -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    result = estimating((circuit, [["Z"], ["Y"]], [0, np.pi, 2 * np.pi]))
    assert result.expectation_values.shape == result.standard_errors.shape == (2, 3)
    assert result.expectation_values[0] == pytest.approx(np.array([1, -1, 1]))
    # Of EstimatorV2's options the embedded service reads the precision only, and without one it computes exactly.
    error = 0.1 if IS_CURRENT else 0.0
    assert result.standard_errors[1] == pytest.approx(np.full(3, error), rel=0.5)


def test_several_estimator_pubs(estimating: Any) -> None:
    result = estimating([(flipped(), SparsePauliOp("IIZ")), EstimatorPub.coerce((flipped(), ["ZII", "IZI"]))])
    assert result.expectation_values[0] == pytest.approx(-1)
    assert result.expectation_values[1] == pytest.approx(np.array([1, 1]))
    assert [errors.shape for errors in result.standard_errors] == [(), (2,)]


def test_an_estimators_isa_circuit_is_not_transpiled_again(running: Run, estimating: Any, backend: Any) -> None:
    isa = transpile(flipped(), backend, initial_layout=[9, 8, 7])
    observable = SparsePauliOp("IIZ").apply_layout(isa.layout)
    assert estimating((isa, observable)).expectation_values == pytest.approx(-1)
    assert "transpiling" not in running.states()


@needs_current_primitives
def test_an_estimators_shots_and_precision(estimating: Any, posts: list[dict[str, Any]]) -> None:
    pub = (flipped(), SparsePauliOp("IIZ"))
    estimating(pub, shots=50)
    estimating((*pub, None, 0.1), shots=None)
    estimating(pub, shots=None, options={**PLAIN, "default_precision": 0.2})
    assert [post["params"]["quantum_program"]["shots"] for post in posts] == [50, 100, 25]


# Primitives of the user's own


@pytest.mark.client
def test_a_sampler_of_the_users_own(ibm: local.Service, running: Run, backend: Any) -> None:
    sampler = Sampler(mode=backend, options={"default_shots": SHOTS, "environment": {"job_tags": ["mine"]}})
    before = copy.deepcopy(sampler.options)
    assert running(ones(), None, primitive=sampler, tags=["too"]).counts == {"1": SHOTS}
    assert running(ones(), None, primitive=sampler, shots=7).counts == {"1": 7}
    assert sampler.options == before
    assert [job.tags[:-2] for job in ibm.jobs()] == [["mine", "too"], ["mine"]]


@pytest.mark.client
def test_an_estimator_of_the_users_own(ibm: local.Service, running: Run, backend: Any) -> None:
    estimator = Estimator(mode=backend, options={**PLAIN, "default_shots": 50})
    estimator.options.environment.job_tags = ["mine"]
    before = copy.deepcopy(estimator.options)
    result = running((flipped(), SparsePauliOp("IIZ")), None, primitive=estimator)
    assert result.expectation_values == pytest.approx(-1)
    assert estimator.options == before
    assert ibm.jobs()[0].tags[0] == "mine"


@needs_current_primitives
def test_the_deprecated_primitives(ibm: local.Service, running: Run, backend: Any) -> None:
    """The warning is the user's, who made the object; `run` adds none, or this test would fail."""
    with pytest.warns(DeprecationWarning, match="SamplerV2 class is deprecated"):
        sampler = SamplerV2(mode=backend)
    with pytest.warns(DeprecationWarning, match="EstimatorV2 class is deprecated"):
        estimator = EstimatorV2(mode=backend)
    sampler.options.default_shots = SHOTS
    sampler.options.environment.job_tags = ["mine"]
    before = copy.deepcopy(sampler.options)
    assert running(ones(), None, primitive=sampler, tags=["too"]).counts == {"1": SHOTS}
    assert running((flipped(), "IIZ"), None, primitive=estimator).expectation_values == pytest.approx(-1, abs=0.1)
    assert sampler.options == before
    assert [job.tags[:-2] for job in ibm.jobs()] == [["mine", "too"], []]
    assert [job.program_id for job in ibm.jobs()] == ["sampler", "estimator"]


@needs_current_primitives
def test_options_of_the_deprecated_type(ibm: local.Service, running: Run) -> None:
    options = qiskit_ibm_runtime.SamplerOptions(default_shots=SHOTS)
    with pytest.warns(DeprecationWarning, match="SamplerV2 class is deprecated"):
        assert running(ones(), options=options).counts == {"1": SHOTS}
    assert ibm.jobs()[0].program_id == "sampler"


@pytest.mark.long
def test_threads_share_a_primitive(ibm: local.Service, running: Run, backend: Any) -> None:
    sampler = Sampler(mode=backend, options={"default_shots": SHOTS, "environment": {"job_tags": ["mine"]}})
    before = copy.deepcopy(sampler.options)
    together = threading.Barrier(4)
    results: dict[str, RunResult] = {}

    def work(name: str) -> None:
        together.wait()
        results[name] = run(ones(), primitive=sampler, tags=[name], panel=None)

    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sampler.options == before
    assert {name: result.counts for name, result in results.items()} == {name: {"1": SHOTS} for name in "abcd"}
    tags = {job.id: job.tags for job in ibm.jobs()}
    assert {name: tags[result.job_id][:2] for name, result in results.items()} == {n: ["mine", n] for n in "abcd"}
    assert len({tag for each in tags.values() for tag in each if tag.startswith("qxs-")}) == 4
    assert len({tag for each in tags.values() for tag in each if tag.startswith("qxd-")}) == 1


# What reaches the service


@pytest.mark.client
def test_tags(ibm: local.Service, running: Run) -> None:
    longest = "t" * 86
    for _ in range(2):
        running(ones(), shots=SHOTS, tags=["a", "b", "c", "d", longest])
    first, second = (entry.tags for entry in ibm.journal(method="POST", path="/api/v1/jobs"))
    assert first[:5] == second[:5] == ["a", "b", "c", "d", longest]
    assert re.fullmatch(r"qxs-[0-9a-f]{32}", first[5])
    assert first[5] != second[5]
    assert re.fullmatch(r"qxd-[0-9a-f]{32}", first[6])
    assert first[6:] == second[6:]


@pytest.mark.client
def test_options_and_execution_time(running: Run, posts: list[dict[str, Any]]) -> None:
    options = {"max_execution_time": 300, "execution": {"init_qubits": False}, "environment": {"job_tags": ["own"]}}
    running(ones(), shots=SHOTS, options=options)
    running(ones(), shots=SHOTS, options=options, max_execution_time=77)
    running(ones(), shots=SHOTS, options=SamplerOptions(**options), max_execution_time=np.int64(78))
    running(ones(), shots=SHOTS)
    assert [post.get("cost") for post in posts] == [300, 77, 78, None]
    assert [post["tags"][:-2] for post in posts] == [["own"]] * 3 + [[]]
    posted = [post["params"]["options"] for post in posts]
    if IS_CURRENT:
        assert [each["init_qubits"] for each in posted] == [False] * 3 + [True]
    else:  # what SamplerV2 is not told it does not post
        assert [each.get("execution", {}).get("init_qubits") for each in posted] == [False] * 3 + [None]


# Backends, sessions, services


def test_a_backend_object_needs_no_service(running: Run, backend: Any) -> None:
    result = running(ones(), backend, service=None, shots=SHOTS)
    assert (result.counts, result.backend) == ({"1": SHOTS}, BACKEND)


@pytest.mark.parametrize("kind", [Session, Batch])
@pytest.mark.client
def test_a_session(ibm: local.Service, running: Run, backend: Any, kind: type[Session]) -> None:
    session = kind(backend=backend)
    assert [running(ones(), session, service=None, shots=n).counts for n in (1, 2)] == [{"1": 1}, {"1": 2}]
    assert running(ones(), None, primitive=Sampler(mode=session), shots=3).counts == {"1": 3}
    assert [job.session_id for job in ibm.jobs()] == [session.session_id] * 3
    assert not ibm.journal(path=f"/api/v1/sessions/{session.session_id}*")  # it is the user's to close
    session.close()


@pytest.mark.parametrize("kind", [Session, Batch])
@pytest.mark.client
@pytest.mark.short_only("Session")
def test_inside_a_session(ibm: local.Service, running: Run, backend: Any, kind: type[Session]) -> None:
    """The block decides, whether or not the call names the backend; as for Qiskit's own primitives."""
    with kind(backend=backend) as session:
        for where in ({}, {"backend": BACKEND}, {"backend": backend, "service": None}, {"backend": session}):
            assert running(ones(), **{"backend": None, **where}, shots=SHOTS).counts == {"1": SHOTS}
        held = run(ones(), service=running.service, primitive=Sampler(), shots=SHOTS, panel=None)
    assert held.counts == {"1": SHOTS}
    assert [job.session_id for job in ibm.jobs()] == [session.session_id] * 5
    running(ones(), shots=SHOTS)
    assert ibm.jobs()[-1].session_id is None


@pytest.fixture
def two_backends() -> Iterator[local.Service]:
    with local.start(backends=["ibm_manila", BACKEND]) as ibm:
        yield ibm


@needs_the_least_busy
def test_the_least_busy_backend_that_is_wide_enough(two_backends: local.Service) -> None:
    running = Run(two_backends.service())
    two_backends.scenario({"backends": {"ibm_manila": {"queue_length": 1}, BACKEND: {"queue_length": 9}}})
    assert running(ones(), None, shots=SHOTS).backend == "ibm_manila"
    assert running(ones(6), None, shots=SHOTS).backend == BACKEND
    assert running([ones(), ones(6)], None, shots=SHOTS).backend == BACKEND
    two_backends.scenario({"backends": {"ibm_manila": {"status": "offline"}, BACKEND: {"queue_length": 9}}})
    assert running(ones(), None, shots=SHOTS).backend == BACKEND
    assert [job.backend for job in two_backends.jobs()] == ["ibm_manila", BACKEND, BACKEND, BACKEND]


# Local backends


@pytest.mark.long
def test_aers_own_estimator_is_exact_by_default() -> None:
    from qiskit_aer import AerSimulator
    from qiskit_aer.primitives import EstimatorV2

    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    exact = EstimatorV2.from_backend(AerSimulator())
    assert exact.options.default_precision == 0
    assert run((circuit, "ZZ"), primitive=exact, panel=None).expectation_values == pytest.approx(1)


@pytest.mark.parametrize("make", [FakeManilaV2, lambda: __import__("qiskit_aer").AerSimulator()])
@pytest.mark.client
def test_local_backends(ibm: local.Service, running: Run, make: Any) -> None:
    backend, seen = make(), ibm.cursor()
    result = running(bell(), backend, service=None, shots=200)
    assert sum(result.counts[key] for key in ("00", "11")) > 150
    assert (result.backend, len(result)) == (backend.name, 1)
    assert result.job_id
    assert "simulating" in running.states()
    assert running.states()[-1] == "done"
    pub = (bell(measured=False), SparsePauliOp("ZZ"))
    assert running(pub, backend, service=None, primitive="estimator").expectation_values == pytest.approx(1, abs=0.2)
    assert running(bell(), None, service=None, primitive=Sampler(mode=backend), shots=7)[0].data.meas.num_shots == 7
    assert running(bell(), Session(backend=backend), service=None, shots=7)[0].data.meas.num_shots == 7
    assert ibm.cursor() == seen


@pytest.mark.filterwarnings("ignore:Properties of fake_nighthawk:UserWarning")
def test_the_local_service(ibm: local.Service, running: Run) -> None:
    here, seen = QiskitRuntimeService(channel="local"), ibm.cursor()
    assert running(ones(), "fake_manila", service=here, shots=200).counts["1"] > 150
    assert ibm.cursor() == seen


def test_a_local_run_starts_no_watcher(fork: Any) -> None:
    driver = fork(
        """
        from qiskit_aer import AerSimulator
        from qiskit_ibm_runtime import QiskitRuntimeService, Session
        from qiskit_ibm_runtime.fake_provider import FakeManilaV2
        aer = AerSimulator()
        run(bell(), aer, panel=None)
        run(bell(), FakeManilaV2(), panel=None)
        run(bell(), Session(backend=aer), panel=None)
        run(bell(), primitive=Sampler(mode=aer), panel=None)
        run(bell(), "aer_simulator", service=QiskitRuntimeService(channel="local"), panel=None)
        say("ran", "all")
        signal.pause()
        """
    )
    driver.line("ran ")
    assert not watchers_of(driver)
    assert not psutil.Process(driver.pid).net_connections()
    driver.kill()


# What is told


def test_statuses_of_a_run(ibm: local.Service, running: Run) -> None:
    result = running(bell(), shots=SHOTS)
    states = running.states()
    assert states[:6] == ["connecting", "chosen", "transpiling", "preparing", "submitting", "submitted"]
    assert set(states[6:-2]) <= {"queued", "running"}
    assert states[-2:] == ["fetching results", "done"]
    stages = [status.stage for status in running.statuses]
    assert list(dict.fromkeys(stages)) in (
        ["backend", "transpile", "submit", "poll", "results"],
        ["backend", "transpile", "submit", "results"],
    )
    submitted = states.index("submitted")
    assert {status.job_id for status in running.statuses[:submitted]} == {None}
    assert {status.job_id for status in running.statuses[submitted:]} == {result.job_id}
    assert {status.backend for status in running.statuses[1:]} == {BACKEND}
    times = [status.time for status in running.statuses]
    assert times == sorted(times)


def test_queued_and_running_are_told_once_each(ibm: local.Service, running: Run) -> None:
    ibm.hold("queued")

    def go_on(status: Status) -> None:
        if status.state == "queued":
            ibm.hold("running")
        elif status.state == "running":
            ibm.hold(None)
        running.statuses.append(status)

    running(bell(), shots=SHOTS, on_status=go_on, poll_interval=0.1)
    assert [status.state for status in running.statuses if status.stage == "poll"] == ["queued", "running"]


def test_a_status_shows_itself(running: Run) -> None:
    result = running(bell(), shots=SHOTS)
    last = running.statuses[-1]
    assert repr(last) == f"Status(stage='results', state='done', job_id={result.job_id!r})"
    assert str(last) == f"done · job {result.job_id}"
    assert "detail='for ibm_brisbane'" in repr(running.statuses[2])
    assert str(running.statuses[2]) == "transpiling · for ibm_brisbane"
    assert pickle.loads(pickle.dumps(last)) == last


def test_what_on_status_raises_is_logged_and_ends_nothing(running: Run, caplog: pytest.LogCaptureFixture) -> None:
    def fail(status: Status) -> None:
        raise ValueError("a secret")

    assert running(ones(), shots=SHOTS, on_status=fail).counts == {"1": SHOTS}
    assert "on_status raised ValueError; the run goes on" in caplog.messages
    assert "a secret" not in caplog.text


def _changes(states: list[str]) -> list[str]:
    """States, each once: another place in the queue is told, too, and is no line of the log."""
    return [state for state, _ in itertools.groupby(states)]


def test_the_plain_panel_writes_lines(running: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = running(bell(), shots=SHOTS, panel="plain")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d qx: ", line) for line in lines)
    assert _changes([line.split(" qx: ")[1].split(" · ")[0] for line in lines]) == _changes(running.states())
    assert sum("watched by pid" in line for line in lines) == 1
    assert result.job_id in lines[-1]


# What is returned


def test_a_result_is_qiskits(running: Run) -> None:
    result = running([ones(), ones(2)], shots=SHOTS)
    assert result[0] is result.primitive_result[0]
    assert list(result) == list(result.primitive_result)
    assert len(result) == 2
    assert result[-1].data.meas.get_counts() == {"11": SHOTS}
    assert result.metadata == result.primitive_result.metadata
    shown = f"RunResult(2 PUBs, job_id={result.job_id!r}, backend='ibm_brisbane', timeline='{result.timeline}')"
    assert repr(result) == shown
    with pytest.raises(IndexError):
        result[2]


@pytest.mark.long
def test_a_list_is_given_lists(running: Run, estimating: Any) -> None:
    """Also a list of one: what a program does with the result is not to depend on how many circuits it had."""
    assert running(ones(), shots=SHOTS).counts == {"1": SHOTS}
    assert running((ones(),), shots=SHOTS).counts == {"1": SHOTS}  # a PUB
    assert running([ones()], shots=SHOTS).counts == [{"1": SHOTS}]
    assert running((each for each in [ones()]), shots=SHOTS).counts == [{"1": SHOTS}]
    copied = pickled(running([(ones(), None)], shots=SHOTS))
    assert copied.counts == [{"1": SHOTS}]
    estimated = estimating([(flipped(), "IIZ")])
    assert (len(estimated.expectation_values), len(estimated.standard_errors)) == (1, 1)
    assert estimating((flipped(), "IIZ")).expectation_values.shape == ()


def test_a_register_may_have_any_name(running: Run) -> None:
    circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, "evs"), ClassicalRegister(1, "stds"))
    if IS_CURRENT:  # SamplerV2 refuses an empty one
        circuit.add_register(ClassicalRegister(0, "none"))
    circuit.x(0)
    circuit.measure(0, 0)
    result = running(circuit, shots=SHOTS)
    assert result.counts == {"01": SHOTS}
    with pytest.raises(AttributeError, match="a sampler's result has no expectation_values"):
        _ = result.expectation_values


@pytest.mark.long
def test_a_result_says_where_the_rest_is(running: Run, estimating: Any) -> None:
    sampled, estimated = running(ones(), shots=SHOTS), estimating((flipped(), "IIZ"))
    assert repr(sampled).startswith("RunResult(1 PUB, ")
    with pytest.raises(AttributeError, match="a sampler's result has no expectation_values; see counts"):
        _ = sampled.expectation_values
    with pytest.raises(AttributeError, match="a sampler's result has no standard_errors; see counts"):
        _ = sampled.standard_errors
    with pytest.raises(AttributeError, match="an estimator's result has no counts; see expectation_values"):
        _ = estimated.counts
    kerneled = running(ones(), shots=SHOTS, options={"execution": {"meas_type": "kerneled"}})
    with pytest.raises(AttributeError, match=r"this result holds no bits to count; see result\[0\].data"):
        _ = kerneled.counts


@needs_pickled_results
def test_a_result_pickles(running: Run) -> None:
    result = running(ones(), shots=SHOTS)
    again = pickle.loads(pickle.dumps(result))
    assert (again.counts, again.job_id, again.backend) == (result.counts, result.job_id, result.backend)
    assert repr(again) == repr(result)


def test_try_run(ibm: local.Service, running: Run) -> None:
    found = try_run(ones(), BACKEND, service=running.service, shots=SHOTS, panel=None)
    assert found
    match found:
        case Ok(result):
            assert result.counts == {"1": SHOTS}
        case other:
            pytest.fail(repr(other))
    assert found.value is result


def test_the_log_has_every_state_for_those_who_ask_and_no_warning(
    running: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "qx_supervisor"):
        result = running(ones(), shots=SHOTS)
    told = [record for record in caplog.records if record.name.startswith("qx_supervisor")]
    assert {record.levelname for record in told} == {"INFO"}
    assert _changes([record.getMessage().split(" · ")[0] for record in told]) == _changes(running.states())
    assert result.job_id in told[-1].getMessage()


# What is told of the queue and the cost


def test_a_panel_asks_for_the_place_in_the_queue_and_nobody_else_does(
    ibm: local.Service, running: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qx_supervisor.job_cost.WAIT_SECONDS", 60.0)
    ibm.tell(queue_position=2, starts_in=60, qpu_seconds_estimated=1.5, qpu_seconds=1.25)
    seen: list[Status] = []

    def release(status: Status) -> None:
        seen.append(status)
        if status.queue_position is not None:
            ibm.hold(None)

    ibm.hold("queued")
    result = running(ones(), shots=SHOTS, panel="plain", on_status=release)
    assert result.qpu_seconds == 1.25
    [told] = [status for status in seen if status.state == "queued" and status.queue_position]
    assert (told.queue_position, told.qpu_seconds_estimated, told.qpu_seconds) == (2, 1.5, None)
    assert told.estimated_start is not None
    assert 0 < told.estimated_start - time.time() <= 60
    assert seen[-1].qpu_seconds == 1.25
    cursor = ibm.cursor()
    assert running(ones(), shots=SHOTS, panel=None, on_status=None).qpu_seconds == 1.25
    assert len(ibm.journal(after=cursor, path="/api/v1/jobs/*/metrics")) == 1  # at its end


def test_a_service_that_tells_nothing_of_the_cost(ibm: local.Service, running: Run) -> None:
    """It is pending, or can't be read; a run ends as well, and as soon."""
    ibm.tell(qpu_seconds=None)
    assert running(ones(), shots=SHOTS, panel="plain").qpu_seconds is None
    fault = {"method": "GET", "path": "/api/v1/jobs/*/metrics", "times": 100, "status": 500}
    ibm.scenario({"http_faults": [fault]})
    assert running(ones(), shots=SHOTS, panel="plain").qpu_seconds is None
    assert "connection lost, retrying" not in running.states()


@pytest.mark.parametrize(
    ("job", "metrics", "known"),
    [
        ({}, {}, QueueInfo()),
        (
            {"estimated_running_time_seconds": 4.5},
            {"position_in_queue": 3, "estimated_start_time": "2026-01-31T12:00:00.5Z", "usage": {"status": "pending"}},
            QueueInfo(3, 1769860800.5, 4.5, None),
        ),
        (
            {},
            {"usage": {"status": "final", "qpu_charge_time_seconds": 2, "quantum_seconds": 3}},
            QueueInfo(qpu_seconds=2.0),
        ),
        ({}, {"usage": {"status": "final", "quantum_seconds": 3}}, QueueInfo(qpu_seconds=3.0)),
        ({}, {"usage": {"quantum_seconds": 3}}, QueueInfo()),
        (
            {"estimated_running_time_seconds": "soon"},
            {"position_in_queue": True, "estimated_start_time": "later", "usage": [1]},
            QueueInfo(),
        ),
        ({}, {"position_in_queue": -1, "estimated_start_time": 5, "usage": {"status": "final"}}, QueueInfo()),
    ],
)
def test_what_is_told_of_a_job(job: dict[str, Any], metrics: dict[str, Any], known: QueueInfo) -> None:
    assert read(job, metrics) == known


def test_a_run_is_not_pickled(ibm: local.Service, service: Any) -> None:
    """A worker of a pool that returns one hears what to return instead."""
    held = submit(bell(), "ibm_brisbane", service=service, shots=16)
    for pack in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(QxError, match=r"can't be pickled; return its job_id, or its result\(\)"):
            pack(held)
    held.result(60)


def asked_before_the_post(ibm: local.Service, after: int) -> Counter[tuple[str, str]]:
    """What the service was asked before the submission."""
    entries = ibm.journal(after=after)
    post = next(entry.arrived for entry in entries if (entry.method, entry.path) == ("POST", "/api/v1/jobs"))
    return Counter((entry.method, entry.path) for entry in entries if entry.arrived < post)


def test_before_its_submission_nothing_is_asked_that_the_client_does_not_ask(ibm: local.Service) -> None:
    """Neither by the run nor by its watcher: where many drivers start at once, each request counts."""
    after = ibm.cursor()
    theirs = ibm.service().backend(BACKEND)
    Sampler(theirs).run([generate_preset_pass_manager(1, theirs).run(bell())]).result()
    by_the_client = asked_before_the_post(ibm, after)
    after = ibm.cursor()
    run(bell(), BACKEND, service=ibm.service(), panel=None)
    assert not asked_before_the_post(ibm, after) - by_the_client
