"""What can't be carried out is refused: the message names the fault and the next step, and nothing is submitted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Clbit, Parameter
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, BaseSamplerV2
from qiskit.providers import BackendV2, Options
from qiskit.providers.basic_provider import BasicSimulator
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import Layout, PassManager, generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime import Batch, EstimatorV2, QiskitRuntimeService, SamplerV2, Session
from qiskit_ibm_runtime.fake_provider.local_runtime_job import LocalRuntimeJob
from testkit import submissions
from testkit.circuits import BACKEND, bell, ones
from testkit.client import IS_CURRENT, Estimator, Sampler, need_iam_url

from qx_supervisor import ConfigError, Err, RunError, SubmitError, guard, local, run, submit, try_run
from qx_supervisor.pubs import coerce

Refused = Callable[..., str]


@pytest.fixture
def refused(ibm: local.Service, service: QiskitRuntimeService) -> Refused:
    """Runs what must be refused, and returns the message."""

    def refused(pubs: Any, backend: Any = BACKEND, *, stage: str = "config", **arguments: Any) -> str:
        arguments = {"service": service, "panel": None, **arguments}
        with pytest.raises(ConfigError) as caught:
            run(pubs, backend, **arguments)
        assert not ibm.journal(method="POST", path="/api/v1/jobs")
        assert (caught.value.stage, caught.value.job_id) == (stage, None)
        assert str(caught.value) == caught.value.reason
        return caught.value.reason

    return refused


@pytest.fixture
def backend(ibm: local.Service, service: QiskitRuntimeService) -> Any:
    return service.backend(BACKEND)


@pytest.fixture
def estimating() -> Any:
    """A PUB for an estimator."""
    return bell(measured=False), SparsePauliOp("ZZ")


# Circuits and PUBs


def unmeasured_in_a_loop() -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    with circuit.for_loop(range(2)):
        circuit.x(0)
    return circuit


@pytest.mark.parametrize("make", [lambda: bell(measured=False), unmeasured_in_a_loop])
def test_no_measurement(refused: Refused, make: Callable[[], QuantumCircuit]) -> None:
    assert refused(make()) == "the circuit measures nothing; add circuit.measure_all()"


def test_of_several_circuits_the_faulty_one_is_named(refused: Refused) -> None:
    assert refused([bell(), bell(measured=False)]) == (
        "the circuit measures nothing (number 1); add circuit.measure_all()"
    )
    assert "not a circuit (number 1): str" in refused([bell(), "bell"])


def measured_in_a_loop() -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    circuit.x(0)
    with circuit.for_loop(range(2)):
        circuit.measure(0, 0)
    return circuit


def measured_in_a_branch_of_a_loop() -> QuantumCircuit:
    circuit = QuantumCircuit(1, 2)
    circuit.x(0)
    with circuit.for_loop(range(2)), circuit.if_test((circuit.clbits[1], 0)):
        circuit.measure(0, 0)
    return circuit


def measured_in_an_instruction() -> QuantumCircuit:
    inner = QuantumCircuit(1, 1)
    inner.x(0)
    inner.measure(0, 0)
    circuit = QuantumCircuit(1, 1)
    circuit.append(inner.to_instruction(), [0], [0])
    return circuit


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (measured_in_a_loop, {"1": 10}),
        (measured_in_a_branch_of_a_loop, {"01": 10}),
        (measured_in_an_instruction, {"1": 10}),
    ],
)
def test_a_measurement_anywhere_will_do(
    ibm: local.Service, service: QiskitRuntimeService, make: Callable[[], QuantumCircuit], counts: dict[str, int]
) -> None:
    assert run(make(), BACKEND, service=service, shots=10, panel=None).counts == counts


def test_a_mid_circuit_measurement_will_do(refused: Refused) -> None:
    circuit_library = pytest.importorskip("qiskit_ibm_runtime.circuit")
    if not hasattr(circuit_library, "MidCircuitMeasure"):
        pytest.skip("this client has no MidCircuitMeasure")
    circuit = QuantumCircuit(1, 1)
    circuit.append(circuit_library.MidCircuitMeasure(), [0], [0])
    [pub], _ = coerce(circuit, "sampler", None)
    assert pub.circuit is circuit
    loose = QuantumCircuit([*QuantumRegister(1)], [Clbit()])
    loose.append(circuit_library.MidCircuitMeasure(), [0], [0])
    assert "the circuit measures into a classical bit that is in no register: number 0" in refused(loose)


@pytest.mark.parametrize(
    ("pubs", "said"),
    [
        (3, "a circuit, a list of circuits or PUBs is needed, not int"),
        (None, "a circuit, a list of circuits or PUBs is needed, not NoneType"),
        ("OPENQASM 3.0;", "not a circuit"),
        ([], "the list of circuits is empty; give at least one"),
        ((), "the list of circuits is empty; give at least one"),
        ([()], "not a circuit"),
        ([None], "not a circuit: NoneType; give a QuantumCircuit or a PUB"),
        ({"circuit": 1}, "not a circuit: str"),
    ],
)
def test_not_a_circuit(refused: Refused, pubs: Any, said: str) -> None:
    assert said in refused(pubs)


def test_parameter_values_that_do_not_fit(refused: Refused) -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    circuit.rx(Parameter("b"), 0)
    circuit.measure_all()
    assert "the PUB does not fit a sampler" in refused((circuit, [1.0, 2.0, 3.0]))
    assert "the PUB does not fit a sampler" in refused(circuit)  # no values at all
    assert "the PUB does not fit a sampler (number 1)" in refused([ones(), (circuit, [1.0], "many")])


def test_values_that_nothing_would_come_of(refused: Refused) -> None:
    """Each would be executed, or fail, when the job's turn has come: hours later."""
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    measured = circuit.measure_all(inplace=False)
    assert "a sweep of no values" in refused((measured, np.zeros((0, 1))))
    assert "shape (2, 0)" in refused((measured, np.zeros((2, 0, 1))))
    assert "a sweep of no values" in refused((circuit, "Z", np.zeros((0, 1))), primitive="estimator")
    assert "one observable" in refused((circuit, [], [0.1]), primitive="estimator")
    assert "a value of the parameter a is not finite (number 1)" in refused([ones(), (measured, [float("nan")])])
    assert "1 parameter without a value (a); give (circuit, values)" in refused(measured)
    assert "give (circuit, observables, values)" in refused((circuit, "Z"), primitive="estimator")


