"""Work before the POST, which is done again and again while nobody answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .. import service
from ..backoff import Backoff
from ..errors import Stage, WatcherError
from .core import Core
from .submission import Submission

T = TypeVar("T")


def despite_outages(
    core: Core, submission: Submission, stage: Stage, work: Callable[[], T], *, believes: float | None = None
) -> T:
    """Do what comes before the POST, again and again while nobody answers: nothing is lost by that.

    Args:
        core: The run.
        submission: Its submission.
        stage: Where it is.
        work: What is done.
        believes: See `Backoff`.
    """
    noticed: list[Exception] = []

    def once() -> T:
        nonlocal noticed
        with service.noticing() as noticed:
            return work()

    def passing(error: Exception) -> Exception:
        if core.machine.phase != "preparing" or core.job_id is not None or isinstance(error, WatcherError):
            return error
        return service.outage(error, noticed) or error

    backoff = submission.backoff = Backoff(stage, None, core.say, believes=believes, log=core.log)
    return backoff.until_answered(once, core.sleep, passing)
