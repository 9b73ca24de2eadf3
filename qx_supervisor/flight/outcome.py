"""How a run is ended, and what it comes to: the same for a run of one job and for one of several."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TypedDict

from ..errors import CancelOutcome, JobCancelled, RunError
from ..origin import Origin
from ..result import RunResult
from ..status import Status

_OURS = "qx_supervisor."

Then = Callable[[RunResult | RunError, Callable[[], None]], None]
"""Is given what a run came to, and what sets its `outcome`."""


class Ending(TypedDict, total=False):
    """How a run is to end: see `machine.CancelWished`, which has these attributes."""

    keep: bool
    wants_result: bool
    is_failure: bool
    is_limit: bool
    signum: int
    reason: str


def cancelled_by_program(outcome: CancelOutcome, job_id: str | None) -> JobCancelled:
    """What a run ends in that the program has ended, where nothing else was said."""
    how = "left to its grace by this program" if outcome == "kept" else "cancelled by this program"
    return JobCancelled("job", how, job_id)


def settle(future: Future[RunResult], outcome: RunResult | RunError, last: Status, then: Then) -> None:
    """Give a run's outcome to `then`.

    Args:
        future: Is to have it in the end.
        outcome: What the run came to.
        last: The run's last status, which has the words that it is known by.
        then: What goes on with it.
    """
    origin = Origin(last.label, last.key, last.backend, last.is_embedded, last.shots, last.url)
    outcome._origin = origin  # noqa: SLF001 - what it is shown with is nobody else's
    if isinstance(outcome, RunError):
        then(outcome, functools.partial(future.set_exception, outcome))
    else:
        then(outcome, functools.partial(future.set_result, outcome))


def one_after_the_other(earlier: Then, later: Then) -> Then:
    """Give an outcome to `later` when `earlier` is through with it."""
    return lambda outcome, work: earlier(outcome, lambda: later(outcome, work))


def result_of(future: Future[RunResult]) -> RunResult:
    """What a run came to, once it is over.

    Raises:
        RunError: As from here: the way that it took through our threads helps nobody, its cause may.
    """
    error = future.exception()
    if error is not None:
        if (cause := error.__cause__) is not None:
            cause.__traceback__ = _beyond_us(cause.__traceback__)
        raise error.with_traceback(None)
    return future.result()


def _beyond_us(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without what is ours at its beginning, which would fill a notebook; all of it, if that is its end."""
    found = traceback
    while found is not None and str(found.tb_frame.f_globals.get("__name__")).startswith(_OURS):
        found = found.tb_next
    return found or traceback
