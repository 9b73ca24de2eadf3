"""Guards a driver that uses Qiskit alone, under `qx-supervisor exec`.

Each job that the driver submits through Qiskit is announced to a watcher before its POST is sent, and stood down when
the driver's own requests show that it is final. A session that the driver opened and did not close is closed after its
death. Its jobs are guarded one by one: a child's jobs in it go on while the child lives. Qiskit returns and raises what
it always does, except that with several instances a job always goes to the requested one.

At its end the process names the unfinished jobs, which the watcher cancels when the process is dead. Nothing is handed
over earlier, because an exit callback of the program may still wait for a job.
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

from . import exit_status, forks, service, settings
from .about import check_label, of_this_program
from .budget import budgets_now
from .distribution import please_report
from .errors import SubmitError, WatcherError
from .link import CredentialsSource, Guarded, link
from .reap import reap_in_background
from .reservation import Reservation
from .tags import driver_tag, run_tag
from .uncharged import look_for_charges
from .watcher import protocol, remote
from .watcher.facts import End, Figures

logger = logging.getLogger("qx_supervisor")

EXIT_SECONDS = 1.0
"""Seconds that the interpreter's end waits for a watcher that is being restarted, or is told to stand down."""

NOT_SUBMITTED = End("cancelled", "program", reason="nothing was submitted")
REFUSED = End("failed", "IBM", reason="the submission was refused")


