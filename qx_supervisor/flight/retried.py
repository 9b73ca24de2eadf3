"""A run whose job is submitted again if it fails for a reason of IBM Quantum's: each try is a flight of its own.

So each has an intent of its own at the watcher, a reservation of its own in every budget, and with a key the lease is
taken anew: whoever has the key by then has the run.
"""

from __future__ import annotations

import contextvars
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import Unpack

from .. import threads
from ..backoff import FAILED_JOB
from ..errors import CancelOutcome, JobFailed, JobState, RunError
from ..job_cost import JoinedCost
from ..request import Request
from ..result import RunResult
from ..status import Status
from .failures import reword
from .flight import Flight
from .outcome import Ending, Then
from .several import Several
from .together import Together
from .tries import Tries


class RetriedFlight(Several):
    """One run, with `retries`.

    Args:
        request: What is to be run.
        tell: Receives every `Status`.
        then: As a flight takes it.
        asks_details: As a flight takes it.
        together: What it shares with the other parts of a split run; None: it is none.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        then: Then = lambda _, work: work(),
        *,
        asks_details: bool = False,
        together: Together | None = None,
    ) -> None:
        super().__init__(request, tell, then, asks_details=asks_details, is_part=together is not None)
        self._together = together
        self._tries = Tries(request.retries)
        self._lock = threading.RLock()  # held while the tries are asked
        self._flights: list[Flight] = []
        self._pauses = iter(FAILED_JOB)
        self._pause: threads.Timer | None = None
        self._context = contextvars.copy_context()
        self._withheld: Status | None = None  # that the present try has failed, which may not be the end

    @property
    def flights(self) -> Sequence[Flight]:
        """Its tries so far, in order."""
        return tuple(self._flights)

    @property
    def failed_job_ids(self) -> tuple[str, ...]:
        """The jobs of earlier tries, which failed."""
        return tuple(each.job_id for each in self.flights[:-1] if each.job_id)

    @property
    def job_id(self) -> str | None:
        """The latest job's id, once it is known."""
        flights = self.flights
        return flights[-1].job_id if flights else None

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The same, as of a run of several jobs."""
        job = self.job_id
        return () if job is None else (job,)

    @property
    def cancel_outcome(self) -> CancelOutcome | None:
        """What became of the cancel of the latest job, where one was wished and that is known."""
        flights = self.flights
        return flights[-1].cancel_outcome if flights else None

    @property
    def job_state(self) -> JobState | None:
        """How the latest job ended, where that is known."""
        flights = self.flights
        return flights[-1].job_state if flights else None

    def start(self, begin: Callable[[Callable[[], object]], object]) -> None:
        """Begin.

        Args:
            begin: Has another thread do what it is given, for the first try.
        """
        self._begin()
        self._try(begin)
        if self.is_over:  # it was ended before it began, as a part is when another has failed
            threads.end_run(self)

    # The tries

    def _try(self, begin: Callable[[Callable[[], object]], object]) -> None:
        with self._lock:
            if self._tries.begin() != "try":
                return
            request = dataclasses.replace(self._request, retries=0, timeout=None)
            flight = Flight(request, self._hear, asks_details=self._asks_details, together=self._together, is_part=True)
            if self.is_detached:
                flight.detach()
            self._flights.append(flight)
        flight.outcome.add_done_callback(lambda _: self._ended(flight))
        # In the program's context: what it holds decides, such as the session of a `with Session(...)`.
        self._context.copy().run(flight.start, begin)

    def _again(self) -> None:
        try:
            self._try(threads.submitting.do)
        except RuntimeError as error:  # no thread can be had
            why = f"the job failed, and can't be submitted again, because no thread could be started: {error}"
            self.abandon(lambda _: RunError("submit", why))

    def _hear(self, status: Status) -> None:
        with self._telling:
            if status.stage == "job" and status.state == "failed" and self._tries.may_follow:
                self._withheld = status
            else:
                self._pass_on(status)

    def _ended(self, flight: Flight) -> None:
        """A try is over."""
        error = flight.outcome.exception()
        is_retryable = isinstance(error, JobFailed) and error.is_retryable
        with self._lock:
            order = self._tries.ended(is_retryable=is_retryable)
            withheld, self._withheld = self._withheld, None
            if order == "pause":
                pause = next(self._pauses)
                assert isinstance(error, JobFailed)
                which = f"{self._tries.made} of {self._request.retries}, in {pause:g} s"
                self.say("submit", "failed, submitting again", f"{which}; {error.reason}", of=withheld)
                self._pause = threads.timers.after(pause, self._again)
                return
        if withheld is not None:
            self._pass_on(withheld)
        if isinstance(error, RunError):
            self._end(self._told_of_tries(error))
        else:
            self._end(self._joined(flight.outcome.result()))

    def _told_of_tries(self, error: RunError) -> RunError:
        failed = self.failed_job_ids
        if failed and isinstance(error, JobFailed):
            if len(failed) == 1:
                before = f"; job {failed[0]} had failed before"
            else:
                before = f"; jobs {', '.join(failed)} had failed before"
            reword(error, error.reason + before)
        return error

    def _joined(self, result: RunResult) -> RunResult:
        failed = self.failed_job_ids
        if not failed:
            return result
        cost = JoinedCost([each.cost for each in self.flights])
        return RunResult(
            result.primitive_result,
            result.job_id,
            result.backend,
            cost,
            is_list=result.is_list,
            failed_job_ids=failed,
            seen=result.timeline,
        )

    # The end

    def abandon(
        self, error: Callable[[CancelOutcome], RunError] | None = None, **ending: Unpack[Ending]
    ) -> CancelOutcome:
        """End the run, as a flight ends: the try that is under way, or the pause."""
        if os.getpid() != self._process:
            return "unconfirmed"  # a forked child leaves its parent's `run`
        with self._lock:
            order = self._tries.wish()
            flight = self._flights[-1] if self._flights else None
            self._error = self._error or error
        # In a pause the job is over: it had failed.
        outcome: CancelOutcome = "nothing to cancel" if flight is None else "confirmed"
        if order == "end":
            if self._pause is not None:
                self._pause.cancel()
            self._end(self._wished_error(outcome))
        return outcome if order == "end" or flight is None else flight.abandon(error, **ending)

    def hurry(self) -> CancelOutcome:
        """Hand the cancel that is under way over to the watcher, at once."""
        flights = self.flights
        return flights[-1].hurry() if flights else "nothing to cancel"

    def detach(self) -> None:
        """Let the watcher forget the run, while its job goes on, and each that is submitted in its place."""
        with self._lock:
            self.is_detached = True
            if self._timer is not None:
                self._timer.cancel()
            if self._flights:
                self._flights[-1].detach()
