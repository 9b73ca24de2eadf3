"""What the parts of one run share: its request, its state machine, its target, and the status that it tells."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import queue_info, service
from ..backoff import Backoff
from ..errors import CancelOutcome, JobState, Stage, WatcherError
from ..link import Guarded, link
from ..request import Request
from ..status import Status
from ..tags import driver_tag, run_tag
from ..watcher import remote
from . import machine as m

logger = logging.getLogger("qx_supervisor")

T = TypeVar("T")


class Stopped(BaseException):
    """The run is to end: leaves the run's own work."""


class Core:
    """What the parts of one run share.

    Args:
        request: What is to be run.
        tell: Receives every `Status`, in any thread; it must be quick.
        asks_details: Whether the job's place in the queue and its cost are asked for, because somebody looks at them.

    Attributes:
        run_id: The run's name at its watcher.
        tags: The tags that are put on its job; `tag` is the one that no other run's jobs have.
        target: Where it goes, once that is found.
        keyed: What the watcher knows of it, if it has a key.
        announced: The announcement of its intent, where another thread makes that.
        posts_before: The jobs under its tag that were over before its first POST.
        is_protected: Whether a watcher has acknowledged it.
        is_taken_up: Whether its job was submitted before.
        final: How its job ended, though the run may have ended before.
        decoders: What decodes its results.
        details: What is known of its job beside the state.
        status: The latest status; `since` is when it came into that state.
    """

    def __init__(self, request: Request, tell: Callable[[Status], None], *, asks_details: bool) -> None:
        self.request = request
        self.run_id = uuid.uuid4().hex
        self.tag = run_tag(self.run_id)
        self.tags: tuple[str, ...] = (*request.tags, self.tag, driver_tag())
        self.target: service.Target | None = None
        self.keyed: Guarded | None = None
        self.announced: Future[None] | None = None
        self.posts_before: dict[str, str] = {}
        self.is_protected = self.is_taken_up = False
        self.final: remote.JobState | None = None
        self.decoders: Sequence[Any] = ()
        self.asks_details = asks_details
        self.details = queue_info.QueueInfo()
        self.status = Status("config", "starting")
        self.since = time.monotonic()
        self.machine = m.Machine()
        self.changed = threading.Condition()  # its lock is held while the machine is asked
        self.cancel_outcome: Future[CancelOutcome] = Future()  # of the latest wish that ends the run
        self.hurry = threading.Event()
        self._stop = threading.Event()
        self._tell = tell
        self._shots = _shots(request)
        self.telling = threading.RLock()

    @property
    def job_id(self) -> str | None:
        """The job's id, once it is known."""
        return self.machine.job

    @property
    def there(self) -> remote.Remote:
        """The instance that the run goes to."""
        return service.remote_of(self.place.client)

    @property
    def place(self) -> service.Target:
        """The target, which is known by now."""
        assert self.target is not None
        return self.target

    # The machine

    def handle(self, event: m.Event) -> list[m.Action]:
        """Ask the machine, and do at once what takes no time; returns what else is to be done."""
        with self.changed:
            # In one go: what the watcher is told must come in the order in which it was decided.
            decided = self.machine.handle(event)
            if event is self.machine.ending:
                self.cancel_outcome = Future()
            actions = [action for action in decided if not self._does(action)]
            (self._stop.set if self.machine.is_stopping else self._stop.clear)()
            if self.machine.is_hurried:
                self.hurry.set()
            self.changed.notify_all()
        return actions

    def finished(self, event: m.Finished | m.CancelEnded, state: remote.JobState) -> list[m.Action]:
        """Ask the machine about the end of the job."""
        with self.changed:
            actions = self.handle(event)
            if actions or isinstance(event, m.CancelEnded):
                self.final = state
        return actions

    def _does(self, action: m.Action) -> bool:
        """Do what takes no time; returns whether it did."""
        match action:
            case m.TellJob(job):
                link.job(self.run_id, job)
            case m.TellPosted(clean):
                link.posted(self.run_id, clean=clean)
            case m.TellAnew():
                link.resubmit(self.run_id, self.posts_before)
            case m.TellCancelling():
                link.cancelling(self.run_id)
            case m.LetGo():
                link.let_go(self.run_id)
            case m.StandDown():
                self._stand_down()
            case m.Settle(outcome):
                self.cancel_outcome.set_result(outcome)
            case _:
                return False
        return True

    def _stand_down(self) -> None:
        if self.announced is not None:  # if that is under way, the watcher will know of the run in a moment
            self.announced.add_done_callback(lambda _: link.stand_down(self.run_id, self.keyed))
        else:
            link.stand_down(self.run_id, self.keyed)

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

        return Backoff("submit", None, self.say).until_answered(work, self.sleep, passing)

    # The status

    def say(self, stage: Stage, state: str, detail: str = "") -> None:
        """Tell a status."""
        target = self.target
        with self.telling:  # what is told late is not told after what follows it
            known = self.details
            if state != "queued":  # it has left the queue, or its place can't be read
                known = dataclasses.replace(known, queue_position=None, estimated_start=None)
            if state != self.status.state:
                self.since = time.monotonic()
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
                qpu_seconds_estimated=known.qpu_seconds_estimated,
                qpu_seconds=known.qpu_seconds,
                url=service.job_url(target.client, self.job_id) if target and target.client and self.job_id else "",
                taken_up=self.is_taken_up,
            )
            logger.info("run %s: %s", self.run_id[:8], self.status)
            self._tell(self.status)


def state_of(state: remote.JobState) -> JobState:
    """How a job that is final has ended."""
    return "cancelled" if state.is_cancelled else "completed" if state.is_completed else "failed"


def _shots(request: Request) -> int | None:
    """How often each circuit is executed, where that is said anywhere, and the same for all."""
    options = getattr(request.primitive, "options", None)
    default = getattr(options, "default_shots", None)
    said = {getattr(pub, "shots", None) or request.shots for pub in request.pubs} or {request.shots}
    shots = said.pop() if len(said) == 1 else None
    return shots or (default if type(default) is int else None)
