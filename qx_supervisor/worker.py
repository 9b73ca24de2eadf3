"""The work of one run: transpile → submit → poll → fetch, told as status events.

It is done by other threads than the caller's, because every part of it may block: by one until the job's id is known,
and then in steps, by a few threads for all runs. Whoever waits (the caller loop, an awaiting task, `Run.cancel`) ends
it with `abandon`, which cancels the job; the threads themselves are never waited for.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from . import queue_info, resume, service, threads
from .backoff import Backoff
from .errors import (
    CancelOutcome,
    JobCancelled,
    JobFailed,
    JobState,
    RunError,
    RunTimeout,
    Stage,
    SubmitError,
    WatcherError,
)
from .harvest import Harvest, Spoilt
from .job_errors import ending
from .launch import sweep_window
from .link import CredentialsSource, Guarded, link
from .poller import ask, poller_of
from .queue_blockers import FIRST_LOOK, QueueBlockers, blockers_of, used_up
from .reap import reap_in_background
from .request import Request, check_tags
from .result import RunResult
from .status import Status
from .unanswered import Posts, find_job
from .watcher import cancel, protocol, remote

logger = logging.getLogger("qx_supervisor")

T = TypeVar("T")

CANCEL_SECONDS = 10.0
"""How long the caller tries by itself to cancel and confirm, before it hands over to the watcher."""

HAND_OVER_SECONDS = 1.0
_LONGEST_POLL = 15.0
_POLL_SHARE = 0.02  # of the time that a job has taken so far: an hour in the queue is asked after every 15 s
_DETAILS_PAUSE = 15.0  # between two readings of a queued job's place
_COST_PATIENCE = 0.3  # seconds that a result waits for the word what it cost
_LAST_WORDS_TRIES = 3  # to learn why a job failed: that is worth a second, and no more
_RATE_LIMIT_PAUSE = 12.0  # 5 jobs a minute are allowed: what to wait where the answer does not say

_driver_tag = (0, "")


def driver_tag() -> str:
    """The tag of all jobs of this process; a forked child is another driver."""
    global _driver_tag  # noqa: PLW0603 - one per process
    if _driver_tag[0] != os.getpid():
        _driver_tag = (os.getpid(), f"qxd-{uuid.uuid4().hex}")
    return _driver_tag[1]


Phase = Literal["preparing", "posting", "doubtful", "submitted", "final"]
"""No POST has left; one is on its way; one was, and whether it made a job is not known; the job's id is known; the job
is final."""


class _Stopped(BaseException):
    """Ends the worker's thread."""


