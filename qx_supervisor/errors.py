"""The errors that a run can end with.

    QxError
    └── RunError              stage, reason, job_id
        ├── ConfigError       refused before anything was submitted
        ├── WatcherError      no watcher, so nothing was submitted
        ├── SubmitError       the submission failed
        ├── BudgetExceeded    not enough is left of a budget of QPU time
        ├── JobFailed         the job ran, and failed at IBM
        ├── JobCancelled      someone else cancelled it
        └── RunTimeout        `timeout` or `running_timeout` passed; the job was cancelled

    Interrupted(BaseException)      a signal ended the run; its job is cancelled

`Interrupted` is not an `Exception`, so `except Exception` swallows neither Ctrl-C nor SIGTERM. After SIGINT it is also
a `KeyboardInterrupt`, after SIGTERM and SIGHUP a `SystemExit` with code 128 + signal number. All of them can be
pickled, so that a process pool passes them on.
"""

from __future__ import annotations

import signal
from typing import Any, Literal

from .origin import UNKNOWN, Origin

Stage = Literal["config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job", "results"]
"""The part of a run in which something happened."""

CancelOutcome = Literal["confirmed", "handed over", "unconfirmed", "nothing to cancel", "kept"]
"""What became of the job of a run that was interrupted, or cancelled: it is final, be it cancelled or over before; the
watcher finishes the cancel; the cancel could neither be confirmed nor handed over, so check the job yourself; there was
no job; it was not cancelled but kept for its grace period, because of `keep_on_sigterm`, or for another driver."""

JobState = Literal["completed", "failed", "cancelled"]
"""The final state of a job."""


class QxError(Exception):
    """The base class of this package's errors."""


class RunError(QxError):
    """A run ended without a result.

    Attributes:
        stage: Where: "config", "auth", "backend", "transpile", "submit", "poll", "timeout", "job" or "results".
        reason: Why, and what to do next.
        job_id: The job at IBM Quantum, or None if there was none.
        code: IBM Quantum's error code, such as 1305, or None.
        service_message: IBM Quantum's complete message: why a job failed or was cancelled, or the traceback in its
            results; why a submission was refused; "" if there was none.
        raw: Results that could not be decoded, as text, or None.
    """

    _origin: Origin = UNKNOWN

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

    def _ipython_display_(self) -> None:
        from . import cells

        cells.leave_to_ipython_unless_shown(self)

    def _repr_html_(self) -> str:
        from . import html

        rows = [("stage", html.text(self.stage)), ("reason", html.text(self.reason))]
        rows += [(name, html.text(value)) for name, value in self._origin.names()]
        if self.job_id:
            rows.append(("job", html.link(self._origin.url, self.job_id)))
        if self._origin.shots:
            rows.append(("shots", html.text(self._origin.shots)))
        return html.card("bad", html.text(type(self).__name__), rows)

    def __reduce__(self) -> tuple[Any, ...]:
        more = {name: getattr(self, name) for name in ("code", "service_message", "raw", "_origin")}
        return type(self), (self.stage, self.reason, self.job_id), more


class ConfigError(RunError):
    """The call is invalid; nothing was submitted."""


class WatcherError(RunError):
    """The watcher can't protect this run, so nothing was submitted."""


class SubmitError(RunError):
    """The job could not be submitted."""


class BudgetExceeded(RunError):
    """Not enough is left of a budget of QPU time.

    Nothing was submitted; or, where there is a `job_id`, the job was cancelled in the queue, or ended by IBM Quantum
    when it had taken what was left.

    Attributes:
        limit: The budget, in seconds.
        spent: What had been charged.
        reserved: What was held for jobs that are not over, or whose charge is not known.
    """

    limit: float = 0.0
    spent: float = 0.0
    reserved: float = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        kind, arguments, more = super().__reduce__()
        return kind, arguments, more | {"limit": self.limit, "spent": self.spent, "reserved": self.reserved}


