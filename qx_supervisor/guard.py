"""`guard`: jobs, sessions and batches that the user made with Qiskit itself."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from . import calls, forks, service
from .about import check_label, of_this_program
from .backoff import Backoff
from .errors import ConfigError
from .link import Guarded, link
from .poller import Poller, poller_of
from .submitted import Run
from .tags import run_tag
from .watcher import protocol, remote
from .watcher.facts import End

logger = logging.getLogger("qx_supervisor")

END_SECONDS = 10.0
"""How long the end of a block that failed waits until all is confirmed as cancelled; the watcher goes on after that."""

LOOK_SECONDS = 15.0
"""Seconds between two readings of a job whose block a failure of the service ended."""


class Guard:
    """What `guard` returns: a context manager. It may be entered once."""

    def __init__(self, targets: Iterable[Any], *, owner: bool, label: str = "") -> None:
        self._targets = tuple(targets)
        self._label = label
        self._owner = owner
        self._guarded: list[_GuardedTarget] = []
        self._process = os.getpid()

    def __enter__(self) -> Guard:
        places = [service.what_to_guard(target) for target in self._targets]
        link.prepare()
        try:
            for place in places:
                if place is not None:
                    guarded = _GuardedTarget(place, owner=self._owner, label=self._label)
                    self._guarded.append(guarded)
                    guarded.begin()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return  # a child that was forked in the block; what is guarded is its parent's
        if kind is None:
            self._release()
            return
        if error is not None and service.is_of_the_service(error):
            # The program may still want the job: it may catch this, and ask again.
            for each in self._guarded:
                each.outlive_block()
            return
        end = time.monotonic() + END_SECONDS
        for each in self._guarded:
            each.cancel(end, _end_by(error))
        for each in self._guarded:
            each.wait(end)

    def _release(self) -> None:
        for each in self._guarded:
            each.release()


@calls.suggests_names()
def guard(*targets: Any, owner: bool = True, label: str | None = None) -> Guard:
    """Guard jobs, sessions and batches that you made with Qiskit itself, for the time of a `with` block.

    If the block is left by an exception of your own, by Ctrl-C or by `sys.exit()`, or this process dies in it, the jobs
    are cancelled, queued and running ones; of a session or batch all of them, those whose ids this process never
    learned included, and it is closed. Left normally, nothing is done beyond what Qiskit does.

    An exception that comes of the network or the service (of `requests`, of Qiskit's client, a `RunError`) cancels
    nothing: you may still want the jobs. What was guarded then stays guarded until this process ends, or until it is
    guarded anew. A limit of your own (`job.result(timeout=...)`, `RunTimeout`) is yours. ::

        with Session(backend) as session, guard(session):
            sampler = Sampler(mode=session)
            ...

    Args:
        *targets: `RuntimeJobV2`, `Session` and `Batch` objects. What runs locally needs no guard and is let pass.
        owner: Whether a session is yours alone. With False, for your part of a session that others share
            (`Session.from_id`), only jobs that this process submits within the block are cancelled, and the session
            stays open.
        label: Words for them, as `run` takes them.

    Returns:
        A context manager.

    Raises:
        ConfigError: If a target can't be guarded, or is a closed session.
        WatcherError: On entering, if no watcher can guard them.
    """
    if not targets:
        raise ConfigError("config", "nothing to guard: give a job, a Session or a Batch")
    if any(isinstance(getattr(target, "_run", target), Run) for target in targets):  # a job of our primitives has one
        raise ConfigError(
            "config",
            "a job that was submitted through qx_supervisor is guarded already; leave it away here, and to have it "
            "cancelled when a block ends, call its cancel()",
        )
    return Guard(targets, owner=owner, label=check_label(label))


def _end_by(error: BaseException | None) -> End:
    """How what is cancelled ends, at an exception that leaves the block."""
    signum = getattr(error, "signum", None) or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
    if signum is not None:
        return End("cancelled", "signal", int(signum))
    return End("cancelled", "program", reason=type(error).__name__)


LEFT = End("detached", "program")
"""Of what the end of a block leaves to itself."""

_outliving: dict[str, _GuardedTarget] = {}
"""What is still guarded after the end of its block, by the id of the job or session."""

forks.reset_in_child(_outliving.clear)


class _GuardedTarget:
    """A guarded job or session; the `service.Submission` of what plain Qiskit primitives submit to that session."""

    def __init__(self, place: service.Guardable, *, owner: bool, label: str) -> None:
        self._place = place
        self.tags: tuple[str, ...] = (run_tag(uuid.uuid4().hex),)
        self._guarded = Guarded(
            run=uuid.uuid4().hex,
            account=service.account_name(place.client),
            tag=self.tags[0],
            report=self._hear,
            session=place.session_id,
            owner=owner,
            about=of_this_program(label),
        )
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._posting = 0
        self._doubtful = False
        self._poller: Poller | None = None
        self._backoff = Backoff("poll", place.job_id, lambda *_: None)

    def begin(self) -> None:
        """Have the watcher know of it."""
        client = self._place.client
        link.announce(self._guarded, functools.partial(service.credentials, client))
        if self._place.session_id:
            service.watch_session(self._place.session_id, self)
        else:
            link.job(self._guarded.run, self._place.job_id)
            link.posted(self._guarded.run, clean=True)
        earlier = _outliving.pop(self._id, None)
        if earlier is not None:  # this one takes over
            link.stand_down(earlier._guarded.run, end=LEFT)  # noqa: SLF001 - of the same class

    def outlive_block(self) -> None:
        """Go on guarding after the end of the block: only should this process end, it is cancelled."""
        service.unwatch_session(self._place.session_id, self)
        link.cancelling(self._guarded.run)  # it may be over by then: the watcher looks before it asks
        _outliving[self._id] = self
        if self._place.job_id:
            self._poller = poller_of(service.remote_of(self._place.client), self.tags[0])
            self._poller.watch(self._place.job_id, self._saw, self._missed)
        logger.warning(
            "%s: its block ended in a failure of the network or the service; it goes on, guarded until this process "
            "ends; guard it again to ask again",
            self._name(),
        )

    def _saw(self, state: remote.JobState) -> float | None:
        """Its job's state was read; returns the seconds until it is read again, or None."""
        if _outliving.get(self._id) is not self:
            return None
        self._backoff.answered()
        if not state.is_final:
            return LOOK_SECONDS
        del _outliving[self._id]
        link.stand_down(self._guarded.run, end=state.end)
        return None

    def _missed(self, error: Exception) -> float | None:
        """Its job's state could not be read; returns the seconds until the next try, or None."""
        if _outliving.get(self._id) is not self:
            return None
        try:
            return self._backoff.failed(error)
        except Exception:  # noqa: BLE001 - what was answered can't be understood; the next answer may be
            return LOOK_SECONDS

    @property
    def _id(self) -> str:
        return self._place.session_id or self._place.job_id

    def release(self) -> None:
        """Have the watcher forget it."""
        service.unwatch_session(self._place.session_id, self)
        link.stand_down(self._guarded.run, end=LEFT)

    def cancel(self, end: float, why: End) -> None:
        """Have the watcher cancel all of it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._posting, max(0.0, end - time.monotonic()))
            answered = not self._posting
            clean = not self._doubtful
        service.unwatch_session(self._place.session_id, self)
        if answered:
            link.posted(self._guarded.run, clean=clean)
        if not link.hand_over(self._guarded.run, max(1.0, end - time.monotonic()), why):
            logger.warning("%s: the watcher does not answer; its jobs may still run", self._name())

    def wait(self, end: float) -> None:
        """Wait for the watcher's report that all is cancelled."""
        if not self._over.wait(max(0.0, end - time.monotonic())):
            logger.warning("%s: not everything is cancelled yet; the watcher goes on with it", self._name())

    def _name(self) -> str:
        return f"session {self._place.session_id}" if self._place.session_id else f"job {self._place.job_id}"

    def _hear(self, report: protocol.Report) -> None:
        if not report.job and report.event in ("cancelled", "pending"):
            if report.event == "pending":
                logger.warning("%s: its cancel could not be confirmed: %s", self._name(), report.detail)
            self._over.set()

    # What the client's POST asks (`service.Submission`)

    def posting_at(self, client: Any) -> None:
        """Do nothing: the POST goes to the instance that has the session."""

    def before_post(self, asked: int | None) -> int | None:
        """Count a POST that is about to leave."""
        with self._changed:
            self._posting += 1
        return asked

    def before_retry(self) -> None:
        """Note that it is sent once more, which may make a second job."""
        self._doubtful = True

    def posted(self, job_id: str) -> None:
        """Tell the watcher the job's id."""
        link.job(self._guarded.run, job_id)

    def after_post(self, *, ambiguous: bool) -> None:
        """Note that it is over, with an answer or without."""
        with self._changed:
            self._posting -= 1
            self._doubtful |= ambiguous
            self._changed.notify_all()
