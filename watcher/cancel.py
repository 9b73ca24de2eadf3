"""One cancel, from the first request to the proof that the job is final.

204 is not proof: a job may run on for a while, and may even finish. So the state is read until it is final. A cancel
is asked for once; again only if the request may not have arrived, or if a minute later the job still runs.

404 is no proof either, where the service itself gave us the id: then it was asked at the wrong place, or somebody on
the way answered for it, and the job may run. So it is asked again, as after any failure.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from typing import Literal

from .remote import JobState, Refused, Remote, RemoteError, Transient

Outcome = Literal["cancelled", "finished", "gone", "unconfirmed"]
"""It was cancelled; it was final already, or finished all the same; there is no such job, though the id was one that
somebody typed; nobody knows."""

GIVE_UP = 900.0
"""Seconds after which a cancel that could not be confirmed is left to the ledger."""

ASK_AGAIN = 60.0
"""Seconds after which a job that is not final, though its cancel was accepted, is asked to stop once more."""

ASKED_BY_ANOTHER = 1.0
"""Seconds that another's request for the cancel gets, which may have been cut off on its way."""

SINGLY = 10
"""Up to so many jobs are read one by one, as the official client reads them."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # after a failure: doubled, with jitter
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 5.0  # between two readings of the state


class Effort:
    """Something asked of the service until it is done, a step at a time, so that a few threads can carry many.

    Args:
        remote: The service.
    """

    def __init__(self, remote: Remote) -> None:
        self.trouble = ""  # what kept it from succeeding, in words
        self._remote = remote
        self._pause = _FIRST_PAUSE
        self._refused = False
        self._in_doubt = False  # a request was sent and its answer lost

    def advance(self) -> Outcome | float:
        """Ask, and raise what stands in the way."""
        raise NotImplementedError

    def step(self) -> Outcome | float:
        """Do what is due.

        Returns:
            How it ended, or the seconds until the next step.
        """
        try:
            return self._step()
        except Exception as error:  # noqa: BLE001 - whatever an answer held: an effort that ends by it leaves an orphan
            self.trouble = f"the service's answer could not be understood ({type(error).__name__})"
            return self._after_failure(None)

    def _step(self) -> Outcome | float:
        known = self._remote.renewals
        try:
            outcome = self.advance()
        except Transient as error:
            self.trouble = str(error)
            self._in_doubt |= error.status == 0
            return self._after_failure(error.retry_after)
        except Refused as error:
            self.trouble = str(error)
            return self._after_refusal(known)
        except RemoteError as error:
            self.trouble = str(error)
            return self._unknown() if error.status == 404 else self._after_failure(None)
        self.trouble = ""
        self._pause, self._refused = _FIRST_PAUSE, False
        return outcome

    def _unknown(self) -> Outcome | float:
        """The service says that there is no such thing."""
        raise NotImplementedError

    def _after_failure(self, asked: float | None) -> float:
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, hides nothing
        return max(jittered, asked or 0.0)

    def _after_refusal(self, known: int) -> float:
        first, self._refused = not self._refused, True
        try:
            self._remote.renew(known)
        except RemoteError as error:
            self.trouble = str(error)
            return self._after_failure(None)
        return 0.0 if first else self._after_failure(None)


class Closing(Effort):
    """The closing of a session, for good, whose id the service gave.

    Args:
        session: The session's id.
        remote: The service.
        spares: Whether the jobs that are in it are left to come to their ends.
    """

    def __init__(self, session: str, remote: Remote, *, spares: bool = False) -> None:
        super().__init__(remote)
        self._session = session
        self._spares = spares

    def advance(self) -> Outcome | float:
        """Close it."""
        if self._spares:
            self._remote.end_session(self._session)
        else:
            self._remote.close_session(self._session)
        return "finished"

    def _unknown(self) -> Outcome | float:
        return self._after_failure(None)


class Crowd:
    """Cancels of many jobs that have a tag in common: their states are read together, with one list.

    Args:
        remote: The service.
        tag: The tag.
        clock: Seconds, monotonic.

    Attributes:
        jobs: Those whose cancel is under way.
    """

    def __init__(self, remote: Remote, tag: str, clock: Callable[[], float]) -> None:
        self.jobs: set[str] = set()
        self._remote = remote
        self._tag = tag
        self._clock = clock
        self._lock = threading.Lock()
        self._listed_at = -math.inf
        self._states: dict[str, JobState] = {}

    def is_big(self) -> bool:
        """Whether a list is cheaper than to read them one by one."""
        return len(self.jobs) > SINGLY

    def state(self, job: str, after: float) -> JobState:
        """Read a job's state as it was later than a moment."""
        if self.is_big():
            with self._lock:  # who waits here is served by the same list
                if self._listed_at <= after:
                    now = self._clock()
                    self._states = self._remote.states(self._tag, self.jobs.copy())
                    self._listed_at = now
                state = self._states.get(job)
            if state is not None:
                return state
        return self._remote.job(job)


