"""The POST of a run, as Qiskit's client asks about it, and the intent that the watcher acknowledges before."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .. import service, threads
from ..backoff import Backoff
from ..errors import SubmitError, WatcherError
from ..link import CredentialsSource, Guarded, link
from ..reservation import LONGEST_JOB, Reservation
from ..tags import driver_tag
from ..uncharged import look_for_charges
from ..watcher import protocol
from ..watcher.facts import End
from . import machine as m
from .core import Core, Stopped
from .lost_answer import find_job

RATE_LIMIT_PAUSE = 12.0
"""Seconds until the next POST where the answer does not say: 5 jobs a minute are allowed."""


class Submission(service.PatientSubmission):
    """The POST of one run.

    Args:
        core: The run.
        cancel_late: Cancels the job of a run that has ended, without a watcher, while its POST was under way.
    """

    def __init__(self, core: Core, cancel_late: Callable[[], object]) -> None:
        self._core = core
        self._cancel_late = cancel_late
        self.armed: Future[None] | None = None
        self.backoff: Backoff | None = None  # that of the work before the POST
        self._connecting = Backoff("submit", None, core.say, log=core.log)
        self._acknowledged: Callable[[], object] = lambda: None
        self._announcement: Callable[[], None] = lambda: None
        self._guarded: Guarded | None = None
        self._reservation: Reservation | None = None
        self._is_found = False  # the job was found by its tag
        self.second: SubmitError | None = None  # what was raised at a second job in one run

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags to put on the job."""
        return self._core.tags

    # The intent

    def announce(self, account: str, source: CredentialsSource) -> None:
        """Tell the watcher that a POST will leave; `_acknowledged` waits for its acknowledgement."""
        core = self._core
        self._act(m.Announcing())
        self._announcement = functools.partial(self.announce, account, source)
        # A job that is attached is another driver's, and not found by this one's tag.
        own_tag = "" if core.request.attached else driver_tag()
        guarded = core.keyed or Guarded(core.run_id, account, core.tag, self.hear, own_tag)
        guarded.about = core.about()
        self._guarded = guarded
        waits = link.announce_early(guarded, source)
        if waits is not None:
            self._acknowledged = waits
            return

        armed, self.armed = self.armed, None

        def announce() -> None:
            if armed is not None:
                armed.result()
            link.announce(guarded, source)

        core.announced = threads.announcing.begin(announce)
        self._acknowledged = core.announced.result

    def hear(self, report: protocol.Report) -> None:
        """Take a report of the watcher's on this run, in the link's thread."""
        core = self._core
        job = report.job
        if report.event == "lost":
            core.handle(m.LeaseLost(report.detail or "another driver has taken it up"))
            core.say(core.status.stage, core.status.state, f"lease lost: {core.machine.lease_lost}")
        if job and job != core.job_id and report.event == "cancelled":
            core.say("submit", "duplicate cancelled", f"a retried submission had made {job} too")

    def await_acknowledgement(self) -> None:
        """Wait until the watcher has acknowledged the intent.

        Raises:
            WatcherError: There is none that can protect the run, which is not to go on without.
        """
        core = self._core
        try:
            core.despite_token_outages(self._wait_for_acknowledgement)
            core.is_protected = True
        except WatcherError as error:
            if core.request.on_unprotected == "raise":
                if core.request.attached:
                    why = f"the job was not attached, because the watcher can't protect this run: {error.reason}; "
                    raise WatcherError("submit", f'{why}on_unprotected="warn" attaches it all the same') from None
                raise WatcherError(
                    "submit",
                    f"nothing was submitted, because the watcher can't protect this run: {error.reason}; "
                    'on_unprotected="warn" submits all the same',
                ) from None
            core.log.warning("this run is not protected: %s", error.reason)
            core.say("submit", "not protected", error.reason)
        core.handle(m.Acknowledged())

    def _wait_for_acknowledgement(self) -> None:
        try:
            self._acknowledged()
        except WatcherError as error:
            if service.is_token_outage(error.reason):
                self._announcement()  # the next question needs another answer
            raise

    # What Qiskit's client asks (`service.Submission`)

    def posting_at(self, client: Any) -> None:
        """Have the run guarded, polled and cancelled where the POST goes: a primitive may know better than we do."""
        core = self._core
        account = service.account_name(client)
        if account == service.account_name(core.place.client):
            return
        if core.keyed is not None:
            raise SubmitError(
                "submit",
                "nothing was submitted: the primitive submits to another instance than its backend's, and the key is "
                "held for that one; make it with a backend of its own instance",
            )
        with contextlib.suppress(WatcherError):
            self._acknowledged()
        link.stand_down(core.run_id, end=End("cancelled", "program", reason="it is submitted to another instance"))
        core.run_id = uuid.uuid4().hex  # the watcher has heard of the other one; the tag is the same
        core.announced = None
        core.target = dataclasses.replace(core.place, client=client)
        self.announce(account, functools.partial(service.credentials, client))

    def advised(self, message: str) -> None:
        """Tell what the client warns of before the POST: that the job may have to wait for a paused backend, say."""
        self._core.log.warning("%s", message, extra={"in_panel": True})
        self._core.say("submit", self._core.status.state, message)

    def before_post(self, asked: int | None) -> int | None:
        """Wait until the watcher has acknowledged the intent, and reserve QPU time for the job."""
        core = self._core
        core.stop_if_wished()
        if core.job_id is not None:  # one intent guards one job, and one reservation pays for it
            self.second = SubmitError(
                "submit",
                "its primitive submits a second job in one run, which would be neither guarded nor held to a budget; "
                "have it submit one, and call run for each",
                core.job_id,
            )
            raise self.second
        if self.backoff is not None:
            self.backoff.answered()  # else it would be told after what follows
        self.await_acknowledgement()
        bound = self._reserve(self._wanted(asked))
        pubs = len(core.request.pubs)
        what = f"{pubs} PUBs " if pubs > 1 else ""
        core.say("submit", "submitting", f"{what}to {core.place.name}{self._left}")
        self.begin_post()
        return bound

    @property
    def _left(self) -> str:
        """What is left of the budget that has the least, in words, where any is for this run."""
        answer = self._reservation.answer if self._reservation is not None else None
        if answer is None or answer["seconds"] is None:
            return ""
        left = answer["limit"] - answer["spent"] - answer["reserved"]
        return f", for {answer['seconds']} s at most: {left:.1f} s are left of its budget"

    def _reserve(self, wanted: int | None) -> int | None:
        """Reserve QPU time, where any budget is for this run; returns what the job may take."""
        core = self._core
        assert self._guarded is not None
        if self._reservation is None:  # else it has come here before, and no POST has left
            self._reservation = Reservation(
                self._guarded,
                core.request.budgets,
                lambda: look_for_charges(core.place.client),
                core.sleep,
                warn=core.log.warning,
                is_protected=core.is_protected,
            )
        bound = self._reservation.take(wanted, lambda why: core.say("submit", "waiting for charges", why))
        if bound is not None and (wanted is None or bound < wanted):
            core.budget_bound, core.is_bound_by_timeout = bound, False
            core.budget = self._reservation.answer
            if core.place.is_dedicated:
                core.log.warning(
                    "a budget holds jobs to what is left of it, but IBM Quantum charges a session for all the time "
                    "that it is open: close it early, or use a batch"
                )
        return bound

    def _wanted(self, asked: int | None) -> int | None:
        """What the call asks for, or else its primitive, and no more than the run's `running_timeout`.

        QPU time is a part of the time for which a job runs. So IBM Quantum ends the job, too, if nobody is left here
        who would.
        """
        request = self._core.request
        wanted = asked if request.max_execution_time is None else request.max_execution_time
        if request.running_timeout is None or request.running_timeout > LONGEST_JOB:
            return wanted
        most = math.ceil(request.running_timeout)
        if wanted is not None and wanted < most:
            return wanted
        self._core.is_bound_by_timeout = True
        return most

    def begin_post(self) -> None:
        """Let the POST leave, if it still may."""
        self._act(m.AboutToPost())

    def before_retry(self) -> None:
        """After a 5xx the client sends the POST again, which may make a second job."""
        actions = self._core.handle(m.Resending())
        self._core.say("submit", "submission failed, retrying")
        self._obey(actions)
        self._reserve_again()

    def _reserve_again(self) -> None:
        """Reserve as much for another POST: the one before may have made a job, or may still."""
        if self._reservation is not None:
            self._reservation.take_again()

    def _confirm_reservation(self) -> None:
        """See that QPU time is still reserved for a POST that had to wait."""
        if self._reservation is not None:
            self._reservation.confirm(lambda why: self._core.say("submit", "waiting for the ledger", why))

    def put_off(self, status: int, seconds: float | None) -> None:
        """Wait after a 423 or 429: this POST made no job."""
        self._act(m.PutOff())
        pause = RATE_LIMIT_PAUSE if seconds is None else seconds
        if status == 423:
            self._core.say("submit", "backend reserved, waiting", f"{pause:.0f} s")
        else:
            self._core.say("submit", "rate limited, waiting", f"{pause:.0f} s")
        self._core.sleep(pause)
        self._confirm_reservation()
        self.begin_post()

    def unanswered(self, error: Exception) -> str | None:
        """Look for the job that a POST may have made which came to no job's id; None sends it again."""
        core = self._core
        outage = service.outage(error) if service.unsent(error) else None
        is_ambiguous = service.is_ambiguous(error)
        for action in core.handle(m.Unanswered(outage is not None, is_ambiguous, not service.is_answered(error))):
            match action:
                case m.Raise():
                    raise error
                case m.PostLater():
                    assert outage is not None
                    core.sleep(self._connecting.failed(outage))
                    self._confirm_reservation()
                    self.begin_post()
                    return None
        why = service.describe(error)[:100]
        core.say("submit", "looking for the job", f"its submission got no answer: {why}")
        found = find_job(core.there, core.tag, core.posts_before, core.say, core.sleep)
        if found:
            self._is_found = True
            return found
        if m.Raise() in core.handle(m.NotFound()):
            raise error
        self._reserve_again()
        self.begin_post()
        core.say("submit", "submitting", "once more: no job was made")
        return None

    def posted(self, job_id: str) -> None:
        """Take the job's id."""
        core = self._core
        # Looked at now: in a moment the watcher that was handed the cancel may have finished it.
        is_guarded = core.is_protected and link.is_guarded(core.run_id)
        actions = core.handle(m.Posted(job_id, is_guarded))
        self._connecting.answered()
        core.say("submit", "submitted", "found by its tag: the answer was lost" if self._is_found else "")
        if actions:
            threads.ending.do(self._cancel_late)

    def _act(self, event: m.Event) -> None:
        self._obey(self._core.handle(event))

    def _obey(self, actions: list[m.Action]) -> None:
        if m.Stop() in actions:
            raise Stopped
        if m.Refuse() in actions:
            lost = self._core.machine.lease_lost
            raise SubmitError("submit", f"not submitted here: {lost}; run again with the same key")
