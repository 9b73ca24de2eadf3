"""The errors of a run that fails by itself: what went wrong, and what it means for the job."""

from __future__ import annotations

from typing import Any, Literal

from .. import service
from ..errors import JobFailed, RunError, SubmitError
from ..queue_blockers import used_up
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
    if service.status_of(error) not in (402, 403):
        return ""
    try:
        why = used_up(core.there.usage())
    except remote.RemoteError:
        return ""
    return f"; {why}" if why else ""
