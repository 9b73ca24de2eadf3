"""Backends that are known to compute on this machine, so that there is nothing to guard.

A `BackendV2` may be a simulator in this process, or another vendor's QPU, whose jobs cost money and can't be found or
cancelled by us. So only the simulators of Qiskit, Aer and IBM's client are accepted.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

_SIMULATORS = (
    "qiskit.providers.basic_provider",
    "qiskit.providers.fake_provider",
    "qiskit_aer",
    "qiskit_ibm_runtime.fake_provider",
)
_PRIMITIVES = ("qiskit.primitives", "qiskit_aer.primitives", "qiskit_ibm_runtime")


def check_computes_here(backend: Any, primitive: Any = None) -> None:
    """Refuse a backend that is not IBM Quantum's, unless it is known to compute on this machine.

    Args:
        backend: A backend that is not an `IBMBackend`.
        primitive: The user's own primitive for it, or None.

    Raises:
        ConfigError: It is not known to compute here.
    """
    # The class that defines `run` decides: a vendor's backend may inherit a device's description from a simulator.
    if not _is_of(_class_with_run(backend), _SIMULATORS):
        kind = type(backend)
        raise ConfigError(
            "backend",
            f"{getattr(backend, 'name', None) or kind.__name__} ({kind.__module__}.{kind.__qualname__}) is neither IBM "
            "Quantum's nor known to compute on this machine, so nothing was submitted: its job could not be guarded; "
            "run the circuit with its vendor's own package, or simulate the device here: give "
            "AerSimulator.from_backend(backend) instead",
        )
    if primitive is not None and not any(_is_of(base, _PRIMITIVES) and _runs(base) for base in type(primitive).__mro__):
        kind = type(primitive)
        raise ConfigError(
            "config",
            f"{kind.__module__}.{kind.__qualname__} is no primitive of Qiskit's, and not known to compute on this "
            "machine, so nothing was submitted: its job could not be guarded; use a primitive of qiskit_ibm_runtime, "
            "qiskit.primitives or qiskit_aer",
        )


def _class_with_run(backend: Any) -> type:
    return next((base for base in type(backend).__mro__ if _runs(base)), object)


def _runs(base: type) -> bool:
    run = vars(base).get("run")
    return run is not None and not getattr(run, "__isabstractmethod__", False)


def _is_of(kind: type, packages: tuple[str, ...]) -> bool:
    return f"{kind.__module__}.".startswith(tuple(f"{package}." for package in packages))