def test_a_pub_as_a_list(refused: Refused) -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    assert "a PUB is a tuple" in refused([circuit, "Z", [0.1]], primitive="estimator")
    circuit.measure_all()
    assert "a PUB is a tuple" in refused([circuit, [0.1]])


def measured_into(*, inside: bool) -> QuantumCircuit:
    """A circuit that measures into a bit of a register, and into one that is in none."""
    circuit = QuantumCircuit(2, 1)
    circuit.add_bits([Clbit()])
    circuit.measure(0, 0)
    if inside:
        with circuit.for_loop(range(2)), circuit.if_test((circuit.clbits[0], 0)):
            circuit.measure(1, 1)
    else:
        circuit.measure(1, 1)
    return circuit


@pytest.mark.parametrize("inside", [False, True])
def test_a_measured_bit_that_is_in_no_register(refused: Refused, inside: bool) -> None:
    message = refused([bell(), measured_into(inside=inside)])
    assert "measures into a classical bit that is in no register (number 1): number 1;" in message
    assert "ClassicalRegister(bits=" in message


@pytest.mark.skipif(not IS_CURRENT, reason="the embedded service refuses such a circuit of SamplerV2's")
def test_a_loose_bit_that_is_not_measured(service: QiskitRuntimeService, ibm: local.Service) -> None:
    circuit = ones()
    circuit.add_bits([Clbit()])
    assert run(circuit, BACKEND, service=service, shots=10, panel=None).counts == {"1": 10}


@pytest.mark.parametrize("name", ["values", "shape", "self"])
def test_a_register_that_results_have_no_place_for(refused: Refused, name: str) -> None:
    circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, name))
    circuit.measure(0, 0)
    assert f"a classical register can't be called {name!r}" in refused(circuit)


def test_an_observable_that_is_not_laid_out(refused: Refused, backend: Any) -> None:
    from qiskit.transpiler import generate_preset_pass_manager

    isa = generate_preset_pass_manager(1, backend).run(bell(measured=False))
    for observables in ("ZZ", SparsePauliOp("ZZ"), [["ZZ"], ["XX"]], {"ZZ": 1.0}):
        message = refused((isa, observables), primitive="estimator")
        assert "an observable has 2 qubits, and its circuit 127" in message
        assert "apply_layout(circuit.layout)" in message
    assert "apply_layout" in refused((QuantumCircuit(3), "ZZ"), primitive="estimator")
    assert "apply_layout" not in refused((QuantumCircuit(2), "ZZZ"), primitive="estimator")


@pytest.mark.long
def test_angles_of_a_sweep_that_the_hardware_refuses() -> None:
    """The client's current primitives let them pass, and the job would fail when its turn has come."""
    circuit = QuantumCircuit(2)
    circuit.rzz(Parameter("p"), 0, 1)
    measured = circuit.measure_all(inplace=False)
    with local.start(backends=["ibm_fractional"]) as ibm:
        backend = ibm.service().backend("ibm_fractional", use_fractional_gates=True)
        with pytest.deprecated_call() if IS_CURRENT else contextlib.nullcontext():
            deprecated = SamplerV2(mode=backend)
        calls: list[dict[str, Any]] = [
            {"pubs": (measured, [[0.1], [2.5]]), "backend": backend},
            {"pubs": (measured, [[-0.1]]), "primitive": deprecated},
            {"pubs": (circuit, "ZZ", [[0.1], [-1]]), "backend": backend, "primitive": "estimator"},
        ]
        for call in calls:
            with pytest.raises(ConfigError, match=r"rzz is supported only for angles in the range \[0, pi/2\]"):
                run(**call, panel=None)
        assert not ibm.journal(method="POST", path="/api/v1/jobs")
        good = run((measured, [[0.1], [1.5]]), backend, shots=10, panel=None)
        assert sum(good.counts.values()) == 20


