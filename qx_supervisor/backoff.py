"""What to do when the service does not answer, or refuses: no trouble of the network ends a run, however long it lasts.

A job that can't be read is still wanted. A gateway refuses while it restarts, a proxy once its login has expired, the
token service while it is repaired; cancelling the job for that would waste what it costs. So each question is asked
again, with growing pauses, and the user is told what stands in the way and what to do about it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import RunError, Stage
from .watcher import remote

logger = logging.getLogger("qx_supervisor")

T = TypeVar("T")

REFUSED_SECONDS = 60.0
"""How long a refusal of what was granted before must last to be more than a hiccup. Then the log has it, too."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Backoff:
    """The retries of one question.

    Args:
        stage: The stage of the run that asks.
        job_id: The job that it asks about, or None.
        say: Tells the user a stage, a state and a detail.
        believes: After how many seconds a refusal is taken as final, and raised; None if it never is.
    """

    def __init__(
        self,
        stage: Stage,
        job_id: str | None,
        say: Callable[[Stage, str, str], None],
        *,
        believes: float | None = None,
    ) -> None:
        self._stage: Stage = stage
        self._job_id = job_id
        self._say = say
        self._believes = believes
        self._pause = _FIRST_PAUSE
        self._said = ""
        self._refused_since: float | None = None
        self._is_warned = False

    def until_answered(
        self,
        question: Callable[[], T],
        sleep: Callable[[float], None],
        passing: Callable[[Exception], Exception] = lambda error: error,
    ) -> T:
        """Ask until there is an answer.

        Args:
            question: Asks once.
            sleep: Waits; it raises what ends the asking.
            passing: Gives the `RemoteError` for an error that may pass.

        Raises:
            RunError: It is refused for longer than is asked again.
            Exception: Any error that is none of `remote`'s.
        """
        while True:
            try:
                answer = question()
            except Exception as error:  # noqa: BLE001 - what does not pass is raised again
                pause = self.failed(passing(error))
            else:
                self.answered()
                return answer
            sleep(pause)

    def answered(self) -> None:
        """The service answered."""
        if self._said:
            self._say(self._stage, "connection back", "")
        if self._is_warned:
            logger.warning("%s: IBM Quantum answers again", self._name())
        self._pause, self._said, self._refused_since, self._is_warned = _FIRST_PAUSE, "", None, False

    def failed(self, error: Exception) -> float:
        """The service did not answer, or refused.

        Returns:
            The seconds to wait before it is asked again.

        Raises:
            RunError: It is refused for longer than is asked again.
            Exception: The error itself, where it is none of `remote`'s.
        """
        if not isinstance(error, remote.RemoteError):
            raise error
        least = 0.0
        if isinstance(error, remote.Transient):
            least = error.retry_after or 0.0
            if self._is_news("lost"):
                self._say(self._stage, "connection lost, retrying", str(error))
        else:
            self._refused(error)
        return max(self._next_pause(), least)

    def corrupt(self, detail: str) -> float:
        """What came is not what was asked for; returns the seconds to wait as `failed` does."""
        if self._is_news("corrupt"):
            self._say(self._stage, "results spoilt, retrying", detail)
        return self._next_pause()

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return pause

    def _refused(self, error: remote.RemoteError) -> None:
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        seconds = now - self._refused_since
        if self._believes is not None and seconds >= self._believes:
            stage: Stage = "auth" if isinstance(error, remote.Refused) else self._stage
            raise RunError(stage, f"IBM Quantum refuses to be asked: {error}; {what_to_do(error)}", self._job_id)
        if seconds < REFUSED_SECONDS:
            if self._is_news("refused"):
                self._say(self._stage, "refused, retrying", f"{error}; {what_to_do(error)}")
        elif not self._is_warned:
            self._is_warned, self._said = True, "refused"
            detail = f"{error}, for {seconds:.0f} s by now; {what_to_do(error)}"
            logger.warning("%s: IBM Quantum refuses: %s; it is asked again", self._name(), detail)
            self._say(self._stage, "refused, retrying", detail)

    def _is_news(self, trouble: str) -> bool:
        """Whether the trouble is another one than the last: each is told once, though it may last for hours."""
        is_news, self._said = trouble != self._said, trouble
        return is_news

    def _name(self) -> str:
        return f"job {self._job_id}" if self._job_id else "a run"


def what_to_do(error: remote.RemoteError) -> str:
    """What the user can do about a refusal, while it is asked again."""
    if isinstance(error, remote.Refused):
        return "if that lasts, check the account's API key; nothing is cancelled for it"
    if error.status == 404:
        return "if that lasts, look whether the job was deleted; cancel() or timeout= ends the run"
    return "if that lasts, look at the gateway of your network; nothing is cancelled for it"
