"""A fingerprint is the same for the same submission, wherever it is built, and another for any other."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import ClassicalRegister, QuantumCircuit, qpy
from qiskit.circuit import AnnotatedOperation, Gate, Parameter, library
from qiskit.circuit.annotated_operation import ControlModifier, InverseModifier, PowerModifier
from qiskit.circuit.random import random_circuit
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import Pauli, SparsePauliOp
from testkit import submissions
from testkit.client import IS_CURRENT
from testkit.submissions import (
    GALLERY,
    SUM,
    VALUES,
    Made,
    Note,
    Odd,
    Opaque,
    ansatz,
    bound,
    boxed,
    classical,
    dynamic,
    estimate,
    explicit,
    gate,
    loop,
    of,
    part,
    registers,
    request,
    simple,
    stretched,
)

from qx_supervisor import ConfigError
from qx_supervisor.canonical import values
from qx_supervisor.fingerprint import fingerprint

pytestmark = [
    pytest.mark.filterwarnings("ignore:The SamplerV2 class is deprecated:DeprecationWarning"),
    pytest.mark.skipif(not IS_CURRENT, reason="the gallery has options and operations that this client has not"),
]

# The same -------------------------------------------------------------------------------------------------------------


def elsewhere(seed: int, others: int, *how: str) -> dict[str, str]:
    """The gallery's fingerprints in a fresh process, in which so much was made before."""
    program = [sys.executable, str(Path(submissions.__file__)), str(others), *how]
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run(program, capture_output=True, check=False, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_the_same_in_every_process():
    here = submissions.fingerprints()
    assert elsewhere(1, 0) == here
    assert elsewhere(4_000_000_000, 7, "spawned") == here
    # A dict of options and the objects that say the same make the same submission. All others differ.
    twice = here.pop("options objects")
    assert twice == here["options"]
    assert len({*here.values()}) == len(here)
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in here.values())


def test_the_scheme_stays():
    """A driver that was started before an upgrade comes back after it. Raise SCHEME if these must change."""
    assert fingerprint(request(simple(), shots=100)) == "e355a033d524422acefd4103161bb7e8"
    values = request(bound(**VALUES), options={"twirling": {"enable_gates": True}}, seed_transpiler=7)
    assert fingerprint(values) == "2f79732ea9a1fa30a8b4849de58d1628"
    assert fingerprint(request(dynamic())) == "2f8b720cf915c359c878b32c3cc21c0f"


def ordered(names: str) -> tuple[QuantumCircuit, Any]:
    return ansatz("a", "b", "c"), BindingsArray({name: VALUES[name] for name in names})


def renamed(made: QuantumCircuit, **more: Any) -> QuantumCircuit:
    made.name, made.metadata = "another", {"day": "today"}
    return made


def numbered(value: Any) -> QuantumCircuit:
    return of(lambda circuit: circuit.rx(value, 0))


def array(values: Any, **how: Any) -> tuple[QuantumCircuit, Any]:
    return ansatz("a", "b", "c"), np.asarray(values, **how)


def option(**given: Any) -> Made:
    return lambda: request(simple(), options=given)


def objects(**given: Any) -> Made:
    return lambda: request(simple(), options=submissions.options(**given))


def deprecated(**given: Any) -> Made:
    return lambda: request(simple(), options=submissions.deprecated(**given))


GRID = [[0, 1, 2], [3, 4, 5]]

