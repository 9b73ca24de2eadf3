"""Encodes circuits and their parts.

What Qiskit numbers consecutively or draws at random does not count: the names of circuits, of gates made from unnamed
circuits, of unnamed quantum registers and loop variables; the uuids of parameters and variables; and the order of a
block's bits, which the builder takes from sets. The names of classical registers do count: results are read by them.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qiskit.circuit import (
    AncillaRegister,
    AnnotatedOperation,
    Barrier,
    Bit,
    CircuitInstruction,
    ClassicalRegister,
    Clbit,
    ControlFlowOp,
    ControlledGate,
    Delay,
    ForLoopOp,
    Gate,
    IfElseOp,
    Instruction,
    Measure,
    Operation,
    ParameterExpression,
    QuantumCircuit,
    Register,
    Reset,
    SwitchCaseOp,
    WhileLoopOp,
)
from qiskit.circuit.annotated_operation import ControlModifier, InverseModifier, PowerModifier
from qiskit.circuit.classical import expr

from . import expressions, newer, quantum_info, values

GENERATED_NAME = re.compile(r"circuit-\d+(-\d+)?")
"""The name of an unnamed circuit: a count and, in a child of multiprocessing, the process id."""

GENERATED_REGISTER = re.compile(r"[qa]\d+")
GENERATED_VARIABLE = re.compile(r"_loop_.*\d+")

LIBRARY = ("qiskit.circuit.", "qiskit.quantum_info.")
"""The packages of Qiskit's own operations, which are determined by class and state in every version."""

NOT_STATE = frozenset(
    (
        *("_definition", "_name", "_label", "_num_qubits", "_num_clbits", "_params"),
        *("_duration", "_unit", "_condition", "condition", "validate_parameter", "duration", "unit", "label", "name"),
        *("_open_ctrl", "_params_arg"),  # derived from the control state, or from the parameters
    )
)
"""Attributes of an instruction that are encoded elsewhere, or derived from others."""

NOT_STATE_OF = {"Isometry": "_inverse"}
"""An attribute that is set when the definition is computed, by class."""


@dataclass(frozen=True)
class Scope:
    """What the bits and variables in a circuit or block stand for.

    Attributes:
        qubits: The index of each qubit in the outermost circuit.
        clbits: The index of each clbit in the outermost circuit.
        bound: Replacements for the variables of the enclosing loops.
    """

    qubits: Mapping[Any, int]
    clbits: Mapping[Any, int]
    bound: Mapping[Any, bytes]

    @classmethod
    def of(cls, circuit: QuantumCircuit, bound: Mapping[Any, bytes]) -> Scope:
        """The scope of an outermost circuit."""
        return cls(
            {bit: index for index, bit in enumerate(circuit.qubits)},
            {bit: index for index, bit in enumerate(circuit.clbits)},
            bound,
        )

    def block(self, instruction: Any, body: QuantumCircuit, bound: Mapping[Any, bytes]) -> Scope:
        """The scope of a block of an instruction in this scope."""
        return Scope(
            {inner: self.qubits[outer] for inner, outer in zip(body.qubits, instruction.qubits, strict=True)},
            {inner: self.clbits[outer] for inner, outer in zip(body.clbits, instruction.clbits, strict=True)},
            bound,
        )

    def resource(self, item: Any) -> bytes:
        """Encode a bit or register by the indices of its bits."""
        try:
            if isinstance(item, Register):
                known = self.clbits if isinstance(item, ClassicalRegister) else self.qubits
                return b"r" + values.sequence(b"%d;" % known[bit] for bit in item)
            return b"b%d;" % (self.clbits if isinstance(item, Clbit) else self.qubits)[item]
        except KeyError:
            raise values.OpaqueError("a bit that is not the circuit's") from None


