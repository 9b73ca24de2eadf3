"""Makes the error for a job that ended without a result, in the service's own words."""

from __future__ import annotations

from .errors import JobCancelled, JobFailed, RunError
from .watcher import remote, service_messages


def ending(state: remote.JobState, job_id: str, *, text: str, by: str) -> RunError:
    """The error for a job that is final and not completed.

    Args:
        state: The job's state.
        job_id: Its id.
        text: Its results as the service returned them; of a failed job, mostly a traceback.
        by: Who cancelled it: the words after "the job was cancelled".
    """
    if not state.is_cancelled or state.ran_too_long:
        return _failure(state, job_id, text)
    reason = _reason(state)
    message = f"the job was cancelled{by}{f': {reason}' if reason else ''}"
    return JobCancelled("job", message, job_id, code=state.code, service_message=state.reason)


def _failure(state: remote.JobState, job_id: str, text: str) -> JobFailed:
    code, whole = state.code, state.reason
    if state.ran_too_long:
        code = remote.RAN_TOO_LONG if code is None else code
        message = f"the job ran longer than its maximum execution time: {_reason(state) or state.status}"
    elif state.reason or not text.strip():
        message = f"the job failed at IBM Quantum: {_reason(state) or state.status}"
    else:
        whole = text[max(0, text.rfind("Traceback")) :].strip()
        # The last line of a traceback has the exception.
        parsed = (
            service_messages.parse(whole)
            if whole[:1] in "{[<"
            else service_messages.ServiceMessage(service_messages.one_line(whole.splitlines()[-1]))
        )
        code = parsed.code if code is None else code
        message = f"the job failed at IBM Quantum: {parsed}"
    return JobFailed("job", message, job_id, code=code, service_message=whole)


def _reason(state: remote.JobState) -> str:
    """The service's reason, with its solution and its code."""
    message = state.reason
    if state.solution and state.solution not in message:
        message = f"{message.rstrip('. ')}. {state.solution}" if message else state.solution
    return str(service_messages.ServiceMessage(service_messages.one_line(message), state.code))