def test_an_estimator_needs_observables(refused: Refused) -> None:
    circuit = bell(measured=False)
    assert refused(circuit, primitive="estimator") == (
        "an estimator needs observables too; give (circuit, observables)"
    )
    assert "fit an estimator" in refused((circuit, SparsePauliOp("ZZZ")), primitive="estimator")
    assert "fit an estimator" in refused((circuit,), primitive="estimator")


def test_a_sampler_takes_no_observables(refused: Refused) -> None:
    for observables in (SparsePauliOp("ZZ"), [SparsePauliOp("ZZ")]):
        assert refused((bell(), observables)) == (
            "the PUB does not fit a sampler: it has observables, which are for an estimator; "
            "give (circuit, values), or use an estimator"
        )


# Arguments


@pytest.mark.parametrize("shots", [0, -1, 1.5, True, "x", float("nan"), [1]])
def test_shots(refused: Refused, shots: Any) -> None:
    assert refused(bell(), shots=shots) == f"shots must be a whole number of at least 1, not {shots!r}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_execution_time": 0}, "max_execution_time must be a whole number of at least 1, not 0"),
        ({"max_execution_time": "1h"}, "max_execution_time must be a whole number of at least 1, not '1h'"),
        ({"optimization_level": 4}, "optimization_level must be 0, 1, 2 or 3, not 4"),
        ({"optimization_level": -1}, "optimization_level must be 0, 1, 2 or 3, not -1"),
        ({"optimization_level": True}, "optimization_level must be 0, 1, 2 or 3, not True"),
        ({"retries": -1}, "retries must be a whole number of at least 0, not -1"),
        ({"retries": True}, "retries must be a whole number of at least 0, not True"),
        ({"split": 0}, "split must be a whole number of at least 1, not 0"),
        ({"split": "50"}, "split must be a whole number of at least 1, not '50'"),
        ({"precision": 0.1}, "precision= is for an estimator, and this is a sampler; give shots="),
        ({"instance": 3}, "instance must be the CRN or the name of an instance, not 3"),
        ({"instance": " "}, "instance must be the CRN or the name of an instance, not ' '"),
        *(
            (
                {"initial_layout": given},
                (
                    "initial_layout must be the numbers of physical qubits, one for each qubit of the circuit, such as "
                    f"[4, 5, 6], not {name}; of a Layout: [layout[qubit] for qubit in circuit.qubits]"
                ),
            )
            for given, name in (
                (3, "int"),
                (Layout.from_intlist([0, 1], QuantumRegister(2)), "Layout"),
                (Layout.from_intlist([4, 5], QuantumRegister(2)), "Layout"),
            )
        ),
        (
            {"initial_layout": [1, 1]},
            "initial_layout must name each physical qubit once, by a number of at least 0, not [1, 1]",
        ),
        (
            {"initial_layout": [1, 2, 3]},
            (
                "initial_layout has 3 places, and the circuit 2 qubits; give a place for each, and circuits of other "
                "widths to a run of their own"
            ),
        ),
        (
            {"pass_manager": "preset"},
            "pass_manager must be one of Qiskit's, as generate_preset_pass_manager(backend=...) returns it, not str",
        ),
        (
            {"pass_manager": PassManager(), "optimization_level": 1},
            (
                "optimization_level= and pass_manager= contradict each other, since a pass manager has settings of its "
                "own; omit one of them, or give optimization_level to generate_preset_pass_manager"
            ),
        ),
        (
            {"pass_manager": PassManager(), "key": "step"},
            (
                "a run with a key must be recognized when the program is restarted, and a pass manager can't be; "
                "transpile the circuits before, with pass_manager.run(circuits), or omit one of key= and pass_manager="
            ),
        ),
        ({"seed_transpiler": -1}, "seed_transpiler must be a whole number of at least 0, not -1"),
        ({"seed_transpiler": 1.0}, "seed_transpiler must be a whole number of at least 0, not 1.0"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, not 0"),
        ({"timeout": -3}, "timeout must be a number of seconds above 0, not -3"),
        ({"timeout": "60"}, "timeout must be a number of seconds above 0, not '60'"),
        ({"timeout": True}, "timeout must be a number of seconds above 0, not True"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds above 0, not inf"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds above 0, not nan"),
        ({"running_timeout": 0}, "running_timeout must be a number of seconds above 0, not 0"),
        ({"poll_interval": 0.01}, "poll_interval must be a number of seconds of at least 0.1, not 0.01"),
        ({"poll_interval": 0}, "poll_interval must be a number of seconds of at least 0.1, not 0"),
        ({"on_status": 3}, "on_status must be callable, not int"),
        ({"on_status": "print"}, "on_status must be callable, not str"),
        ({"panel": "fancy"}, "panel must be "),
        ({"panel": 3}, "panel must be "),
        ({"panel": dict}, "panel must be a panel or a name, not the class dict; pass an object of it"),
        ({"on_unprotected": "ignore"}, 'on_unprotected must be "raise" or "warn", not \'ignore\''),
        ({"on_unprotected": None}, 'on_unprotected must be "raise" or "warn", not None'),
        ({"primitive": "samplr"}, 'primitive must be "sampler", "estimator" or a primitive object (version 2), not '),
        ({"primitive": 3}, 'primitive must be "sampler", "estimator" or a primitive object (version 2), not int'),
        ({"primitive": None}, 'primitive must be "sampler", "estimator" or a primitive object'),
        ({"primitive": Sampler}, 'primitive must be "sampler", "estimator" or a primitive object'),
        ({"tags": "mine"}, "tags must be several strings, not one; write tags=['mine']"),
        ({"tags": 3}, "tags must be strings in a list or tuple, not int"),
        ({"tags": None}, "tags must be strings in a list or tuple, not NoneType"),
        ({"tags": [3]}, "a tag must be a string that is not empty, not 3"),
        ({"tags": [""]}, "a tag must be a string that is not empty, not ''"),
        ({"tags": ["x" * 87]}, f"the tag '{'x' * 20}'… has 87 characters, and IBM Quantum allows 86"),
        ({"tags": list("abcdef")}, "6 tags are too many: IBM Quantum allows a job 8, and 3 of them are needed"),
        ({"key": ""}, "key must be a string that is not empty, not ''"),
        ({"key": " \t"}, "key must be a string that is not empty, not ' \\t'"),
        ({"key": 3}, "key must be a string that is not empty, not 3"),
        ({"key": b"step"}, "key must be a string that is not empty, not b'step'"),
        ({"key": ["step"]}, "key must be a string that is not empty, not ['step']"),
        ({"key": "x" * 201}, "key must have 200 characters or fewer, all of them printable; this has 201"),
        ({"key": "step\n1"}, "key must have 200 characters or fewer, all of them printable; this has 6"),
        ({"key": "step\x00"}, "key must have 200 characters or fewer, all of them printable; this has 5"),
        ({"key": "step\ud800"}, "key must have 200 characters or fewer, all of them printable; this has 5"),
        ({"key": "step", "grace": -1}, "grace must be a number of seconds of at least 0, not -1"),
        ({"key": "step", "grace": "600"}, "grace must be a number of seconds of at least 0, not '600'"),
        ({"key": "step", "grace": True}, "grace must be a number of seconds of at least 0, not True"),
        ({"key": "step", "grace": None}, "grace must be a number of seconds of at least 0, not None"),
        ({"key": "step", "grace": float("inf")}, "grace must be a number of seconds of at least 0, not inf"),
        ({"key": "step", "grace": float("nan")}, "grace must be a number of seconds of at least 0, not nan"),
        ({"key": "step", "keep_on_sigterm": 1, "grace": 60}, "keep_on_sigterm must be True or False, not 1"),
        ({"key": "step", "keep_on_sigterm": None}, "keep_on_sigterm must be True or False, not None"),
        ({"grace": 600}, "grace and keep_on_sigterm are for a run that can be taken up again; give it a key= too"),
        ({"keep_on_sigterm": True}, "grace and keep_on_sigterm are for a run that can be taken up again; give it a "),
        ({"key": "step", "keep_on_sigterm": True}, "keeps the job for the seconds of grace=, and that is 0; give"),
    ],
)
def test_arguments(refused: Refused, arguments: dict[str, Any], said: str) -> None:
    assert said in refused(bell(), **arguments)