class Circuits:
    """Encodes circuits; an object that occurs several times is encoded once.

    Args:
        beyond: Encodes other packages' objects, or raises `values.OpaqueError`. It is called with the object and with
            an encoder for its parts.
    """

    def __init__(self, beyond: Callable[[Any, Callable[[Any], bytes]], bytes]) -> None:
        self._beyond = beyond
        self._known: dict[int, tuple[Any, bytes]] = {}  # by id; holding the object keeps its id from being reused
        self._heads: dict[str, bytes] = {}

    def circuit(self, circuit: QuantumCircuit) -> bytes:
        """Encode a circuit."""
        return self._once(circuit, lambda: self._whole(circuit))

    def value(self, value: Any, scope: Scope | None = None) -> bytes:
        """Encode any argument of a gate, or any option."""
        return values.encode(value, lambda item: self._object(item, scope or _NOWHERE))

    def _once(self, item: Any, make: Callable[[], bytes]) -> bytes:
        known = self._known.get(id(item))
        if known is None:
            known = self._known[id(item)] = (item, b"#" + hashlib.sha256(make()).digest())
        return known[1]

    def _whole(self, circuit: QuantumCircuit) -> bytes:
        _ = circuit.data  # builds a lazy circuit of Qiskit's library
        scope = Scope.of(circuit, {})
        registers = []
        for register in circuit.qregs:
            kind = b"A" if isinstance(register, AncillaRegister) else b"Q"
            generated = GENERATED_REGISTER.fullmatch(register.name)
            name = values.text(register.name[0] if generated else register.name)
            registers.append(kind + name + scope.resource(register))
        registers.extend(b"C" + values.text(register.name) + scope.resource(register) for register in circuit.cregs)
        return values.sequence(
            (
                b"%d;%d;" % (circuit.num_qubits, circuit.num_clbits),
                values.sequence(registers),
                expressions.declared(circuit.iter_input_vars(), {}),
                self._body(circuit, scope),
                _layout(circuit),
            )
        )

    def _body(self, circuit: QuantumCircuit, scope: Scope) -> bytes:
        """The global phase, the variables and the instructions of a circuit or block."""
        local = (*circuit.iter_declared_vars(), *newer.stretches(circuit))
        return values.sequence(
            (
                self.value(circuit.global_phase, scope),
                expressions.declared(newer.captures(circuit), scope.bound),
                expressions.declared(local, scope.bound),
                self._instructions(circuit, scope),
            )
        )

    def _instructions(self, circuit: QuantumCircuit, scope: Scope) -> bytes:
        pieces = []
        at = {bit: b"%d," % index for bit, index in (*scope.qubits.items(), *scope.clbits.items())}
        has_conditions = newer.has_conditions()
        if getattr(circuit, "_calibrations", None):  # of Qiskit 1
            raise values.OpaqueError("a calibration of pulses")
        for instruction in circuit.data:
            qubits = instruction.qubits
            if has_conditions and (condition := getattr(instruction.operation, "_condition", None)) is not None:
                pieces.append(b"c" + self._condition(condition, scope))
            if instruction.is_standard_gate():
                pieces.append(self._standard(instruction, scope))
                pieces.extend([at[bit] for bit in qubits])
                pieces.append(b";")
                continue
            operation = instruction.operation
            clbits: Iterable[Any] = instruction.clbits
            flow = isinstance(operation, ControlFlowOp)
            try:
                if flow:
                    pieces.append(self._control_flow(instruction, operation, scope))
                else:
                    pieces.append(self.operation(operation, scope))
            except values.OpaqueError as error:
                raise error.inside(f"the operation {operation.name!r}") from None
            if flow or operation.name == "barrier":  # their bits are unordered
                qubits = sorted(qubits, key=scope.qubits.__getitem__)
                clbits = sorted(clbits, key=scope.clbits.__getitem__)
            pieces.extend([at[bit] for bit in qubits])
            pieces.append(b":")
            pieces.extend([at[bit] for bit in clbits])
            pieces.append(b";")
        return values.sequence(pieces)

    # Operations

    def _standard(self, instruction: CircuitInstruction, scope: Scope) -> bytes:
        """A gate that Qiskit's core knows, as nearly all are."""
        name = instruction.name
        head = self._heads.get(name)
        if head is None:
            head = self._heads[name] = b"g" + values.text(name)
        for parameter in instruction.params:
            if type(parameter) is float:
                head += b"f" + struct.pack(">d", parameter + 0.0) if parameter == parameter else b"n"  # noqa: PLR0124
            elif isinstance(parameter, ParameterExpression):
                head += expressions.parameter(parameter, scope.bound)
            else:
                head += values.number(parameter)
        label = instruction.label
        return head if label is None else head + b"l" + _named(label)

    def operation(self, operation: Any, scope: Scope) -> bytes:
        """Encode what an instruction does, without its bits.

        Raises:
            OpaqueError: It can't be recognized in another process.
        """
        if isinstance(operation, Instruction):
            if operation.base_class in _PLAIN:
                return _plain(operation)
            if operation.base_class is Delay:
                duration = self.value(operation.params, scope)
                return b"d" + duration + values.text(str(operation.unit)) + _label(operation)
            bare = CircuitInstruction(operation, (), ())
            if bare.is_standard_gate():
                return self._standard(bare, scope)
        if scope.bound or operation.name == "store":  # its meaning depends on the scope
            return self._any(operation, scope)
        return self._once(operation, lambda: self._any(operation, scope))

    def _any(self, operation: Any, scope: Scope) -> bytes:
        if isinstance(operation, AnnotatedOperation):
            modifiers = values.sequence(_modifier(modifier) for modifier in operation.modifiers)
            return b"w" + modifiers + self.operation(operation.base_op, scope)
        kind = operation.base_class if isinstance(operation, Instruction) else type(operation)
        if kind in (Gate, Instruction, ControlledGate) or not kind.__module__.startswith(LIBRARY):
            return self._custom(operation, kind, scope)
        sizes = b"%d;%d;" % (operation.num_qubits, operation.num_clbits)
        head = b"k" + values.text(kind.__name__) + values.text(operation.name) + sizes + _label(operation)
        try:
            if not isinstance(operation, Instruction):
                return head + self.value(quantum_info.parts(operation), scope)
            return head + self.value((operation.params, self._state(operation)), scope)
        except values.OpaqueError:
            definition = self._definition(operation, scope)  # the gate may have been made with a function
            if definition is None:
                raise
            return head + definition

    def _custom(self, operation: Any, kind: type, scope: Scope) -> bytes:
        """An operation of the user's: by its definition or, if it has none, by its name."""
        sizes = b"%d;%d;" % (operation.num_qubits, operation.num_clbits)
        head = (b"U" if isinstance(operation, Gate) else b"u") + sizes + _label(operation)
        definition = self._definition(operation, scope)
        if definition is None:
            parameters = self.value(getattr(operation, "params", ()), scope)
            state = None if kind in (Gate, Instruction) else (kind.__name__, self._state(operation))
            return head + values.text(operation.name) + parameters + self.value(state, scope)
        try:
            parameters = self.value(operation.params, scope)
        except values.OpaqueError:
            parameters = b"?"
        return head + _named(operation.name) + parameters + definition

    def _definition(self, operation: Any, scope: Scope) -> bytes | None:
        definition = getattr(operation, "definition", None)
        if not isinstance(definition, QuantumCircuit):
            return None
        inner = Scope.of(definition, scope.bound)
        return b"#" + hashlib.sha256(self._body(definition, inner)).digest()

    @staticmethod
    def _state(operation: Any) -> dict[str, Any]:
        left_out = NOT_STATE_OF.get(type(operation).__name__)
        state = values.state_of(operation)
        return {name: each for name, each in state.items() if name not in NOT_STATE and name != left_out}

    # Control flow

    def _control_flow(self, instruction: Any, operation: Any, scope: Scope) -> bytes:
        bound = scope.bound
        parts: list[bytes] = []
        if isinstance(operation, IfElseOp | WhileLoopOp):
            parts.append(self._condition(operation.condition, scope))
        elif isinstance(operation, SwitchCaseOp):
            parts.append(self._condition(operation.target, scope))
            cases = (labels for labels, _ in operation.cases_specifier())
            parts.extend(values.sequence(self._case(label) for label in labels) for labels in cases)
        elif isinstance(operation, ForLoopOp):
            indices, variable, _ = operation.params
            parts.append(self.value(indices if isinstance(indices, range) else tuple(indices)))
            if variable is not None:
                name = "" if GENERATED_VARIABLE.fullmatch(variable.name) else variable.name
                kind = expressions.type_of(variable) if isinstance(variable, expr.Var) else b"P"
                parts.append(kind + values.text(name))
                bound = {**bound, variable: b"@%d;" % len(bound)}
        elif isinstance(operation, newer.BoxOp):
            parts.append(self.value((operation.duration, operation.unit), scope))
            parts.append(values.sequence(self.value(each, scope) for each in operation.annotations))
        inner = [(body, scope.block(instruction, body, bound)) for body in operation.blocks]
        parts.extend(self._body(body, within) for body, within in inner)
        return b"f" + values.text(operation.name) + _label(operation) + values.sequence(parts)

    def _condition(self, condition: Any, scope: Scope) -> bytes:
        if isinstance(condition, tuple):
            return b"=" + scope.resource(condition[0]) + values.number(int(condition[1]))
        return self._object(condition, scope)

    @staticmethod
    def _case(label: Any) -> bytes:
        return values.number(int(label)) if isinstance(label, int) else b"*"  # the default case

    # Everything else

    def _object(self, item: Any, scope: Scope) -> bytes:
        if isinstance(item, ParameterExpression):
            return expressions.parameter(item, scope.bound)
        if isinstance(item, expr.Expr):
            return expressions.classical(item, scope.resource, scope.bound)
        if isinstance(item, QuantumCircuit):
            return self.circuit(item)
        if isinstance(item, ControlFlowOp):  # outside a circuit
            bare = QuantumCircuit(item.num_qubits, item.num_clbits)
            bare.append(item, bare.qubits, bare.clbits)
            return self.circuit(bare)
        if isinstance(item, Operation):
            return self.operation(item, scope)
        if isinstance(item, CircuitInstruction):
            return self._loose(item)
        if isinstance(item, Bit | Register):
            return scope.resource(item)
        if isinstance(item, newer.Annotation):
            return b"@" + values.text(item.namespace) + self.value((type(item).__name__, values.state_of(item)), scope)
        if (parts := quantum_info.parts(item)) is not None:
            return b"q" + values.text(type(item).__name__) + self.value(parts, scope)
        return self._beyond(item, self.value)

    def _loose(self, instruction: CircuitInstruction) -> bytes:
        """An instruction outside a circuit; its bits may still have their indices."""
        bare = QuantumCircuit(list(instruction.qubits), list(instruction.clbits))
        bare.append(instruction)
        places = [getattr(bit, "_index", None) for bit in (*instruction.qubits, *instruction.clbits)]
        return self.circuit(bare) + self.value(places)


