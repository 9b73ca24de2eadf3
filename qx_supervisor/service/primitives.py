"""Qiskit's primitives: makes them, reads their options, runs local ones, decodes results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .failures import describe
from .targets import Target


def make_primitive(kind: str, target: Target, options: Any, shots: int | None) -> Any:
    """Make Qiskit's current primitive of a kind, or the deprecated one for options of the deprecated type.

    Raises:
        ConfigError: The options don't fit the primitive.
    """
    name = "Sampler" if kind == "sampler" else "Estimator"
    if _is_deprecated(options):
        import qiskit_ibm_runtime

        cls = getattr(qiskit_ibm_runtime, f"{name}V2")
    else:
        module = __import__(f"qiskit_ibm_runtime.executor_{kind}", fromlist=[name])
        cls = getattr(module, name)
    try:
        primitive = cls(mode=target.mode or target.backend, options=options)
        if kind == "estimator" and shots is not None:
            primitive.options.default_shots = shots
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigError("config", f"the options do not fit {name}: {describe(error)}") from None
    return primitive


def _is_deprecated(options: Any) -> bool:
    return type(options).__module__.startswith("qiskit_ibm_runtime.options.")


def class_of(kind: str, primitive: Any, options: Any) -> tuple[str, str]:
    """The package and class name of the primitive that a run will use, the user's or one made here."""
    if primitive is not None:
        return type(primitive).__module__.partition(".")[0], type(primitive).__name__
    return "qiskit_ibm_runtime", kind.capitalize() + ("V2" if _is_deprecated(options) else "")


def parts_of(item: Any) -> Any:
    """The parts of a client object that may occur in a primitive's options; None for anything else."""
    from qiskit_ibm_runtime.options.utils import UnsetType
    from qiskit_ibm_runtime.results.noise_learner import LayerError, NoiseLearnerResult, PauliLindbladError

    if isinstance(item, NoiseLearnerResult):
        return list(item.data)
    if isinstance(item, LayerError):
        return item.circuit, list(item.qubits), item.error
    if isinstance(item, PauliLindbladError):
        return item.generators, item.rates
    return () if isinstance(item, UnsetType) else None


def tags_of(primitive: Any) -> list[str]:
    """The tags that a primitive's options put on its jobs."""
    options = getattr(primitive, "options", None)
    environment = getattr(options, "environment", None)
    return list(getattr(environment, "job_tags", None) or [])


def run_local(primitive: Any, pubs: list[Any], kind: str, shots: int | None) -> Any:
    """Run a primitive in Qiskit's local testing mode; returns Qiskit's job."""
    return primitive.run(pubs, shots=shots) if kind == "sampler" else primitive.run(pubs)


def decoders_of(job: Any) -> Sequence[Any]:
    """The decoders of `job.result()`. With them, the job object is no longer needed."""
    decoders: Sequence[Any] = job._result_decoders
    return decoders


def decoders_for(job: Mapping[str, Any]) -> Sequence[Any]:
    """The decoders for a job that was not submitted here, by the service's description of it."""
    from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
    from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    program = job.get("program")
    return DEFAULT_DECODERS.get(program.get("id", "") if isinstance(program, dict) else "") or [ResultDecoder]


def decode(decoders: Sequence[Any], text: str) -> Any:
    """Decode a job's results as `job.result()` does. That would fetch them without a read timeout."""
    decoded: Any = text
    for decoder in decoders:
        if decoder.is_applicable(decoded):
            decoded = decoder.decode(decoded)
    return decoded


def is_result(decoded: Any) -> bool:
    """Whether the decoders returned a result, rather than plain JSON or text."""
    return decoded is not None and not isinstance(decoded, str | int | float | list | dict)
