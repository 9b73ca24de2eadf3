"""What a run can end in, when it does not end in a result.

    QxError
    └── RunError              stage, reason, job_id
        ├── ConfigError       refused before anything was submitted
        ├── WatcherError      no watcher, so nothing was submitted
        ├── SubmitError       the submission failed
        ├── JobFailed         the job ran, and failed at IBM
        ├── JobCancelled      someone else cancelled it
        └── RunTimeout        `timeout` passed; the job was cancelled

    Interrupted(BaseException)      a signal ended the run; its job is cancelled

`Interrupted` is no `Exception`, so that `except Exception` swallows neither Ctrl-C nor a SIGTERM. After SIGINT it is a
`KeyboardInterrupt` too, after SIGTERM and SIGHUP a `SystemExit` with code 128 + signal number. Every one of them can
be pickled: a process pool hands it on whole.
"""

from __future__ import annotations

import signal
from typing import Any, Literal

Stage = Literal["config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job", "results"]
"""Where in a run something happened."""

CancelOutcome = Literal["confirmed", "handed over", "unconfirmed", "nothing to cancel", "kept"]
"""How the cancel of an interrupted run went: the job is final; the watcher finishes it; it was asked for but neither
could be had, so look after the job yourself; no job was there; it was not cancelled, for `keep_on_sigterm` asks to have
it kept for its grace."""

JobState = Literal["completed", "failed", "cancelled"]
"""How a job ended."""


class QxError(Exception):
    """The root of this package's errors."""


class RunError(QxError):
    """A run ended without a result.

    Attributes:
        stage: Where: "config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job" or "results".
        reason: Why, and what to do next.
        job_id: The job at IBM Quantum, or None if there was none.
        code: IBM Quantum's own code of what went wrong, such as 1305; None where it gave none.
        service_message: Its own words, whole: the reason of a job that failed or was cancelled, or the traceback in its
            results; the message with which a submission was refused; "" where it said nothing.
        raw: What came for the results and could not be decoded, as text, or None.
    """

    def __init__(
        self,
        stage: Stage,
        reason: str,
        job_id: str | None = None,
        *,
        code: int | str | None = None,
        service_message: str = "",
        raw: str | None = None,
    ) -> None:
        super().__init__(stage, reason, job_id)
        self.stage: Stage = stage
        self.reason = reason
        self.job_id = job_id
        self.code = code
        self.service_message = service_message
        self.raw = raw

    def __str__(self) -> str:
        return f"{self.reason} (job {self.job_id})" if self.job_id and self.job_id not in self.reason else self.reason

    def _repr_html_(self) -> str:
        from . import html

        rows = [("stage", html.text(self.stage)), ("reason", html.text(self.reason))]
        if self.job_id:
            rows.append(("job", html.link("", self.job_id)))
        return html.card("bad", html.text(type(self).__name__), rows)

    def __reduce__(self) -> tuple[Any, ...]:
        more = {"code": self.code, "service_message": self.service_message, "raw": self.raw}
        return type(self), (self.stage, self.reason, self.job_id), more


class ConfigError(RunError):
    """The call can't be carried out as it stands; nothing was submitted."""


class WatcherError(RunError):
    """The watcher can't protect this run, so nothing was submitted."""


class SubmitError(RunError):
    """The job could not be submitted."""


class JobFailed(RunError):
    """The job failed at IBM Quantum."""


class JobCancelled(RunError):
    """The job was cancelled: by someone else, or by `Run.cancel()`."""


class RunTimeout(RunError):
    """The run's `timeout` passed; its job was cancelled."""


class Interrupted(BaseException):
    """A signal ended the run.

    Attributes:
        job_id: The job, or None if none was known.
        signum: The signal.
        cancel: "confirmed": the job is cancelled or final. "handed over": the watcher finishes the cancel. "nothing to
            cancel": nothing had been submitted. "unconfirmed": the cancel could neither be confirmed nor handed over.
            "kept": the job is left to its grace, as `keep_on_sigterm` asks.
        job_state: How the job ended, where that is known: "cancelled", or "completed" or "failed" where the cancel came
            too late; else None. What was executed is billed, and a result can be fetched.
    """

    def __init__(
        self, job_id: str | None, signum: int, cancel: CancelOutcome, job_state: JobState | None = None
    ) -> None:
        super().__init__(job_id, signum, cancel)
        self.job_id = job_id
        self.signum = signum
        self.cancel: CancelOutcome = cancel
        self.job_state: JobState | None = job_state

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        job = f"job {self.job_id}: " if self.job_id else ""
        if self.cancel == "confirmed" and self.job_state == "completed":
            how = "it completed before the cancel could stop it; its result is at"
            return f"interrupted by {name}; {job}{how} service.job({self.job_id!r}).result()"
        if self.cancel == "confirmed" and self.job_state == "failed":
            return f"interrupted by {name}; {job}it failed before it could be cancelled"
        said = {
            "confirmed": "cancelled, and confirmed",
            "handed over": "the watcher is cancelling it",
            "unconfirmed": "its cancel could not be confirmed; look at https://quantum.cloud.ibm.com/workloads",
            "nothing to cancel": "nothing was submitted",
            "kept": "kept for its grace; run again with the same key to take it up",
        }[self.cancel]
        return f"interrupted by {name}; {job}{said}"

    def _repr_html_(self) -> str:
        from . import html

        return html.card("warning", "Interrupted", [("reason", html.text(self))])

    def __reduce__(self) -> tuple[Any, ...]:
        return interrupted, (self.job_id, self.signum, self.cancel, self.job_state)


class _InterruptedByKeyboard(Interrupted, KeyboardInterrupt):
    """SIGINT."""


class _InterruptedToExit(Interrupted, SystemExit):
    """SIGTERM or SIGHUP."""

    def __init__(
        self, job_id: str | None, signum: int, cancel: CancelOutcome, job_state: JobState | None = None
    ) -> None:
        super().__init__(job_id, signum, cancel, job_state)
        self.code = 128 + signum


for _kind in (_InterruptedByKeyboard, _InterruptedToExit):
    # What a traceback shows is the public name.
    _kind.__name__ = _kind.__qualname__ = "Interrupted"


def interrupted(
    job_id: str | None, signum: int, cancel: CancelOutcome, job_state: JobState | None = None
) -> Interrupted:
    """The `Interrupted` for a signal: also a `KeyboardInterrupt`, or also a `SystemExit`."""
    kind = _InterruptedByKeyboard if signum == signal.SIGINT else _InterruptedToExit
    return kind(job_id, signum, cancel, job_state)
