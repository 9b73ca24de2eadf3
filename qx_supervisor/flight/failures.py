"""The errors of a run that fails by itself: what went wrong, and what it means for the job."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from .. import quota, service
from ..errors import BudgetExceeded, CancelOutcome, JobFailed, JobState, RunError, RunTimeout, SubmitError
from ..reservation import with_figures
from ..watcher import remote
from .core import Core


def failure(core: Core, error: BaseException, why: Literal["refused", "unanswered", "failed"]) -> RunError:
    """The error that a run ends in.

    Args:
        core: The run.
        error: What was raised.
        why: "refused", "unanswered": by the POST of the job; else "failed".
    """
    stage = core.status.stage
    found: RunError
    if isinstance(error, BudgetExceeded):  # of a POST, too, that was to leave once more
        return error
    if why != "failed":
        found = _of_the_post(core, error, is_refused=why == "refused")
    elif isinstance(error, RunError):
        return error
    elif core.machine.phase == "preparing" and stage == "submit":
        found = _before_the_post(core, error)
    else:
        found = RunError(stage, f"{type(error).__name__}: {service.describe(error)}", core.job_id)
    found.__cause__ = error
    return found


class Ended(Protocol):
    """A run that was ended, of one job or several."""

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Its jobs."""

    @property
    def job_state(self) -> JobState | None:
        """How they ended, where that is known."""


_ENDED: dict[CancelOutcome, str] = {
    "confirmed": "so {} cancelled",
    "handed over": "so the watcher is cancelling {}",
    "unconfirmed": "and the cancel of {} could not be confirmed",
    "nothing to cancel": "and nothing had been submitted",
    "kept": "and {} another driver's by now",
}


def timed_out(run: Ended, why: str, next_step: str, outcome: CancelOutcome, *, attached: str = "") -> RunTimeout:
    """For a run that has taken as long as it may.

    Args:
        run: The run.
        why: That it has.
        next_step: What to do about that, or "".
        outcome: What became of the cancel of its jobs.
        attached: The job that it was to be attached to, or "".
    """
    jobs = run.job_ids
    words = {"confirmed": "the job was", "kept": "its job is"}.get(outcome, "the job")
    if len(jobs) > 1:
        words = {"confirmed": "the jobs were", "kept": "its jobs are"}.get(outcome, "the jobs")
    how = _ENDED[outcome].format(words)
    if jobs and outcome == "nothing to cancel":  # parts of the run are over
        how = "and nothing more had been submitted"
    if attached and outcome == "nothing to cancel":
        how = f"and job {attached} goes on, since it was not attached yet"
    if next_step:
        how = f"{how}; {next_step}"
    job = jobs[0] if jobs else None
    if len(jobs) == 1 and run.job_state in ("completed", "failed"):
        verb = "finished" if run.job_state == "completed" else "failed"
        how = f"but the job had {verb} by then; see service.job({job!r})"
    return RunTimeout("timeout", f"{why}, {how}", job)


def budget_bound_reached(core: Core, state: remote.JobState) -> BudgetExceeded:
    """For a job that IBM Quantum has ended when it had taken what was left of a budget."""
    why = f"the job has taken the {core.budget_bound} s that were left of its budget, so IBM Quantum cancelled it"
    error = BudgetExceeded("job", why, core.job_id, code=remote.RAN_TOO_LONG, service_message=state.reason)
    return with_figures(error, core.budget)


def estimate_exceeds(core: Core) -> BudgetExceeded | None:
    """For a job that waits in the queue, and is expected to take more than what is left of a budget."""
    estimated = core.cost.figures.estimated
    if core.budget_bound is None or estimated is None or estimated <= core.budget_bound:
        return None
    why = (
        f"IBM Quantum expects the job to take {estimated:.1f} s, and {core.budget_bound} s are left of its budget, so "
        "it was cancelled in the queue; give it more, or submit less at once"
    )
    return with_figures(BudgetExceeded("submit", why, core.job_id), core.budget)


def _before_the_post(core: Core, error: BaseException) -> RunError:
    """For a failure at the primitive."""
    reason = service.describe(error)
    if core.target is not None and core.target.is_local:
        return JobFailed("job", f"the local simulation failed: {reason}")
    said = service.said(error)
    why: dict[str, Any] = {"code": said.code, "service_message": said.message}
    if service.is_unauthorized(error):
        reason = f"nothing was submitted: IBM Quantum does not accept this account: {reason}"
        return SubmitError("auth", reason, **why)
    return SubmitError("submit", f"nothing was submitted: {reason}", **why)


def _of_the_post(core: Core, error: BaseException, *, is_refused: bool) -> SubmitError:
    reason, said = service.describe(error), service.said(error)
    why: dict[str, Any] = {"code": said.code, "service_message": said.message}
    if not is_refused:
        message = (
            f"the submission got no answer ({reason}); a job that it may have made is looked for by its tag "
            f"{core.tag}, and cancelled"
        )
        return SubmitError("submit", message, **why)
    reason += _used_up(core, error)
    if service.is_unauthorized(error):
        return SubmitError("auth", f"IBM Quantum does not accept this account: {reason}", **why)
    return SubmitError("submit", f"the job could not be submitted: {reason}", **why)


def _used_up(core: Core, error: BaseException) -> str:
    """That the instance has used up its time, where that may be why a submission is refused."""
    if service.status_of(error) not in (402, 403, 409):
        return ""
    try:
        why = quota.read(core.there).used_up()
    except remote.RemoteError:
        return ""
    return f"; {why}" if why else ""


def reword(error: RunError, reason: str) -> None:
    """Give an error another reason."""
    error.reason = reason
    error.args = (error.stage, reason, error.job_id)
