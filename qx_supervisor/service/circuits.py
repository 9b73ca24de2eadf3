"""Finds circuits that a backend can't execute, and transpiles them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import forks
from ..errors import ConfigError, RunError
from . import internals
from .failures import describe
from .isa_circuits import IsaCircuits
from .primitives import class_of
from .targets import Target


@dataclass(frozen=True)
class Transpiling:
    """How circuits are transpiled.

    Attributes:
        level: The transpiler's optimization level.
        seed: The transpiler's seed, or None.
        layout: The physical qubit of each qubit of the circuits, or None.
        manager: The user's pass manager, which has such settings of its own; or None.
        few_rotations: Whether gates with parameters are rewritten that the primitive does not take.
        kept: Those that were transpiled before, if they are kept.
    """

    level: int = 1
    seed: int | None = None
    layout: tuple[int, ...] | None = None
    manager: Any = None
    few_rotations: bool = False
    kept: IsaCircuits | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether circuits are transpiled that could be executed as they stand, too."""
        return self.layout is not None or self.manager is not None


_turn = forks.make_lock()
"""Held by who transpiles, where two threads can't at once.

The user's pass manager can't be run by two: passes keep what they find in themselves. And before Qiskit 2.2 nothing can
be: `BasisTranslator` borrows the library of equivalent gates, one for all threads, for itself alone, and calls Python
meanwhile. Another thread's then fails: "Already borrowed".
"""


_ROTATIONS = ("rz", "rx")
"""The gates on one qubit whose parameters the client's current estimator computes with: what real backends have."""

_EQUIVALENT = ("rz", "sx", "x")
"""What all gates on one qubit can be written in."""


def takes_few_rotations(target: Target, kind: str, primitive: Any, options: Any) -> bool:
    """Whether the primitive takes fewer gates with parameters than the backend has, and others can be rewritten.

    The client's current estimator fails at those that a simulator of Aer's has beside: "Unexpected operand ry". Where
    that has a noise model, it is one of certain gates, and these are left as they are.
    """
    if class_of(kind, primitive, options) != ("qiskit_ibm_runtime", "Estimator") or not target.is_local:
        return False
    backend = target.backend
    is_noisy = getattr(backend.options, "noise_model", None) is not None
    return not is_noisy and {"ry", *_EQUIVALENT} <= set(backend.target.operation_names)


def _other_rotations(circuit: Any) -> set[str]:
    """The gates on one qubit that have parameters, and are none of `_ROTATIONS`."""
    found: set[str] = set()
    for each in circuit.data:
        for block in getattr(each.operation, "blocks", ()):
            found |= _other_rotations(block)
        if len(each.qubits) == 1 and any(getattr(value, "parameters", ()) for value in each.operation.params):
            found.add(each.operation.name)
    return found.difference(_ROTATIONS)


def _gates(circuit: Any) -> set[str]:
    inner = [_gates(block) for each in circuit.data for block in getattr(each.operation, "blocks", ())]
    return set[str]().union(*inner, (each.operation.name for each in circuit.data))


def _with_few_rotations(circuit: Any) -> Any:
    """A circuit with these gates rewritten, and nothing else."""
    from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
    from qiskit.transpiler import PassManager
    from qiskit.transpiler.passes import BasisTranslator

    others = _other_rotations(circuit)
    if not others:
        return circuit
    basis = [*(_gates(circuit) - others), *_EQUIVALENT]
    return PassManager([BasisTranslator(SessionEquivalenceLibrary, basis)]).run(circuit)


def not_isa(pubs: Sequence[Any], target: Target, *, few_rotations: bool = False) -> list[int]:
    """The indices of the PUBs whose circuit must be transpiled.

    Args:
        pubs: Coerced PUBs.
        target: The target.
        few_rotations: Whether the primitive takes fewer gates with parameters than the backend has.

    Raises:
        ConfigError: A circuit has more qubits than the backend.
    """
    is_isa_circuit = internals.find("is_isa_circuit")
    backend = target.backend
    for pub in pubs:
        if backend.num_qubits is not None and pub.circuit.num_qubits > backend.num_qubits:
            raise ConfigError(
                "backend",
                f"a circuit has {pub.circuit.num_qubits} qubits, and {target.name} has {backend.num_qubits}; choose a "
                "wider backend, or none to have one chosen",
            )
    if backend.target.num_qubits is None:  # a simulator of any width, which the client can't check
        return list(range(len(pubs)))
    return [
        i
        for i, pub in enumerate(pubs)
        if is_isa_circuit(pub.circuit, backend.target) or (few_rotations and _other_rotations(pub.circuit))
    ]