SAME: dict[str, tuple[Made, Made]] = {
    "name and metadata": (lambda: request(simple()), lambda: request(renamed(simple()))),
    "what is not executed": (
        lambda: request(simple()),
        lambda: request(
            simple(),
            tags=["monday"],
            timeout=5,
            poll_interval=3,
            on_status=print,
            max_execution_time=9,
            running_timeout=8,
            on_unprotected="warn",
            key="k",
            grace=9,
            keep_on_sigterm=True,
        ),
    ),
    "a PUB or a list": (lambda: request(simple()), lambda: request([(simple(),)])),
    "a PUB's shots": (lambda: request(simple(), shots=7), lambda: request((simple(), None, 7))),
    "order of bindings": (lambda: request(ordered("abc")), lambda: request(ordered("cab"))),
    "bindings or an array": (lambda: request(bound(**VALUES)), lambda: request(array([0.1, 0.2, 0.3]))),
    "how an array lies": (lambda: request(array(GRID)), lambda: request(array(GRID, order="F"))),
    "an array's type": (
        lambda: request(array(GRID, dtype=np.int32)),
        lambda: request(array(GRID, dtype=np.float64)),
    ),
    "types of angles": (lambda: request(numbered(2)), lambda: request(numbered(np.float32(2)))),
    "types of indices": (lambda: request(numbered(0.5)), lambda: request(numbered(np.float64(0.5)))),
    "order of observables": (
        lambda: estimate((submissions.bare(), SUM)),
        lambda: estimate((submissions.bare(), SparsePauliOp(["IYY", "XXI", "ZIZ"], [-2.0, 1.0, 0.25]))),
    ),
    "kinds of observables": (
        lambda: estimate((submissions.bare(), ["ZZZ", {"XII": 1.0}])),
        lambda: estimate((submissions.bare(), [Pauli("ZZZ"), SparsePauliOp("XII")])),
    ),
    "no options": (lambda: request(simple()), option()),
    "order of options": (option(default_shots=1, twirling={}), option(twirling={}, default_shots=1)),
    "default options": (lambda: request(simple()), lambda: request(simple(), options=_plain())),
    "options as a dict": (option(default_shots=10, twirling={"enable_gates": True}), objects()),
    "tags in options": (option(), option(environment={"job_tags": ["today"], "log_level": "DEBUG"})),
    "tags in objects": (objects(), objects(environment={"job_tags": ["today"], "log_level": "DEBUG"})),
    "tags in deprecated ones": (deprecated(), deprecated(environment={"job_tags": ["today"]})),
    "a limit": (option(), option(max_execution_time=7)),
    "a limit in deprecated ones": (deprecated(), deprecated(max_execution_time=7)),
    "a primitive made here": (
        lambda: request(simple(), submissions.backend(), options={"default_shots": 5}),
        lambda: request(simple(), None, primitive=submissions.own(default_shots=5)),
    ),
    "a backend's name": (
        lambda: request(simple(), submissions.backend()),
        lambda: request(simple(), "fake_manila"),
    ),
    "a barrier's order": (lambda: request(of(lambda it: it.barrier(0, 1))), lambda: request(of(_barrier))),
    "order of a block's bits": (lambda: request(explicit((0, 1))), lambda: request(_turned())),
    "a gate's own circuit": (lambda: request(gate(Odd(0.5, extra=1))), lambda: request(gate(Odd(0.5, extra=2)))),
}


def _plain() -> Any:
    from qiskit_ibm_runtime.options_models import SamplerOptions

    return SamplerOptions(default_shots=4096)


def _barrier(circuit: QuantumCircuit) -> None:
    circuit.barrier(1, 0)


def _turned() -> QuantumCircuit:
    """What `explicit` makes, with the block's bits the other way round."""
    made = explicit((1, 0))
    body = QuantumCircuit(2, 1)
    body.cx(1, 0)
    operation = made.data[0].operation.replace_blocks([body, None])
    made.data[0] = made.data[0].replace(operation=operation)
    return made


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_count(what):
    first, second = SAME[what]
    assert fingerprint(first()) == fingerprint(second())


# Another --------------------------------------------------------------------------------------------------------------


def step(method: str, *arguments: Any, **named: Any) -> Made:
    return lambda: request(of(lambda circuit: getattr(circuit, method)(*arguments, **named)))


def operation(make: Callable[[], Any]) -> Made:
    return lambda: request(gate(make()))


