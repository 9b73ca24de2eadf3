"""Finds circuits that a backend can't execute, and transpiles them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, RunError
from .failures import describe
from .targets import Target


def not_isa(pubs: Sequence[Any], target: Target) -> list[int]:
    """The indices of the PUBs whose circuit must be transpiled.

    Raises:
        ConfigError: A circuit has more qubits than the backend.
    """
    from qiskit_ibm_runtime.utils.utils import is_isa_circuit

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
    return [i for i, pub in enumerate(pubs) if is_isa_circuit(pub.circuit, backend.target)]


def to_isa(
    pubs: Sequence[Any], foreign: list[int], target: Target, kind: str, *, level: int, seed: int | None
) -> list[Any]:
    """Transpile the circuits of some PUBs for a backend.

    Args:
        pubs: Coerced PUBs.
        foreign: The indices of those to transpile.
        target: The target.
        kind: "sampler" or "estimator".
        level: The transpiler's optimization level.
        seed: The transpiler's seed, or None.

    Raises:
        RunError: The transpiler failed.
    """
    from qiskit.transpiler import generate_preset_pass_manager

    try:
        manager = generate_preset_pass_manager(optimization_level=level, backend=target.backend, seed_transpiler=seed)
        transpiled = manager.run([pubs[i].circuit for i in foreign])
    except Exception as error:
        raise RunError(
            "transpile", f"the circuit could not be transpiled for {target.name}: {describe(error)}"
        ) from error
    changed = list(pubs)
    for i, circuit in zip(foreign, transpiled, strict=True):
        changed[i] = _with_circuit(pubs[i], circuit, kind)
    return changed


def check_angles(pubs: Sequence[Any], target: Target) -> None:
    """Check parameter values for `rzz` angles out of range, which the hardware refuses only when the job runs.

    Raises:
        ConfigError: A value leads to such an angle.
    """
    from qiskit_ibm_runtime.utils.utils import is_valid_rzz_pub

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
    return EstimatorPub(circuit, pub.observables.apply_layout(circuit.layout), bindings, pub.precision)
