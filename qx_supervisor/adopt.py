"""A driver that knows nothing of us, guarded: the inside of `qx-supervisor exec`.

Every job that the driver submits through Qiskit is announced to a watcher before its POST leaves, and stood down when
the driver's own requests show that it is final. A session that the driver opens, and does not close, is closed when
the driver is dead. Its jobs are guarded one by one: what a child has submitted to it goes on while the child lives.
What Qiskit returns and raises is returned and raised unchanged; only that, where there are several instances, a job is
always at the one that was asked for.

At the end of the process the jobs that are left are named, and left to the watcher: it cancels them when the process is
dead. Nothing is handed over before that, because a callback of the program's own may still wait for one of them.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import uuid
from typing import Any

from . import exit_status, service
from .errors import WatcherError
from .link import CredentialsSource, Guarded, link
from .reap import reap_in_background
from .tags import driver_tag
from .watcher import remote

logger = logging.getLogger("qx_supervisor")

EXIT_SECONDS = 1.0
"""How long the end of the interpreter waits for a watcher that is being started anew, or is told to stand down."""

KEEP_ON_EXIT = "QX_KEEP_ON_EXIT"
ON_UNPROTECTED = "QX_ON_UNPROTECTED"
"""What `qx-supervisor exec` was told, for every process of the tree."""


class Adopter:
    """What `service` tells of a driver's requests, in whatever thread the driver makes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._jobs: dict[str, Guarded] = {}  # those that are not known to be final
        self._session_of: dict[str, str] = {}  # theirs
        self._sessions: dict[str, Guarded] = {}  # those that are open
        self._given_up: set[str] = set()  # jobs that the driver has cancelled itself

    def forget(self) -> None:
        """In a forked child: what is guarded is the parent's. A thread that is not here may have held the lock."""
        self._lock = threading.Lock()
        self._begin()

    def submission(
        self, client: Any, tags: int, session_id: str, keeper: service.Submission | None
    ) -> service.Submission:
        """For the POST of a job that has so many tags."""
        return Submission(self, client, tags, session_id, keeper)

    def adopt(self, job_id: str, session_id: str, guarded: Guarded) -> None:
        """A job's id is known."""
        with self._lock:
            self._jobs[job_id] = guarded
            self._session_of[job_id] = session_id

    def seen(self, job_id: str, reply: Any) -> None:
        """The driver has read the state of a job."""
        if job_id in self._jobs and remote.JobState.from_reply(reply).is_final:
            self.deleted(job_id)

    def cancelling(self, job_id: str) -> None:
        """The driver asks for the cancel by itself; should it die, the watcher looks before it asks again."""
        guarded = self._jobs.get(job_id)
        if guarded is not None:
            link.cancelling(guarded.run)

    def cancelled(self, job_id: str) -> None:
        """It was asked for; the job stays guarded until it is seen to be final."""
        if job_id in self._jobs:
            self._given_up.add(job_id)

    def deleted(self, job_id: str) -> None:
        """Nothing is left of a job to guard."""
        with self._lock:
            guarded = self._jobs.pop(job_id, None)
            self._session_of.pop(job_id, None)
            self._given_up.discard(job_id)
        if guarded is not None:
            link.stand_down(guarded.run)

    def opening(self, client: Any) -> None:
        """A session is about to be opened: not without a watcher."""
        try:
            link.arm(account_of(client), source_of(client))
        except WatcherError as error:
            unprotected("no session was opened", error)

    def opened(self, client: Any, session_id: str) -> None:
        """The driver has opened a session."""
        run = uuid.uuid4().hex
        tag = f"qxs-{run}"
        guarded = Guarded(run, account_of(client), tag, report=_hear, session=session_id, opened=True)
        with self._lock:
            self._sessions[session_id] = guarded
        try:
            link.announce(guarded, source_of(client))
        except WatcherError as error:
            say(f"the session {session_id} is not guarded: {error.reason}")

    def closed(self, session_id: str, *, dropped: bool) -> None:
        """The driver has closed a session. Its jobs may be queued or running still, and stay guarded."""
        with self._lock:
            guarded = self._sessions.pop(session_id, None)
            inside = [job for job, session in self._session_of.items() if session == session_id]
        if dropped:
            for job_id in inside:
                self.cancelling(job_id)
                self.cancelled(job_id)
        if guarded is not None:
            link.stand_down(guarded.run)

    # The end of the interpreter: no lock, and no wait that is longer than a second

    def end(self) -> None:
        """Name what is left, and leave it to the watcher, or let it go."""
        left = link.all_guarded()
        if not left:
            return
        why = ""
        if os.environ.get(KEEP_ON_EXIT):
            status, why = exit_status.status()
            if status == 0:
                left = self._let_go(left)
            why = f" ({why})"
        jobs = self._jobs_of(left)
        sessions = [guarded.session for guarded in left if guarded.opened]
        if left and not _is_watched(left[-1]):
            named = ", ".join(jobs + sessions) or "what was submitted last"
            say(f"no watcher is there, so this may go on: {named}; run `qx-supervisor reap`")
            return
        if jobs:
            say(f"cancelling {_many(jobs, 'unfinished job')}{why}: {', '.join(jobs)}")
        if sessions:
            say(f"closing {_many(sessions, 'open session')}{why}: {', '.join(sessions)}")
        if any(not guarded.jobs and not guarded.session for guarded in left):
            say("a submission got no answer; a job that it may have made is looked for, and cancelled")

    def _jobs_of(self, left: list[Guarded]) -> list[str]:
        # One job may be guarded twice, by `guard` too.
        jobs = dict.fromkeys(job for guarded in left for job in guarded.jobs)
        return [job for job in jobs if job not in self._given_up]

    def _let_go(self, left: list[Guarded]) -> list[Guarded]:
        """Stand down; returns what there was no time for, and what nobody holds."""
        end = time.monotonic() + EXIT_SECONDS
        gone = []
        for guarded in left:
            if (guarded.jobs or guarded.session) and time.monotonic() < end:
                link.stand_down(guarded.run)
                gone.append(guarded)
        jobs = self._jobs_of(gone)
        if jobs:
            say(f"left {_many(jobs, 'unfinished job')} to go on: {', '.join(jobs)}")
        return [guarded for guarded in left if guarded not in gone]