def test_submit_and_try_run_refuse_alike(ibm: local.Service, service: QiskitRuntimeService) -> None:
    with pytest.raises(ConfigError, match="shots must be a whole number"):
        submit(bell(), BACKEND, service=service, shots=0)
    with pytest.raises(ConfigError, match="panel must be"):
        submit(bell(), BACKEND, service=service, panel="fancy")
    match try_run(bell(), BACKEND, service=service, shots=0):
        case Err(ConfigError() as error):
            assert error.stage == "config"
        case other:
            pytest.fail(repr(other))
    with pytest.raises(TypeError, match="colour"):  # Python's own refusal stays Python's
        try_run(bell(), BACKEND, service=service, colour="red")
    assert not ibm.journal(method="POST", path="/api/v1/jobs")


@pytest.mark.parametrize("key", ["x" * 200, "Schritt 17 · größer", "a key of many words", "../../etc"])
def test_keys_that_will_do(ibm: local.Service, service: QiskitRuntimeService, key: str) -> None:
    arguments: dict[str, Any] = {"service": service, "shots": 8, "panel": None}
    first = run(bell(), BACKEND, key=key, grace=0.5, keep_on_sigterm=True, **arguments)
    assert run(bell(), BACKEND, key=key, **arguments).job_id == first.job_id
    [entry] = ibm.journal(method="POST", path="/api/v1/jobs")
    assert not [tag for tag in entry.tags if key in tag], "a key is the user's own business"


# Backends


def test_too_wide_for_the_backend(refused: Refused) -> None:
    assert refused(ones(128), stage="backend") == (
        "a circuit has 128 qubits, and ibm_brisbane has 127; choose a wider backend, or none to have one chosen"
    )


def test_too_wide_for_every_backend(refused: Refused) -> None:
    assert refused(ones(128), None, stage="backend") == (
        "no backend of this account is online and has 128 qubits; see service.backends()"
    )


def test_unknown_backend(refused: Refused) -> None:
    assert refused(bell(), "ibm_brisbne", stage="backend") == (
        "there is no backend 'ibm_brisbne' for this account; did you mean ibm_brisbane? There are: ibm_brisbane"
    )
    assert refused(bell(), "xyzzy", stage="backend") == (
        "there is no backend 'xyzzy' for this account; there are: ibm_brisbane"
    )