class Adopter:
    """Guards the jobs and sessions of a driver. `service` calls it in the thread that makes the request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._jobs: dict[str, Guarded] = {}  # not known to be final
        self._session_of: dict[str, str] = {}  # of these jobs
        self._sessions: dict[str, Guarded] = {}  # open ones
        self._cancelled: set[str] = set()  # jobs that the driver itself has cancelled

    def forget(self) -> None:
        """In a forked child: forget the parent's jobs. A thread of the parent's may have held the lock."""
        self._lock = threading.Lock()
        self._reset()

    def submission(
        self, client: Any, posting: service.Posting, session_guard: service.Submission | None
    ) -> service.Submission:
        """Guard the POST of a job."""
        return Submission(self, client, posting, session_guard)

    def adopt(self, job_id: str, session_id: str, guarded: Guarded) -> None:
        """Guard a job whose id is known."""
        with self._lock:
            self._jobs[job_id] = guarded
            self._session_of[job_id] = session_id

    def seen(self, job_id: str, reply: Any) -> None:
        """The driver has read the state of a job."""
        guarded = self._jobs.get(job_id)
        if guarded is None:
            return
        state = remote.JobState.from_reply(reply)
        if state.is_final:
            link.figures(guarded.run, job_id, Figures.read(reply, {}))
            is_ours = job_id in self._cancelled and state.is_cancelled and not state.ran_too_long
            self._stand_down(job_id, End("cancelled", "program") if is_ours else state.end)

    def cancelling(self, job_id: str) -> None:
        """The driver is about to cancel a job: if it dies, the watcher reads the state before it cancels again."""
        guarded = self._jobs.get(job_id)
        if guarded is not None:
            link.cancelling(guarded.run, End("cancelled", "program"))

    def cancelled(self, job_id: str) -> None:
        """The cancel was accepted; the job stays guarded until the driver sees that it is final."""
        if job_id in self._jobs:
            self._cancelled.add(job_id)

    def deleted(self, job_id: str) -> None:
        """The driver has deleted a job."""
        self._stand_down(job_id, End("detached", "program", reason="deleted"))

    def _stand_down(self, job_id: str, end: End) -> None:
        """Stand down for a job that is final or deleted."""
        with self._lock:
            guarded = self._jobs.pop(job_id, None)
            self._session_of.pop(job_id, None)
            self._cancelled.discard(job_id)
        if guarded is not None:
            link.stand_down(guarded.run, end=end)

    def opening(self, client: Any) -> None:
        """The driver is about to open a session, for which it needs a watcher."""
        try:
            link.arm(account_of(client), source_of(client))
        except WatcherError as error:
            unprotected("no session was opened", error)

    def opened(self, client: Any, session_id: str) -> None:
        """The driver has opened a session."""
        run = uuid.uuid4().hex
        tag = run_tag(run)
        guarded = Guarded(
            run,
            account_of(client),
            tag,
            report=_log_report,
            session=session_id,
            opened=True,
            about=of_this_program(check_label(None)),
        )
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
            link.stand_down(guarded.run, end=End("finished"))

    # The end of the interpreter: without locks, and without a wait longer than a second

    def end(self) -> None:
        """Name what is unfinished, for the watcher to cancel, or stand down after exit status 0."""
        unfinished = link.all_guarded()
        if not unfinished:
            return
        why = ""
        if settings.keeps_on_exit():
            status, why = exit_status.status()
            if status == 0:
                unfinished = self._keep(unfinished)
            why = f" ({why})"
        jobs = self._jobs_of(unfinished)
        sessions = [guarded.session for guarded in unfinished if guarded.opened]
        if unfinished and not _is_watched(unfinished[-1]):
            named = ", ".join(jobs + sessions) or "what was submitted last"
            say(f"there is no watcher, so this may go on: {named}; run `qx-supervisor reap`")
            return
        if jobs:
            say(f"cancelling {_count(jobs, 'unfinished job')}{why}: {', '.join(jobs)}")
        if sessions:
            say(f"closing {_count(sessions, 'open session')}{why}: {', '.join(sessions)}")
        if any(not guarded.jobs and not guarded.session for guarded in unfinished):
            say("a submission got no answer; a job that it may have made is looked for, and cancelled")

    def _jobs_of(self, runs: list[Guarded]) -> list[str]:
        # `guard` may guard a job too.
        jobs = dict.fromkeys(job for guarded in runs for job in guarded.jobs)
        return [job for job in jobs if job not in self._cancelled]

    def _keep(self, unfinished: list[Guarded]) -> list[Guarded]:
        """Stand down; returns what is guarded still: submissions without an id, and what there was no time for."""
        known = [guarded for guarded in unfinished if guarded.jobs or guarded.session]
        kept = link.detach(known, End("detached", "program"), time.monotonic() + EXIT_SECONDS)
        jobs = self._jobs_of(kept)
        if jobs:
            say(f"left {_count(jobs, 'unfinished job')} to go on: {', '.join(jobs)}")
        return [guarded for guarded in unfinished if guarded not in kept]


class Submission:
    """A POST of the driver's, as a `service.Submission`.

    Args:
        adopter: Guards the job once its id is known.
        client: The official REST client.
        posting: The job.
        session_guard: The submission by which `guard` guards the job's session, which is called too; or None.
    """

    def __init__(
        self, adopter: Adopter, client: Any, posting: service.Posting, session_guard: service.Submission | None
    ) -> None:
        run = uuid.uuid4().hex
        tag = run_tag(run)
        others = session_guard.tags if session_guard is not None else ()
        # If the job's own tags take all eight places, it can't be found before its id is known.
        room = max(0, service.TAGS - len(posting.tags) - len(others))
        own_tags = (tag, driver_tag())[:room]
        self.tags: tuple[str, ...] = (*others, *own_tags)
        self._adopter = adopter
        self._client = client
        self._session_id = posting.session_id
        self._session_guard = session_guard
        self._retried = self._is_known = False
        self._reservation: Reservation | None = None
        self._guarded = Guarded(
            run,
            account_of(client),
            tag,
            report=_log_report,
            driver_tag="".join(own_tags[1:]),
            about=of_this_program(check_label(None))._replace(
                backend=posting.backend, primitive=posting.program, tags=posting.tags
            ),
        )

    def posting_at(self, client: Any) -> None:
        """The POST is sent by this client."""
        if self._session_guard is not None:
            self._session_guard.posting_at(client)

    def before_post(self, asked: int | None) -> int | None:
        """Wait for the watcher's acknowledgement of the intent, and reserve QPU time for the job."""
        is_protected = True
        try:
            link.announce(self._guarded, source_of(self._client))
        except WatcherError as error:
            is_protected = False
            if not settings.submits_unprotected():
                link.stand_down(self._guarded.run, end=NOT_SUBMITTED)
            unprotected("nothing was submitted", error)
        except BaseException:
            link.stand_down(self._guarded.run, end=NOT_SUBMITTED)
            raise
        try:
            bound = self._reserve(asked, is_protected=is_protected)
        except BaseException:
            link.stand_down(self._guarded.run, end=NOT_SUBMITTED)
            raise
        if self._session_guard is not None:
            self._session_guard.before_post(bound)
        return bound

    def _reserve(self, asked: int | None, *, is_protected: bool) -> int | None:
        """Reserve QPU time, where any budget is for this job; returns what it may take."""
        reservation = Reservation(
            self._guarded,
            budgets_now(),
            lambda: look_for_charges(self._client),
            time.sleep,
            warn=logger.warning,
            is_protected=is_protected,
        )
        bound = reservation.take(asked)
        if reservation.seconds is not None and self._guarded.tag not in self.tags:
            raise SubmitError(
                "submit",
                "nothing was submitted: the job's own tags leave no room for the one by which it is found again, and "
                "without that its budget can't be kept; leave out a tag",
            )
        self._reservation = reservation
        return bound

    def before_retry(self) -> None:
        """The POST is sent again, which may create a duplicate."""
        self._retried = True
        if self._reservation is not None:
            self._reservation.take_again()
        if self._session_guard is not None:
            self._session_guard.before_retry()

    def posted(self, job_id: str) -> None:
        """The answer has the job's id."""
        self._is_known = True
        link.job(self._guarded.run, job_id)
        link.posted(self._guarded.run, clean=not self._retried)
        self._adopter.adopt(job_id, self._session_id, self._guarded)
        if self._session_guard is not None:
            self._session_guard.posted(job_id)
        reap_in_background(self._client)

    def after_post(self, *, ambiguous: bool) -> None:
        """The POST has ended, with or without an answer."""
        if self._session_guard is not None:
            self._session_guard.after_post(ambiguous=ambiguous)
        if self._is_known:
            return
        # If there may be a job, the driver may have found it by its own tags. So the watcher is not told that the POST
        # is over: after its window it would look for the job, and cancel it. It looks when the driver has ended.
        if not (ambiguous or self._retried):
            link.stand_down(self._guarded.run, end=REFUSED)


