"""Calls of many kinds, built anew each time; run as a program, it prints their fingerprints as JSON.

Arguments: how many circuits, gates, registers and parameters to make before, and "spawned" to do it all in a child of
multiprocessing, where Qiskit names circuits otherwise.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm2, transpile
from qiskit.circuit import (
    AncillaRegister,
    Clbit,
    ForLoopOp,
    Gate,
    IfElseOp,
    Instruction,
    Parameter,
    ParameterVector,
    Qubit,
    library,
)
from qiskit.circuit.classical import expr, types
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import Clifford, Pauli, SparseObservable, SparsePauliOp
from qiskit.synthesis import SuzukiTrotter

from qx_supervisor.fingerprint import fingerprint
from qx_supervisor.request import Request, check

try:
    from qiskit.circuit import Annotation
except ImportError:  # Qiskit 1 has none
    Annotation = object

Made = Callable[[], Request]

UNSAID: dict[str, Any] = {
    "service": None,
    "primitive": "sampler",
    "shots": None,
    "options": None,
    "optimization_level": 1,
    "seed_transpiler": None,
    "on_status": None,
    "timeout": None,
    "running_timeout": None,
    "poll_interval": None,
    "tags": (),
    "max_execution_time": None,
    "on_unprotected": "raise",
    "key": None,
    "grace": 0.0,
}


def request(pubs: Any, backend: Any = "ibm_brisbane", **given: Any) -> Request:
    """A call of `run`, checked."""
    return check({"pubs": pubs, "backend": backend} | UNSAID | given)


def estimate(pubs: Any, **given: Any) -> Request:
    """A call of `run` with an estimator."""
    return request(pubs, primitive="estimator", **given)


def of(*steps: Callable[[QuantumCircuit], Any], width: int = 3) -> QuantumCircuit:
    """A circuit of three qubits and clbits in which these steps were taken, measured."""
    circuit = QuantumCircuit(width, width)
    for step in steps:
        step(circuit)
    circuit.measure(range(width), range(width))
    return circuit


def gate(operation: Any, width: int = 3) -> QuantumCircuit:
    """A circuit with this operation on its first qubits and clbits."""
    qubits, clbits = range(operation.num_qubits), range(getattr(operation, "num_clbits", 0))
    return of(lambda circuit: circuit.append(operation, qubits, clbits), width=max(width, operation.num_qubits))


class Odd(Gate):
    """A user's gate, known by its definition."""

    def __init__(self, angle: float, *, extra: Any = None) -> None:
        super().__init__("odd", 1, [angle])
        self.extra = extra

    def _define(self) -> None:
        self.definition = QuantumCircuit(1)
        self.definition.rx(self.params[0], 0)


class Opaque(Instruction):
    """A user's instruction, known by its attributes only."""

    def __init__(self, extra: Any) -> None:
        super().__init__("opaque", 1, 0, [])
        self.extra = extra


class Note(Annotation):
    """A user's annotation."""

    namespace = "tests.note"

    def __init__(self, what: Any) -> None:
        self.what = what


def part(angle: float = 0.3, name: str | None = None) -> QuantumCircuit:
    """A circuit to make a gate of."""
    circuit = QuantumCircuit(2, name=name)
    circuit.rx(angle, 0)
    circuit.cx(0, 1)
    return circuit


def ansatz(*names: str) -> QuantumCircuit:
    """A circuit with an expression of these three parameters."""
    a, b, c = (Parameter(name) for name in names)
    return of(
        lambda circuit: circuit.rx(a * b - 2 * c, 0),
        lambda circuit: circuit.ry((b - a) * (c - b) / 3, 1),
        lambda circuit: circuit.rz((a * c).sin() + b**2 - c.exp(), 2),
        lambda circuit: circuit.rz(a, 2),
        lambda circuit: circuit.rz(-b, 2),
    )


def dynamic(*, first: int = 1, angle: float = 0.1, body: str = "x", limit: int = 4) -> QuantumCircuit:
    """Every kind of control flow, built with the builder, many bits wide."""
    q, c, d = QuantumRegister(9, "q"), ClassicalRegister(4, "c"), ClassicalRegister(5, "d")
    circuit = QuantumCircuit(q, c, d)
    circuit.measure(q[0:4], c)
    with circuit.if_test((c, first)) as otherwise:
        for index in (7, 2, 5):
            getattr(circuit, body)(index)
        circuit.measure([8, 1, 3], [d[4], d[0], d[2]])
    with otherwise:
        circuit.h(6)
    with circuit.for_loop(range(limit)) as i:
        circuit.rx(i * angle, 3)
        with circuit.for_loop((1, 2, 5)) as j:
            circuit.rz(i - j, 4)
            circuit.cx(0, 8)
        with circuit.if_test((d[1], True)):
            circuit.break_loop()
        with circuit.if_test((d[2], True)):
            circuit.continue_loop()
    with circuit.while_loop((d[3], False)):
        circuit.x(1)
        circuit.barrier()
        circuit.measure(1, d[3])
    with circuit.switch(c) as case:
        with case(0, 3):
            circuit.x(5)
        with case(case.DEFAULT):
            circuit.y(5)
            circuit.z([8, 7, 6])
    circuit.measure(q[0:5], d)
    return circuit