_NOWHERE = Scope({}, {}, {})


_PLAIN = frozenset((Measure, Reset, Barrier))


def _plain(operation: Any) -> bytes:
    return b"h%d;" % operation.num_qubits + values.text(operation.name) + _label(operation)


def _named(name: str) -> bytes:
    """A name or label, without a number that Qiskit generated."""
    return values.text(GENERATED_NAME.sub("circuit", name))


def _label(operation: Any) -> bytes:
    label = getattr(operation, "label", None)
    return b"-" if label is None else _named(label)


def _modifier(modifier: Any) -> bytes:
    if isinstance(modifier, InverseModifier):
        return b"i"
    if isinstance(modifier, ControlModifier):
        return b"c%d;%d;" % (modifier.num_ctrl_qubits, modifier.ctrl_state)
    if isinstance(modifier, PowerModifier):
        return b"p" + values.number(modifier.power)
    raise values.OpaqueError(values.name_of(modifier))


def _layout(circuit: QuantumCircuit) -> bytes:
    layout = circuit.layout
    if layout is None:
        return b"-"
    found = []
    for how in ("initial_index_layout", "final_index_layout"):
        try:
            found.append(values.sequence(b"%d;" % place for place in getattr(layout, how)()))
        except Exception:  # noqa: BLE001 - a layout made by hand may be incomplete; it does not affect the execution
            found.append(b"?")
    return values.sequence(found)
