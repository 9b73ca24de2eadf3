"""Converts the circuits of a call to Qiskit's PUBs and checks them.

Faults are found before the submission: a refusal is better than a job that waits for hours, and then fails because of a
register's name or returns without the measured bits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigError

if TYPE_CHECKING:
    from qiskit import QuantumCircuit
    from qiskit.circuit import Clbit

Kind = Literal["sampler", "estimator", "executor", "noise-learner"]
"""What executes: the first two take PUBs."""


def coerce(pubs: Any, kind: Kind, shots: int | None, precision: float | None = None) -> tuple[list[Any], bool]:
    """Convert the argument of a call to PUBs, and check them.

    Args:
        pubs: A circuit, a PUB, or several of them.
        kind: The primitive that executes them.
        shots: The number of shots of PUBs without their own.
        precision: The precision of an estimator's PUBs without their own.

    Returns:
        The PUBs, and whether the argument was a list, even of one.

    Raises:
        ConfigError: They can't be executed, or there would be no result.
    """
    from qiskit import QuantumCircuit
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    single = isinstance(pubs, QuantumCircuit | SamplerPub | EstimatorPub)
    if isinstance(pubs, tuple) and pubs and isinstance(pubs[0], QuantumCircuit):
        single = len(pubs) == 1 or not all(isinstance(item, QuantumCircuit) for item in pubs)
    try:
        items = [pubs] if single else list(pubs)
    except TypeError:
        name = type(pubs).__name__
        hint = "; give primitive=Executor(backend) to run it" if name == "QuantumProgram" else ""
        raise _refuse(f"a circuit, a list of circuits or PUBs is needed, not {name}{hint}") from None
    if not items:
        raise _refuse("the list of circuits is empty; give at least one")
    if isinstance(pubs, list) and _is_pub_as_list(pubs, kind):
        raise _refuse("a PUB is a tuple, and a list is several of them; write (circuit, ...), not [circuit, ...]")
    places = [i if len(items) > 1 else None for i in range(len(items))]
    return [_coerce_one(item, kind, shots, precision, i) for item, i in zip(items, places, strict=True)], not single


def copied(pubs: list[Any]) -> list[Any]:
    """Copy PUBs, and each of their circuits once, whichever of them have it."""
    from qiskit.primitives.containers.bindings_array import BindingsArray
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    circuits = {id(pub.circuit): pub.circuit for pub in pubs}
    copies = {key: circuit.copy() for key, circuit in circuits.items()}
    made: list[Any] = []
    for pub in pubs:
        circuit, given = copies[id(pub.circuit)], pub.parameter_values
        values = BindingsArray({names: array.copy() for names, array in given.data.items()}, shape=given.shape)
        if isinstance(pub, SamplerPub):
            made.append(SamplerPub(circuit, values, pub.shots, validate=False))
        else:
            observables = copy.deepcopy(pub.observables)
            made.append(EstimatorPub(circuit, observables, values, pub.precision, validate=False))
    return made


def _is_pub_as_list(items: list[Any], kind: Kind) -> bool:
    """Whether a list is meant as one PUB: a circuit with values or observables."""
    from qiskit import QuantumCircuit

    if len(items) < 2 or not isinstance(items[0], QuantumCircuit) or any(map(_is_circuit, items[1:])):
        return False
    return kind == "estimator" or not isinstance(items[1], str)


def _is_circuit(item: Any) -> bool:
    """Whether an item is a circuit or a PUB, or can be converted to one."""
    from qiskit import QuantumCircuit
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    first = item[0] if isinstance(item, tuple | list) and len(item) else item
    return isinstance(first, QuantumCircuit | SamplerPub | EstimatorPub)


def _coerce_one(item: Any, kind: Kind, shots: int | None, precision: float | None, index: int | None) -> Any:
    from qiskit import QuantumCircuit
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    which = "" if index is None else f" (number {index})"
    if not _is_circuit(item):
        first = item[0] if isinstance(item, tuple | list) and len(item) else item
        raise _refuse(f"not a circuit{which}: {type(first).__name__}; give a QuantumCircuit or a PUB")
    if kind == "estimator" and isinstance(item, QuantumCircuit):
        raise _refuse(f"an estimator needs observables too{which}; give (circuit, observables)")
    if kind == "sampler" and _has_observables(item):
        raise _refuse(
            f"the PUB does not fit a sampler{which}: it has observables, which are for an estimator; "
            "give (circuit, values), or use an estimator"
        )
    try:
        pub = SamplerPub.coerce(item, shots) if kind == "sampler" else EstimatorPub.coerce(item, precision)
    except Exception as error:  # noqa: BLE001 - Qiskit raises many kinds of errors here
        problem = _missing_layout(item, kind) or _missing_values(item, kind) or _shortened(error)
        raise _refuse(f"the PUB does not fit a{'n' if kind == 'estimator' else ''} {kind}{which}: {problem}") from None
    if 0 in pub.shape:
        raise _refuse(
            f"nothing would be executed{which}: the PUB has the shape {pub.shape}, a sweep of no values; give at least "
            "one set of values, and one observable for an estimator"
        )
    _check_values(pub, which)
    if kind == "sampler":
        _check_measurements(pub.circuit, which)
    return pub


def _shortened(error: Exception) -> str:
    """Qiskit's message without its advice about functions that the user did not call."""
    return str(error).partition(" Note that if you want to run a single pub")[0]


