"""What the parts of one run share: its request, its state machine, its target, and the status that it tells."""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import logs, queue_info, service, tracing
from ..about import of_this_program
from ..backoff import Backoff
from ..errors import CancelOutcome, JobState, Stage, WatcherError
from ..job_cost import JobCost
from ..link import Guarded, link
from ..quota import Quota
from ..request import Request
from ..status import Status
from ..tags import driver_tag, run_tag
from ..timeline import Stopwatch
from ..watcher import protocol, remote
from ..watcher.facts import About, End
from . import machine as m
from .together import Together, find_target

T = TypeVar("T")


class Stopped(BaseException):
    """The run is to end: leaves the run's own work."""


class Core:
    """What the parts of one run share.

    Args:
        request: What is to be run.
        tell: Receives every `Status`, in any thread; it must be quick.
        asks_details: Whether the job's place in the queue and its cost are asked for, because somebody looks at them.
        together: What it shares with the other parts of a split run; None: it is none.

    Attributes:
        run_id: The run's name at its watcher.
        tags: The tags that are put on its job; `tag` is the one that no other run's jobs have.
        target: Where it goes, once that is found.
        keyed: What the watcher knows of it, if it has a key.
        announced: The announcement of its intent, where another thread makes that.
        posts_before: The jobs under its tag that were over before its first POST.
        is_protected: Whether a watcher has acknowledged it.
        is_taken_up: Whether its job was submitted before.
        is_bound_by_timeout: Whether IBM Quantum ends its job for its `running_timeout`.
        budget_bound: The seconds at which IBM Quantum ends its job because no more is left of a budget, or None.
        budget: That budget, as it was before the submission.
        final: How its job ended, though the run may have ended before.
        decoders: What decodes its results.
        details: The job's place in the queue, where that is asked for.
        quota: What the instance has left, where that is low.
        cost: What its job cost.
        user_tags: The user's tags.
        program: What executes a job that is attached, or "".
        log: The logger, for what is about this run.
        spans: Its spans, where the program uses OpenTelemetry.
        trouble: Why its submission failed, in words.
        status: The latest status; `since` is when it came into that state.
        stopwatch: How long it was in which of its parts.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        *,
        asks_details: bool,
        together: Together | None = None,
    ) -> None:
        self.request = request
        self.together = together
        self.run_id = uuid.uuid4().hex
        self.tag = run_tag(self.run_id)
        self.tags: tuple[str, ...] = (*request.tags, self.tag, driver_tag())
        self.target: service.Target | None = None
        self.keyed: Guarded | None = None
        self.announced: Future[None] | None = None
        self.posts_before: dict[str, str] = {}
        self.is_protected = self.is_taken_up = self.is_bound_by_timeout = False
        self.budget_bound: int | None = None
        self.budget: protocol.ReserveAnswer | None = None
        self.final: remote.JobState | None = None
        self.decoders: Sequence[Any] = ()
        self.asks_details = asks_details
        self.details = queue_info.QueueInfo()
        self.quota: Quota | None = None
        self.cost = JobCost()
        self.user_tags = request.tags
        self.program = ""
        self.trouble = ""
        self._program = of_this_program(request.label)
        self.status = Status("config", "starting")
        self.since = time.monotonic()
        self.stopwatch = Stopwatch()
        self.machine = m.Machine()
        self.changed = threading.Condition()  # its lock is held while the machine is asked
        self.cancel_outcome: Future[CancelOutcome] = Future()  # of the latest wish that ends the run
        self.hurry = threading.Event()
        self._stop = threading.Event()
        self._tell = tell
        self._shots = _shots(request)
        self._pubs = len(request.pubs)
        self.telling = threading.RLock()
        self.log = logs.RunLogger(lambda: {"run": self.run_id, "job": self.job_id, "label": request.label})
        self.spans = tracing.spans_of(run=self.run_id, label=request.label)

    @property
    def job_id(self) -> str | None:
        """The job's id, once it is known."""
        return self.machine.job

    @property
    def is_looked_at(self) -> bool:
        """Whether anybody sees every status."""
        return self.asks_details or self.request.on_status is not None

    @property
    def there(self) -> remote.Remote:
        """The instance that the run goes to."""
        return service.remote_of(self.place.client)

    @property
    def place(self) -> service.Target:
        """The target, which is known by now."""
        assert self.target is not None
        return self.target

    def find_target(self) -> service.Target:
        """Find the target that the call names.

        Raises:
            RunError: There is none.
        """
        return find_target(self.request) if self.together is None else self.together.target()

    # The machine

    def handle(self, event: m.Event) -> list[m.Action]:
        """Ask the machine, and do at once what takes no time; returns what else is to be done."""
        with self.changed:
            # In one go: what the watcher is told must come in the order in which it was decided.
            decided = self.machine.handle(event)
            if event is self.machine.ending:
                self.cancel_outcome = Future()
            actions = [action for action in decided if not self._does(action, event)]
            (self._stop.set if self.machine.is_stopping else self._stop.clear)()
            if self.machine.is_hurried:
                self.hurry.set()
            self.changed.notify_all()
        return actions

    def finished(self, event: m.Finished | m.CancelEnded, state: remote.JobState) -> list[m.Action]:
        """Ask the machine about the end of the job."""
        with self.changed:
            earlier, self.final = self.final, state
            actions = self.handle(event)
            if not actions and not isinstance(event, m.CancelEnded):
                self.final = earlier
        return actions

    def _does(self, action: m.Action, event: m.Event) -> bool:
        """Do what takes no time; returns whether it did."""
        match action:
            case m.TellJob(job):
                link.job(self.run_id, job)
            case m.TellPosted(clean):
                link.posted(self.run_id, clean=clean)
            case m.TellAnew():
                link.resubmit(self.run_id, self.posts_before)
            case m.TellCancelling():
                link.cancelling(self.run_id, self.wished_end)
            case m.LetGo():
                link.let_go(self.run_id)
            case m.StandDown():
                self._stand_down(self._end_by(event))
            case m.Settle(outcome):
                self.cancel_outcome.set_result(outcome)
            case _:
                return False
        return True

    def _stand_down(self, end: End) -> None:
        if self.announced is not None:  # if that is under way, the watcher will know of the run in a moment
            self.announced.add_done_callback(lambda _: link.stand_down(self.run_id, self.keyed, end))
        else:
            link.stand_down(self.run_id, self.keyed, end)

    # What is told to those who read the ledger

    def about(self) -> About:
        """What it is."""
        request = self.request
        return self._program._replace(
            backend=self.place.name,
            primitive=self._primitive,
            pubs=None if request.attached else self._pubs,
            shots=self._shots,
            tags=self.user_tags,
        )

    @property
    def _primitive(self) -> str:
        if self.request.attached:
            return self.program
        return self.request.kind if self.request.primitive is None else type(self.request.primitive).__name__

    @property
    def wished_end(self) -> End:
        """How it ends if its job is cancelled, or never made, because somebody in this program wishes that."""
        wish = self.machine.ending
        if wish is None:
            return End("cancelled", "program")
        return End("cancelled", "signal" if wish.signum else "program", wish.signum or None, wish.reason)

    def _end_by(self, event: m.Event) -> End:
        """How it has ended, now that it is stood down."""
        wish, state = self.machine.ending, self.machine.state
        if self.machine.is_detached:
            return End("detached", "program")
        if wish is None and state is None:  # its submission was refused
            return End("failed", "IBM", reason=self.trouble)
        final = self.final
        is_ours = isinstance(event, m.CancelEnded) and state == "cancelled" and not (final and final.ran_too_long)
        end = self.wished_end if final is None or is_ours else final.end
        if wish is not None and wish.is_failure and (self.job_id is None or end.outcome == "finished"):
            return End("failed", "program", reason=wish.reason)  # before it had a job, or without its results
        return end

    # The run's own work

    def stop_if_wished(self) -> None:
        """Leave the run's own work, if the run is to end.

        Raises:
            Stopped: It is.
        """
        if self._stop.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Sleep, unless the run is to end.

        Raises:
            Stopped: It is.
        """
        if self._stop.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise Stopped

    def despite_token_outages(self, work: Callable[[], T]) -> T:
        """Ask the watcher for what it needs a token for, again and again while the token service is out of order."""

        def passing(error: Exception) -> Exception:
            is_outage = isinstance(error, WatcherError) and service.is_token_outage(error.reason)
            return remote.Transient(error.reason) if is_outage else error  # type: ignore[attr-defined]

        return Backoff("submit", None, self.say, log=self.log).until_answered(work, self.sleep, passing)

    # The status

    def listen(self, tell: Callable[[Status], None]) -> None:
        """Tell every status from now on to one more listener, who also wants the job's place in the queue.

        Args:
            tell: Receives the present one first; it must be quick.
        """
        with self.telling:
            earlier = self._tell

            def both(status: Status) -> None:
                earlier(status)
                tell(status)

            self._tell, self.asks_details = both, True
            tell(self.status)

    def say(self, stage: Stage, state: str, detail: str = "") -> None:
        """Tell a status."""
        target = self.target
        with self.telling:  # what is told late is not told after what follows it
            known = self.details
            if state != "queued":  # it has left the queue, or its place can't be read
                known = dataclasses.replace(known, queue_position=None, estimated_start=None)
            if state != self.status.state:
                self.since = time.monotonic()
            self.stopwatch.see(stage, state)
            self.status = Status(
                stage,
                state,
                self.job_id,
                backend=target.name if target else "",
                detail=detail,
                watcher=link.watcher_pid if self.is_protected else None,
                shots=self._shots,
                queue_position=known.queue_position,
                estimated_start=known.estimated_start,
                qpu_seconds_estimated=self.cost.figures.estimated,
                qpu_seconds=self.cost.figures.charged,
                url=service.job_url(target.client, self.job_id) if target and target.client and self.job_id else "",
                taken_up=self.is_taken_up,
                label=self.request.label,
                quota=self.quota,
                is_embedded=target.is_embedded if target else False,
                key=self.request.key or "",
                pubs=None if self.request.attached else self._pubs,
            )
            self.log.info("%s", self.status, extra={"event": "status", "fields": _fields(self.status)})
            if self.spans is not None:
                self.spans.status(self.status)
            self._tell(self.status)


def state_of(state: remote.JobState) -> JobState:
    """How a job that is final has ended."""
    return "cancelled" if state.is_cancelled else "completed" if state.is_completed else "failed"


def _fields(status: Status) -> dict[str, object]:
    """What the log has of a status beside its words."""
    known = {
        "stage": status.stage,
        "state": status.state,
        "backend": status.backend,
        "detail": status.detail,
        "watcher": status.watcher,
        "queue_position": status.queue_position,
        "qpu_seconds_estimated": status.qpu_seconds_estimated,
        "qpu_seconds": status.qpu_seconds,
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


def _shots(request: Request) -> int | None:
    """How often each circuit is executed, where that is said anywhere, and the same for all."""
    options = getattr(request.primitive, "options", None)
    default = getattr(options, "default_shots", None)
    said = {getattr(pub, "shots", None) or request.shots for pub in request.pubs} or {request.shots}
    shots = said.pop() if len(said) == 1 else None
    return shots or (default if type(default) is int else None)