def classical(*, name: str = "count", value: int = 3, width: int = 8, less: bool = True) -> QuantumCircuit:
    """Variables and expressions of them."""
    c = ClassicalRegister(8, "c")
    circuit = QuantumCircuit(QuantumRegister(2, "q"), c)
    kind = types.Uint(width)
    count = circuit.add_var(name, expr.lift(value, kind))
    flag = circuit.add_var("flag", expr.lift(True))
    circuit.measure(0, c[0])
    circuit.store(count, expr.bit_xor(count, expr.cast(expr.lift(c), kind)))
    compare = expr.less if less else expr.greater
    with circuit.if_test(expr.logic_and(compare(count, 100), expr.logic_not(flag))):
        inner = circuit.add_var("inner", expr.bit_and(count, 7))
        circuit.store(count, inner)
        circuit.x(1)
    with circuit.while_loop(expr.index(count, 0)):
        circuit.store(count, expr.shift_right(count, 1))
    circuit.measure(1, c[1])
    return circuit


def stretched(factor: int = 2) -> QuantumCircuit:
    """Delays that are resolved late."""
    circuit = QuantumCircuit(2, 2)
    rest = circuit.add_stretch("rest")
    circuit.delay(expr.mul(factor, rest), 0)
    circuit.delay(rest, 1)
    circuit.measure([0, 1], [0, 1])
    return circuit


def boxed(*annotations: Annotation, label: str | None = None, duration: int | None = None) -> QuantumCircuit:
    """A box with annotations."""
    circuit = QuantumCircuit(5, 5)
    with circuit.box(list(annotations), label=label, duration=duration, unit="dt" if duration else None):
        circuit.cx(4, 2)
        circuit.noop(0, 3)
    circuit.measure(range(5), range(5))
    return circuit


def explicit(order: tuple[int, int] = (0, 1), condition: int = 1) -> QuantumCircuit:
    """A conditional gate whose block has bits of its own."""
    body = QuantumCircuit([Qubit(), Qubit()], [Clbit()])
    body.cx(0, 1)
    circuit = QuantumCircuit(3, 2)
    circuit.append(IfElseOp((circuit.clbits[0], condition), body), order, [0])
    circuit.measure([0, 1], [0, 1])
    return circuit


def loop(name: str = "angle", *, used: bool = True) -> QuantumCircuit:
    """A loop with a variable that the user named."""
    variable = Parameter(name)
    body = QuantumCircuit(1)
    body.rx(variable if used else 0.5, 0)
    circuit = QuantumCircuit(1, 1)
    circuit.append(ForLoopOp((1, 2, 3), variable if used else None, body), [0], [])
    circuit.measure(0, 0)
    return circuit


def registers(name: str = "result", *, size: int = 2, swapped: bool = False) -> QuantumCircuit:
    """Named and unnamed quantum registers, overlapping classical ones, loose bits."""
    bits = [Clbit() for _ in range(size)]
    first, second = ClassicalRegister(name=name, bits=bits), ClassicalRegister(name="all", bits=[*bits, Clbit()])
    quantum = [QuantumRegister(2), AncillaRegister(1), QuantumRegister(1, "named")]
    pair = (second, first) if swapped else (first, second)
    circuit = QuantumCircuit(*quantum, [Qubit()], *pair)
    circuit.measure([0, 1], bits[:2])
    return circuit


def transpiled(seed: int = 5, layout: list[int] | None = None) -> QuantumCircuit:
    """A circuit that is ISA for a backend, with its layout."""
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    circuit = of(lambda it: it.h(0), lambda it: it.cx(0, 1), lambda it: it.cx(0, 2), lambda it: it.rz(0.3, 1))
    return transpile(circuit, FakeManilaV2(), seed_transpiler=seed, initial_layout=layout, optimization_level=2)


def qasm(angle: str = "0.3") -> QuantumCircuit:
    """A circuit with a gate of a QASM file's own."""
    return qasm2.loads(
        'OPENQASM 2.0; include "qelib1.inc"; gate mine(t) a,b { rx(t) a; cx a,b; } '
        f"qreg q[2]; creg c[2]; mine({angle}) q[0],q[1]; measure q -> c;"
    )


def bound(**values: Any) -> tuple[QuantumCircuit, Any]:
    """A circuit and the values of its parameters."""
    return ansatz("a", "b", "c"), BindingsArray(values)


