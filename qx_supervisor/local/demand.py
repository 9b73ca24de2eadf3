"""What a job will take of the machine that simulates it, by its circuits.

A state is kept as a vector, which doubles with each qubit in use, or as a matrix product, whose size depends on how
far the qubits on the two sides of each cut are entangled. A gate across a cut doubles that at most, so the gates say
how far it can come. The order in which the simulator keeps the qubits changes while it works, so this is an estimate;
what a simulation takes in fact is bounded besides (see `simulator`).
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibm_quantum_schemas.common.qpy import ANNOTATION_FACTORIES
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.circuit import ControlFlowOp, ForLoopOp, WhileLoopOp
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit_ibm_runtime.json import RuntimeDecoder

from .bounds import Demand
from .charges import sets_of_values, shots_of

LARGE = 200_000
"""Characters of a submission that is read in another process, as reading it would hold up the service."""

_COMPLEX = 16  # bytes
_SMALL_VECTOR = 2.0**20 * _COMPLEX  # bytes
_COPIES = 4  # of a part of the state, while a gate is applied to it
_BYTES_PER_SHOT = 200  # as the simulator keeps a shot: a string, in a list
_BYTES_PER_BIT = 4  # of a shot, in all its forms from the simulator's to the answer's
_QUICK = 8  # the extent of the state's matrices up to which sampling takes about as long
_DOUBLING = {"cx", "cy", "cz", "ch", "cp", "crx", "cry", "crz", "csx", "ecr", "rxx", "ryy", "rzx", "rzz"}
_MOST = 64  # doublings: more than any machine has memory for


def size_of(params: Mapping[str, Any]) -> int:
    """The characters of a submission's parameters, or a few less."""
    return sum(len(value) if isinstance(value, str) else size_of(value) for value in _values(params))


def _values(found: Any) -> Sequence[Any]:
    values = found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else ()
    return [value for value in values if isinstance(value, str | list | Mapping)]


def demand_of(program_id: str, params: dict[str, Any]) -> Demand:
    """What a job takes.

    Raises:
        Exception: Its parameters can't be read, which whoever runs it will find too.
    """
    shapes, operations, kept, sampling = [_NOTHING], 0.0, 0.0, 0.0
    for circuit, sets, shots in _executions(program_id, params):
        shape = _shape(circuit) if isinstance(circuit, QuantumCircuit) else circuit
        shapes.append(shape)
        operations += sets * shape.operations
        kept += sets * shots * (_BYTES_PER_SHOT + _BYTES_PER_BIT * shape.bits)
        sampling += sets * shots * shape.bits * max(1.0, 2.0 ** (shape.qubits / 2) / _QUICK)
    as_product = max(shape.memory for shape in shapes)
    as_vector = 2.0 ** max(shape.used for shape in shapes) * _COMPLEX * _COPIES
    # The vector is quicker by far where it has room. Expectation values are computed over all qubits of the backend.
    is_vector = program_id != "estimator" and as_vector <= max(as_product, _SMALL_VECTOR)
    return Demand(
        executions=shots_of(params),
        qubits=max(shape.qubits for shape in shapes),
        memory=kept + (as_vector if is_vector else as_product),
        operations=operations,
        sampling=sampling,
        method="statevector" if is_vector else "matrix_product_state",
    )


@dataclass(frozen=True)
class _Shape:
    """What the simulation of a circuit takes.

    Attributes:
        qubits: As in `Demand`.
        used: How many qubits have operations at all.
        memory: Bytes of the state as a matrix product.
        operations: How many there are.
        bits: Of a shot.
    """

    qubits: int
    used: int
    memory: float
    operations: float
    bits: int


_NOTHING = _Shape(0, 0, 0.0, 0.0, 0)


