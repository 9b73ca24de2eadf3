"""Which program a primitive is for, what it takes, and the call of its `run`.

Beside samplers and estimators these are the `Executor`, which takes a quantum program, and the noise learners, which
take circuits (`NoiseLearner`) or boxed instructions (`NoiseLearnerV3`). What they are given is never transpiled: a
program is made for its backend, and what is learned of one layer does not hold for another.
"""

from __future__ import annotations

from typing import Any, Literal

from ..errors import ConfigError
from . import internals


def kind_of(primitive: Any) -> Literal["executor", "noise-learner"] | None:
    """The program of a primitive of the client's that is neither a sampler nor an estimator; None for all else."""
    if internals.is_a(primitive, "Executor"):
        return "executor"
    return "noise-learner" if internals.is_a(primitive, "NoiseLearner", "NoiseLearnerV3") else None


def coerce(given: Any, primitive: Any) -> tuple[list[Any], bool]:
    """Check what an `Executor` or a noise learner is to run.

    Returns:
        It as a list, for an `Executor` of the one program; and whether it was a list.

    Raises:
        ConfigError: The primitive does not take it.
    """
    if kind_of(primitive) == "executor":
        return [_program(given)], True
    what, single = _what_it_learns_from(primitive)
    try:
        items = [given] if isinstance(given, single) else list(given)
    except TypeError:
        raise _refuse(f"{type(primitive).__name__} takes {what}, not {type(given).__name__}") from None
    if not items:
        raise _refuse(f"nothing would be learned, because the list is empty; give {what}")
    for index, item in enumerate(items):
        if not isinstance(item, single):
            which = f" (number {index})" if len(items) > 1 else ""
            raise _refuse(f"{type(primitive).__name__} takes {what}, not {type(item).__name__}{which}")
    return items, True


def _what_it_learns_from(primitive: Any) -> tuple[str, Any]:
    from qiskit import QuantumCircuit
    from qiskit.circuit import CircuitInstruction
    from qiskit.primitives.containers.estimator_pub import EstimatorPub

    if internals.is_a(primitive, "NoiseLearner"):
        return "circuits that were transpiled for its backend", (QuantumCircuit, EstimatorPub, tuple)
    return "the boxed instructions of circuits, as a primitive's find_unique_layers(pubs) gives them", (
        CircuitInstruction
    )


def _is_program(given: Any) -> bool:
    """Whether it is a quantum program: the client's, or since 0.50 samplomatic's, of which that is a kind now."""
    if internals.is_a(given, "QuantumProgram"):
        return True
    try:
        from samplomatic.quantum_program import QuantumProgram
    except ImportError:
        return False
    return isinstance(given, QuantumProgram)


def _program(given: Any) -> Any:
    if not _is_program(given):
        raise _refuse(
            f"an Executor takes one QuantumProgram, not {type(given).__name__}; append circuits to a program, or run "
            'them with primitive="sampler"'
        )
    if not given.items:
        raise _refuse("the quantum program is empty; append a circuit: program.append_circuit_item(circuit)")
    return given


def call(primitive: Any, inputs: list[Any], kind: str, shots: int | None) -> Any:
    """Call a primitive's `run`; returns Qiskit's job."""
    if kind == "sampler":
        return primitive.run(inputs, shots=shots)
    return primitive.run(inputs[0] if kind == "executor" else inputs)


def _refuse(reason: str) -> ConfigError:
    return ConfigError("config", reason)
