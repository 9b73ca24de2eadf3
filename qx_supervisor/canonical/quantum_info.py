"""Takes operators, states and the settings of Qiskit's synthesis apart into plain values."""

from __future__ import annotations

from typing import Any

from qiskit.quantum_info import (
    Clifford,
    Pauli,
    PauliList,
    SparsePauliOp,
)
from qiskit.quantum_info.operators.base_operator import BaseOperator
from qiskit.quantum_info.states.quantum_state import QuantumState
from qiskit.synthesis import OneQubitEulerDecomposer
from qiskit.synthesis.evolution.evolution_synthesis import EvolutionSynthesis
from qiskit.transpiler import CouplingMap

from . import newer


def parts(item: Any) -> Any:
    """The plain values that determine an object, in a fixed order; None for an object of any other type."""
    if isinstance(item, Clifford):
        return item.tableau
    if isinstance(item, Pauli | PauliList):
        return item.z, item.x, item.phase
    if isinstance(item, SparsePauliOp):
        return item.paulis.z, item.paulis.x, item.paulis.phase, item.coeffs
    if isinstance(item, newer.SparseObservable | newer.PauliLindbladMap):
        return item.num_qubits, [tuple(term) for term in item.to_sparse_list()]
    if isinstance(item, BaseOperator | QuantumState) and hasattr(item, "data"):
        return item.dims() if isinstance(item, QuantumState) else (item.input_dims(), item.output_dims()), item.data
    if isinstance(item, EvolutionSynthesis):
        try:
            return item.settings
        except NotImplementedError:  # it was made with a function
            return None
    if isinstance(item, newer.BooleanExpression):
        return item.expression, list(item.args)
    if isinstance(item, OneQubitEulerDecomposer):
        return item.basis
    if isinstance(item, CouplingMap):
        return item.size(), sorted(item.get_edges())
    return None