class Worker:
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
        self.request = request
        self.run_id = uuid.uuid4().hex
        self.tag = f"qxs-{self.run_id}"
        self.tags: tuple[str, ...] = (*request.tags, self.tag, driver_tag())
        self.max_execution_time = request.max_execution_time
        self.outcome: Future[RunResult] = Future()
        self.job_id: str | None = None
        self.status = Status("config", "starting")
        self.since = time.monotonic()  # it is in this state
        self._tell = tell
        self._then = then
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._phase: Phase = "preparing"
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._abandoned: Future[CancelOutcome] | None = None
        self._gave_up = False  # `abandon` could not wait for the answer to the POST
        self._detached = False
        self._keep = False  # an interrupt leaves the job to its grace
        self._taken_up = False
        self._lease_lost = ""  # who has it now
        self._keyed: Guarded | None = None
        self._armed: Future[None] | None = None
        self._guarded = False
        self._announced: Future[None] | None = None  # in another thread
        self._acknowledged: Callable[[], object] = lambda: None
        self._announcement: Callable[[], None] = lambda: None
        self._protected = False  # a watcher has acknowledged it
        self._posts = Posts()
        self._unsent = Backoff("submit", None, self._say)
        self._final: remote.JobState | None = None  # how the job ended, though the run may have ended before
        self._ended = False
        self._target: service.Target | None = None
        self._alarm: threads.Timer | None = None
        self._patience: Backoff | None = None
        self._harvest: Harvest | None = None
        self._decoders: Sequence[Any] = ()
        self._leave_poller: Callable[[], None] = lambda: None
        self._watched_since = 0.0
        self._seen = ""
        self._blockers: QueueBlockers | None = None
        self._hopeless = ""
        self._asks_details = asks_details
        self._details = queue_info.QueueInfo()
        self._details_due = 0.0
        self._cost: Future[None] | None = None
        self._shots = _shots(request)
        self._saying = threading.RLock()

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, though `outcome` may wait for a status to be received."""
        return self._ended

    @property
    def job_state(self) -> JobState | None:
        """How the job ended, where that is known."""
        if self._final is None:
            return None
        return "cancelled" if self._final.is_cancelled else "completed" if self._final.is_completed else "failed"

    @property
    def is_detached(self) -> bool:
        """Whether its job was let go."""
        return self._detached

    def start(self, begin: Callable[[Callable[[], object]], object]) -> None:
        """Begin.

        Args:
            begin: Has another thread do what it is given: transpile and submit. That thread is free when the job's id
                is known.
        """
        threads.begin_run(self)
        if self.request.timeout is not None:
            self._alarm = threads.ending.after(min(self.request.timeout, threading.TIMEOUT_MAX), self._time_out)
        if _may_be_remote(self.request):
            link.prepare()  # its start overlaps what follows
        # In a copy of the caller's context: what it holds decides, such as the session of a `with Session(...)`.
        begin(functools.partial(contextvars.copy_context().run, self._doing(self._begin)))

    # The end

    def abandon(
        self,
        error: Callable[[CancelOutcome], RunError] | None = None,
        seconds: float = CANCEL_SECONDS,
        *,
        keep: bool = False,
        wants_result: bool = False,
    ) -> CancelOutcome:
        """End the run: cancel its job, confirm that, and let the watcher stand down, or hand the cancel over to it.

        Called again, it waits for the first call's outcome.

        Args:
            error: Makes what the run then ends in; by default a `JobCancelled`.
            seconds: How long to try before handing over.
            keep: Leave the job to its grace instead of cancelling it.
            wants_result: Whether the run goes on to its result where the job has completed all the same.
        """
        if os.getpid() != self._process:
            return "unconfirmed"  # a forked child leaves the parent's `run`; the job is the parent's
        with self._lock:
            if wants_result and self._phase == "final" and self._abandoned is None and not self._is_cancelled():
                return "confirmed"  # there is nothing to cancel, and the result is on its way
            first = self._abandoned is None
            if self._abandoned is None:
                self._abandoned = Future()
                self._keep = keep
            shared = self._abandoned
        if not first:
            return shared.result()
        outcome: CancelOutcome = "unconfirmed"
        try:
            outcome = self._abandon(time.monotonic() + seconds)
        finally:
            shared.set_result(outcome)
            if error is not None:
                self._end(error(outcome))
            elif wants_result and self._goes_on():
                pass
            else:
                how = "left to its grace by this program" if outcome == "kept" else "cancelled by this program"
                self._end(JobCancelled("job", how, self.job_id), quietly=True)
        return outcome

    def _is_cancelled(self) -> bool:
        return self._final is not None and self._final.is_cancelled

    def _goes_on(self) -> bool:
        """Whether the job has ended otherwise than by its cancel: then the run goes on, to its result or failure."""
        state = self._final
        if state is None or state.is_cancelled:
            return False
        self._leave_poller()
        with self._lock:
            self._abandoned = None  # whatever ends the run now has not begun
            self._phase = "final"
        self._stop.clear()
        threads.asking.do(self._doing(functools.partial(self._conclude, state)))
        return True

    def hurry(self) -> CancelOutcome:
        """Hand the cancel that is under way over to the watcher, at once."""
        self._stop.set()  # the thread that abandons may not have come to it yet
        self._hurry.set()
        with self._changed:
            phase = self._phase
            self._changed.notify_all()
        return self._leave(phase) or self._let_go() or self._hand_over()

    def _abandon(self, deadline: float) -> CancelOutcome:
        self._stop.set()
        with self._changed:
            # A POST that has left can't be called back; most often its answer is a moment away.
            while self._phase == "posting" and not self._hurry.is_set():
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            phase = self._phase
            self._gave_up = phase == "posting"
        left = self._leave(phase) or self._let_go()
        if left is not None:
            return left
        return self._hand_over() if phase in ("posting", "doubtful") else self._cancel(deadline)

    def _leave(self, phase: Phase) -> CancelOutcome | None:
        """Let the watcher stand down, if no job is left to cancel."""
        if phase not in ("preparing", "final"):
            return None
        self._stand_down()
        return "nothing to cancel" if self.job_id is None else "confirmed"

    def _let_go(self) -> CancelOutcome | None:
        """Leave the job to its grace, if that is asked for; or to whoever has its lease now."""
        if self._has_lost_its_key():
            return "kept"
        if not self._keep:
            return None
        link.let_go(self.run_id)
        self._say("job", "kept", f"for {self.request.grace:g} s; the same key takes it up again")
        return "kept"

    def _cancel(self, deadline: float) -> CancelOutcome:
        assert self._target is not None and self.job_id is not None  # noqa: PT018 - it was submitted
        self._say("job", "cancelling, confirming")
        link.cancelling(self.run_id)

        def wait(seconds: float) -> bool:
            left = deadline - time.monotonic()
            return self._hurry.wait(max(0.0, min(seconds, left))) or left <= seconds

        def ended(state: remote.JobState) -> None:
            self._final = state

        there = service.remote_of(self._target.client)
        outcome, trouble = cancel.cancel(self.job_id, there, time.monotonic, wait, ended=ended)
        if outcome == "unconfirmed":
            if trouble:
                logger.warning("job %s: its cancel is not confirmed yet: %s", self.job_id, trouble)
            return self._hand_over()
        self._stand_down()
        self._say("job", "finished before it could be cancelled" if outcome == "finished" else "cancelled")
        return "confirmed"

    def _hand_over(self) -> CancelOutcome:
        if link.hand_over(self.run_id, HAND_OVER_SECONDS):
            return "handed over"
        return "unconfirmed"

    def _stand_down(self) -> None:
        if self._announced is not None:  # if that is under way, the watcher will know of the run in a moment
            self._announced.add_done_callback(lambda _: link.stand_down(self.run_id, self._keyed))
        elif self._guarded:
            link.stand_down(self.run_id, self._keyed)

    def stand_down(self) -> None:
        """Let the watcher forget the run, while its job goes on: it may outlive this process."""
        with self._lock:
            self._detached = True
            has_job = self.job_id is not None
        if self._alarm is not None:
            self._alarm.cancel()
        if has_job:
            self._stand_down()

    def _end(self, outcome: RunResult | RunError, *, quietly: bool = False) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        threads.end_run(self)
        if self._alarm is not None:
            self._alarm.cancel()
        self._leave_poller()
        if isinstance(outcome, RunError):
            if outcome.raw is None and self._harvest is not None:
                outcome.raw = self._harvest.raw  # the time was up while they came spoilt
            if not quietly:
                self._say(outcome.stage, "failed", outcome.reason)
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
            return RunTimeout("timeout", f"no result within {self.request.timeout:g} s, {how}", self.job_id)

        self.abandon(error)

    # Until the job's id is known, in one thread

    def _doing(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work whose every end is the run's."""

        def done() -> None:
            try:
                work()
            except _Stopped:
                self._stopped()
            except BaseException as error:  # noqa: BLE001 - whatever it was, the caller hears of it
                self._fail(error)

        return done

    def _begin(self) -> None:
        request = self.request
        self._pause_if_stopped()
        self._say("backend", "connecting")
        target = self._target = self._despite_outages(
            "backend",
            lambda: service.find_target(request.backend, request.service, request.primitive, request.width),
        )
        self._say("backend", "chosen", target.name)
        if not target.is_local:
            account = service.account_name(target.client)
            source = functools.partial(service.credentials, target.client)
            if not link.is_armed(account):
                self._armed = threads.announcing.begin(lambda: link.arm(account, source))
            if request.key is not None and self._take_up(request.key, account, source):
                return
        pubs = request.pubs
        foreign = self._despite_outages("backend", lambda: service.not_isa(pubs, target))
        if foreign:
            self._say("transpile", "transpiling", f"for {target.name}")
            level, seed = request.optimization_level, request.seed_transpiler
            pubs = self._despite_outages(
                "transpile",
                lambda: service.to_isa(request.pubs, foreign, target, request.kind, level=level, seed=seed),
            )
        if not target.is_local:
            service.check_angles(pubs, target)
        primitive = request.primitive
        if primitive is None:
            primitive = service.make_primitive(request.kind, target, request.options, request.shots)
        check_tags((*service.tags_of(primitive), *request.tags))
        self._pause_if_stopped()
        if target.is_local:
            self._end(self._run_locally(primitive, pubs))
            return
        self._say("submit", "preparing")
        self._announce(account, source)  # while the client prepares
        self._pause_if_stopped()  # `abandon` may have looked just before
        try:
            job = self._despite_outages(
                "submit",
                lambda: service.submit(primitive, pubs, request.kind, request.shots, self, backend=target.backend),
            )
            if self.job_id is not None:
                self._decoders = service.decoders_of(job)
        except Exception:
            if self.job_id is None:
                raise
            logger.debug("the job %s is submitted, and the client failed then", self.job_id, exc_info=True)
        finally:
            reap_in_background(target.client)  # not before: it would compete for the interpreter
        if self.job_id is None:
            raise SubmitError(
                "submit",
                f"{type(primitive).__name__} submitted no job by Qiskit's client, so none is guarded or waited for; if "
                "it submitted one in another way, look after that one yourself, or run it with a primitive of Qiskit's",
            )
        self._forget_circuits()
        self._watch(driver_tag())

    def _despite_outages(self, stage: Stage, work: Callable[[], T]) -> T:
        """Do what comes before the POST, again and again while nobody answers: nothing is lost by that."""
        patience = self._patience = Backoff(stage, None, self._say)
        while True:
            with service.noticing() as noticed:
                try:
                    done = work()
                except Exception as error:
                    if self._phase != "preparing" or self.job_id is not None or isinstance(error, WatcherError):
                        raise
                    outage = service.outage(error, noticed)
                    if outage is None:
                        raise
                else:
                    patience.answered()
                    return done
            self._sleep(patience.failed(outage))

    def _despite_token_outages(self, work: Callable[[], T]) -> T:
        """Ask the watcher for what it needs a token for, again and again while the token service is out of order."""
        patience = Backoff("submit", None, self._say)
        while True:
            try:
                done = work()
            except WatcherError as error:
                if not service.is_token_outage(error.reason):
                    raise
                self._sleep(patience.failed(remote.Transient(error.reason)))
            else:
                patience.answered()
                return done

    def _forget_circuits(self) -> None:
        """A thousand jobs in flight need not keep them."""
        self.request = dataclasses.replace(
            self.request, pubs=[], primitive=None, options=None, backend=None, service=None
        )

    def _take_up(self, key: str, account: str, source: CredentialsSource) -> bool:
        """Take the lease on a key; returns whether the run goes on with a job that was submitted before."""
        from .fingerprint import fingerprint

        assert self._target is not None
        self._say("submit", "asking for the key", key)
        mark = fingerprint(self.request)
        tag = resume.run_tag(self.run_id, mark)
        lease = protocol.Lease(key, mark, self.request.grace, uuid.uuid4().hex)
        guarded = Guarded(self.run_id, account, tag, self._hear, driver_tag(), lease=lease)
        near = service.instances_near(self._target)

        def claim() -> dict[str, Any]:
            armed, self._armed = self._armed, None
            if armed is not None:
                armed.result()
            return resume.claim(guarded, source, near, self._say, self._sleep)

        found = self._despite_token_outages(claim)
        # What the key had before is this run's now; the watcher knows.
        self.run_id, self.tag = guarded.run, guarded.tag
        self.tags = (*self.request.tags, self.tag, driver_tag(), resume.key_tag(key))
        self._keyed, self._protected = guarded, True
        search = resume.Search(self._there, guarded, found, sweep_window(), self._say, self._sleep)
        in_doubt = search.is_in_doubt
        with self._changed:
            self._phase = "doubtful" if in_doubt else "preparing"
        self._guarded = not in_doubt  # else there may be a job, which must not be stood down
        try:
            self._pause_if_stopped()
            job = search.job()
        except BaseException:
            if in_doubt:  # what there is keeps its grace, unless it was handed over meanwhile
                link.let_go(self.run_id)
            with self._changed:
                self._phase = "preparing"
                self._changed.notify_all()
            raise
        self._guarded = True
        if job is None:
            self._posts.earlier = frozenset(search.outcomes)
            link.anew(self.run_id, search.outcomes)
            with self._changed:
                self._phase = "preparing"
            return False
        self._go_on_with(job, is_only=found["answered"])
        return True

    def _go_on_with(self, job: remote.JobState, *, is_only: bool) -> None:
        """The job that an earlier driver submitted is this run's."""
        assert self._target is not None
        self.job_id = str(job.reply["id"])
        link.job(self.run_id, self.job_id)
        link.posted(self.run_id, clean=is_only)
        self._taken_up = True
        with self._changed:
            detached = self._detached
            self._phase = "submitted"
            self._changed.notify_all()
        if detached:
            self._stand_down()
        self._say("submit", "taken up again", f"submitted before with the key {self.request.key}")
        self._decoders = service.decoders_for(job.reply)
        self._forget_circuits()
        reap_in_background(self._target.client)
        self._watch(resume.driver_of(job) or driver_tag())

    def _run_locally(self, primitive: Any, pubs: list[Any]) -> RunResult:
        assert self._target is not None
        self._say("submit", "simulating", "on this machine, unguarded")
        job = service.run_local(primitive, pubs, self.request.kind, self.request.shots)
        result = RunResult(job.result(), job.job_id(), self._target.name, is_list=self.request.is_list)
        self._say("results", "done")
        return result

    # In flight: steps, by whatever thread is free

    @property
    def _there(self) -> remote.Remote:
        assert self._target is not None
        return service.remote_of(self._target.client)

    def _watch(self, driver: str) -> None:
        self._watched_since = time.monotonic()
        self._patience = Backoff("poll", self.job_id, self._say)
        poller = self._poller = poller_of(self._there, driver)
        watched = poller.watch(str(self.job_id), self._saw, self._missed)
        self._leave_poller = lambda: poller.leave(watched)
        if self._ended:
            self._leave_poller()

    def _saw(self, state: remote.JobState) -> float | None:
        """The job's state was read; returns the seconds until it is to be read again, or None."""
        if self._stop.is_set() or self._ended or self._patience is None or self._phase == "final":
            return None
        self._patience.answered()
        if state.is_final:
            if self._asks_details and not self._poller.is_crowd:
                with contextlib.suppress(RuntimeError):  # no thread can be had for it
                    self._cost = threads.looking.begin(functools.partial(self._read_details, state))
            with self._lock:
                self._phase = "final"
                self._final = state
            threads.asking.do(self._doing(functools.partial(self._conclude, state)))
            return None
        if state.status != self._seen:
            self._seen = state.status
            self._say("poll", state.status.lower())
        if state.status.lower() == "queued":
            self._look_out()
        if self._asks_details and state.status.lower() == "queued" and not self._poller.is_crowd:
            now = time.monotonic()
            if now >= self._details_due:
                self._details_due = math.inf  # until it is read
                with contextlib.suppress(RuntimeError):
                    threads.looking.do(functools.partial(self._read_details, state))
        # Noticed late by 2 % at most, and never more often than the official client asks.
        shortest = 0.1 if self._target is not None and self._target.in_session else 0.5
        pause = min(_LONGEST_POLL, max(shortest, _POLL_SHARE * (time.monotonic() - self._watched_since)))
        return self.request.poll_interval or pause

    def _look_out(self) -> None:
        """Tell what keeps the job in the queue for longer than others before it would."""
        if time.monotonic() - self._watched_since < FIRST_LOOK or self._target is None:
            return
        if self._blockers is None:
            self._blockers = blockers_of(self._there, self._target.name)
        why = self._blockers.words()
        if why != self._hopeless:
            self._hopeless = why
            if why:  # the panel shows it as the state's
                logger.warning("job %s is queued: %s", self.job_id, why, extra={"in_panel": True})
            self._say("poll", "queued", why)

    def _read_details(self, state: remote.JobState) -> None:
        """Read the job's place in the queue and its cost, and tell them where they are news. No failure matters."""
        try:
            known = queue_info.read(state.reply, self._there.metrics(str(self.job_id)))
        except remote.RemoteError:
            return
        finally:
            self._details_due = time.monotonic() + _DETAILS_PAUSE
        with self._saying:
            if not state.is_final:
                if self._phase != "submitted" or self._ended or self.status.state != state.status.lower():
                    return  # it has moved on since it was asked for
                known = dataclasses.replace(known, qpu_seconds=None)
            is_news = known != self._details
            self._details = known
            if is_news and not state.is_final:
                self._say("poll", self.status.state, self.status.detail)

    def _wait_for_cost(self) -> None:
        if self._cost is not None:
            with contextlib.suppress(Exception):  # the result is what the run is about
                self._cost.result(_COST_PATIENCE)

    def _missed(self, error: Exception) -> float | None:
        """The job's state could not be read; returns the seconds until the next try, or None."""
        if self._stop.is_set() or self._ended or self._patience is None:
            return None
        try:
            return self._patience.failed(error)
        except Exception as failure:  # noqa: BLE001 - the run ends in it
            threads.ending.do(functools.partial(self._fail, failure))
            return None

    def _conclude(self, state: remote.JobState) -> None:
        """The job is final."""
        if not state.is_completed:
            self._wait_for_cost()
            by = ", though not by this program"
            if self._lease_lost:
                by += f"; this host had lost its lease on it: {self._lease_lost}"
            raise ending(state, str(self.job_id), text=self._last_words(state), by=by)
        self._say("results", "fetching results")
        decoders = self._decoders or service.decoders_for(state.reply)
        self._harvest = Harvest(str(self.job_id), decoders, self._say)
        self._fetch(self._harvest)

    def _last_words(self, state: remote.JobState) -> str:
        """What a failed job has for results, where the service gives no reason for its failure."""
        if state.reason or state.is_cancelled:
            return ""
        for _ in range(_LAST_WORDS_TRIES):
            try:
                return ask(self._there, lambda: self._there.results(str(self.job_id)))
            except remote.Transient as error:
                time.sleep(min(error.retry_after or 0.5, 2.0))
            except remote.RemoteError:
                break
        return ""

    def _fetch(self, harvest: Harvest) -> None:
        self._pause_if_stopped()
        try:
            decoded = harvest.decode(ask(self._there, lambda: self._there.results(str(self.job_id))))
        except (remote.RemoteError, Spoilt) as error:
            threads.asking.after(harvest.failed(error), self._doing(functools.partial(self._fetch, harvest)))
            return
        assert self._target is not None
        self._stand_down()
        self._wait_for_cost()
        cost, is_list = self._details.qpu_seconds, self.request.is_list
        result = RunResult(decoded, str(self.job_id), self._target.name, cost, is_list=is_list)
        self._say("results", "done")
        self._end(result)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            phase, stage = self._phase, self.status.stage
        if phase == "posting":
            self._fail_submission(error)
            return
        if isinstance(error, RunError):
            wrapped = error
        elif phase == "preparing" and stage == "submit":
            wrapped = self._not_submitted(error)
        else:
            wrapped = RunError(stage, f"{type(error).__name__}: {service.describe(error)}", self.job_id)
        if wrapped is not error:
            wrapped.__cause__ = error
        self._give_up(wrapped)

    def _give_up(self, error: RunError) -> None:
        """End the run in an error; its job is cancelled, unless it was let go."""
        if self._detached and self.job_id is not None:
            self._end(error)
        elif self._phase == "submitted":  # to cancel it takes a while
            threads.ending.do(lambda: self.abandon(lambda _: error))
        else:
            self.abandon(lambda _: error)

    def _not_submitted(self, error: BaseException) -> RunError:
        """For a failure at the primitive, before any POST."""
        reason = service.describe(error)
        if self._target is not None and self._target.is_local:
            return JobFailed("job", f"the local simulation failed: {reason}")
        said = service.said(error)
        why: dict[str, Any] = {"code": said.code, "service_message": said.message}
        if service.is_unauthorized(error):
            reason = f"nothing was submitted: IBM Quantum does not accept this account: {reason}"
            return SubmitError("auth", reason, **why)
        return SubmitError("submit", f"nothing was submitted: {reason}", **why)

    def _stopped(self) -> None:
        """The run was abandoned before the thread got here."""
        with self._changed:
            # After a 5xx answer or the pause that follows a 429, and before the POST was sent again.
            in_doubt = self._phase in ("posting", "doubtful")
            if in_doubt:
                self._phase = "doubtful"
                self._changed.notify_all()
        if in_doubt:
            link.posted(self.run_id, clean=False)
        elif self.job_id is None:
            self._stand_down()  # it may have been announced after `abandon` had looked

    def _fail_submission(self, error: BaseException) -> None:
        refused = not self._posts.several and not service.is_ambiguous(error)
        with self._changed:
            self._phase = "preparing" if refused else "doubtful"
            self._changed.notify_all()
        reason = service.describe(error)
        said = service.said(error)
        if refused:
            self._stand_down()
            reason += self._used_up(error)
            if service.is_unauthorized(error):
                failure = SubmitError("auth", f"IBM Quantum does not accept this account: {reason}")
            else:
                failure = SubmitError("submit", f"the job could not be submitted: {reason}")
        else:
            link.posted(self.run_id, clean=False)
            failure = SubmitError(
                "submit",
                f"the submission got no answer ({reason}); a job that it may have made is looked for by its tag "
                f"{self.tag}, and cancelled",
            )
        failure.code, failure.service_message = said.code, said.message
        failure.__cause__ = error
        self._give_up(failure)

    def _used_up(self, error: BaseException) -> str:
        """That the instance has used up its time, where that may be why a submission is refused."""
        if service.status_of(error) not in (402, 403):
            return ""
        try:
            why = used_up(self._there.usage())
        except remote.RemoteError:
            return ""
        return f"; {why}" if why else ""

    # What the client's POST asks (`service.Submission`)

    is_patient = True

    def after_post(self, *, ambiguous: bool) -> None:
        """Nothing is to be done: `_work` sees how it went."""

    def posting_at(self, client: Any) -> None:
        """Whoever POSTs is whom the run is guarded, polled and cancelled at: a primitive may know better than we do."""
        assert self._target is not None
        account = service.account_name(client)
        if account == service.account_name(self._target.client):
            return
        if self._keyed is not None:
            raise SubmitError(
                "submit",
                "nothing was submitted: the primitive submits to another instance than its backend's, and the key is "
                "held for that one; make it with a backend of its own instance",
            )
        with contextlib.suppress(WatcherError):
            self._acknowledged()
        link.stand_down(self.run_id)
        self.run_id = uuid.uuid4().hex  # the watcher has heard of the other one; the tag is the same
        self._announced = None
        self._target = dataclasses.replace(self._target, client=client)
        self._announce(account, functools.partial(service.credentials, client))

    def advised(self, message: str) -> None:
        """The client says before the POST that the job may have to wait: the backend is paused, say."""
        logger.warning("%s", message, extra={"in_panel": True})
        self._say("submit", self.status.state, message)

    def before_post(self) -> None:
        """The watcher acknowledges the intent before the POST leaves."""
        self._pause_if_stopped()
        if self._patience is not None:
            self._patience.answered()  # else it would be told after what follows
        assert self._target is not None
        try:
            self._despite_token_outages(self._wait_for_word)
            self._protected = True
        except WatcherError as error:
            if self.request.on_unprotected == "raise":
                raise WatcherError(
                    "submit",
                    f"nothing was submitted, because the watcher can't protect this run: {error.reason}; "
                    'on_unprotected="warn" submits all the same',
                ) from None
            logger.warning("this run is not protected: %s", error.reason)
            self._say("submit", "not protected", error.reason)
        self._say("submit", "submitting", f"to {self._target.name}")
        self._begin_post()

    def _wait_for_word(self) -> None:
        """Wait for the watcher's word that it knows of the run."""
        try:
            self._acknowledged()
        except WatcherError as error:
            if service.is_token_outage(error.reason):
                self._announcement()  # whoever asks again is answered anew
            raise

    def _announce(self, account: str, source: CredentialsSource) -> None:
        """Tell the watcher that a POST will leave; `_acknowledged` waits for its word."""
        self._check_lease()
        self._announcement = functools.partial(self._announce, account, source)
        guarded = self._keyed or Guarded(self.run_id, account, self.tag, self._hear, driver_tag())
        self._guarded = True
        waits = link.announce_early(guarded, source)
        if waits is not None:
            self._acknowledged = waits
            return

        armed, self._armed = self._armed, None

        def announce() -> None:
            if armed is not None:
                armed.result()
            link.announce(guarded, source)

        self._announced = threads.announcing.begin(announce)
        self._acknowledged = self._announced.result

    def before_retry(self) -> None:
        """A 5xx: the client is about to send the POST again, which may make a second job."""
        self._posts.several = True
        self._say("submit", "submission failed, retrying")
        self._pause_if_stopped()

    def put_off(self, status: int, seconds: float | None) -> None:
        """A 429, a 423: this POST made no job. Wait, then it may leave again."""
        self._set_phase("doubtful" if self._posts.several else "preparing")  # an earlier one may have made one
        pause = _RATE_LIMIT_PAUSE if seconds is None else seconds
        if status == 423:
            self._say("submit", "backend reserved, waiting", f"{pause:.0f} s")
        else:
            self._say("submit", "rate limited, waiting", f"{pause:.0f} s")
        self._sleep(pause)
        self._begin_post()

    def unanswered(self, error: Exception) -> str | None:
        """A POST came to no job's id: look for the job that it may have made, and send it again if there is none.

        An answer that was lost is worth one other POST; an outage, in which none is accepted, any number.
        """
        outage = service.outage(error) if service.unsent(error) and not self._posts.several else None
        if outage is not None:
            self._set_phase("preparing")
            self._sleep(self._unsent.failed(outage))
            self._begin_post()
            return None
        if not self._posts.several and not service.is_ambiguous(error):
            raise error
        self._set_phase("doubtful")
        self._say("submit", "looking for the job", f"its submission got no answer: {service.describe(error)[:100]}")
        self._posts.found = find_job(self._there, self.tag, self._posts.earlier, self._say, self._sleep)
        if self._posts.found:
            return self._posts.found
        is_lost = not service.is_answered(error)
        if not service.is_ambiguous(error) or (is_lost and self._posts.lost):
            self._set_phase("posting")  # `_fail` judges by that
            raise error
        self._posts.lost |= is_lost
        self._posts.several = True
        self._begin_post()
        self._say("submit", "submitting", "once more: no job was made")
        return None

    def _set_phase(self, phase: Phase) -> None:
        with self._changed:
            self._phase = phase
            self._changed.notify_all()

    def posted(self, job_id: str) -> None:
        """The answer came: the job's id is known."""
        self.job_id = job_id
        # Looked at now: in a moment the watcher that was handed the cancel may have finished it.
        is_guarded = self._protected and link.is_guarded(self.run_id)
        link.job(self.run_id, job_id)
        link.posted(self.run_id, clean=not self._posts.several)
        with self._changed:
            gave_up, detached = self._gave_up, self._detached
            self._phase = "submitted"
            self._changed.notify_all()
        if detached:
            self._stand_down()
        self._unsent.answered()
        self._say("submit", "submitted", "found by its tag: the answer was lost" if self._posts.found else "")
        if gave_up and not is_guarded:
            # The run was abandoned while its id was unknown, and there is no watcher to cancel it.
            threads.ending.do(lambda: self._cancel(time.monotonic() + cancel.GIVE_UP))

    def _begin_post(self) -> None:
        # Either `abandon` sees that a POST is under way, or the POST sees that the run was abandoned.
        self._check_lease()
        with self._lock:
            if not self._stop.is_set():
                self._phase = "posting"
                return
        raise _Stopped

    def _has_lost_its_key(self) -> bool:
        """Whether the job is another driver's by now. One without a key is guarded by the watcher here all the same."""
        return bool(self._lease_lost) and self._keyed is not None

    def _check_lease(self) -> None:
        """Submit nothing under a key that another driver has by now: it may have been executed there."""
        if self._has_lost_its_key():
            raise SubmitError("submit", f"not submitted here: {self._lease_lost}; run again with the same key")

    def _hear(self, report: dict[str, Any]) -> None:
        """What the watcher reports of this run, in the link's thread."""
        job = report["job"]
        if report["event"] == "lost":
            self._lease_lost = report["detail"] or "another driver has taken it up"
            self._say(self.status.stage, self.status.state, f"lease lost: {self._lease_lost}")
        if job and job != self.job_id and report["event"] == "cancelled":
            self._say("submit", "duplicate cancelled", f"a retried submission had made {job} too")

    # Small things

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise _Stopped

    def _pause_if_stopped(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _say(self, stage: Stage, state: str, detail: str = "") -> None:
        target = self._target
        with self._saying:  # what is told late is not told after what follows it
            known = self._details
            if state != "queued":  # it waits no more, or its place can't be read
                known = dataclasses.replace(known, queue_position=None, estimated_start=None)
            if state != self.status.state:
                self.since = time.monotonic()
            self.status = Status(
                stage,
                state,
                self.job_id,
                backend=target.name if target else "",
                detail=detail,
                watcher=link.watcher_pid if self._protected else None,
                shots=self._shots,
                queue_position=known.queue_position,
                estimated_start=known.estimated_start,
                qpu_seconds_estimated=known.qpu_seconds_estimated,
                qpu_seconds=known.qpu_seconds,
                url=service.job_url(target.client, self.job_id) if target and target.client and self.job_id else "",
                taken_up=self._taken_up,
            )
            logger.info("run %s: %s", self.run_id[:8], self.status)
            self._tell(self.status)


def _may_be_remote(request: Request) -> bool:
    """A first guess, before `qiskit_ibm_runtime` is imported."""
    where = getattr(request.primitive, "_mode", None) or getattr(request.primitive, "_backend", None) or request.backend
    if type(where).__module__ in ("qiskit_ibm_runtime.session", "qiskit_ibm_runtime.batch"):
        where = where._backend  # noqa: SLF001 - no public name gives the object
    if where is None or isinstance(where, str):
        return not getattr(request.service, "is_local", False)
    module = type(where).__module__
    return module.startswith("qiskit_ibm_runtime.") and not module.startswith("qiskit_ibm_runtime.fake_provider")


def _shots(request: Request) -> int | None:
    """How often each circuit is executed, where that is said anywhere, and the same for all."""
    options = getattr(request.primitive, "options", None)
    default = getattr(options, "default_shots", None)
    said = {getattr(pub, "shots", None) or request.shots for pub in request.pubs} or {request.shots}
    shots = said.pop() if len(said) == 1 else None
    return shots or (default if type(default) is int else None)