def evolve(**given: Any) -> Made:
    operator = given.pop("operator", SUM)
    return operation(lambda: library.PauliEvolutionGate(operator, **{"time": 0.3} | given))


def measured(*bits: int, width: int = 2) -> QuantumCircuit:
    circuit = QuantumCircuit(width, 2)
    circuit.measure([0, 1], bits)
    return circuit


def phased(phase: float) -> QuantumCircuit:
    circuit = simple()
    circuit.global_phase = phase
    return circuit


def named(name: str) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumCircuit(1).qubits, ClassicalRegister(1, name))
    circuit.measure(0, 0)
    return circuit


def expression(make: Callable[[Parameter, Parameter], Any]) -> Made:
    def made() -> Any:
        circuit = of(lambda it: it.rx(make(Parameter("a"), Parameter("b")), 0), lambda it: it.rz(Parameter("z"), 1))
        return request((circuit, [0.1] * circuit.num_parameters))

    return made


def annotated(base: Any, *modifiers: Any) -> Made:
    return operation(lambda: AnnotatedOperation(base, list(modifiers)))


def _ramp(*values: float) -> Made:
    return lambda: request(bound(a=values[0], b=values[1], c=values[2]))


def _seen(**given: Any) -> Made:
    observable = given.pop("observable", SUM)
    precision = given.pop("precision", None)
    return lambda: estimate((submissions.bare(), observable, None, precision), **given)


NEXT = float(np.nextafter(0.1, 1))

