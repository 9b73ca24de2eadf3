"""The fingerprint of a submission: equal submissions have equal fingerprints in every process and on every host.

A restarted driver builds its circuits again. By the fingerprint, the job that has its key is recognized as the one it
would submit; whatever would execute differently has another fingerprint. What does not affect the execution is left
out: names of circuits, metadata, tags, log levels, how long to wait.

This module imports Qiskit's circuits; import it late.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from . import service
from .canonical import values
from .canonical.circuits import Circuits
from .errors import ConfigError
from .request import Request

SCHEME = b"\x01"
"""Raise this when the fingerprint of the same call changes: restarted drivers are then refused."""

DIGITS = 32

NOT_EXECUTED = {
    ("environment", "job_tags"),
    ("environment", "log_level"),
    ("environment", "max_execution_time"),
    ("max_execution_time",),
}
"""Options that don't change what is executed, but at most how long it may take."""


def fingerprint(request: Request) -> str:
    """Compute the fingerprint of a call.

    It covers: the kind of primitive and its class; circuits, with the names of their classical registers; parameter
    values, shots, observables, precision; the requested backend (for a session, the session's); options; the
    transpiler's settings. Floats are compared bit by bit.

    Args:
        request: The checked call.

    Returns:
        32 lower-case hexadecimal digits.

    Raises:
        ConfigError: Something in it can't be recognized in another process, such as a function, or a gate with
            neither a definition nor plain attributes.
    """
    circuits = Circuits(_of_the_client)
    primitive = request.primitive
    options = request.options if primitive is None else getattr(primitive, "options", None)
    class_ = service.class_of(request.kind, primitive, request.options)
    parts: list[tuple[str, Callable[[], bytes]]] = [
        ("the primitive", lambda: circuits.value((request.kind, class_))),
        *((f"PUB {i}", lambda pub=pub: _pub(pub, circuits)) for i, pub in enumerate(request.pubs)),
        ("the backend", lambda: circuits.value(service.backend_asked_for(request.backend, primitive))),
        ("the shots", lambda: circuits.value(request.shots if request.kind == "estimator" else None)),
        ("the options", lambda: _options(options, circuits)),
        ("the transpiler's settings", lambda: circuits.value(_transpiling(request))),
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


def _transpiling(request: Request) -> tuple[Any, ...]:
    # A layout that is not given has no place there: fingerprints of earlier releases are without it.
    layout = () if request.initial_layout is None else (request.initial_layout,)
    return (request.optimization_level, request.seed_transpiler, *layout)


def _refuse(what: str) -> ConfigError:
    return ConfigError(
        "config",
        f"a run with a key must be recognized when the program is restarted, and {what} can't be; use numbers, "
        "strings, lists, dicts, arrays and Qiskit's own objects there, give gates of your own a definition, or omit "
        "key=",
    )


def _pub(pub: Any, circuits: Circuits) -> bytes:
    pieces = [circuits.circuit(pub.circuit), _bindings(pub.parameter_values, circuits)]
    if hasattr(pub, "observables"):
        found = pub.observables.sparse_observables_array()
        terms = (_observable(each) for each in found.ravel())
        pieces.append(circuits.value(found.shape) + values.sequence(terms) + circuits.value(pub.precision))
    else:
        pieces.append(circuits.value(pub.shots))
    return values.sequence(pieces)


def _bindings(bindings: Any, circuits: Circuits) -> bytes:
    """Parameter values by the parameters' names, however they were grouped."""
    names = sorted(name for group in bindings.data for name in group)
    return circuits.value((bindings.shape, names, bindings.as_array(names) if names else None))


def _observable(observable: Any) -> bytes:
    """A sum of Pauli strings, in any order."""
    terms = (
        values.text(letters) + values.sequence(b"%d;" % qubit for qubit in qubits) + values.number(coefficient)
        for letters, qubits, coefficient in observable.to_sparse_list()
    )
    return b"%d;" % observable.num_qubits + values.collection(terms)


def _options(options: Any, circuits: Circuits) -> bytes:
    changed = _changed(options, None, (), circuits)
    return circuits.value({} if changed is _UNSET else changed)


_UNSET = object()


def _changed(options: Any, default: Any, path: tuple[str, ...], circuits: Circuits) -> Any:
    """Those options, of a dict or an options object, that differ from their defaults; `_UNSET` if none does.

    So a later version of the client may add options without changing the fingerprint.
    """
    if path in NOT_EXECUTED or options is default:
        return _UNSET
    if isinstance(options, Mapping):
        given = {name: (value, _UNSET) for name, value in options.items()}
    elif (fields := values.fields_of(options)) is not None:
        same_type = type(default) is type(options)
        given = {
            name: (value, getattr(default, name) if same_type else values.default_of(options, name))
            for name, value in fields.items()
            if not name.startswith("_")
        }
    elif default is not _UNSET and circuits.value(options) == circuits.value(default):
        return _UNSET
    else:
        return options
    found = {name: _changed(value, its, (*path, name), circuits) for name, (value, its) in given.items()}
    return {name: each for name, each in found.items() if each is not _UNSET} or _UNSET


def _of_the_client(item: Any, encode: Callable[[Any], bytes]) -> bytes:
    """An object of Qiskit's client for IBM Quantum."""
    parts = service.parts_of(item)
    if parts is None:
        raise values.OpaqueError(values.name_of(item))
    return b"r" + values.text(type(item).__name__) + encode(parts)
