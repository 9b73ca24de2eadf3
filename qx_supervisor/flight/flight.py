"""One run at work, and its end.

The work is done by other threads than the program's, because every part of it may block: by one until the job's id is
known, and then in steps, by a few threads for all runs. Whoever waits (the loop of `run`, an awaiting task,
`Run.cancel`) ends it with `abandon`, which cancels the job; the threads themselves are never waited for.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from .. import service, threads
from ..errors import CancelOutcome, JobCancelled, JobState, RunError, RunTimeout
from ..link import link
from ..request import Request
from ..result import RunResult
from ..status import Status
from ..watcher import cancel, remote
from . import machine as m
from .conclusion import Conclusion
from .core import Core, Stopped, state_of
from .failures import failure
from .polling import Polling
from .preparation import may_be_remote, prepare_and_submit
from .submission import Submission

logger = logging.getLogger("qx_supervisor")

CANCEL_SECONDS = 10.0
"""How long the driver tries by itself to cancel and confirm, before it hands over to the watcher."""

HAND_OVER_SECONDS = 1.0
"""How long the watcher may take to accept that."""


class Flight:
    """One run at work.

    Args:
        request: What is to be run.
        tell: Receives every `Status`, in any thread; it must be quick.
        then: Is given what the run came to, and what sets `outcome`, to be called when every `Status` so far has been
            received.
        asks_details: Whether the job's place in the queue and its cost are asked for, because somebody looks at them.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        then: Callable[[RunResult | RunError, Callable[[], None]], None] = lambda _, work: work(),
        *,
        asks_details: bool = False,
    ) -> None:
        self.outcome: Future[RunResult] = Future()
        self._then = then
        self._process = os.getpid()
        core = self.core = Core(request, tell, asks_details=asks_details)
        self._submission = Submission(core, self._cancel_late)
        self._polling = Polling(core, self._conclude, self._fail)
        self._conclusion = Conclusion(core, self._step, self._polling.wait_for_cost, self._complete)
        self._time_limit: threads.Timer | None = None
        self._error: Callable[[CancelOutcome], RunError] | None = None  # makes what a wished end ends it in

    @property
    def job_id(self) -> str | None:
        """The job's id, once it is known."""
        return self.core.job_id

    @property
    def status(self) -> Status:
        """The latest status."""
        return self.core.status

    @property
    def since(self) -> float:
        """When the run came into its state, by the monotonic clock."""
        return self.core.since

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, though `outcome` may wait for a status to be received."""
        return self.core.machine.is_over

    @property
    def job_state(self) -> JobState | None:
        """How the job ended, where that is known."""
        return self.core.machine.state

    @property
    def is_detached(self) -> bool:
        """Whether its job was let go."""
        return self.core.machine.is_detached

    def result(self) -> RunResult:
        """What the run came to, once it is over.

        Raises:
            RunError: As from here: the way that it took through our threads helps nobody, its cause may.
        """
        error = self.outcome.exception()
        if error is not None:
            raise error.with_traceback(None)
        return self.outcome.result()

    def start(self, begin: Callable[[Callable[[], object]], object]) -> None:
        """Begin.

        Args:
            begin: Has another thread do what it is given: transpile and submit. That thread is free when the job's id
                is known.
        """
        request = self.core.request
        threads.begin_run(self)
        if request.timeout is not None:
            self._time_limit = threads.ending.after(min(request.timeout, threading.TIMEOUT_MAX), self._time_out)
        if may_be_remote(request):
            link.prepare()  # its start overlaps what follows
        # In a copy of the program's context: what it holds decides, such as the session of a `with Session(...)`.
        begin(functools.partial(contextvars.copy_context().run, self._step(self._begin)))

    # The run's own work

    def _step(self, work: Callable[[], None]) -> Callable[[], None]:
        """Make of some work a step of the run's, whose failure is the run's."""

        def done() -> None:
            try:
                work()
            except Stopped:
                self.core.handle(m.Stopped())
            except BaseException as error:  # noqa: BLE001 - whatever it was, the program hears of it
                self._fail(error)

        return done

    def _begin(self) -> None:
        found = prepare_and_submit(self.core, self._submission)
        if isinstance(found, RunResult):
            self._complete(found)
        else:
            self._polling.begin(found)

    def _conclude(self) -> None:
        threads.asking.do(self._step(self._conclusion.conclude))

    def _complete(self, result: RunResult) -> None:
        if self.core.handle(m.Completed()):
            self._end(result)

    def _fail(self, error: BaseException) -> None:
        core = self.core
        is_ambiguous = core.machine.phase == "posting" and service.is_ambiguous(error)
        for action in core.handle(m.Failed(is_ambiguous)):
            assert isinstance(action, m.GiveUp)
            ends_in = failure(core, error, action.why)
            if core.machine.phase == "submitted":  # to cancel it takes a while
                threads.ending.do(functools.partial(self._give_up, ends_in))
            else:
                self._give_up(ends_in)

    def _give_up(self, error: RunError) -> None:
        self.abandon(lambda _: error, is_failure=True)

    # The end

    def abandon(
        self,
        error: Callable[[CancelOutcome], RunError] | None = None,
        *,
        keep: bool = False,
        wants_result: bool = False,
        is_failure: bool = False,
    ) -> CancelOutcome:
        """End the run: cancel its job, confirm that, and stand down; or hand the cancel over to the watcher.

        Called again, it waits for the first call's outcome.

        Args:
            error: Makes what the run then ends in; by default a `JobCancelled`.
            keep: Leave the job to its grace period instead of cancelling it.
            wants_result: Whether the run goes on to its result where the job has completed all the same.
            is_failure: Whether the run ends because it failed.
        """
        if os.getpid() != self._process:
            return "unconfirmed"  # a forked child leaves its parent's `run`; the job is the parent's
        core = self.core
        wish = m.CancelWished(keep, wants_result, is_failure)
        with core.changed:
            actions = core.handle(wish)
            is_first = wish is core.machine.ending
            outcome = core.cancel_outcome
            if is_first:
                self._error = error
        if is_first:
            try:
                self._carry_out(actions, time.monotonic() + CANCEL_SECONDS)
            except BaseException:
                self._carry_out(core.handle(m.HandOverEnded(is_accepted=False)), 0.0)
                raise
            return outcome.result()
        match actions:
            case [m.Answer(answer)]:
                return answer
            case [m.End()]:  # the job was let go: it is not cancelled
                assert error is not None
                self._end(error("unconfirmed"))
                return "unconfirmed"
        return outcome.result()

    def hurry(self) -> CancelOutcome:
        """Hand the cancel that is under way over to the watcher, at once."""
        for action in self.core.handle(m.Hurried()):
            if isinstance(action, m.Answer):
                return action.outcome
        return "handed over" if self._hand_over() else "unconfirmed"

    def detach(self) -> None:
        """Let the watcher forget the run, while its job goes on: it may outlive this process."""
        self.core.handle(m.Detached())
        if self._time_limit is not None:
            self._time_limit.cancel()

    def _carry_out(self, actions: list[m.Action], deadline: float) -> None:
        """Do what ends the run."""
        core = self.core
        for action in actions:
            match action:
                case m.AwaitAnswer():
                    with core.changed:
                        while core.machine.phase == "posting" and not core.machine.is_hurried:
                            if not core.changed.wait(max(0.0, deadline - time.monotonic())):
                                break
                    self._carry_out(core.handle(m.WaitOver()), deadline)
                case m.CancelJob():
                    self._carry_out(self._cancel(deadline), deadline)
                case m.HandOver():
                    self._carry_out(core.handle(m.HandOverEnded(self._hand_over())), deadline)
                case m.Conclude():
                    self._polling.leave()
                    self._conclude()
                case m.End(outcome):
                    assert outcome is not None
                    self._end_wished(outcome)

    def _cancel(self, deadline: float) -> list[m.Action]:
        core = self.core
        assert core.job_id is not None
        core.say("job", "cancelling, confirming")

        def wait(seconds: float) -> bool:
            left = deadline - time.monotonic()
            return core.hurry.wait(max(0.0, min(seconds, left))) or left <= seconds

        final: list[remote.JobState] = []
        outcome, trouble = cancel.cancel(core.job_id, core.there, time.monotonic, wait, ended=final.append)
        if not final:
            if trouble:
                logger.warning("job %s: its cancel is not confirmed yet: %s", core.job_id, trouble)
            return core.handle(m.CancelEnded(None))
        actions = core.finished(m.CancelEnded(state_of(final[0])), final[0])
        core.say("job", "finished before it could be cancelled" if outcome == "finished" else "cancelled")
        return actions

    def _cancel_late(self) -> None:
        self._carry_out([m.CancelJob()], time.monotonic() + cancel.GIVE_UP)

    def _hand_over(self) -> bool:
        return link.hand_over(self.core.run_id, HAND_OVER_SECONDS)

    def _end_wished(self, outcome: CancelOutcome) -> None:
        core = self.core
        if outcome == "kept" and not core.machine.has_lost_its_key:
            core.say("job", "kept", f"for {core.request.grace:g} s; the same key takes it up again")
        if self._error is not None:
            self._end(self._error(outcome))
        else:
            how = "left to its grace by this program" if outcome == "kept" else "cancelled by this program"
            self._end(JobCancelled("job", how, core.job_id), quietly=True)

    def _end(self, outcome: RunResult | RunError, *, quietly: bool = False) -> None:
        threads.end_run(self)
        if self._time_limit is not None:
            self._time_limit.cancel()
        self._polling.leave()
        if isinstance(outcome, RunError):
            if outcome.raw is None:
                outcome.raw = self._conclusion.raw  # the time was up while they came corrupt
            if not quietly:
                self.core.say(outcome.stage, "failed", outcome.reason)
            self._then(outcome, functools.partial(self.outcome.set_exception, outcome))
        else:
            self._then(outcome, functools.partial(self.outcome.set_result, outcome))

    def _time_out(self) -> None:
        said: dict[CancelOutcome, str] = {
            "confirmed": "so the job was cancelled",
            "handed over": "so the watcher is cancelling the job",
            "unconfirmed": "and the cancel of the job could not be confirmed",
            "nothing to cancel": "and nothing had been submitted",
            "kept": "and its job is another driver's by now",
        }

        def error(outcome: CancelOutcome) -> RunTimeout:
            how = said[outcome]
            if self.job_state == "completed":
                how = f"but the job had finished by then; see service.job({self.job_id!r})"
            elif self.job_state == "failed":
                how = f"but the job had failed by then; see service.job({self.job_id!r})"
            limit = self.core.request.timeout
            return RunTimeout("timeout", f"no result within {limit:g} s, {how}", self.job_id)

        self.abandon(error)
