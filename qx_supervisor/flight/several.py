"""A run of several jobs: what one that is tried again and one that is split have in common.

It has the face of a `Flight`, which is one job: whoever waits for it sees no difference.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Unpack

from .. import logs, threads
from ..errors import CancelOutcome, JobState, RunError, Stage
from ..job_cost import JobCost, JoinedCost
from ..link import link
from ..request import Request
from ..result import RunResult
from ..status import Status
from .failures import timed_out
from .flight import Flight
from .outcome import Ending, Then, cancelled_by_program, one_after_the_other, result_of, settle
from .preparation import may_be_remote


class Several(ABC):
    """A run of several jobs, each a flight.

    Args:
        request: What is to be run.
        tell: Receives every `Status`, in any thread; it must be quick.
        then: As a flight takes it.
        asks_details: As a flight takes it.
        is_part: Whether it is a part of another run.

    Attributes:
        outcome: What it comes to.
        status: The latest status.
        since: When the run came into its state, by the monotonic clock.
        is_over: Whether it has ended, though `outcome` may wait for a status to be received.
        is_detached: Whether its jobs were let go.
        is_part: See above.
        log: The logger, for what is about this run.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        then: Then = lambda _, work: work(),
        *,
        asks_details: bool = False,
        is_part: bool = False,
    ) -> None:
        self.outcome: Future[RunResult] = Future()
        self.status = Status("config", "starting", label=request.label)
        self.since = time.monotonic()
        self.is_over = self.is_detached = False
        self.is_part = is_part
        self.log = logs.RunLogger(lambda: {"run": "", "job": self.job_id, "label": request.label})
        self._request = request
        self._asks_details = asks_details
        self._tell = tell
        self._then = then
        self._process = os.getpid()
        self._telling = threading.RLock()
        self._error: Callable[[CancelOutcome], RunError] | None = None  # makes what a wished end ends it in
        self._timer: threads.Timer | None = None

    # What there is to see

    @property
    @abstractmethod
    def flights(self) -> Sequence[Flight]:
        """Its flights so far, in order."""

    @property
    @abstractmethod
    def job_ids(self) -> tuple[str, ...]:
        """The ids of the jobs that count, as far as they are known: of tries the latest."""

    @property
    @abstractmethod
    def failed_job_ids(self) -> tuple[str, ...]:
        """The jobs that failed, and were submitted again."""

    @property
    @abstractmethod
    def job_id(self) -> str | None:
        """The id of the job that stands for all."""

    @property
    @abstractmethod
    def job_state(self) -> JobState | None:
        """How its jobs ended, where that is known."""

    @property
    def cost(self) -> JobCost:
        """What its jobs cost together."""
        return JoinedCost([each.cost for each in self.flights])

    @property
    def is_running(self) -> bool:
        """Whether one of its jobs is executed, as far as is known, or has results that are being fetched."""
        return not self.is_over and any(each.is_running for each in self.flights)

    def wait_for_job(self, seconds: float) -> bool:
        """Wait until each of its jobs so far has an id, or there will be none; returns whether that is so."""
        end = time.monotonic() + seconds
        return self.is_over or all(each.wait_for_job(max(0.0, end - time.monotonic())) for each in self.flights)

    def result(self) -> RunResult:
        """What the run came to, once it is over.

        Raises:
            RunError: As from here.
        """
        return result_of(self.outcome)

    def listen(self, tell: Callable[[Status], None], then: Then) -> None:
        """Have one more listener, from now on, as a flight has."""
        earlier = self._tell

        def both(status: Status) -> None:
            earlier(status)
            tell(status)

        self._then = one_after_the_other(self._then, then)
        with self._telling:
            self._tell, self._asks_details = both, True
            tell(self.status)
        for flight in self.flights:
            flight.core.asks_details = True

    # The beginning and the end

    def _begin(self) -> None:
        threads.begin_run(self)
        threads.submitting.keep_one()  # for what is submitted later
        if may_be_remote(self._request):
            link.prepare()
        if self._request.timeout is not None:
            seconds = min(self._request.timeout, threading.TIMEOUT_MAX)
            self._timer = threads.ending.after(seconds, self._time_out)

    def _time_out(self) -> None:
        if self.is_detached:  # by the time that a thread was free for this
            return
        why = f"no result within {self._request.timeout:g} s"
        self.abandon(lambda outcome: timed_out(self, why, "", outcome), is_limit=True, reason=why)

    @abstractmethod
    def abandon(
        self, error: Callable[[CancelOutcome], RunError] | None = None, **ending: Unpack[Ending]
    ) -> CancelOutcome:
        """End the run, as a flight ends."""

    @abstractmethod
    def hurry(self) -> CancelOutcome:
        """Hand the cancels that are under way over to the watcher, at once."""

    @abstractmethod
    def detach(self) -> None:
        """Let the watcher forget the run, while its jobs go on."""

    def _end(self, outcome: RunResult | RunError) -> None:
        """The run is over. Called once."""
        self.is_over = True
        threads.end_run(self)
        if self._timer is not None:
            self._timer.cancel()
        settle(self.outcome, outcome, self.status, self._then)

    def _wished_error(self, outcome: CancelOutcome) -> RunError:
        """What a run ends in that the program has ended."""
        if self._error is not None:
            return self._error(outcome)
        return cancelled_by_program(outcome, self.job_id)

    # The status

    def say(self, stage: Stage, state: str, detail: str = "", *, of: Status | None = None) -> None:
        """Tell a status of the run itself.

        Args:
            stage: Where it is.
            state: The state, in words.
            detail: Details.
            of: The status of a job that has all else.
        """
        known = of or self.status
        status = dataclasses.replace(known, stage=stage, state=state, detail=detail, time=time.time())
        self.log.info("%s", status, extra={"event": "status", "fields": {"stage": stage, "state": state}})
        self._pass_on(status)

    def _pass_on(self, status: Status) -> None:
        with self._telling:
            if status.state != self.status.state:
                self.since = time.monotonic()
            self.status = status
            self._tell(status)
