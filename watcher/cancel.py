"""One cancel, from the first request to the proof that the job is final.

A 204 proves nothing: the job may run on for a while, and may even finish. So its state is read until it is final. The
cancel is requested once, and again only if the request may not have arrived, or if the job still runs a minute later.

Nor does a 404, for an id that the service itself gave: the request went to the wrong place, or something on the way
answered it, and the job may run. It is retried like any failure.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable

from .facts import End
from .protocol import Outcome
from .remote import JobState, Refused, Remote, RemoteError, Transient
from .value import Value

GIVE_UP = 900.0
"""Seconds after which a cancel that could not be confirmed is left to the ledger."""

ASK_AGAIN = 60.0
"""Seconds after which a cancel that was accepted is requested again, if the job is still not final."""

ASKED_BY_ANOTHER = 1.0
"""Seconds to wait for a cancel that another process requested: its request may have been cut off."""

SINGLY = 10
"""Up to this many jobs are read one by one, as the official client reads them."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # after a failure: doubled, with jitter
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 5.0  # between two reads of the state


class Done(Value):
    """An operation is over."""

    outcome: Outcome


class Again(Value):
    """An operation needs another step, after some seconds."""

    after: float


Step = Done | Again


class Operation:
    """A request to the service that is repeated until it succeeds, a step at a time, so that few threads carry many.

    Args:
        remote: The service.

    Attributes:
        trouble: What went wrong at the last step, in words, or "".
    """

    def __init__(self, remote: Remote) -> None:
        self.trouble = ""
        self._remote = remote
        self._pause = _FIRST_PAUSE
        self._refused = False
        self._was_closed = False  # the connection of the last request
        self._in_doubt = False  # a request was sent, and its answer was lost

    def advance(self) -> Step:
        """Make the request that is due.

        Raises:
            RemoteError: If the service refused it, or could not be reached.
        """
        raise NotImplementedError

    def step(self) -> Step:
        """Make the request that is due, and turn every failure into another try."""
        try:
            return self._step()
        except Exception as error:  # noqa: BLE001 - whatever the answer held: an operation that dies leaves an orphan
            self.trouble = f"the service's answer could not be understood ({type(error).__name__})"
            return self._after_failure()

    def _step(self) -> Step:
        renewals = self._remote.renewals
        try:
            step = self.advance()
        except Transient as error:
            self.trouble = str(error)
            self._in_doubt |= error.status == 0
            first, self._was_closed = error.was_closed and not self._was_closed, error.was_closed
            if first:  # the service may have closed it just before, as it was idle; the next one is new
                return Again(0.0)
            return self._after_failure(error.retry_after)
        except Refused as error:
            self.trouble = str(error)
            return self._after_refusal(renewals)
        except RemoteError as error:
            self.trouble = str(error)
            return self._not_found() if error.status == 404 else self._after_failure()
        self.trouble = ""
        self._pause, self._refused, self._was_closed = _FIRST_PAUSE, False, False
        return step

    def _not_found(self) -> Step:
        """The service answered 404."""
        raise NotImplementedError

    def _after_failure(self, retry_after: float | None = None) -> Again:
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, hides nothing
        return Again(max(jittered, retry_after or 0.0))

    def _after_refusal(self, renewals: int) -> Again:
        first, self._refused = not self._refused, True
        try:
            self._remote.renew(renewals)
        except RemoteError as error:
            self.trouble = str(error)
            return self._after_failure()
        return Again(0.0) if first else self._after_failure()


class SessionClosing(Operation):
    """Closes a session whose id the service gave.

    Args:
        session: The session's id.
        remote: The service.
        spares: Whether the jobs in it are left to finish.
    """

    def __init__(self, session: str, remote: Remote, *, spares: bool = False) -> None:
        super().__init__(remote)
        self._session = session
        self._spares = spares

    def advance(self) -> Step:
        """Close it."""
        if self._spares:
            self._remote.end_session(self._session)
        else:
            self._remote.close_session(self._session)
        return Done("finished")

    def _not_found(self) -> Step:
        return self._after_failure()