CHANGES: dict[str, tuple[Made, Made]] = {
    "a gate": (step("h", 0), step("x", 0)),
    "a gate more": (step("h", 0), lambda: request(of(lambda it: it.h(0), lambda it: it.h(0)))),
    "the order of gates": (
        lambda: request(of(lambda it: it.h(0), lambda it: it.x(0))),
        lambda: request(of(lambda it: it.x(0), lambda it: it.h(0))),
    ),
    "a qubit": (step("h", 0), step("h", 1)),
    "the order of qubits": (step("cx", 0, 1), step("cx", 1, 0)),
    "an angle": (step("rx", 0.1, 0), step("rx", 0.2, 0)),
    "the last bit of an angle": (step("rx", 0.1, 0), step("rx", NEXT, 0)),
    "an idle qubit": (lambda: request(measured(0, 1)), lambda: request(measured(0, 1, width=3))),
    "where it is measured to": (lambda: request(measured(0, 1)), lambda: request(measured(1, 0))),
    "the global phase": (lambda: request(phased(0.0)), lambda: request(phased(0.5))),
    "a classical register's name": (lambda: request(named("a")), lambda: request(named("b"))),
    "a classical register's number": (lambda: request(named("c1")), lambda: request(named("c2"))),
    "a register's size": (lambda: request(registers(size=2)), lambda: request(registers(size=3))),
    "the order of registers": (lambda: request(registers()), lambda: request(registers(swapped=True))),
    "a label": (operation(library.HGate), operation(lambda: library.HGate(label="slow"))),
    "a barrier": (step("barrier", 0, 1), step("barrier", 0, 1, 2)),
    "a reset": (step("reset", 0), step("id", 0)),
    "a delay": (step("delay", 100, 0), step("delay", 101, 0)),
    "a delay's unit": (step("delay", 100, 0, unit="ns"), step("delay", 100, 0, unit="us")),
    "a gate's definition": (operation(lambda: part(0.3).to_gate()), operation(lambda: part(0.4).to_gate())),
    "a gate's name": (operation(lambda: part(name="a").to_gate()), operation(lambda: part(name="b").to_gate())),
    "a gate's inverse": (operation(lambda: part().to_gate()), operation(lambda: part().to_gate().inverse())),
    "a gate inside": (
        operation(lambda: gate(part(0.3).to_gate()).remove_final_measurements(inplace=False).to_gate()),
        operation(lambda: gate(part(0.4).to_gate()).remove_final_measurements(inplace=False).to_gate()),
    ),
    "a control state": (
        operation(lambda: library.XGate().control(2, ctrl_state=1)),
        operation(lambda: library.XGate().control(2, ctrl_state=2)),
    ),
    "a control of a gate": (
        operation(lambda: part(0.3).to_gate().control()),
        operation(lambda: part(0.4).to_gate().control()),
    ),
    "many controls' state": (
        operation(lambda: library.MCXGate(4, ctrl_state=5)),
        operation(lambda: library.MCXGate(4, ctrl_state=6)),
    ),
    "many targets": (
        operation(lambda: library.MCMTGate(library.RZGate(0.1), 2, 2)),
        operation(lambda: library.MCMTGate(library.RZGate(0.2), 2, 2)),
    ),
    "an annotation": (
        annotated(library.SGate(), InverseModifier()),
        annotated(library.SGate(), PowerModifier(3)),
    ),
    "an annotation's control": (
        annotated(library.SGate(), ControlModifier(1, 0)),
        annotated(library.SGate(), ControlModifier(1, 1)),
    ),
    "a matrix": (
        operation(lambda: library.UnitaryGate(np.eye(2))),
        operation(lambda: library.UnitaryGate(np.diag([1, 1j]))),
    ),
    "an initial state": (
        operation(lambda: library.Initialize([1, 0])),
        operation(lambda: library.Initialize([0, 1])),
    ),
    "a prepared state's inverse": (
        operation(lambda: library.StatePreparation([0.6, 0.8])),
        operation(lambda: library.StatePreparation([0.6, 0.8]).inverse()),
    ),
    "an evolution's time": (evolve(), evolve(time=0.4)),
    "an evolution's operator": (evolve(), evolve(operator=2 * SUM)),
    "an evolution's synthesis": (evolve(), evolve(synthesis=submissions.SuzukiTrotter(reps=3))),
    "a permutation": (
        operation(lambda: library.PermutationGate([0, 2, 1])),
        operation(lambda: library.PermutationGate([2, 0, 1])),
    ),
    "a comparison": (
        operation(lambda: library.IntegerComparatorGate(2, 1)),
        operation(lambda: library.IntegerComparatorGate(2, 1, geq=False)),
    ),
    "a polynomial": (
        operation(lambda: library.PolynomialPauliRotationsGate(2, [0.1, 0.2])),
        operation(lambda: library.PolynomialPauliRotationsGate(2, [0.1, 0.3])),
    ),
    "an oracle": (
        operation(lambda: library.PhaseOracleGate("a & b", label="o")),
        operation(lambda: library.PhaseOracleGate("a | b", label="o")),
    ),
    "a function": (
        operation(lambda: library.PiecewiseChebyshevGate(np.sin, 2, degree=2, breakpoints=[0, 2])),
        operation(lambda: library.PiecewiseChebyshevGate(np.cos, 2, degree=2, breakpoints=[0, 2])),
    ),
    "a user's gate": (operation(lambda: Odd(0.5)), operation(lambda: Odd(0.6))),
    "an opaque instruction": (operation(lambda: Opaque([1])), operation(lambda: Opaque([2]))),
    "an opaque gate": (operation(lambda: Gate("pulse-a", 1, [])), operation(lambda: Gate("pulse-b", 1, []))),
    "an expression": (expression(lambda a, b: a + b), expression(lambda a, b: a - b)),
    "the signs of an expression": (expression(lambda a, b: a - b), expression(lambda a, b: b - a)),
    "a factor": (expression(lambda a, b: 2 * a + b), expression(lambda a, b: 3 * a + b)),
    "a divisor": (expression(lambda a, b: a / (b + 1)), expression(lambda a, b: a * (b + 1))),
    "a power": (expression(lambda a, b: a**b), expression(lambda a, b: b**a)),
    "a function of parameters": (expression(lambda a, b: a.sin() + b), expression(lambda a, b: a.cos() + b)),
    "a parameter's name": (
        lambda: request((ansatz("a", "b", "c"), [1, 2, 3])),
        lambda: request((ansatz("a", "b", "d"), [1, 2, 3])),
    ),
    "parameters swapped": (
        lambda: request((ansatz("a", "b", "c"), [1, 2, 3])),
        lambda: request((ansatz("b", "a", "c"), [1, 2, 3])),
    ),
    "a value": (_ramp(0.1, 0.2, 0.3), _ramp(0.1, 0.2, 0.4)),
    "the last bit of a value": (_ramp(0.1, 0.2, 0.3), _ramp(NEXT, 0.2, 0.3)),
    "values swapped": (_ramp(0.1, 0.2, 0.3), _ramp(0.2, 0.1, 0.3)),
    "the shape of values": (lambda: request(array([[1, 2, 3]])), lambda: request(array([1, 2, 3]))),
    "a set of values more": (lambda: request(array(GRID)), lambda: request(array(GRID[:1]))),
    "a condition": (lambda: request(dynamic()), lambda: request(dynamic(first=2))),
    "what a block does": (lambda: request(dynamic()), lambda: request(dynamic(body="y"))),
    "what a loop does with its variable": (lambda: request(dynamic()), lambda: request(dynamic(angle=0.2))),
    "how often a loop runs": (lambda: request(dynamic()), lambda: request(dynamic(limit=5))),
    "which loop's variable": (lambda: request(_nested(outer=True)), lambda: request(_nested(outer=False))),
    "a loop's own variable": (lambda: request(loop()), lambda: request(loop(used=False))),
    "the qubits of a block": (lambda: request(explicit((0, 1))), lambda: request(explicit((1, 0)))),
    "a block's condition": (lambda: request(explicit()), lambda: request(explicit(condition=0))),
    "a variable's name": (lambda: request(classical()), lambda: request(classical(name="sum"))),
    "a variable's value": (lambda: request(classical()), lambda: request(classical(value=4))),
    "a variable's width": (lambda: request(classical()), lambda: request(classical(width=9))),
    "an operator": (lambda: request(classical()), lambda: request(classical(less=False))),
    "a stretch": (lambda: request(stretched()), lambda: request(stretched(3))),
    "a box's annotation": (lambda: request(boxed(Note(1))), lambda: request(boxed(Note(2)))),
    "a box's label": (lambda: request(boxed()), lambda: request(boxed(label="b"))),
    "a box's duration": (lambda: request(boxed(duration=100)), lambda: request(boxed(duration=200))),
    "twirling": (lambda: request(boxed()), lambda: request(boxed(submissions.twirls()[0]))),
    "the layout": (
        lambda: request(submissions.transpiled(layout=[0, 1, 2])),
        lambda: request(submissions.transpiled(layout=[2, 1, 0])),
    ),
    "a gate's argument in QASM": (lambda: request(submissions.qasm()), lambda: request(submissions.qasm("0.4"))),
    "shots": (lambda: request(simple(), shots=1), lambda: request(simple(), shots=2)),
    "no shots": (lambda: request(simple(), shots=4096), lambda: request(simple())),
    "one PUB's shots": (lambda: request([(simple(), None, 1)]), lambda: request([(simple(), None, 2)])),
    "a PUB more": (lambda: request([simple()]), lambda: request([simple(), simple()])),
    "the order of PUBs": (lambda: request([simple(), dynamic()]), lambda: request([dynamic(), simple()])),
    "an observable": (_seen(observable="ZZZ"), _seen(observable="ZZX")),
    "a coefficient": (_seen(observable={"ZZZ": 1.0}), _seen(observable={"ZZZ": 2.0})),
    "the observables' shape": (_seen(observable=["ZZZ", "XXX"]), _seen(observable=[["ZZZ", "XXX"]])),
    "the observables' order": (_seen(observable=["ZZZ", "XXX"]), _seen(observable=["XXX", "ZZZ"])),
    "the precision": (_seen(precision=0.1), _seen(precision=0.2)),
    "an estimator's shots": (_seen(shots=100), _seen(shots=200)),
    "the primitive": (lambda: request(simple()), lambda: estimate((submissions.bare(), "ZZZ"))),
    "the primitive's class": (
        lambda: request(simple(), None, primitive=submissions.own()),
        lambda: request(simple(), None, primitive=_deprecated_sampler()),
    ),
    "a primitive's options": (
        lambda: request(simple(), None, primitive=submissions.own()),
        lambda: request(simple(), None, primitive=submissions.own(default_shots=5)),
    ),
    "the backend": (lambda: request(simple(), "ibm_a"), lambda: request(simple(), "ibm_b")),
    "the least busy backend": (lambda: request(simple(), "ibm_a"), lambda: request(simple(), None)),
    "an option": (option(default_shots=1), option(default_shots=2)),
    "an option deep down": (option(execution={"rep_delay": 1e-4}), option(execution={"rep_delay": 2e-4})),
    "an option of an object": (objects(), objects(execution={"init_qubits": False})),
    "privacy": (objects(), objects(environment={"private": True})),
    "an experimental option": (option(experimental={"a": 1}), option(experimental={"a": 2})),
    "a deprecated option": (deprecated(), deprecated(default_shots=1)),
    "an old object for a new one": (objects(), deprecated()),
    "a noise model": (
        lambda: estimate((submissions.bare(), "ZZZ"), options=submissions.noise_model()),
        lambda: estimate((submissions.bare(), "ZZZ"), options=submissions.noise_model(0.02)),
    ),
    "a learned noise model": (
        lambda: estimate((submissions.bare(), "ZZZ"), options=submissions.learned()),
        lambda: estimate((submissions.bare(), "ZZZ"), options=submissions.learned(0.02)),
    ),
    "the optimization level": (lambda: request(simple()), lambda: request(simple(), optimization_level=2)),
    "the initial layout": (lambda: request(simple()), lambda: request(simple(), initial_layout=[0, 1, 2])),
    "another initial layout": (
        lambda: request(simple(), initial_layout=[1, 0, 2]),
        lambda: request(simple(), initial_layout=[0, 1, 2]),
    ),
    "the precision of the call": (
        lambda: estimate((submissions.bare(), SUM)),
        lambda: estimate((submissions.bare(), SUM), precision=0.1),
    ),
    "the transpiler's seed": (lambda: request(simple()), lambda: request(simple(), seed_transpiler=1)),
}


