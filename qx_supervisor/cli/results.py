"""A job's result as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import Interrupted, JobCancelled, JobFailed, QxError, RunError, RunTimeout
from ..pub_results import is_estimate
from ..result import RunResult
from . import output

FIELDS = """\b
--json prints an object for each circuit:
  job_id       the job's id
  backend      where it ran
  state        "done"
  index        number of the circuit in the job, from 0
  name         the circuit's name, or null if unknown
  qpu_seconds  QPU time charged, or null while unknown
  qpu_seconds_estimated
               QPU time that was expected, or null
  shots, counts
               for a sampler: the number of executions, and
               {bit string: count}
  expectation_values, standard_errors
               for an estimator: nested lists in the PUB's shape
and, if there is no result, one object:
  job_id       the job's id, or null if there is none
  state        "failed", "cancelled", "timeout", "interrupted", "error"
  stage        where it failed: config, auth, backend, transpile, submit,
               poll, timeout, job or results; null if none of these
  reason       why, in a sentence
  raw          what came of the results, undecoded, if they can't be
               read; else missing"""
"""Part of the help of commands that print results."""


def show(result: RunResult, names: Sequence[str | None], *, as_json: bool) -> None:
    """Print a result.

    Args:
        result: The result.
        names: The circuits' names.
        as_json: Print JSON objects instead of a table.
    """
    try:
        found = [_values(result, index) for index in range(len(names))]
    except (AttributeError, TypeError) as error:  # another program's job, or a kind of result without counts
        output.say(f"job {result.job_id} is done; its result can't be printed here: {error}")
        found = [{}] * len(names)
    for index, (values, name) in enumerate(zip(found, names, strict=True)):
        if as_json:
            output.record(
                job_id=result.job_id_of(index),
                backend=result.backend,
                state="done",
                index=index,
                name=name,
                qpu_seconds=result.qpu_seconds,
                qpu_seconds_estimated=result.qpu_seconds_estimated,
                **values,
            )
            continue
        if index:
            output.line()
        parts = [f"job {result.job_id_of(index)}", result.backend]
        parts += [f"{values['shots']} shots"] if "shots" in values else []
        parts += [name] if name is not None and len(names) > 1 else []
        output.line("  ".join(parts))
        _table(values)


def _values(result: RunResult, index: int) -> dict[str, Any]:
    alone = RunResult([result[index]], result.job_id, result.backend)
    if is_estimate(alone[0]):
        return {"expectation_values": alone.expectation_values, "standard_errors": alone.standard_errors}
    counts = alone.counts
    return {"shots": sum(counts.values()), "counts": counts}


def _table(values: dict[str, Any]) -> None:
    if "counts" in values:
        counts, shots = values["counts"], values["shots"]
        width = len(str(max(counts.values(), default=0)))
        for bits, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            output.line(f"{bits}  {count:{width}}  {100 * count / shots:6.2f} %")
    if "expectation_values" in values:
        import numpy

        evs = numpy.atleast_1d(values["expectation_values"])
        stds = numpy.broadcast_to(values["standard_errors"], evs.shape)
        for value, error in zip(evs.flat, stds.flat, strict=True):
            output.line(f"{value:+.6f}  +- {error:.6f}")


def show_failure(error: QxError | Interrupted | KeyboardInterrupt, job_id: str | None = None) -> None:
    """Print an error as JSON, in place of a result.

    Args:
        error: How it ended.
        job_id: The requested job, used if the error names none.
    """
    match error:
        case Interrupted() | KeyboardInterrupt():
            state = "interrupted"
        case JobFailed():
            state = "failed"
        case JobCancelled():
            state = "cancelled"
        case RunTimeout():
            state = "timeout"
        case _:
            state = "error"
    stage = error.stage if isinstance(error, RunError) else None
    reason = error.reason if isinstance(error, RunError) else str(error) or "interrupted; the job goes on"
    raw = {"raw": error.raw} if isinstance(error, RunError) and error.raw is not None else {}
    output.record(job_id=getattr(error, "job_id", None) or job_id, state=state, stage=stage, reason=reason, **raw)