class StateReader:
    """Reads the states of jobs that are being cancelled: of many under one tag, all at once, from one list.

    Args:
        remote: The service.
        tag: The tag.
        clock: Seconds, monotonic.

    Attributes:
        jobs: The jobs whose cancel is under way.
    """

    def __init__(self, remote: Remote, tag: str, clock: Callable[[], float]) -> None:
        self.jobs: set[str] = set()
        self._remote = remote
        self._tag = tag
        self._clock = clock
        self._lock = threading.Lock()
        self._listed_at = -math.inf
        self._states: dict[str, JobState] = {}

    def lists(self) -> bool:
        """Whether a list is cheaper than reading the jobs one by one."""
        return len(self.jobs) > SINGLY

    def state(self, job: str, after: float) -> JobState:
        """A job's state, read later than `after`."""
        if self.lists():
            with self._lock:  # the threads that wait here are served by the same list
                if self._listed_at <= after:
                    now = self._clock()
                    self._states = self._remote.states(self._tag, self.jobs.copy())
                    self._listed_at = now
                state = self._states.get(job)
            if state is not None:
                return state
        return self._remote.job(job)


class Cancellation(Operation):
    """The cancel of one job, until it is confirmed.

    Args:
        job: The job's id.
        remote: The service.
        clock: Seconds, monotonic.
        asked: Whether another process has just requested the cancel, or was about to: then it is requested here only
            if the job does not stop within `ASKED_BY_ANOTHER`.
        reader: Reads the state, along with those of other jobs.
        given: Whether the service itself gave the id, so that the job must exist.

    Attributes:
        not_found: The number of 404s in a row.
        final: The job's last state, once it is final.
    """

    def __init__(
        self,
        job: str,
        remote: Remote,
        clock: Callable[[], float],
        *,
        asked: bool = False,
        reader: StateReader | None = None,
        given: bool = True,
    ) -> None:
        super().__init__(remote)
        self.job = job
        self.not_found = 0
        self.final: JobState | None = None
        self._given = given
        self._clock = clock
        self._asked_at = clock() - ASK_AGAIN + ASKED_BY_ANOTHER if asked else None
        self._reader = reader or StateReader(remote, "", clock)
        self._latest = -math.inf  # when the last request was answered, or given up
        self._look = _FIRST_LOOK

    def advance(self) -> Step:
        """Request the cancel if that is due, and read the state."""
        # After a lost answer the job may be cancelled already: look before asking again.
        if self._in_doubt:
            state = self._read()
            self._in_doubt = False
            if state.is_final:
                return _ended(state)
        if self._asked_at is None or self._clock() - self._asked_at >= ASK_AGAIN:
            try:
                if self._remote.cancel(self.job) == 404:
                    raise RemoteError("the service answered 404", 404)
            finally:
                self._latest = self._clock()
            self._asked_at = self._latest
            if self._reader.lists():
                return Again(self._look)  # request the other cancels first
        state = self._read()
        if state.is_final:
            return _ended(state)
        look, self._look = self._look, min(self._look * 1.6, _LONGEST_LOOK)
        return Again(look)

    @property
    def own_end(self) -> End | None:
        """How the job has ended, if not by a cancel."""
        final = self.final
        return final.end if final is not None and (not final.is_cancelled or final.ran_too_long) else None

    def _read(self) -> JobState:
        state = self._reader.state(self.job, self._latest)
        self._latest = self._clock()
        self.not_found = 0
        if state.is_final:
            self.final = state
        return state

    def _not_found(self) -> Step:
        if not self._given:
            return Done("gone")
        self.not_found += 1
        self.trouble = (
            "the service says that there is no such job, though it gave this id: it was asked at the wrong instance, "
            "or the job was deleted"
        )
        self._in_doubt = True  # the next request reads its state
        return self._after_failure()


def _ended(state: JobState) -> Done:
    return Done("cancelled" if state.is_cancelled else "finished")


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
        wait: Waits for some seconds; returns True to end the attempt.
        is_patient: Whether to respect the service's `Retry-After`. A process that is about to end has no time for it.
        given: Whether the service itself gave the id. If not, a 404 means "gone".
        unknown: The number of 404s in a row after which to give up; 0 for never.
        ended: Called with the job's last state, once it is final.

    Returns:
        How it ended, and for "unconfirmed" what went wrong.
    """
    cancellation = Cancellation(job, remote, clock, given=given)
    while True:
        closed = remote.seconds_closed() if is_patient else 0.0
        step = Again(closed) if closed else cancellation.step()
        match step:
            case Done(outcome):
                if cancellation.final is not None:
                    ended(cancellation.final)
                return outcome, ""
            case Again(after):
                if 0 < unknown <= cancellation.not_found or wait(after):
                    return "unconfirmed", cancellation.trouble or "the job is not final yet"