@pytest.mark.filterwarnings("ignore:Properties of fake_nighthawk:UserWarning")
def test_unknown_backend_of_the_local_service(refused: Refused) -> None:
    here = QiskitRuntimeService(channel="local")
    assert "did you mean" in refused(bell(), "fake_sherbroke", service=here, stage="backend")


def test_what_is_no_backend(refused: Refused) -> None:
    assert "must be a name, a backend object, a Session or a Batch, not int" in refused(bell(), 3)
    assert "must be a name, a backend object, a Session or a Batch, not type" in refused(bell(), Session)
    assert refused(bell(), "") == "the backend's name is empty; give a name, or None to have one chosen"


def test_what_is_no_service(refused: Refused) -> None:
    assert refused(bell(), service="ibm") == "service must be a QiskitRuntimeService, not str"


# What names two places


@pytest.fixture
def other(ibm: local.Service) -> QiskitRuntimeService:
    """A service of another account, at the same place."""
    return ibm.service("another-key")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_service_beside_what_is_anothers(refused: Refused, backend: Any, other: Any, estimating: Any) -> None:
    belongs = "belongs to another service than the one in service=; omit service=, or make the {} with that"
    assert belongs.format("backend") in refused(bell(), backend, service=other)
    for primitive in (Sampler, SamplerV2):
        assert belongs.format("primitive") in refused(bell(), None, primitive=primitive(mode=backend), service=other)
    for primitive in (Estimator, EstimatorV2):
        assert belongs.format("primitive") in refused(estimating, None, primitive=primitive(backend), service=other)
    for mode in (Session(backend), Batch(backend)):
        assert belongs.format("session") in refused(bell(), mode, service=other)
        assert belongs.format("primitive") in refused(bell(), None, primitive=Sampler(mode=mode), service=other)
        with mode:
            assert belongs.format("session") in refused(bell(), None, service=other)
            assert belongs.format("session") in refused(bell(), BACKEND, service=other)
    assert belongs.format("backend") in refused(bell(), backend, service=QiskitRuntimeService(channel="local"))
    assert "must be a QiskitRuntimeService, not str" in refused(bell(), backend, service="ibm")


def test_a_backend_of_another_service_inside_a_session(refused: Refused, backend: Any, other: Any) -> None:
    with Session(backend):
        said = refused(bell(), other.backend(BACKEND), service=None)
    assert said == (
        f"inside this `with` everything runs in the session at its own instance of {BACKEND}, and not at the "
        "backend's; omit backend=, or call run outside"
    )


def test_another_connection_to_the_same_account_is_the_same(ibm: local.Service, backend: Any) -> None:
    assert len(run(ones(), backend, service=ibm.service(), shots=16, panel=None)) == 1


# What is not IBM Quantum's


class Cloud(BackendV2):
    """Another vendor's QPU: a job there costs money, and nobody here could cancel it."""

    def __init__(self) -> None:
        super().__init__(name="acme_qpu")
        self._target = GenericBackendV2(3, seed=1).target
        self.jobs = 0

    @property
    def target(self) -> Any:
        return self._target

    @property
    def max_circuits(self) -> None:
        return None

    @classmethod
    def _default_options(cls) -> Options:
        return Options(shots=100)

    def run(self, run_input: Any, **_: Any) -> Any:
        self.jobs += 1
        raise AssertionError("submitted")


class Described(GenericBackendV2):
    """A vendor's QPU that takes its description from a simulator."""

    jobs = 0

    def run(self, run_input: Any, **_: Any) -> Any:
        self.jobs += 1
        raise AssertionError("submitted")


class CloudSampler(BaseSamplerV2):
    """A vendor's primitive: its backend is here, and what it does is not known."""

    _backend = BasicSimulator()

    def run(self, pubs: Any, *, shots: int | None = None) -> Any:
        raise AssertionError("submitted")


def _local_job(backend: Any) -> LocalRuntimeJob:
    """One of this client's: they differ in the order of what they are given."""
    return LocalRuntimeJob(function=lambda: None, future=None, backend=backend, primitive="sampler", inputs={})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [Cloud, lambda: Described(3, seed=1)], ids=["vendor", "described"])
def test_another_vendors_backend(refused: Refused, estimating: Any, make: Callable[[], Any]) -> None:
    """By itself, in a session, in a primitive of any kind: neither simulated in silence nor submitted unguarded."""
    cloud = make()
    unknown = "is neither IBM Quantum's nor known to compute on this machine, so nothing was submitted"
    here: dict[str, Any] = {"service": None, "stage": "backend"}
    assert unknown in refused(bell(), cloud, **here)
    assert unknown in refused(estimating, cloud, primitive="estimator", **here)
    assert unknown in refused(bell(), cloud, stage="backend")  # beside a service too
    assert unknown in refused(bell(), Session(cloud), **here)
    for sampler in (Sampler(cloud), SamplerV2(cloud), BackendSamplerV2(backend=cloud)):
        assert unknown in refused(bell(), None, primitive=sampler, **here)
    for estimator in (Estimator(cloud), EstimatorV2(cloud), BackendEstimatorV2(backend=cloud)):
        assert unknown in refused(estimating, None, primitive=estimator, **here)
    for target in (Session(cloud), _local_job(cloud)):
        with pytest.raises(ConfigError, match="nor known to compute"), guard(target):
            pass
    assert cloud.jobs == 0