class Submission:
    """One POST of the driver's: a `service.Submission`.

    Args:
        adopter: Who is told the job's id.
        client: The official REST client.
        tags: How many tags the job has.
        session_id: Its session, or "".
        keeper: What else is to be told, or None.
    """

    max_execution_time: int | None = None

    def __init__(
        self, adopter: Adopter, client: Any, tags: int, session_id: str, keeper: service.Submission | None
    ) -> None:
        run = uuid.uuid4().hex
        tag = f"qxs-{run}"
        others = keeper.tags if keeper is not None else ()
        # A job that has all eight by itself is known by its id alone, and not at all until that has come.
        room = max(0, service.TAGS - tags - len(others))
        own = (tag, driver_tag())[:room]
        self.tags: tuple[str, ...] = (*others, *own)
        self._adopter = adopter
        self._client = client
        self._session_id = session_id
        self._keeper = keeper
        self._retried = self._is_known = False
        self._guarded = Guarded(run, account_of(client), tag, report=_hear, driver="".join(own[1:]))

    def posting_at(self, client: Any) -> None:
        """It is made for this very client."""
        if self._keeper is not None:
            self._keeper.posting_at(client)

    def before_post(self) -> None:
        """The watcher acknowledges the intent before the POST leaves."""
        try:
            link.announce(self._guarded, source_of(self._client))
        except WatcherError as error:
            if not is_submitted_unprotected():
                link.stand_down(self._guarded.run)
            unprotected("nothing was submitted", error)
        except BaseException:
            link.stand_down(self._guarded.run)
            raise
        if self._keeper is not None:
            self._keeper.before_post()

    def before_retry(self) -> None:
        """It is sent once more, which may make a second job."""
        self._retried = True
        if self._keeper is not None:
            self._keeper.before_retry()

    def posted(self, job_id: str) -> None:
        """Its answer came."""
        self._is_known = True
        link.job(self._guarded.run, job_id)
        link.posted(self._guarded.run, clean=not self._retried)
        self._adopter.adopt(job_id, self._session_id, self._guarded)
        if self._keeper is not None:
            self._keeper.posted(job_id)
        reap_in_background(self._client)

    def after_post(self, *, ambiguous: bool) -> None:
        """It is over, with an answer or without."""
        if self._keeper is not None:
            self._keeper.after_post(ambiguous=ambiguous)
        if self._is_known:
            return
        if ambiguous or self._retried:
            # There may be a job, which the driver may find by a tag of its own: it is swept for when the driver ends.
            link.posted(self._guarded.run, clean=False)
        else:
            link.stand_down(self._guarded.run)


def account_of(client: Any) -> str:
    """The name under which the client's service is armed."""
    return service.account_name(client)


def source_of(client: Any) -> CredentialsSource:
    """Gives the client's credentials."""
    return functools.partial(service.credentials, client)


def is_submitted_unprotected() -> bool:
    """Whether a job that can't be guarded is submitted all the same."""
    return os.environ.get(ON_UNPROTECTED) == "warn"


def unprotected(said: str, error: WatcherError) -> None:
    """Refuse what can't be guarded, or warn.

    Raises:
        WatcherError: That is not wanted.
    """
    if is_submitted_unprotected():
        say(f"what follows is not guarded: {error.reason}")
        return
    raise WatcherError(
        "submit",
        f"{said}, because it can't be guarded: {error.reason}; `qx-supervisor exec --on-unprotected warn` goes on all "
        "the same",
    ) from None


def say(text: str) -> None:
    """Say something on stderr."""
    try:
        sys.stderr.write(f"qx-supervisor: {text}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # none, or closed


def _many(things: list[str], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _is_watched(guarded: Guarded) -> bool:
    """Whether a watcher knows of it: one that has just died is followed by another."""
    end = time.monotonic() + EXIT_SECONDS
    while not (known := link.is_guarded(guarded.run)) and time.monotonic() < end:
        time.sleep(0.01)
    return known


def _hear(report: dict[str, Any]) -> None:
    """The watcher reports of a job while the driver lives: a duplicate that a retried POST made is cancelled."""
    logger.info("job %s: %s", report["job"] or "-", report["event"])


_adopter = Adopter()
os.register_at_fork(after_in_child=_adopter.forget)


def install() -> None:
    """Begin. Called when Qiskit's client has been loaded, or loaded anew."""
    service.be_adopted(_adopter)
    if os.environ.get(KEEP_ON_EXIT):
        exit_status.watch()


def at_exit() -> None:
    """The interpreter is about to end, and the program's own callbacks have been called."""
    try:
        _adopter.end()
    except Exception:  # what is guarded is guarded
        logger.exception("a fault in qx_supervisor; please report it")
