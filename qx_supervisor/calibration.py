"""A backend's error rates, from the properties that IBM Quantum reports of its last calibration.

A gate that could not be calibrated is reported with an error of 1: it is left out of the median, and counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .watcher.facts import moment

ENTANGLING = ("cz", "ecr", "cx")
"""The gates on two qubits that circuits are compiled to; a backend's others, such as rzz, are calibrated otherwise."""


@dataclass(frozen=True)
class ErrorRates:
    """The median error rates of a backend. None: not reported.

    Attributes:
        two_qubit: Of its entangling gate.
        gate: The gate's name, or "".
        readout: Of the measurement of a qubit.
        uncalibrated: How many of its pairs of qubits have no such gate now.
        calibrated: When, in seconds since the epoch.
    """

    two_qubit: float | None = None
    gate: str = ""
    readout: float | None = None
    uncalibrated: int = 0
    calibrated: float | None = None


def error_rates(properties: dict[str, Any]) -> ErrorRates:
    """Read the error rates.

    Args:
        properties: The answer to GET /backends/{name}/properties, every field of which may be missing.
    """
    gates = [gate for gate in _list(properties.get("gates")) if isinstance(gate, dict)]
    found = {name: _errors(gates, name) for name in ENTANGLING}
    name = max(found, key=lambda each: len(found[each]))
    good = [error for error in found[name] if error < 1]
    readouts = [
        value for qubit in _list(properties.get("qubits")) for value in _values(qubit, "readout_error") if value < 1
    ]
    return ErrorRates(
        two_qubit=statistics.median(good) if good else None,
        gate=name if good else "",
        readout=statistics.median(readouts) if readouts else None,
        uncalibrated=len(found[name]) - len(good),
        calibrated=moment(properties.get("last_update_date")),
    )


def _errors(gates: list[dict[str, Any]], name: str) -> list[float]:
    pairs = [gate for gate in gates if gate.get("gate") == name and len(_list(gate.get("qubits"))) == 2]
    return [value for gate in pairs for value in _values(gate.get("parameters"), "gate_error")]


def _values(parameters: object, name: str) -> Iterator[float]:
    for each in _list(parameters):
        value = each.get("value") if isinstance(each, dict) and each.get("name") == name else None
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            yield float(value)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
