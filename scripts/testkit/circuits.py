"""The circuits of the tests that run jobs in their own process."""

from __future__ import annotations

from qiskit import QuantumCircuit

BACKEND = "ibm_brisbane"


def bell(*, measured: bool = True) -> QuantumCircuit:
    """Two qubits that always agree."""
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    if measured:
        circuit.measure_all()
    return circuit


def ones(width: int = 1) -> QuantumCircuit:
    """So many qubits, each of them always 1."""
    circuit = QuantumCircuit(width)
    circuit.x(range(width))
    circuit.measure_all()
    return circuit
