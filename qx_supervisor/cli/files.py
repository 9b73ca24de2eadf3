"""Circuits from files: OpenQASM 2 and 3, and QPY. The first bytes decide the format, not the file name."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError

_HEADER = re.compile(r"(?:\s|//[^\n]*\n|/\*.*?\*/)*OPENQASM\s+([0-9]+)(?:\.[0-9]+)?\s*;", re.DOTALL)


def read(file: str, *, measure_all: bool) -> list[Any]:
    """Read the circuits of a file.

    Args:
        file: Its path, or "-" for standard input.
        measure_all: Whether to measure all qubits of a circuit that measures nothing.

    Raises:
        ConfigError: If the file can't be read, or contains no circuit that can be run.
    """
    from ..pubs import measures

    circuits = _parse(_bytes(file), file)
    for i, circuit in enumerate(circuits):
        if circuit.parameters:
            names = ", ".join(parameter.name for parameter in circuit.parameters)
            reason = f"a circuit has parameters without values: {names}; circuit.assign_parameters(...) gives them"
            raise _refuse(file, reason)
        if not measures(circuit):
            which = f" (number {i})" if len(circuits) > 1 else ""
            if not measure_all:
                raise _refuse(file, f"the circuit measures nothing{which}; add measurements, or --measure-all")
            # Into the declared bits, if there is one per qubit.
            circuit.measure_all(add_bits=circuit.num_clbits != circuit.num_qubits)
    return circuits


def _bytes(file: str) -> bytes:
    try:
        with click.open_file(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise _refuse(file, f"the file can't be read: {error.strerror or error}") from None
    assert isinstance(data, bytes)
    return data


def _parse(data: bytes, file: str) -> list[Any]:
    if data.startswith(b"QISKIT"):
        return _qpy(data, file)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _refuse(file, "neither OpenQASM nor QPY; give a file that Qiskit's qasm2, qasm3 or qpy wrote") from None
    header = _HEADER.match(text)
    if header is None:
        raise _refuse(
            file,
            'the file does not begin with "OPENQASM 2.0;" or "OPENQASM 3.0;"; add the one that it is written in. (A '
            "program is started by: qx-supervisor exec -- python FILE)",
        )
    if header[1] not in ("2", "3"):
        raise _refuse(file, f"OpenQASM {header[1]} is not known; 2 and 3 are")
    circuit = _qasm2(text, file) if header[1] == "2" else _qasm3(text, file)
    circuit.name = "stdin" if file == "-" else Path(file).stem
    return [circuit]


def _qpy(data: bytes, file: str) -> list[Any]:
    from qiskit import QuantumCircuit, qpy

    try:
        found = qpy.load(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 - a damaged file raises many types
        raise _refuse(file, f"the QPY file can't be read: {_one_line(error)}; write it anew with qpy.dump") from None
    circuits = [item for item in found if isinstance(item, QuantumCircuit)]
    if not circuits:
        raise _refuse(file, "the QPY file holds no circuit")
    return circuits


def _qasm2(text: str, file: str) -> Any:
    from qiskit import qasm2

    folder = "." if file == "-" else str(Path(file).parent)
    try:
        # With the gates that Qiskit's earlier exporters did not define.
        return qasm2.loads(text, include_path=(folder,), custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)
    except qasm2.QASM2ParseError as error:
        raise _refuse(file, f"the OpenQASM 2 can't be read: {_one_line(error)}") from None


def _qasm3(text: str, file: str) -> Any:
    from qiskit import qasm3

    try:
        return qasm3.loads(text)
    except Exception as error:  # noqa: BLE001 - the parser raises many types
        raise _refuse(file, f"the OpenQASM 3 can't be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    message = getattr(error, "message", None)  # the str() of a QiskitError is a repr
    text = " ".join((message if isinstance(message, str) else str(error)).split())
    return text or type(error).__name__


def _refuse(file: str, reason: str) -> ConfigError:
    name = "standard input" if file == "-" else file
    return ConfigError("config", f"{name}: {reason}")