def _executions(program_id: str, params: dict[str, Any]) -> Iterator[tuple[QuantumCircuit | _Shape, int, int]]:
    """The circuits of a job, each with its number of sets of parameter values, and of shots for each set."""
    program = params.get("quantum_program")
    if program is not None:
        for shape, item in zip(_shapes(json.dumps(program["circuits"])), program["items"], strict=True):
            yield shape, sets_of_values(item), int(program["shots"])
        return
    for raw in params["pubs"]:
        pub = tuple(json.loads(json.dumps(raw), cls=RuntimeDecoder))
        if program_id == "estimator":
            yield pub[0], EstimatorPub.coerce(pub).size, 0  # it is computed without shots
        else:
            sampled = SamplerPub.coerce(pub, 1)
            yield pub[0], sampled.size, shots_of({**params, "pubs": [raw]})


@functools.lru_cache(maxsize=64)
def _shapes(circuits: str) -> tuple[_Shape, ...]:
    """The shapes of the circuits of a program ``executor``; programs often submit the same ones again."""
    found = json.loads(circuits)
    if "b64_data" in found:
        with io.BytesIO(zlib.decompress(base64.b64decode(found["b64_data"]))) as file:
            read = qpy.load(file, annotation_factories=ANNOTATION_FACTORIES)
    else:
        read = [qasm3.loads(text) for text in found["data"]]
    return tuple(map(_shape, read))


def _shape(circuit: QuantumCircuit) -> _Shape:
    counted = _Counted(circuit.num_qubits)
    counted.add(circuit, list(range(circuit.num_qubits)))
    doublings = counted.doublings()
    # Each qubit has two matrices, as high and as wide as the cuts on its sides say.
    sides = itertools.pairwise([0, *doublings, 0])
    memory = sum(2.0 ** (left + right + 1) * _COMPLEX * _COPIES for left, right in sides)
    qubits = min(counted.largest(), 2 * max(doublings, default=0))
    return _Shape(qubits, len(counted.used), memory, counted.operations, circuit.num_clbits)


class _Counted:
    """Which qubits a circuit entangles, and how often it can double the entanglement across each cut.

    A cut is between a qubit and the next one.
    """

    def __init__(self, qubits: int) -> None:
        self.operations = 0.0
        self.used: set[int] = set()
        self._component = list(range(qubits))
        self._gates = [0.0] * max(qubits - 1, 0)  # doublings across each cut

    def add(self, circuit: QuantumCircuit, place: list[int], times: float = 1.0) -> None:
        """Add a circuit, or the body of an operation, whose qubits are at these places."""
        for instruction in circuit.data:
            operation = instruction.operation
            at = [place[circuit.find_bit(qubit).index] for qubit in instruction.qubits]
            if isinstance(operation, ControlFlowOp):
                for body in operation.blocks:
                    self.add(body, at, times * _repetitions(operation))
                continue
            self.operations += times
            if operation.name in ("barrier", "delay"):
                continue
            self.used.update(at)
            if len(at) < 2:
                continue
            doublings = times if operation.name in _DOUBLING else 2.0 * times * (len(at) - 1)
            for cut in range(min(at), max(at)):
                self._gates[cut] += doublings
            first = self._find(at[0])
            for other in at[1:]:
                self._component[self._find(other)] = first

    def _find(self, qubit: int) -> int:
        while self._component[qubit] != qubit:
            self._component[qubit] = self._component[self._component[qubit]]
            qubit = self._component[qubit]
        return qubit

    def _members(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for qubit in range(len(self._component)):
            members.setdefault(self._find(qubit), []).append(qubit)
        return [found for found in members.values() if len(found) > 1]

    def largest(self) -> int:
        """How many qubits are entangled with one another at most."""
        return max(map(len, self._members()), default=0)

    def doublings(self) -> list[int]:
        """The doublings across each cut: by its gates, and no more than the qubits on either side allow."""
        room = [0] * len(self._gates)
        for members in self._members():
            for number, (qubit, following) in enumerate(itertools.pairwise(members), 1):
                for cut in range(qubit, following):
                    room[cut] += min(number, len(members) - number)
        return [min(int(min(gates, _MOST)), allowed, _MOST) for gates, allowed in zip(self._gates, room, strict=True)]


def _repetitions(operation: ControlFlowOp) -> float:
    """How often a body is executed, at most as far as that is known."""
    if isinstance(operation, ForLoopOp):
        return float(len(tuple(operation.params[0])))
    return math.inf if isinstance(operation, WhileLoopOp) else 1.0
