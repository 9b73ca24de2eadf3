"""When the service does not answer: no trouble on the way ends a run, nor does a refusal that passes."""

from __future__ import annotations

import time
from collections.abc import Callable

from .errors import RunError, Stage
from .ours import remote

REFUSED_SECONDS = 60.0
"""How long a refusal of what was granted before must last to be believed. A gateway refuses while it is restarted, a
proxy while its login has run out; and while IBM Quantum refuses to show a job, it would hardly cancel it."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_REFUSALS = 3  # of credentials, at least; the client keeps a token for some time that is refused


class Patience:
    """What one question of a run has met with so far.

    Args:
        stage: What is asked for.
        job_id: Of which job.
        say: Tells the user, as `Worker` does.
    """

    def __init__(self, stage: Stage, job_id: str | None, say: Callable[[Stage, str, str], None]) -> None:
        self._stage: Stage = stage
        self._job_id = job_id
        self._say = say
        self._pause = _FIRST_PAUSE
        self._lost = False
        self._refusals = 0
        self._refused_since = 0.0

    def answered(self) -> None:
        """The service answered."""
        if self._lost:
            self._say(self._stage, "connection back", "")
        self._pause, self._lost, self._refusals = _FIRST_PAUSE, False, 0

    def failed(self, error: Exception) -> float:
        """The service did not answer, or refused.

        Returns:
            The seconds to wait before it is asked again.

        Raises:
            RunError: It is not worth another try.
            Exception: The error itself, where it is none of `remote`'s.
        """
        if not isinstance(error, remote.RemoteError):
            raise error
        wait = self._pause
        if isinstance(error, remote.Transient):
            self._refusals = 0
            wait = max(wait, error.retry_after or 0.0)
        else:
            self._refusals += 1
            self._judge(error)
        if not self._lost:
            self._lost = True
            self._say(self._stage, "connection lost, retrying", str(error))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return wait

    def _judge(self, error: remote.RemoteError) -> None:
        """Raise what ends the run, if the refusal is to be believed."""
        if self._refusals == 1:
            self._refused_since = time.monotonic()
        # Of a job that is final nothing is at stake but its result.
        is_over = self._stage == "results" or time.monotonic() - self._refused_since >= REFUSED_SECONDS
        if not is_over:
            return
        if not isinstance(error, remote.Refused):
            raise RunError(self._stage, f"the job can't be read: {error}", self._job_id)
        if self._refusals >= _REFUSALS:
            reason = f"IBM Quantum no longer accepts this account: {error}; check its API key"
            raise RunError("auth", reason, self._job_id)
