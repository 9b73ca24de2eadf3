"""What not every release of Qiskit has: 1.4 has none of it, and 2.0 only a part.

In a release without a class nothing is of it, so a class of which nothing is stands for it.
"""

from __future__ import annotations

import importlib
from typing import Any

from qiskit import circuit, quantum_info
from qiskit.circuit.classical import expr


class Nothing:
    """A class of which nothing is."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


Annotation: Any = getattr(circuit, "Annotation", Nothing)
BoxOp: Any = getattr(circuit, "BoxOp", Nothing)
PauliLindbladMap: Any = getattr(quantum_info, "PauliLindbladMap", Nothing)
BooleanExpression: Any = getattr(_module("qiskit.synthesis.boolean.boolean_expression"), "BooleanExpression", Nothing)
SparseObservable: Any = getattr(quantum_info, "SparseObservable", Nothing)
Stretch: Any = getattr(expr, "Stretch", Nothing)


def stretches(of: Any) -> tuple[Any, ...]:
    """The stretches that a circuit declares."""
    return tuple(of.iter_declared_stretches()) if hasattr(of, "iter_declared_stretches") else ()


def captures(of: Any) -> Any:
    """The variables, and the stretches, that a block takes from around it."""
    return of.iter_captures() if hasattr(of, "iter_captures") else of.iter_captured_vars()


def has_conditions() -> bool:
    """Whether any instruction may have a condition (`c_if`), as in Qiskit 1, and not only a block."""
    return hasattr(circuit.Instruction, "c_if")
