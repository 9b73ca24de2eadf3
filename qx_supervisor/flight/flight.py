"""One run at work, and its end.

The work is done by other threads than the program's, because every part of it may block: by one until the job's id is
known, and then in steps, by a few threads for all runs. Whoever waits (the loop of `run`, an awaiting task,
`Run.cancel`) ends it with `abandon`, which cancels the job; the threads themselves are never waited for.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Unpack

from .. import service, threads
from ..errors import CancelOutcome, JobState, RunError
from ..interrupts import WAIT_LIMIT
from ..job_cost import JobCost
from ..link import link
from ..logs import RunLogger
from ..request import Request
from ..result import RunResult
from ..status import Status
from ..watcher import cancel, remote
from . import machine as m
from .attachment import attach
from .conclusion import Conclusion
from .core import Core, Stopped, state_of
from .cost import CostReader
from .failures import failure, timed_out
from .outcome import Ending, Then, cancelled_by_program, one_after_the_other, result_of, settle
from .polling import Polling
from .preparation import may_be_remote, prepare_and_submit
from .submission import Submission
from .time_limits import TimeLimits
from .together import Together

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
        together: What it shares with the other parts of a split run; None: it is none.
        is_part: Whether it is a part or a try of another run.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        then: Then = lambda _, work: work(),
        *,
        asks_details: bool = False,
        together: Together | None = None,
        is_part: bool = False,
    ) -> None:
        self.outcome: Future[RunResult] = Future()
        self.is_part = is_part
        self._then = then
        self._process = os.getpid()
        core = self.core = Core(request, tell, asks_details=asks_details, together=together)
        self._submission = Submission(core, self._cancel_late)
        self._cost = CostReader(core)
        self._time_limits = TimeLimits(core, self._time_out)
        self._polling = Polling(core, self._cost, self._time_limits.runs, self._conclude, self._fail)
        self._conclusion = Conclusion(core, self._step, self._complete)
        self._error: Callable[[CancelOutcome], RunError] | None = None  # makes what a wished end ends it in

    @property
    def job_id(self) -> str | None:
        """The job's id, once it is known."""
        return self.core.job_id

    def wait_for_job(self, seconds: float) -> bool:
        """Wait until its job has an id, or there will be none; returns whether that is so."""
        machine = self.core.machine
        with self.core.changed:
            return self.core.changed.wait_for(lambda: machine.job is not None or machine.is_over, seconds)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The same, as of a run of several jobs."""
        return () if self.job_id is None else (self.job_id,)

    @property
    def failed_job_ids(self) -> tuple[str, ...]:
        """None: it is one job."""
        return ()

    @property
    def log(self) -> RunLogger:
        """The logger, for what is about this run."""
        return self.core.log

    @property
    def status(self) -> Status:
        """The latest status."""
        return self.core.status

    @property
    def cost(self) -> JobCost:
        """What its job cost."""
        return self.core.cost

    @property
    def since(self) -> float:
        """When the run came into its state, by the monotonic clock."""
        return self.core.since

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, though `outcome` may wait for a status to be received."""
        return self.core.machine.is_over

    @property
    def is_running(self) -> bool:
        """Whether its job is executed, as far as is known, or its results are being fetched."""
        machine, target = self.core.machine, self.core.target
        is_local = target is not None and target.is_local
        return not machine.is_over and (is_local or machine.phase == "final" or self._polling.sees_it_run)

    @property
    def job_state(self) -> JobState | None:
        """How the job ended, where that is known."""
        return self.core.machine.state

    @property
    def cancel_outcome(self) -> CancelOutcome | None:
        """What became of its cancel, where one was wished and that is known."""
        outcome = self.core.cancel_outcome
        return outcome.result() if outcome.done() else None

    @property
    def is_detached(self) -> bool:
        """Whether its job was let go."""
        return self.core.machine.is_detached

    def result(self) -> RunResult:
        """What the run came to, once it is over.

        Raises:
            RunError: As from here: the way that it took through our threads helps nobody, its cause may.
        """
        return result_of(self.outcome)

    def start(self, begin: Callable[[Callable[[], object]], object]) -> None:
        """Begin.

        Args:
            begin: Has another thread do what it is given: transpile and submit. That thread is free when the job's id
                is known.
        """
        request = self.core.request
        threads.begin_run(self)
        self._time_limits.begin()
        if may_be_remote(request) and not request.attached:  # a job that is final needs no watcher
            link.prepare()  # its start overlaps what follows
        # In a copy of the program's context: what it holds decides, such as the session of a `with Session(...)`.
        begin(functools.partial(contextvars.copy_context().run, self._step(self._begin)))
        if self.is_over:  # it was ended before it began, as a part is when another has failed
            threads.end_run(self)

    def wait_until_attached(self) -> None:
        """Wait until its job is known, and guarded unless it is final.

        Raises:
            RunError: It can't be attached.
        """
        core = self.core
        while not (core.job_id is not None or self.outcome.done()):
            with core.changed:
                core.changed.wait_for(lambda: core.job_id is not None or core.machine.is_over, WAIT_LIMIT)
            if core.job_id is None and core.machine.is_over:
                with contextlib.suppress(TimeoutError):
                    self.outcome.exception(WAIT_LIMIT)
        if core.job_id is None:
            self.result()

    def listen(self, tell: Callable[[Status], None], then: Then) -> None:
        """Have one more listener, from now on: its arguments are as those of `Flight`."""
        self._then = one_after_the_other(self._then, then)
        self.core.listen(tell)

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
        prepare = attach if self.core.request.attached else prepare_and_submit
        found = prepare(self.core, self._submission)
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
        core.trouble = error.reason if isinstance(error, RunError) else service.describe(error)
        for action in core.handle(m.Failed(is_ambiguous)):
            assert isinstance(action, m.GiveUp)
            ends_in = failure(core, error, action.why)
            if core.machine.phase == "submitted":  # to cancel it takes a while
                threads.ending.do(functools.partial(self._give_up, ends_in))
            else:
                self._give_up(ends_in)

    def _give_up(self, error: RunError) -> None:
        self.abandon(lambda _: error, is_failure=True, reason=error.reason)

    # The end

    def abandon(
        self, error: Callable[[CancelOutcome], RunError] | None = None, **ending: Unpack[Ending]
    ) -> CancelOutcome:
        """End the run: cancel its job, confirm that, and stand down; or hand the cancel over to the watcher.

        Called again, it waits for the first call's outcome.

        Args:
            error: Makes what the run then ends in; by default a `JobCancelled`.
            **ending: How it is to end, where that is another way than cancelled, without a result.
        """
        if os.getpid() != self._process:
            return "unconfirmed"  # a forked child leaves its parent's `run`; the job is the parent's
        core = self.core
        wish = m.CancelWished(**ending)
        with core.changed:
            actions = core.handle(wish)
            is_first = wish is core.machine.ending
            outcome = core.cancel_outcome
            if is_first:
                self._error = error
        if is_first:
            return self._carry_out_in_time(actions, outcome)
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
        self._time_limits.lift()

    def _carry_out_in_time(self, actions: list[m.Action], outcome: Future[CancelOutcome]) -> CancelOutcome:
        """Do what ends the run; hand over when there is no more time, though a request may still be under way."""
        asks = (m.AwaitAnswer, m.CancelJob, m.HandOver)
        if not any(isinstance(action, asks) for action in actions):
            self._carry_out(actions, 0.0)
            return outcome.result()
        core, over = self.core, threading.Event()
        deadline = time.monotonic() + CANCEL_SECONDS

        def work() -> None:
            try:
                self._carry_out(actions, deadline)
            except BaseException:
                self._carry_out(core.handle(m.HandOverEnded(is_accepted=False)), 0.0)
                raise
            finally:
                over.set()

        try:
            threads.do_alone("qx-cancel", work)
        except RuntimeError:  # no thread can be had
            work()
        end = deadline + HAND_OVER_SECONDS  # most often the thread itself hands over, at the deadline
        while not over.wait(min(WAIT_LIMIT, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                hurried = core.handle(m.Hurried())
                self._carry_out(hurried, 0.0)
                match hurried:
                    case [*_, m.Answer(answer)] if not outcome.done():
                        return answer
                break
        return outcome.result()

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
        was_over = core.machine.is_over
        core.say("job", "cancelling, confirming")

        def wait(seconds: float) -> bool:
            left = deadline - time.monotonic()
            return core.hurry.wait(max(0.0, min(seconds, left))) or left <= seconds

        final: list[remote.JobState] = []
        outcome, trouble = cancel.cancel(core.job_id, core.there, time.monotonic, wait, ended=final.append)
        if not final:
            if trouble:
                core.log.warning("job %s: its cancel is not confirmed yet: %s", core.job_id, trouble)
            return core.handle(m.CancelEnded(None))
        is_overdue = core.machine.is_over and not was_over  # it was handed over meanwhile, and the run's end was told
        actions = core.finished(m.CancelEnded(state_of(final[0])), final[0])
        self._cost.read(final[0])
        if not is_overdue:
            core.say("job", "finished before it could be cancelled" if outcome == "finished" else "cancelled")
        return actions

    def _cancel_late(self) -> None:
        self._carry_out([m.CancelJob()], time.monotonic() + cancel.GIVE_UP)

    def _hand_over(self) -> bool:
        return link.hand_over(self.core.run_id, HAND_OVER_SECONDS, self.core.wished_end)

    def _end_wished(self, outcome: CancelOutcome) -> None:
        core = self.core
        if outcome == "kept" and core.request.key is not None and not core.machine.has_lost_its_key:
            core.say("job", "kept", f"for {core.request.grace:g} s; the same key takes it up again")
        if self._error is not None:
            self._end(self._error(outcome))
        else:
            self._end(cancelled_by_program(outcome, core.job_id), quietly=True)

    def _end(self, outcome: RunResult | RunError, *, quietly: bool = False) -> None:
        threads.end_run(self)
        self._time_limits.lift()
        self._polling.leave()
        if isinstance(outcome, RunError):
            if outcome.raw is None:
                outcome.raw = self._conclusion.raw  # the time was up while they came corrupt
            if not quietly:
                self.core.say(outcome.stage, "failed", outcome.reason)
        if self.core.spans is not None:
            with self.core.telling:
                self.core.spans.end(outcome if isinstance(outcome, RunError) else None)
        settle(self.outcome, outcome, self.core.status, self._then)

    def _time_out(self, why: str, next_step: str) -> None:
        attached = self.core.request.attached
        self.abandon(
            lambda outcome: timed_out(self, why, next_step, outcome, attached=attached), is_limit=True, reason=why
        )