def _deprecated_sampler() -> Any:
    from qiskit_ibm_runtime import SamplerV2

    return SamplerV2(mode=submissions.backend())


def _nested(*, outer: bool) -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    with circuit.for_loop(range(3)) as i, circuit.for_loop(range(3)) as j:
        circuit.rx(i if outer else j, 0)
        circuit.rz(i + j, 0)
    circuit.measure(0, 0)
    return circuit


@pytest.mark.parametrize("what", CHANGES)
def test_what_counts(what):
    first, second = CHANGES[what]
    assert fingerprint(first()) == fingerprint(first())
    assert fingerprint(first()) != fingerprint(second())


# Circuits at random ---------------------------------------------------------------------------------------------------


def rebuilt(circuit: QuantumCircuit) -> QuantumCircuit:
    """The same circuit, put together from its instructions, with parameters of its own."""
    made = circuit.copy_empty_like(name="rebuilt")
    for instruction in circuit.data:
        made.append(instruction.operation, instruction.qubits, instruction.clbits)
    return made.assign_parameters({each: Parameter(each.name) for each in circuit.parameters})


def stored(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit as it is sent, and read by whoever receives it."""
    file = io.BytesIO()
    qpy.dump(circuit, file)
    file.seek(0)
    (read,) = qpy.load(file)
    return read


@st.composite
def circuits(draw: st.DrawFn) -> QuantumCircuit:
    """Circuits of random gates, resets, conditions, gates of circuits, and expressions of parameters."""
    width, depth = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    circuit = random_circuit(
        width, depth, conditional=draw(st.booleans()), reset=True, seed=draw(st.integers(0, 2**31))
    )
    circuit.add_register(ClassicalRegister(width, "out"))
    parameters = [Parameter(name) for name in "abc"]
    for _ in range(draw(st.integers(0, 4))):
        first, second, third = (draw(st.sampled_from(parameters)) for _ in range(3))
        factor = draw(st.sampled_from([1, -1, 2, 0.3, -0.7]))
        made = [first * factor - second * third, (first - second) * (third + factor), (factor * first).sin() / 3]
        circuit.rx(draw(st.sampled_from(made)), draw(st.integers(0, width - 1)))
    if draw(st.booleans()):
        circuit.append(part(draw(st.floats(-3, 3))).to_gate(), [0, 1])
    circuit.measure(range(width), circuit.cregs[-1])
    return circuit


def of_circuit(circuit: QuantumCircuit) -> str:
    return fingerprint(request((circuit, {each.name: 0.5 for each in circuit.parameters})))


@given(circuits(), st.data())
@settings(max_examples=60, deadline=None)
def test_circuits_at_random(circuit, data):
    known = of_circuit(circuit)
    assert of_circuit(circuit.copy()) == known
    assert of_circuit(rebuilt(circuit)) == known
    assert of_circuit(stored(circuit)) == known
    place = data.draw(st.integers(0, len(circuit.data)))
    changed = circuit.copy()
    method = data.draw(st.sampled_from(["x", "h", "reset", "sdg", "barrier", "delay"]))
    bare = circuit.copy_empty_like()
    getattr(bare, method)(*([10, 0] if method == "delay" else [0]))
    changed.data.insert(place, bare.data[0])
    assert of_circuit(changed) != known


NOT_STORED = {
    *("boxes", "boxes to twirl"),  # a writer of the annotations is needed
    *("a comparison", "a function", "a phase oracle", "a polynomial", "a uniform multiplexer", "a weighted sum"),
    *("an isometry", "many controls and targets", "a state preparation", "a user's opaque instruction"),
}
"""What QPY can't write or read, or reads as something else. A transpiled circuit has none of these, but for boxes."""


@pytest.mark.parametrize("what", sorted(set(GALLERY) - NOT_STORED))
def test_a_circuit_as_it_is_sent(what):
    """What QPY keeps is what is sent, and counts; what it does not keep can't be executed, and does not."""
    made = GALLERY[what]()
    sent = [_replaced(pub, stored(pub.circuit)) for pub in made.pubs]
    assert fingerprint(replace(made, pubs=sent)) == fingerprint(made)


def _replaced(pub: Any, circuit: QuantumCircuit) -> Any:
    shots_or_precision = pub.precision if hasattr(pub, "observables") else pub.shots
    middle = (pub.observables,) if hasattr(pub, "observables") else ()
    return type(pub)(circuit, *middle, pub.parameter_values, shots_or_precision)


@pytest.mark.parametrize("what", GALLERY)
def test_what_was_computed_in_between_does_not_count(what):
    made = GALLERY[what]()
    known = fingerprint(made)
    for pub in made.pubs:
        for instruction in pub.circuit.data:
            _ = getattr(instruction.operation, "definition", None)
    assert fingerprint(made) == known
    assert fingerprint(GALLERY[what]()) == known


# Where it runs --------------------------------------------------------------------------------------------------------


def test_a_session_counts_as_its_backend(ibm, service):
    from qiskit_ibm_runtime import Batch, Session

    known = fingerprint(request(simple(), "ibm_brisbane"))
    backend = service.backend("ibm_brisbane")
    assert fingerprint(request(simple(), backend)) == known
    for kind in (Session, Batch):
        with kind(backend) as session:
            assert fingerprint(request(simple(), session)) == known
            assert fingerprint(request(simple(), None)) == known
    assert fingerprint(request(simple(), None)) != known
    backend.options.use_fractional_gates = True
    assert fingerprint(request(simple(), backend)) != known


def test_what_is_no_backend_is_refused():
    with pytest.raises(ConfigError, match="backend must be a name, a backend object, a Session or a Batch, not object"):
        fingerprint(request(simple(), object()))


# What can't be told ---------------------------------------------------------------------------------------------------


class Unknown:
    """Something of which nothing is known."""


def _itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    "make, words",
    [
        (option(experimental={"how": len}), "an object of type builtin_function_or_method in the options"),
        (option(experimental={"how": Unknown()}), "an object of type Unknown in the options"),
        (option(experimental={"what": _itself()}), "holds itself, or is nested too deep, in the options"),
        (operation(lambda: Opaque(Unknown())), "an object of type Unknown in the operation 'opaque' in PUB 0"),
        (lambda: request(boxed(Note(print))), "in the operation 'box' in PUB 0"),
    ],
)
def test_what_cannot_be_told_is_refused(make, words):
    with pytest.raises(ConfigError) as refused:
        fingerprint(make())
    assert words in str(refused.value)
    assert "omit key=" in str(refused.value)
    assert "0x" not in str(refused.value)


