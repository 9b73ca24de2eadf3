"""A short name for what a call submits: the same for the same, also in another process, on another day or host.

A driver that comes back with a key has built its circuits again. By this name its job is known to be the one that it
would submit, and anything that would execute otherwise is told from it. What does not count is what executes nothing:
names of circuits, metadata, tags, log levels, how long to wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import service
from .errors import ConfigError

if TYPE_CHECKING:
    from .canonical.circuits import Circuits
    from .request import Request

SCHEME = b"\x01"
"""Raise it when the same call no longer gives the same fingerprint: a driver that comes back is then refused."""

DIGITS = 32

NOT_EXECUTED = {
    ("environment", "job_tags"),
    ("environment", "log_level"),
    ("environment", "max_execution_time"),
    ("max_execution_time",),
}
"""Options that change nothing of what is executed, but for how long it may take."""


def fingerprint(request: Request) -> str:
    """Name what a call submits.

    It counts: the kind of primitive and, of the user's own, its class; circuits, with the names of their classical
    registers; parameter values, shots, observables, precision; the backend as it was asked for, where a session counts
    as its backend; options; how to transpile. Floats count to their last bit.

    Args:
        request: The checked call.

    Returns:
        32 lower-case hexadecimal digits.

    Raises:
        ConfigError: If there is something in it that can't be told again, such as a function, or a gate with neither a
            definition nor plain attributes.
    """
    from .canonical import values
    from .canonical.circuits import Circuits

    circuits = Circuits(_foreign)
    own = request.primitive
    parts: list[tuple[str, Callable[[], bytes]]] = [
        ("the primitive", lambda: circuits.value((request.kind, service.class_of(request.kind, own, request.options)))),
        *((f"PUB {i}", lambda pub=pub: _pub(pub, circuits)) for i, pub in enumerate(request.pubs)),
        ("the backend", lambda: circuits.value(service.backend_asked_for(request.backend, own))),
        ("the shots", lambda: circuits.value(request.shots if request.kind == "estimator" else None)),
        ("the options", lambda: _options(request.options if own is None else getattr(own, "options", None), circuits)),
        ("the transpiler's settings", lambda: circuits.value((request.optimization_level, request.seed_transpiler))),
    ]
    digest = hashlib.sha256(b"qx_supervisor" + SCHEME)
    for place, make in parts:
        try:
            piece = make()
        except values.OpaqueError as error:
            raise _refuse(str(error.inside(place))) from None
        except RecursionError:
            raise _refuse(f"something that holds itself, or is nested too deep, in {place}") from None
        digest.update(b"%d:" % len(piece) + piece)
    return digest.hexdigest()[:DIGITS]


def _refuse(what: str) -> ConfigError:
    return ConfigError(
        "config",
        f"a run with a key must be known again when the program is started again, and {what} can't be; use numbers, "
        "strings, lists, dicts, arrays and Qiskit's own objects there, give gates of your own a definition, or leave "
        "key= away",
    )


def _pub(pub: Any, circuits: Circuits) -> bytes:
    from .canonical import values

    pieces = [circuits.circuit(pub.circuit), _bindings(pub.parameter_values, circuits)]
    if hasattr(pub, "observables"):
        found = pub.observables.sparse_observables_array()
        terms = (_observable(each) for each in found.ravel())
        pieces.append(circuits.value(found.shape) + values.sequence(terms) + circuits.value(pub.precision))
    else:
        pieces.append(circuits.value(pub.shots))
    return values.sequence(pieces)


def _bindings(bindings: Any, circuits: Circuits) -> bytes:
    """Parameter values, by the names of the parameters, whichever way they were grouped."""
    names = sorted(name for group in bindings.data for name in group)
    return circuits.value((bindings.shape, names, bindings.as_array(names) if names else None))


def _observable(observable: Any) -> bytes:
    """A sum of Pauli strings, whose order means nothing."""
    from .canonical import values

    terms = (
        values.text(letters) + values.sequence(b"%d;" % qubit for qubit in qubits) + values.number(coefficient)
        for letters, qubits, coefficient in observable.to_sparse_list()
    )
    return b"%d;" % observable.num_qubits + values.collection(terms)


def _options(options: Any, circuits: Circuits) -> bytes:
    set_ones = _set(options, None, (), circuits)
    return circuits.value({} if set_ones is _NOTHING else set_ones)


_NOTHING = object()


def _set(options: Any, default: Any, path: tuple[str, ...], circuits: Circuits) -> Any:
    """What is set of the options, of a dict or of options objects; `_NOTHING` if nothing is.

    What an options object has by default counts as not set, so a later version of the client may bring new options, and
    a driver comes back with it all the same.
    """
    from .canonical import values

    if path in NOT_EXECUTED or options is default:
        return _NOTHING
    if isinstance(options, Mapping):
        given = {name: (value, _NOTHING) for name, value in options.items()}
    elif (fields := values.fields_of(options)) is not None:
        alike = type(default) is type(options)
        given = {
            name: (value, getattr(default, name) if alike else values.default_of(options, name))
            for name, value in fields.items()
            if not name.startswith("_")
        }
    elif default is not _NOTHING and circuits.value(options) == circuits.value(default):
        return _NOTHING
    else:
        return options
    kept = {name: _set(value, its, (*path, name), circuits) for name, (value, its) in given.items()}
    kept = {name: each for name, each in kept.items() if each is not _NOTHING}
    return kept or _NOTHING


def _foreign(item: Any, encode: Callable[[Any], bytes]) -> bytes:
    """An object of Qiskit's client for IBM Quantum."""
    from .canonical import values

    parts = service.parts_of(item)
    if parts is None:
        raise values.OpaqueError(values.name_of(item))
    return b"r" + values.text(type(item).__name__) + encode(parts)