def _has_observables(item: Any) -> bool:
    """Whether it is an estimator's PUB. Qiskit would take an observable's matrix for values, and quote it."""
    from qiskit.quantum_info import SparseObservable
    from qiskit.quantum_info.operators.base_operator import BaseOperator

    second = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
    first = second[0] if isinstance(second, tuple | list) and len(second) else second
    return isinstance(first, BaseOperator | SparseObservable)


def _missing_values(item: Any, kind: Kind) -> str:
    """A message if a circuit has parameters and no values were given at all, or ""."""
    circuit = item[0] if isinstance(item, tuple | list) else item
    parameters = getattr(circuit, "parameters", ())
    place = 1 if kind == "sampler" else 2
    if not parameters or (isinstance(item, tuple | list) and len(item) > place and item[place] is not None):
        return ""
    names = ", ".join(parameter.name for parameter in list(parameters)[:5]) + ("…" if len(parameters) > 5 else "")
    give = "(circuit, values)" if kind == "sampler" else "(circuit, observables, values)"
    have = "1 parameter without a value" if len(parameters) == 1 else f"{len(parameters)} parameters without values"
    return f"its circuit has {have} ({names}); give {give}, or circuit.assign_parameters(...)"


def _missing_layout(item: Any, kind: Kind) -> str:
    """A message if an observable has fewer qubits than its circuit, as before transpiling, or ""."""
    from qiskit.primitives.containers.observables_array import ObservablesArray

    if kind != "estimator" or not isinstance(item, tuple | list) or len(item) < 2:
        return ""
    circuit = item[0]
    with contextlib.suppress(Exception):  # Qiskit reports other faults
        widths = {_width(each) for each in ObservablesArray.coerce(item[1]).ravel()}
        if widths and max(widths) < circuit.num_qubits:
            which = f"an observable has {max(widths)} qubits, and its circuit {circuit.num_qubits}"
            if circuit.layout is not None:
                return f"{which}, as transpiled; lay it out: observable.apply_layout(circuit.layout)"
            return f"{which}; if it is transpiled, give observable.apply_layout(transpiled.layout)"
    return ""


def _width(observable: Any) -> int:
    return max(len(term) for term in observable)


def _check_values(pub: Any, which: str) -> None:
    import numpy as np

    for names, values in pub.parameter_values.data.items():
        for name, column in zip(names, np.moveaxis(np.asarray(values), -1, 0), strict=False):
            if not np.isfinite(column).all():
                raise _refuse(f"a value of the parameter {name} is not finite{which}; no gate has such an angle")


def _check_measurements(circuit: QuantumCircuit, which: str) -> None:
    """Check that all measured bits will be in the results, which have them by register name."""
    from qiskit.primitives.containers.data_bin import DataBin

    measured = set(_measured(circuit))
    if not measured:
        raise _refuse(f"the circuit measures nothing{which}; add circuit.measure_all()")
    loose = [bit for bit in measured if not circuit.find_bit(bit).registers]
    if loose:
        places = ", ".join(str(place) for place in sorted(circuit.find_bit(bit).index for bit in loose)[:8])
        raise _refuse(
            f"the circuit measures into a classical bit that is in no register{which}: number {places}; results come "
            "by register, so it would be lost: add circuit.add_register(ClassicalRegister(bits=[...], name=...))"
        )
    # Qiskit makes results with `DataBin(shape=..., **{name: bits})`.
    reserved = {"self", *getattr(DataBin, "_RESTRICTED_NAMES", ())}
    for register in circuit.cregs:
        if register.name in reserved:
            raise _refuse(
                f"a classical register can't be called {register.name!r}{which}: Qiskit's results have an attribute of "
                "that name; rename it"
            )


def measures(circuit: QuantumCircuit) -> bool:
    """Whether a circuit measures anything, in its blocks and gates too."""
    return next(iter(_measured(circuit)), None) is not None


def _measured(circuit: QuantumCircuit) -> Iterator[Clbit]:
    """The classical bits that a circuit measures into, in its blocks and gates too."""
    for instruction in circuit.data:
        operation = instruction.operation
        if _is_measurement(operation):
            yield from instruction.clbits
            continue
        inside = list(getattr(operation, "blocks", ()))
        body = getattr(operation, "definition", None) if instruction.clbits and not inside else None
        for each in (*inside, *([] if body is None else [body])):
            # The bits of a block or definition stand for those of the instruction, in this order.
            stands_for = dict(zip(each.clbits, instruction.clbits, strict=False))
            for bit in _measured(each):
                yield stands_for.get(bit, bit)


def _is_measurement(operation: Any) -> bool:
    """Whether it is Qiskit's measurement, or one of a backend's own, as is `MidCircuitMeasure` of the client."""
    name = operation.name
    return name == "measure" or (name.startswith("measure_") and getattr(operation, "definition", None) is None)


def _refuse(reason: str) -> ConfigError:
    return ConfigError("config", reason)