def account_of(client: Any) -> str:
    """The name by which the watcher knows the client's account."""
    return service.account_name(client)


def source_of(client: Any) -> CredentialsSource:
    """A function that returns the client's credentials."""
    return functools.partial(service.credentials, client)


def unprotected(consequence: str, error: WatcherError) -> None:
    """Refuse what can't be guarded, or warn, depending on `--on-unprotected`.

    Raises:
        WatcherError: It is refused.
    """
    if settings.submits_unprotected():
        say(f"what follows is not guarded: {error.reason}")
        return
    raise WatcherError(
        "submit",
        f"{consequence}, because it can't be guarded: {error.reason}; "
        "`qx-supervisor exec --on-unprotected warn` goes on all the same",
    ) from None


def say(text: str) -> None:
    """Write a message to stderr, if possible."""
    try:
        sys.stderr.write(f"qx-supervisor: {text}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # no stderr, or a closed one


def _count(things: list[str], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _is_watched(guarded: Guarded) -> bool:
    """Whether a watcher guards a run. Waits briefly, as a watcher that has died is replaced."""
    end = time.monotonic() + EXIT_SECONDS
    while not (known := link.is_guarded(guarded.run)) and time.monotonic() < end:
        time.sleep(0.01)
    return known


def _log_report(report: protocol.Report) -> None:
    """Log the watcher's report of a cancelled duplicate."""
    logger.info("job %s: %s", report.job or "-", report.event)


_adopter = Adopter()
forks.reset_in_child(_adopter.forget)


def install() -> None:
    """Install the hooks. Called when Qiskit's client has been loaded or reloaded."""
    service.be_adopted(_adopter)
    if settings.keeps_on_exit():
        exit_status.watch()


def imported() -> None:
    """Called when the program has imported Qiskit's client, after `install`."""
    if settings.LOCAL in os.environ:
        service.embedded.redirect()


def at_exit() -> None:
    """Called at the end of the interpreter, after the program's own exit callbacks."""
    try:
        _adopter.end()
    except Exception:  # the watcher does its work all the same
        logger.exception("a fault in qx_supervisor; %s", please_report())
