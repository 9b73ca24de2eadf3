"""Qiskit's primitives: makes them, reads their options, runs local ones, decodes results."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..watcher.service_messages import one_line
from . import internals
from .failures import describe
from .isa_circuits import isa_circuits_of, keep_isa_circuits
from .targets import Target


def make_primitive(kind: str, target: Target, options: Any, shots: int | None) -> Any:
    """Make Qiskit's current primitive of a kind, or the deprecated one for options of the deprecated type.

    Raises:
        ConfigError: The options don't fit the primitive.
    """
    name = "Sampler" if kind == "sampler" else "Estimator"
    cls = internals.primitive_class(kind, deprecated=internals.are_deprecated_options(options))
    if kind == "estimator" and shots is not None:
        options = copy.deepcopy(options)  # the primitive keeps the user's object, which may serve other runs
    try:
        primitive = cls(mode=target.mode or target.backend, options=options)
        if kind == "estimator" and shots is not None:
            primitive.options.default_shots = shots
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigError("config", f"the options do not fit {name}: {_mistakes(error)}") from None
    return primitive


_NO_SUCH_OPTION = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic says of one: of the client's current options, and of those of `SamplerV2` and `EstimatorV2`."""


def _mistakes(error: Exception) -> str:
    """What is wrong with options, in one line: pydantic's own message is four lines for each, one of them a URL."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return describe(error)
    found = [(".".join(map(str, each["loc"])), each) for each in error.errors(include_url=False, include_input=False)]
    return one_line(
        "; ".join(
            f"there is no option {where}" if each["type"] in _NO_SUCH_OPTION else f"{where}: {each['msg']}"
            for where, each in found
        )
    )


def class_of(kind: str, primitive: Any, options: Any) -> tuple[str, str]:
    """The package and class name of the primitive that a run will use, the user's or one made here."""
    if primitive is not None:
        return type(primitive).__module__.partition(".")[0], type(primitive).__name__
    cls = internals.primitive_class(kind, deprecated=internals.are_deprecated_options(options))
    return "qiskit_ibm_runtime", cls.__name__


def with_own_options(primitive: Any, session: Any) -> Any:
    """A primitive that keeps the options that this one has now, if it is the client's own.

    One of another class is returned as it is: nobody knows what else it has, or what a copy of it would share.

    Args:
        primitive: The primitive object, or None.
        session: The session or batch that it is to run in; None: as it is.
    """
    if type(primitive).__module__.partition(".")[0] != internals.PACKAGE:
        return primitive
    made = internals.with_own_options(primitive, session)
    kept = isa_circuits_of(primitive)
    if kept is not None:
        keep_isa_circuits(made, kept)
    return made


def parts_of(item: Any) -> Any:
    """The parts of a client object that may occur in a primitive's options; None for anything else."""
    if isinstance(item, internals.find("NoiseLearnerResult")):
        return list(item.data)
    if isinstance(item, internals.find("LayerError")):
        return item.circuit, list(item.qubits), item.error
    if isinstance(item, internals.find("PauliLindbladError")):
        return item.generators, item.rates
    return () if isinstance(item, internals.find("UnsetType")) else None


def tags_of(primitive: Any) -> list[str]:
    """The tags that a primitive's options put on its jobs."""
    options = getattr(primitive, "options", None)
    environment = getattr(options, "environment", None)
    return list(getattr(environment, "job_tags", None) or [])


def decoders_of(job: Any) -> Sequence[Any]:
    """The decoders of `job.result()`. With them, the job object is no longer needed."""
    return internals.decoders_of(job)


def decoders_for(job: Mapping[str, Any]) -> Sequence[Any]:
    """The decoders for a job that was not submitted here, by the service's description of it."""
    program = job.get("program")
    return internals.decoders_for(program.get("id", "") if isinstance(program, dict) else "")


def decode(decoders: Sequence[Any], text: str) -> Any:
    """Decode a job's results as `job.result()` does. That would fetch them without a read timeout."""
    return internals.decode(decoders, text)


def is_result(decoded: Any) -> bool:
    """Whether the decoders returned a result, rather than plain JSON or text."""
    return decoded is not None and not isinstance(decoded, str | int | float | list | dict)