def test_another_vendors_primitive(refused: Refused) -> None:
    said = refused(bell(), None, primitive=CloudSampler(), service=None)
    assert "CloudSampler is no primitive of Qiskit's, and not known to compute on this machine" in said


def test_qiskits_own_simulators_are_local() -> None:
    assert run(ones(), GenericBackendV2(3, seed=1), shots=20, panel=None).counts.get("1", 0) > 10
    for backend in (GenericBackendV2(3, seed=1), BasicSimulator()):
        sampler = BackendSamplerV2(backend=backend)
        assert run(ones(), primitive=sampler, shots=20, panel=None).counts.get("1", 0) > 10


class Logging(SamplerV2):
    """A user's own way to use a primitive of Qiskit's."""

    def run(self, pubs: Any, *, shots: int | None = None) -> Any:
        return super().run(pubs, shots=shots)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_primitive_derived_from_qiskits(ibm: local.Service, backend: Any) -> None:
    for where in (AerSimulator(), backend):
        assert run(ones(), primitive=Logging(where), shots=20, panel=None).counts == {"1": 20}


def test_a_primitive_that_submits_otherwise(ibm: local.Service, backend: Any) -> None:
    """Where it is for IBM Quantum's backend, and no job comes of it by Qiskit's client, that is said."""

    class Otherwise(Sampler):
        def run(self, pubs: Any, *, shots: int | None = None, **_: Any) -> Any:
            return object()

    with pytest.raises(SubmitError, match="Otherwise submitted no job by Qiskit's client, so none is guarded"):
        run(ones(), primitive=Otherwise(mode=backend), panel=None)
    assert ibm.jobs() == []


@pytest.mark.long
@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_primitive_that_submits_twice(ibm: local.Service, backend: Any, swallows: bool) -> None:
    """No intent would guard the second job, and no budget pay for it: it is not submitted, nor is the first kept."""

    class Calibrated(SamplerV2):
        def run(self, pubs: Any, *, shots: int | None = None) -> Any:
            calibration = super().run(pubs, shots=shots)
            with contextlib.suppress(*([SubmitError] if swallows else [])):
                return super().run(pubs, shots=shots)
            return calibration

    ibm.hold("queued")
    with pytest.raises(SubmitError, match=r"submits a second job in one run, .* call run for each") as caught:
        run(ones(), primitive=Calibrated(mode=backend), panel=None)
    [job] = ibm.jobs()
    assert (caught.value.job_id, job.status, job.cancel_requests) == (job.id, "Cancelled", 1)


# Primitives


def test_arguments_that_belong_on_the_users_primitive(refused: Refused, backend: Any) -> None:
    sampler, estimator = Sampler(mode=backend), Estimator(mode=backend)
    assert "backend" in refused(bell(), backend, primitive=sampler)
    assert "omit backend=" in refused(bell(), BACKEND, primitive=sampler)
    assert "set them on your own primitive" in refused(bell(), None, primitive=sampler, options={})
    pub = (bell(measured=False), SparsePauliOp("ZZ"))
    assert "options.default_shots" in refused(pub, None, primitive=estimator, shots=10)


def test_a_primitive_without_a_backend(refused: Refused) -> None:
    from qiskit.primitives import StatevectorSampler

    assert refused(bell(), None, primitive=StatevectorSampler()) == (
        "StatevectorSampler has no backend; make it with mode=..."
    )


@pytest.mark.parametrize("options", [{"nonsense": 1}, 3, "shots", {"twirling": {"enable_gates": "perhaps"}}])
def test_options_that_do_not_fit(refused: Refused, options: Any) -> None:
    assert "the options do not fit Sampler" in refused(bell(), options=options)


def test_options_of_the_other_primitive(refused: Refused) -> None:
    assert refused(bell(), options={"resilience_level": 2}) == (
        "the options do not fit Sampler: there is no option resilience_level"
    )


@pytest.mark.parametrize(("tags", "count"), [(["a", "b", "c"], 6), (["a", "b", "c", "d", "e", "f"], 6), (["a"] * 8, 8)])
def test_tags_on_a_primitive_count(refused: Refused, backend: Any, tags: list[str], count: int) -> None:
    sampler = Sampler(mode=backend)
    sampler.options.environment.job_tags = tags
    mine = ["x", "y", "z"] if len(tags) == 3 else []
    assert refused(bell(), None, primitive=sampler, tags=mine).startswith(f"{count} tags are too many")
    assert sampler.options.environment.job_tags == tags


def test_tags_in_options_count(refused: Refused) -> None:
    options = {"environment": {"job_tags": ["a", "b", "c"]}}
    assert "6 tags are too many" in refused(bell(), options=options, tags=["x", "y", "z"])
    assert "has 87 characters" in refused(bell(), options={"environment": {"job_tags": ["x" * 87]}})