def simple() -> QuantumCircuit:
    """Two gates."""
    return of(lambda it: it.h(0), lambda it: it.cx(0, 1))


ROOT = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
SUM = SparsePauliOp(["XXI", "ZIZ", "IYY"], [1.0, 0.25, -2.0])
VALUES = {"a": 0.1, "b": 0.2, "c": 0.3}

OPERATIONS: dict[str, Callable[[], Any]] = {
    "a gate of an unnamed circuit": lambda: part().to_gate(),
    "its inverse": lambda: part().to_gate().inverse(),
    "it controlled": lambda: part().to_gate().control(1, ctrl_state=0),
    "it repeated": lambda: part().repeat(2).to_gate(),
    "a power of it": lambda: part().power(2, matrix_power=True).to_gate(),
    "an annotated one": lambda: part().to_gate().inverse(annotated=True).control(1, annotated=True),
    "an instruction with clbits": lambda: simple().to_instruction(),
    "a gate in a gate": lambda: gate(part().to_gate()).remove_final_measurements(inplace=False).to_gate(),
    "a unitary": lambda: library.UnitaryGate(ROOT),
    "a controlled unitary": lambda: library.UnitaryGate(ROOT).control(),
    "an initialization": lambda: library.Initialize([0.6, 0.8j]),
    "an initialization by a label": lambda: library.Initialize("+1r"),
    "a state preparation": lambda: library.StatePreparation([0.6, 0.8]).inverse(),
    "an evolution": lambda: library.PauliEvolutionGate(SUM, time=0.3, synthesis=SuzukiTrotter(order=4, reps=2)),
    "an evolution in Parameter time": lambda: library.PauliEvolutionGate(Pauli("XYZ"), time=Parameter("t")),
    "an evolution of a sparse observable": lambda: library.PauliEvolutionGate(SparseObservable("XYZ"), time=0.3),
    "a Fourier transform": lambda: library.QFTGate(3),
    "many controls": lambda: library.MCXGate(4, ctrl_state=5),
    "controlled u": lambda: library.U3Gate(0.1, 0.2, 0.3).control(2, annotated=False),
    "many controls and targets": lambda: library.MCMTGate(library.RZGate(0.1), 2, 2),
    "a permutation": lambda: library.PermutationGate([2, 0, 1]),
    "a linear function": lambda: library.LinearFunction([[1, 1], [0, 1]]),
    "Paulis": lambda: library.PauliGate("XYZ"),
    "a diagonal": lambda: library.DiagonalGate([1, -1, 1j, -1]),
    "an isometry": lambda: library.Isometry(np.eye(4)[:, :2], 0, 0),
    "a multiplexer": lambda: library.UCRXGate([0.1, 0.2]),
    "a uniform multiplexer": lambda: library.UCGate([ROOT, np.eye(2)]),
    "a comparison": lambda: library.IntegerComparatorGate(2, 1),
    "a polynomial": lambda: library.PolynomialPauliRotationsGate(2, [0.1, 0.2]),
    "a weighted sum": lambda: library.WeightedSumGate(2, [1, 2]),
    "a phase oracle": lambda: library.PhaseOracleGate("(a & b) | ~c"),
    "a function": lambda: library.PiecewiseChebyshevGate(np.sin, 2, degree=2, breakpoints=[0, 2]),
    "a rotation about an axis": lambda: library.RVGate(0.1, 0.2, 0.3),
    "a Hamiltonian": lambda: library.HamiltonianGate(np.diag([1.0, -1.0]), 0.2),
    "a Clifford": lambda: Clifford(part(0.0).remove_final_measurements(inplace=False)),
    "a Pauli measurement": lambda: library.PauliProductMeasurement(Pauli("XYZ")),
    "a user's gate": lambda: Odd(0.5, extra=object()),
    "a user's opaque instruction": lambda: Opaque({"plain": [1, None, "x"], "array": np.arange(3)}),
    "an opaque gate": lambda: Instruction("calibrated", 2, 0, [0.25, "pulse"]),
}

