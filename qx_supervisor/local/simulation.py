"""Simulates a job: in this process, or, if that would hold up the service, in one of its own (`simulator`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localqpu import noise
from localqpu.programs.base import ExecutionSettings, ProgramInputError

from .bounds import Bounds
from .demand import demand_of
from .english import english
from .noise_learner import runner_of

_ANY = 10_000  # qubits; localqpu gives random results beyond its own bound, without a word
_NO_MEMORY = re.compile(r"bad_alloc|MemoryError|allocate|insufficient memory", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """A job as it is simulated.

    Attributes:
        program_id: The primitive's program.
        params: Its parameters.
        seed: Of the simulation; None: results differ each time.
        noise_backend: The backend whose noise is simulated, or None.
    """

    program_id: str
    params: dict[str, Any] = field(repr=False)
    seed: int | None
    noise_backend: str | None


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        payload: The results as IBM's API has them; None: there are none.
        reason: Why there are none, or "".
    """

    payload: str | None = field(repr=False)
    reason: str = ""


def compute(task: Task) -> Outcome:
    """Simulate a job in this process."""
    settings = ExecutionSettings(_ANY, task.seed, task.noise_backend)
    try:
        return Outcome(runner_of(task.program_id)(task.params, settings).payload)
    except ProgramInputError as error:
        return Outcome(None, english(str(error)))
    except Exception as error:  # noqa: BLE001 - whatever a simulator raises is a failure of the job
        return Outcome(None, f"{type(error).__name__}: {english(str(error))}")


def compute_within(task: Task, bounds: Bounds) -> Outcome:
    """Simulate a job, if it is within the bounds, in this process, which may take no more memory and has no other."""
    try:
        demand = demand_of(task.program_id, task.params)
    except Exception:  # noqa: BLE001 - then it can't be run either, and that says why
        return compute(task)
    if reason := bounds.refusal(demand):
        return Outcome(None, reason)
    noise.EXACT_AER_BACKEND_OPTIONS["method"] = demand.method
    outcome = compute(task)
    if outcome.payload is None and _NO_MEMORY.search(outcome.reason):
        return Outcome(None, bounds.out_of_memory())
    return outcome


def compute_apart(task: Task, bounds: Bounds, began: Callable[[subprocess.Popen[str]], None]) -> Outcome:
    """Simulate a job in a process of its own, if it is within the bounds.

    Args:
        task: The job.
        bounds: What it may take.
        began: Is given the process, to end it when the job is cancelled.

    Raises:
        OSError: The process can't be started.
    """
    settings = {"path": sys.path, "detached": False, "runs": "simulator", "service": os.getpid(), **asdict(bounds)}
    command = [sys.executable, "-I", str(Path(__file__).with_name("boot.py")), json.dumps(settings)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd="/", text=True, encoding="utf-8", **streams) as process:
        began(process)
        written, errors = process.communicate(json.dumps(asdict(task)))
    if process.returncode == 0:
        return Outcome(**json.loads(written))
    if _NO_MEMORY.search(errors):
        return Outcome(None, bounds.out_of_memory())
    if process.returncode < 0:  # libraries in C often die where they get no memory
        return Outcome(None, bounds.out_of_memory(f"more, or died of another fault (signal {-process.returncode})"))
    return Outcome(None, f"The simulation failed: {errors.strip()[-500:]}")