def to_isa(pubs: Sequence[Any], foreign: list[int], target: Target, kind: str, how: Transpiling) -> list[Any]:
    """Transpile the circuits of some PUBs for a backend.

    Args:
        pubs: Coerced PUBs.
        foreign: The indices of those to transpile.
        target: The target.
        kind: "sampler" or "estimator".
        how: How.

    Raises:
        ConfigError: What was asked for does not fit the backend.
        RunError: The transpiler failed.
    """
    qubits = target.backend.num_qubits
    if how.layout is not None and qubits is not None and max(how.layout) >= qubits:
        raise ConfigError(
            "backend",
            f"initial_layout names the physical qubit {max(how.layout)}, and {target.name} has the qubits 0 to "
            f"{qubits - 1}; name others, or choose a wider backend",
        )
    try:
        circuits = [pubs[i].circuit for i in foreign]
        if how.kept is None or how.manager is not None:  # what a manager does may change from call to call
            transpiled = _transpile(circuits, target, how)
        else:
            settings = (how.level, how.seed, how.layout, how.few_rotations)
            transpiled = how.kept.get(circuits, settings, lambda new: _transpile(new, target, how))
    except Exception as error:
        raise RunError(
            "transpile", f"the circuit could not be transpiled for {target.name}: {describe(error)}"
        ) from error
    changed = list(pubs)
    for i, circuit in zip(foreign, transpiled, strict=True):
        changed[i] = _with_circuit(pubs[i], circuit, kind)
    if how.manager is not None and target.backend.target.num_qubits is not None and not_isa(changed, target):
        raise ConfigError(
            "transpile",
            f"what pass_manager= makes of the circuits can't be executed on {target.name}; make it for this backend, "
            "with generate_preset_pass_manager(backend=...)",
        )
    return changed


def _transpile(circuits: list[Any], target: Target, how: Transpiling) -> list[Any]:
    from qiskit.transpiler import generate_preset_pass_manager

    with _turn if how.manager is not None or _takes_turns() else contextlib.nullcontext():
        if how.manager is not None:
            return list(how.manager.run(circuits))
        manager = generate_preset_pass_manager(
            optimization_level=how.level,
            backend=target.backend,
            seed_transpiler=how.seed,
            initial_layout=None if how.layout is None else list(how.layout),
        )
        transpiled = list(manager.run(circuits))
        return list(map(_with_few_rotations, transpiled)) if how.few_rotations else transpiled


def _takes_turns() -> bool:
    """Whether only one thread can transpile at a time."""
    import qiskit

    major, minor = map(int, re.findall(r"\d+", qiskit.__version__)[:2])
    return (major, minor) < (2, 2)


def check_angles(pubs: Sequence[Any], target: Target) -> None:
    """Check parameter values for `rzz` angles out of range, which the hardware refuses only when the job runs.

    Raises:
        ConfigError: A value leads to such an angle.
    """
    is_valid_rzz_pub = internals.find("is_valid_rzz_pub")
    if "rzz" not in target.backend.target.operation_names:
        return
    for index, pub in enumerate(pubs):
        message = is_valid_rzz_pub(pub)
        if message:
            which = f" (number {index})" if len(pubs) > 1 else ""
            reason = f"{message[:1].lower()}{message[1:].rstrip('.')}{which}"
            raise ConfigError(
                "config",
                f"{reason}; give values that keep the angle in that range, bind the parameters "
                "before, so that the transpiler folds the angle, or use the backend without use_fractional_gates=True",
            )


def _with_circuit(pub: Any, circuit: Any, kind: str) -> Any:
    from qiskit.primitives.containers.bindings_array import BindingsArray
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    # The transpiler may remove a parameter, for instance that of a rotation right before a measurement.
    remaining = {parameter.name for parameter in circuit.parameters}
    values = pub.parameter_values
    data = {}
    for names, array in values.data.items():
        used = [i for i, name in enumerate(names) if name in remaining]
        if used:
            data[tuple(names[i] for i in used)] = array[..., used]
    bindings = BindingsArray(data, shape=values.shape)
    if kind == "sampler":
        return SamplerPub(circuit, bindings, pub.shots)
    return EstimatorPub(circuit, _laid_out(pub.observables, circuit), bindings, pub.precision)


def _laid_out(observables: Any, circuit: Any) -> Any:
    """Observables of a circuit's virtual qubits, as ones of the physical qubits that it was transpiled to."""
    from qiskit.primitives.containers.observables_array import ObservablesArray

    if hasattr(observables, "apply_layout"):
        return observables.apply_layout(circuit.layout)
    if circuit.layout is None:
        return observables
    # Qiskit 1 has no such method. An observable is a dictionary there, of letters, the first qubit's last, to numbers.
    places = circuit.layout.final_index_layout()

    def move(letters: str) -> str:
        moved = ["I"] * circuit.num_qubits
        for place, letter in zip(places, reversed(letters), strict=True):
            moved[circuit.num_qubits - 1 - place] = letter
        return "".join(moved)

    def laid_out(part: Any) -> Any:
        if isinstance(part, list):
            return [laid_out(each) for each in part]
        return {move(letters): factor for letters, factor in part.items()}

    return ObservablesArray(laid_out(observables.tolist()))