GALLERY: dict[str, Made] = {
    "a circuit": lambda: request(simple()),
    "parameters": lambda: request(bound(**VALUES)),
    "a vector": lambda: request((_vector(), np.linspace(0, 1, 12))),
    "control flow": lambda: request(dynamic()),
    "classical expressions": lambda: request(classical()),
    "stretches": lambda: request(stretched()),
    "boxes": lambda: request(boxed(Note(["x", 1]))),
    "boxes to twirl": lambda: request(boxed(*twirls())),
    "explicit blocks": lambda: request(explicit()),
    "a named loop variable": lambda: request(loop()),
    "registers": lambda: request(registers()),
    "transpiled": lambda: request(transpiled()),
    "from QASM": lambda: request(qasm()),
    "a circuit of the library": lambda: request((_built_on_demand(), np.linspace(0, 1, 8))),
    "two PUBs": lambda: request([(simple(), None, 100), dynamic()]),
    "an estimation": lambda: estimate([(bare(), [[SUM], ["ZZZ"]])], shots=100),
    "an estimation with parameters": lambda: estimate((_vector(measured=False), SUM, np.ones((4, 12)), 0.01)),
    "options": lambda: request(simple(), options={"twirling": {"enable_gates": True}, "default_shots": 10}),
    "options objects": lambda: request(simple(), options=options()),
    "deprecated options": lambda: request(simple(), options=deprecated()),
    "a noise model": lambda: estimate((bare(), "ZZZ"), options=noise_model()),
    "a learned noise model": lambda: estimate((bare(), "ZZZ"), options=learned()),
    "a primitive": lambda: request(simple(), None, primitive=own()),
    **{name: lambda make=make: _applied(make()) for name, make in OPERATIONS.items()},  # type: ignore[misc]
}


def _applied(operation: Any) -> Request:
    circuit = gate(operation)
    return request((circuit, [0.7] * circuit.num_parameters))


def bare() -> QuantumCircuit:
    """Three qubits, without a measurement."""
    circuit = QuantumCircuit(3)
    circuit.h([0, 1, 2])
    return circuit


def _vector(*, measured: bool = True) -> QuantumCircuit:
    angles = ParameterVector("θ", 12)
    circuit = QuantumCircuit(3)
    for index, angle in enumerate(angles):
        circuit.ry(angle, index % 3)
    if measured:
        circuit.measure_all()
    return circuit


def _built_on_demand() -> QuantumCircuit:
    circuit = library.efficient_su2(2, reps=1)
    circuit.measure_all()
    return circuit


def twirls() -> list[Annotation]:
    """What a box says of its twirling."""
    from samplomatic import ChangeBasis, InjectNoise, Twirl

    return [Twirl(), ChangeBasis(mode="measure"), InjectNoise("n1")]


def options(**more: Any) -> Any:
    """Options objects of a sampler."""
    from qiskit_ibm_runtime.options_models import SamplerOptions

    options = SamplerOptions(**more)
    options.twirling.enable_gates = True
    options.default_shots = 10
    return options


def deprecated(**more: Any) -> Any:
    """The same, of the deprecated one."""
    from qiskit_ibm_runtime.options import SamplerOptions

    options = SamplerOptions(**more)
    options.dynamical_decoupling.enable = True
    return options


def noise_model(rate: float = 0.01) -> Any:
    """Options of an estimator with a noise model."""
    from qiskit.quantum_info import PauliLindbladMap
    from qiskit_ibm_runtime.options_models import EstimatorOptions

    box = boxed(Note(1)).data[0]
    noise = PauliLindbladMap.from_list([("I" * (len(box.qubits) - 2) + "XZ", rate)])
    return EstimatorOptions(resilience={"layer_noise_model": [(box, noise)]})


def learned(rate: float = 0.01) -> Any:
    """Options of an estimator with what was learned of noise."""
    from qiskit.quantum_info import PauliList
    from qiskit_ibm_runtime.options import EstimatorOptions
    from qiskit_ibm_runtime.results.noise_learner import LayerError, PauliLindbladError

    options = EstimatorOptions()
    error = PauliLindbladError(PauliList(["XX", "ZZ"]), [rate, 0.2])
    options.resilience.layer_noise_model = [LayerError(part(), [3, 4], error)]
    return options


@functools.cache
def backend() -> Any:
    """A backend without a service."""
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    return FakeManilaV2()


def own(**options: Any) -> Any:
    """A primitive of a user's own."""
    from qiskit_ibm_runtime.executor_sampler import Sampler

    return Sampler(mode=backend(), options=options)


def fingerprints() -> dict[str, str]:
    """Those of the gallery."""
    return {name: fingerprint(make()) for name, make in GALLERY.items()}


def make_others(count: int) -> None:
    """Move Qiskit's counters on."""
    for number in range(count):
        circuit = QuantumCircuit(QuantumRegister(2), ClassicalRegister(1), AncillaRegister(1))
        circuit.append(part().to_gate(), [0, 1])
        with circuit.for_loop(range(2)) as i:
            circuit.rx(i * Parameter(f"other{number}"), 0)


def main() -> None:
    """Print the fingerprints, or have a child print them."""
    warnings.simplefilter("ignore")
    if "spawned" in sys.argv:
        child = multiprocessing.get_context("spawn").Process(target=_print, args=(int(sys.argv[1]),))
        child.start()
        child.join()
        sys.exit(child.exitcode)
    _print(int(sys.argv[1]))


def _print(count: int) -> None:
    warnings.simplefilter("ignore")
    make_others(count)
    json.dump(fingerprints(), sys.stdout)


if __name__ == "__main__":
    main()