class Cancellation(Effort):
    """The cancel of one job, until it is confirmed.

    Args:
        job: The job's id.
        remote: The service.
        clock: Seconds, monotonic.
        asked: Whether somebody else asked for it a moment ago, or was about to: then it is asked for only if the job
            does not stop within a second.
        crowd: The jobs that are cancelled along with it.
        given: Whether the service itself gave the id, so that there is such a job.

    Attributes:
        unknown: How often in a row the service has said that there is no such job.
    """

    def __init__(
        self,
        job: str,
        remote: Remote,
        clock: Callable[[], float],
        *,
        asked: bool = False,
        crowd: Crowd | None = None,
        given: bool = True,
    ) -> None:
        super().__init__(remote)
        self.job = job
        self.unknown = 0
        self._given = given
        self._clock = clock
        self._asked_at = clock() - ASK_AGAIN + ASKED_BY_ANOTHER if asked else None
        self._crowd = crowd or Crowd(remote, "", clock)
        self._latest = -math.inf  # when the last request was answered, or given up
        self._look = _FIRST_LOOK
        self.final: JobState | None = None  # how it ended

    def advance(self) -> Outcome | float:
        """Ask for the cancel if that is due, and read the state."""
        # After a lost answer the job may be cancelled already: look before asking again.
        if self._in_doubt:
            state = self._read()
            self._in_doubt = False
            if state.is_final:
                return "cancelled" if state.is_cancelled else "finished"
        if self._asked_at is None or self._clock() - self._asked_at >= ASK_AGAIN:
            try:
                if self._remote.cancel(self.job) == 404:
                    raise RemoteError("the service answered 404", 404)
            finally:
                self._latest = self._clock()
            self._asked_at = self._latest
            if self._crowd.is_big():
                return self._look  # first the others are asked for
        state = self._read()
        if state.is_final:
            return "cancelled" if state.is_cancelled else "finished"
        look, self._look = self._look, min(self._look * 1.6, _LONGEST_LOOK)
        return look

    def _read(self) -> JobState:
        state = self._crowd.state(self.job, self._latest)
        self._latest = self._clock()
        self.unknown = 0
        if state.is_final:
            self.final = state
        return state

    def _unknown(self) -> Outcome | float:
        if not self._given:
            return "gone"
        self.unknown += 1
        self.trouble = (
            "the service says that there is no such job, though it gave this id: it was asked at the wrong instance, "
            "or the job was deleted"
        )
        self._in_doubt = True  # the next question is for its state
        return self._after_failure(None)


def cancel(
    job: str,
    remote: Remote,
    clock: Callable[[], float],
    wait: Callable[[float], bool],
    *,
    is_patient: bool = False,
    given: bool = True,
    unknown: int = 0,
    ended: Callable[[JobState], object] = lambda _: None,
) -> tuple[Outcome, str]:
    """Cancel a job and wait until that is confirmed.

    Args:
        job: The job's id.
        remote: The service.
        clock: Seconds, monotonic.
        wait: Waits for so many seconds; True ends the attempt.
        is_patient: Whether the service is left alone while it asks for that. Who is about to end has no time for it.
        given: Whether the service itself gave the id. Else "gone" is what an answer means that there is no such job.
        unknown: After how many such answers in a row nothing else is to be expected. 0: it is asked on.
        ended: Called with how the job ended, once that is read.

    Returns:
        How it ended, and what stood in the way if it is "unconfirmed".
    """
    cancellation = Cancellation(job, remote, clock, given=given)
    while True:
        outcome = (is_patient and remote.seconds_closed()) or cancellation.step()
        if isinstance(outcome, str):
            if cancellation.final is not None:
                ended(cancellation.final)
            return outcome, ""
        if 0 < unknown <= cancellation.unknown or wait(outcome):
            return "unconfirmed", cancellation.trouble or "the job is not final yet"