class JobFailed(RunError):
    """The job failed at IBM Quantum.

    Attributes:
        is_retryable: Whether it failed for a reason of IBM Quantum's that may pass, by its code or its words, and not
            for one of the circuits': `run(..., retries=...)` submits it again.
    """

    is_retryable: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        kind, arguments, more = super().__reduce__()
        return kind, arguments, more | {"is_retryable": self.is_retryable}


class JobCancelled(RunError):
    """The job was cancelled: by someone else, or by `Run.cancel()`."""


class RunTimeout(RunError):
    """The run's `timeout` or `running_timeout` passed; its job was cancelled."""


class Interrupted(BaseException):
    """A signal ended the run.

    Attributes:
        job_id: The job, or None if none was known.
        signum: The signal.
        cancel: "confirmed": the job is cancelled or final. "handed over": the watcher finishes the cancel. "nothing to
            cancel": nothing had been submitted. "unconfirmed": the cancel could neither be confirmed nor handed over.
            "kept": the job is kept for its grace period, because of `keep_on_sigterm`.
        job_state: How the job ended, if known: "cancelled", or "completed" or "failed" if the cancel came too late;
            otherwise None. What was executed is billed, and its result can be fetched.
        job_ids: All jobs of a run with `split`; else `job_id` alone.
    """

    def __init__(
        self,
        job_id: str | None,
        signum: int,
        cancel: CancelOutcome,
        job_state: JobState | None = None,
        job_ids: tuple[str, ...] = (),
    ) -> None:
        super().__init__(job_id, signum, cancel)
        self.job_id = job_id
        self.job_ids = job_ids or (() if job_id is None else (job_id,))
        self.signum = signum
        self.cancel: CancelOutcome = cancel
        self.job_state: JobState | None = job_state

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        job = f"job {self.job_id}: " if self.job_id else ""
        if len(self.job_ids) > 1:
            job = f"jobs {', '.join(self.job_ids)}: "
        elif self.cancel == "confirmed" and self.job_state == "completed":
            how = "it completed before the cancel could stop it; its result is at"
            return f"interrupted by {name}; {job}{how} service.job({self.job_id!r}).result()"
        elif self.cancel == "confirmed" and self.job_state == "failed":
            return f"interrupted by {name}; {job}it failed before it could be cancelled"
        text = {
            "confirmed": "cancelled, and confirmed",
            "handed over": "the watcher is cancelling it",
            "unconfirmed": "its cancel could not be confirmed; look at https://quantum.cloud.ibm.com/workloads",
            "nothing to cancel": "nothing was submitted",
            "kept": "kept for its grace; run again with the same key to take it up",
        }[self.cancel]
        return f"interrupted by {name}; {job}{text}"

    def _ipython_display_(self) -> None:
        from . import cells

        cells.leave_to_ipython_unless_shown(self)

    def _repr_html_(self) -> str:
        from . import html

        return html.card("warning", "Interrupted", [("reason", html.text(self))])

    def __reduce__(self) -> tuple[Any, ...]:
        return interrupted, (self.job_id, self.signum, self.cancel, self.job_state, self.job_ids)


class _InterruptedByKeyboard(Interrupted, KeyboardInterrupt):
    """SIGINT."""


class _InterruptedToExit(Interrupted, SystemExit):
    """SIGTERM or SIGHUP."""

    def __init__(
        self,
        job_id: str | None,
        signum: int,
        cancel: CancelOutcome,
        job_state: JobState | None = None,
        job_ids: tuple[str, ...] = (),
    ) -> None:
        super().__init__(job_id, signum, cancel, job_state, job_ids)
        self.code = 128 + signum


for _kind in (_InterruptedByKeyboard, _InterruptedToExit):
    # So that a traceback shows the public name.
    _kind.__name__ = _kind.__qualname__ = "Interrupted"


def interrupted(
    job_id: str | None,
    signum: int,
    cancel: CancelOutcome,
    job_state: JobState | None = None,
    job_ids: tuple[str, ...] = (),
) -> Interrupted:
    """Make the `Interrupted` for a signal, which is also a `KeyboardInterrupt` or a `SystemExit`."""
    kind = _InterruptedByKeyboard if signum == signal.SIGINT else _InterruptedToExit
    return kind(job_id, signum, cancel, job_state, job_ids)