def test_what_the_primitive_refuses_before_the_post(ibm: local.Service, service: QiskitRuntimeService) -> None:
    """Its checks are Qiskit's; what matters is that the error says that nothing was submitted."""
    dynamic = QuantumCircuit(1, 1)
    dynamic.measure(0, 0)
    with dynamic.if_test((dynamic.clbits[0], 1)):
        dynamic.x(0)
    options = {"dynamical_decoupling": {"enable": True}}
    # The client's own words, of now and before 0.50.
    refusal = r"nothing was submitted.*Dynamical decoupling (is not compatible|currently cannot be used)"
    with pytest.raises(SubmitError, match=refusal) as caught:
        run(dynamic, BACKEND, service=service, options=options, panel=None)
    assert (caught.value.stage, caught.value.job_id) == ("submit", None)
    assert caught.value.__cause__ is not None
    assert not ibm.journal(method="POST", path="/api/v1/jobs")
    assert not ibm.journal(path="*/cancel")


# Sessions


@pytest.mark.parametrize("kind", [Session, Batch])
def test_a_session_closed_here(refused: Refused, backend: Any, kind: type[Session]) -> None:
    with kind(backend=backend) as session:
        pass
    assert refused(bell(), session) == f"the session {session.session_id} is closed; open a new one"


@pytest.mark.parametrize("kind", [Session, Batch])
def test_a_session_closed_before_it_was_found_by_id(
    refused: Refused, service: QiskitRuntimeService, backend: Any, kind: type[Session]
) -> None:
    with kind(backend=backend) as session:
        pass
    found = kind.from_id(session.session_id, service)
    assert refused(bell(), found) == f"the session {session.session_id} is closed; open a new one"


def test_a_primitive_in_a_closed_session(refused: Refused, backend: Any) -> None:
    with Session(backend=backend) as session:
        sampler = Sampler(mode=session)
    assert refused(bell(), None, primitive=sampler) == f"the session {session.session_id} is closed; open a new one"


def test_a_session_closed_by_someone_else(ibm: local.Service, service: QiskitRuntimeService, backend: Any) -> None:
    """Nobody here can know: the service refuses the job."""
    session = Session(backend=backend)
    Session.from_id(session.session_id, service).close()
    with pytest.raises(SubmitError) as caught:
        run(bell(), session, panel=None)
    assert (caught.value.stage, caught.value.job_id) == ("submit", None)
    assert not ibm.jobs()
    assert not ibm.journal(path="*/cancel")


@pytest.fixture
def other_backend(backend: Any) -> Any:
    """A backend of the same account, by another name."""
    import copy

    other = copy.copy(backend)
    other.name = "ibm_other"
    return other


def test_another_backend_inside_a_session(refused: Refused, backend: Any, other_backend: Any) -> None:
    with Session(backend=backend):
        assert refused(bell(), other_backend) == (
            "inside this `with` everything runs in the session on ibm_brisbane, and not on ibm_other; omit backend=, "
            "or call run outside"
        )


# Accounts


@pytest.mark.long
def test_no_account_then_one_is_saved(ibm: local.Service, start: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """A plain script in a fresh home: first there is no account, then one is saved, and it is used at once."""
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_CHANNEL", "QISKIT_IBM_INSTANCE", "QISKIT_IBM_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IAM_URL", "http://iam.localqpu.test")
    monkeypatch.setenv("NO_PROXY", "localqpu.test")
    monkeypatch.delenv("no_proxy", raising=False)
    proxy = f"http://127.0.0.1:{ibm.port}"
    driver = start(
        f"""
        from qiskit_ibm_runtime import QiskitRuntimeService
        match try_run(bell(), "ibm_brisbane", panel=None):
            case Err(ConfigError() as error):
                say("refused", error.stage, error)
        QiskitRuntimeService.save_account(
            token="saved-key",
            url="http://localqpu.test",
            instance="crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::localqpu",
            proxies={{"urls": {{"http": "{proxy}", "https": "{proxy}"}}}},
        )
        say("counted", sum(run(bell(), shots=64, panel=None).counts.values()))
        """
    )
    said = " ".join(driver.line("refused "))
    assert said == (
        "config no IBM Quantum account is saved; save one with qx-supervisor login, or with "
        "QiskitRuntimeService.save_account(token=..., instance=...), pass service=..., or set QX_LOCAL=1 to use the "
        "embedded service"
    )
    assert driver.line("counted ") == ["64"]
    assert driver.end() == 0, driver.errors
    [job] = ibm.jobs()
    assert job.backend == BACKEND


OLD = {"channel": "ibm_quantum", "url": "https://auth.example", "token": "an-old-key", "instance": "ibm-q/open/main"}


@pytest.mark.parametrize(
    ("saved", "channel", "said"),
    [
        (json.dumps({"default-ibm-quantum": OLD}), None, "'default-ibm-quantum' is for the channel ibm_quantum"),
        (json.dumps({"mine": {**OLD, "is_default_account": True}}), None, "'mine' is for the channel ibm_quantum"),
        (json.dumps({"mine": {"token": "an-old-key"}}), None, "the saved account 'mine' is for no channel"),
        (json.dumps({}), "ibm_quantum", "QISKIT_IBM_CHANNEL is ibm_quantum"),
        ('{"default": {"token": "an-old-key"', None, "can't be read (JSONDecodeError)"),
        (json.dumps(["an-old-key"]), None, "are not a JSON object of accounts"),
    ],
)
def test_a_saved_account_that_is_none_any_more(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, saved: str, channel: str | None, said: str
) -> None:
    from qiskit_ibm_runtime.accounts import management

    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_CHANNEL", "QISKIT_IBM_INSTANCE", "QISKIT_IBM_URL"):
        monkeypatch.delenv(name, raising=False)
    if channel is not None:
        monkeypatch.setenv("QISKIT_IBM_CHANNEL", channel)
    file = tmp_path / "qiskit-ibm.json"
    file.write_text(saved)
    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(file))
    with pytest.raises(ConfigError) as caught:
        run(bell(), BACKEND, panel=None)
    assert caught.value.stage == "config"
    assert said in caught.value.reason
    assert "ibm_quantum_platform" in caught.value.reason  # what to do
    assert "an-old-key" not in repr(caught.value)


