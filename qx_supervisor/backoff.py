"""What to do when the service does not answer, or refuses: no trouble of the network ends a run, however long it lasts.

A job that can't be read is still wanted. A gateway refuses while it restarts, a proxy once its login has expired, the
token service while it is repaired; cancelling the job for that would waste what it costs. So each question is asked
again, with growing pauses, and the user is told what stands in the way and what to do about it.

All growing pauses of the driver's side are described here. Polls of what goes well are not among them: how often a
job's state is read is `poller.interval`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .errors import RunError, Stage
from .logs import RunLogger, logger
from .watcher import remote

T = TypeVar("T")

REFUSED_SECONDS = 60.0
"""How long a refusal of what was granted before must last to be more than a hiccup. Then the log has it, too."""


@dataclass(frozen=True)
class Pauses:
    """Seconds between attempts: each pause is twice the one before. An iterator begins with the first.

    Attributes:
        first: The first pause.
        longest: What no pause exceeds.
    """

    first: float
    longest: float

    def __iter__(self) -> Iterator[float]:
        pause = self.first
        while True:
            yield pause
            pause = min(2 * pause, self.longest)


UNANSWERED = Pauses(0.5, 30.0)
"""Between two questions to a service that does not answer, or refuses; at least what its `Retry-After` says."""

LOST_ANSWER = Pauses(0.25, 5.0)
"""Between two looks for the job of a POST that nobody answered: the user waits for it."""

EARLIER_JOB = Pauses(0.25, 15.0)
"""Between two looks for a job that an earlier driver with the same key may have submitted."""

FAILED_JOB = Pauses(10.0, 300.0)
"""Until a job is submitted again that failed for a reason of the service's: what is out of order needs a while."""

LEFT_BEHIND = Pauses(5.0, 60.0)
"""Between two looks for what earlier programs have left behind, beside this one's own work."""

DATABASE = Pauses(1.0, 15.0)
"""Between two tries of a reaper to use a shared ledger that is away."""


class Backoff:
    """The retries of one question.

    Args:
        stage: The stage of the run that asks.
        job_id: The job that it asks about, or None.
        say: Tells the user a stage, a state and a detail.
        believes: After how many seconds a refusal is taken as final, and raised; None if it never is.
        log: The logger of the run that asks.
    """

    def __init__(
        self,
        stage: Stage,
        job_id: str | None,
        say: Callable[[Stage, str, str], None],
        *,
        believes: float | None = None,
        log: logging.Logger | RunLogger = logger,
    ) -> None:
        self._stage: Stage = stage
        self._job_id = job_id
        self._say = say
        self._believes = believes
        self._log = log
        self._pauses = iter(UNANSWERED)
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
            self._log.warning("%s: IBM Quantum answers again", self._name(), extra=self._about())
        self._pauses, self._said, self._refused_since, self._is_warned = iter(UNANSWERED), "", None, False

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
        return max(next(self._pauses), least)

    def corrupt(self, detail: str) -> float:
        """What came is not what was asked for; returns the seconds to wait as `failed` does."""
        if self._is_news("corrupt"):
            self._say(self._stage, "results spoilt, retrying", detail)
        return next(self._pauses)

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
            self._log.warning(
                "%s: IBM Quantum refuses: %s; it is asked again", self._name(), detail, extra=self._about()
            )
            self._say(self._stage, "refused, retrying", detail)

    def _is_news(self, trouble: str) -> bool:
        """Whether the trouble is another one than the last: each is told once, though it may last for hours."""
        is_news, self._said = trouble != self._said, trouble
        return is_news

    def _about(self) -> dict[str, object]:
        return {"job": self._job_id} if self._job_id else {}

    def _name(self) -> str:
        return f"job {self._job_id}" if self._job_id else "a run"


def look_until(
    end: float,
    look: Callable[[], T],
    pauses: Pauses,
    sleep: Callable[[float], None],
    tell: Callable[[float], object] = lambda _left: None,
) -> T:
    """Look for what may turn up until some moment, with growing pauses, and once more when it has passed.

    Args:
        end: The moment, by the monotonic clock.
        look: Looks once.
        pauses: The pauses between two looks.
        sleep: Waits; it raises what ends the search.
        tell: Called before each pause with the seconds that are left.

    Returns:
        The first answer of `look` that is true, or its last one.
    """
    following = iter(pauses)
    while True:
        is_last = time.monotonic() >= end
        found = look()
        if found or is_last:
            return found
        left = max(0.0, end - time.monotonic())
        tell(left)
        sleep(min(next(following), left))


def what_to_do(error: remote.RemoteError) -> str:
    """What the user can do about a refusal, while it is asked again."""
    if isinstance(error, remote.Refused):
        return "if that lasts, check the account's API key; nothing is cancelled for it"
    if error.status == 404:
        return "if that lasts, look whether the job was deleted; cancel() or timeout= ends the run"
    return "if that lasts, look at the gateway of your network; nothing is cancelled for it"