# How fast -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_how_fast(capsys):
    """Printed, and not judged: the machine may be busy."""
    circuit = QuantumCircuit(100, 100)
    for i in range(50_000):
        circuit.rx(0.1 * i, i % 100)
        circuit.cx(i % 100, (i + 1) % 100)
    circuit.measure(range(100), range(100))
    made = request(circuit)
    begun = time.perf_counter()
    found = fingerprint(made)
    took = time.perf_counter() - begun
    with capsys.disabled():
        sys.stdout.write(f"\n100,000 gates: {took:.2f} s\n")
    del circuit.data[0]
    assert fingerprint(request(circuit)) != found


def test_the_package_starts_without_it():
    code = "import sys, qx_supervisor, qx_supervisor.flight; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"qiskit", "numpy", "qiskit_ibm_runtime"}


# Values -----------------------------------------------------------------------------------------------------------


def told(value: Any) -> bytes:
    def refuse(it: Any) -> bytes:
        raise values.OpaqueError(type(it).__name__)

    return values.encode(value, refuse)


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (1, np.float32(1), 2),
        (2**60, np.int64(2**60), 2**60 + 1),
        (float("nan"), np.float32("nan"), 0.0),
        (Fraction(1, 3), Fraction(2, 6), Fraction(1, 4)),
        (Decimal("1.5"), Decimal("1.5"), Decimal("1.6")),
        (1 + 0j, 1, 1j),
        (1 + 2j, np.complex64(1 + 2j), 2 + 1j),
        (np.array([1.0, 2.0]), np.array([1 + 0j, 2 + 0j]), np.array([[1.0, 2.0]])),
        (np.array([2**60]), np.array([2**60], dtype=np.uint64), np.array([2**60 + 1])),
        (np.array([1j]), np.array([1j], dtype=np.complex64), np.array([2j])),
        (b"a", bytearray(b"a"), b"b"),
        (range(3), range(0, 3, 1), range(1, 3)),
        (datetime.date(2026, 1, 2), datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)),
        ({1, 2}, frozenset({2, 1}), {1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_the_same_and_values_that_are_not(one: Any, same: Any, other: Any) -> None:
    assert told(one) == told(same)
    assert told(one) != told(other)


def test_a_value_that_can_not_be_told() -> None:
    with pytest.raises(values.OpaqueError):
        told([object()])