@pytest.fixture
def refusing_tokens(ibm: local.Service) -> Iterator[local.Service]:
    ibm.auth(reject_tokens=True)
    yield ibm
    ibm.auth(reject_tokens=False)


def test_a_saved_account_that_is_refused(
    refusing_tokens: local.Service, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qiskit_ibm_runtime.accounts import management

    need_iam_url()
    file = tmp_path / "qiskit-ibm.json"
    proxy = f"http://127.0.0.1:{refusing_tokens.port}"
    QiskitRuntimeService.save_account(
        token="a-key-that-was-withdrawn",
        url="http://localqpu.test",
        instance="crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::localqpu",
        proxies={"urls": {"http": proxy, "https": proxy}},
        filename=str(file),
    )
    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(file))
    monkeypatch.setenv("IAM_URL", "http://iam.localqpu.test")
    with pytest.raises(RunError) as caught:
        run(bell(), BACKEND, panel=None)
    assert caught.value.stage == "auth"
    assert "the saved IBM Quantum account can't be used" in caught.value.reason
    assert "a-key-that-was-withdrawn" not in repr(caught.value)


# Transpiling, precision, instance, parts


def test_a_precision_that_does_not_fit(refused: Refused, estimating: Any) -> None:
    for wrong in (0, -1, "0.1", float("nan"), True):
        assert refused(estimating, primitive="estimator", precision=wrong) == (
            f"precision must be a number above 0, the wanted standard error, not {wrong!r}"
        )
    assert refused(estimating, primitive="estimator", precision=0.1, shots=10) == (
        "shots= and precision= both say how often an estimator's circuits are executed; omit one of them"
    )


def test_a_precision_is_that_of_pubs_without_their_own(estimating: Any) -> None:
    exact = (*estimating, None, 0.05)
    request = submissions.estimate([estimating, exact], precision=np.float64(0.1))
    assert [pub.precision for pub in request.pubs] == [0.1, 0.05]
    assert submissions.estimate(estimating).pubs[0].precision is None


def test_a_circuit_that_is_transpiled_has_its_layout(refused: Refused, backend: Any) -> None:
    said = refused(
        [ones(2), generate_preset_pass_manager(backend=backend, optimization_level=0).run(ones(2))],
        initial_layout=[4, 5],
    )
    assert said == (
        "initial_layout= is for a circuit that is not transpiled yet, and this one (number 1) is; omit "
        "initial_layout=, or give the circuit as it was before"
    )


def test_a_layout_of_qubits_that_there_are_not(refused: Refused) -> None:
    assert refused(ones(2), initial_layout=[4, 999], stage="backend").startswith(
        "initial_layout names the physical qubit 999, and ibm_brisbane has the qubits 0 to "
    )


def test_what_a_pass_manager_makes_must_be_executable(refused: Refused) -> None:
    assert refused(bell(), pass_manager=PassManager(), stage="transpile") == (
        "what pass_manager= makes of the circuits can't be executed on ibm_brisbane; make it for this backend, with "
        "generate_preset_pass_manager(backend=...)"
    )


def test_an_instance_that_is_not_the_given_services(refused: Refused, backend: Any, service: Any) -> None:
    [client] = service._api_clients.values()
    mine = client._instance
    other = "crn:v1:bluemix:public:quantum-computing:us-east:a/other:other::"
    assert refused(ones(), instance=other) == (
        f"instance= names {other}, and the service has {mine}; omit instance=, or make the service with "
        f"QiskitRuntimeService(instance={other!r})"
    )
    assert refused(ones(), backend, service=None, instance=other).startswith(
        f"instance= names {other}, and the backend has {mine}; "
    )
    assert refused(ones(), instance="elsewhere").startswith(f"instance= names elsewhere, and the service has {mine}; ")
    [name] = [each["name"] for each in service.instances() if each["crn"] == mine]
    for right in (mine, name):
        assert run(ones(), BACKEND, service=service, instance=right, shots=16, panel=None).counts == {"1": 16}


def test_a_key_of_a_split_run_has_room_for_the_parts(refused: Refused) -> None:
    assert refused([ones(), ones()], split=1, key="k" * 181) == (
        "the key of a run with split= must have 180 characters or fewer, since each part gets one made of it; this has "
        "181"
    )
