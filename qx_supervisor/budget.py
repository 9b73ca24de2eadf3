"""Budgets of QPU time that a program gives itself, and which of them are for what it runs at this moment."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from . import settings
from .errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """An amount of QPU time that runs have together: see `budget`.

    It can be pickled: whoever gets it has the same budget, and not as much again.

    Attributes:
        qpu_seconds: The QPU time, in seconds.
        name: Tells it from all others.
    """

    qpu_seconds: float
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Refuse what is no amount.

        Raises:
            ConfigError: It is none.
        """
        check_seconds(self.qpu_seconds, "qpu_seconds")

    def __enter__(self) -> Self:
        _current.set((*(_current.get() or ()), self))
        _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):
            _open.remove(self)
        # No token is kept: one budget may be entered by many threads, and a block be left in another context.
        mine = list(_current.get() or ())
        with contextlib.suppress(ValueError):
            mine.remove(self)
        _current.set(tuple(mine) or None)


_current: ContextVar[tuple[Budget, ...] | None] = ContextVar("qx_budgets", default=None)
_open: list[Budget] = []
"""The budgets whose blocks are open in this process: for threads without a block of their own, since threads begin
with an empty context."""


def budget(qpu_seconds: float) -> Budget:
    """Give the runs of a `with` block so much QPU time together, and not more, whatever dies.

    For instance::

        with budget(qpu_seconds=300):
            for step in range(100):
                run(circuit(step), "ibm_brisbane", max_execution_time=20)

    Each job is submitted with a `max_execution_time` of at most what is left, and holds that much until its charge is
    known. A run without one of its own holds all that is left, so that none can be submitted beside it: give each run
    its own. One for which not enough is left raises `BudgetExceeded`, and nothing is submitted.

    Blocks may be nested: a run counts for each of them. A block counts what is begun in it by its thread or task, by
    forked children, and by threads that are in no block of their own. To have another process's runs count, give it
    the object: `run(..., budget=...)`.

    Args:
        qpu_seconds: The QPU time, in seconds.

    Returns:
        A context manager.

    Raises:
        ConfigError: It is no amount.
    """
    return Budget(qpu_seconds)


def check_seconds(value: object, name: str) -> float:
    """An amount of QPU time.

    Raises:
        ConfigError: It is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 1 <= value < math.inf:  # type: ignore[operator]
        raise ConfigError("config", f"{name} must be a number of seconds of at least 1, not {value!r}")
    return float(value)  # type: ignore[arg-type]


def as_budget(given: Budget | float) -> Budget:
    """A budget, or an amount as a budget of its own.

    Raises:
        ConfigError: It is neither.
    """
    return given if isinstance(given, Budget) else Budget(check_seconds(given, "budget"))


def budgets_now(*own: Budget | float | None) -> tuple[Budget, ...]:
    """The budgets that are for what is begun here and now.

    Args:
        *own: Those of the call itself: a budget, or an amount for it alone; None: none.

    Raises:
        ConfigError: One of them is no budget.
    """
    found: Iterable[Budget] = _current.get() or tuple(_open)
    found = (*found, *(as_budget(each) for each in own if each is not None))
    seconds = settings.budget()
    if seconds is not None:
        share_with_children()
        found = (*found, Budget(seconds, os.environ[settings.BUDGET_ID]))
    return tuple({each.name: each for each in found}.values())


def share_with_children() -> None:
    """Have all that this process starts share the budget of the environment, instead of having as much each."""
    if os.environ.get(settings.BUDGET) and not os.environ.get(settings.BUDGET_ID):
        os.environ[settings.BUDGET_ID] = _name_of_job() or uuid.uuid4().hex


def _name_of_job() -> str:
    """What the ranks of an MPI job, or the tasks of a step of Slurm's, have in common: nobody else starts them all."""
    step = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    if all(step):
        return f"slurm {'.'.join(step)}"
    return next((f"mpi {found}" for name in ("PMIX_NAMESPACE", "PMI_JOBID") if (found := os.environ.get(name))), "")
