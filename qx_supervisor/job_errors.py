"""How a job ended that gave no result, as the error that its run ends in: in the service's own words."""

from __future__ import annotations

from .errors import JobCancelled, JobFailed, RunError
from .watcher import remote, service_messages


def ending(state: remote.JobState, job_id: str, *, text: str, by: str) -> RunError:
    """The error for a job that is final and not completed.

    Args:
        state: The job's state.
        job_id: Its id.
        text: What the service gave for its results; of a failed job that is most often a traceback.
        by: By whom it was cancelled, if it was: the words that follow "the job was cancelled".
    """
    if not state.is_cancelled or state.ran_too_long:
        return _failure(state, job_id, text)
    why = _because(state)
    message = f"the job was cancelled{by}{f': {why}' if why else ''}"
    return JobCancelled("job", message, job_id, code=state.code, service_message=state.reason)


def _failure(state: remote.JobState, job_id: str, text: str) -> JobFailed:
    code, whole = state.code, state.reason
    if state.ran_too_long:
        code = remote.RAN_TOO_LONG if code is None else code
        message = f"the job ran longer than its maximum execution time: {_because(state) or state.status}"
    elif state.reason or not text.strip():
        message = f"the job failed at IBM Quantum: {_because(state) or state.status}"
    else:
        whole = text[max(0, text.rfind("Traceback")) :].strip()
        # Of a traceback the last line says what was raised.
        said = (
            service_messages.parse(whole)
            if whole[:1] in "{[<"
            else service_messages.ServiceMessage(service_messages.one_line(whole.splitlines()[-1]))
        )
        code = said.code if code is None else code
        message = f"the job failed at IBM Quantum: {said}"
    return JobFailed("job", message, job_id, code=code, service_message=whole)


def _because(state: remote.JobState) -> str:
    """The reason that the service gives, with its remedy and its code."""
    message = state.reason
    if state.solution and state.solution not in message:
        message = f"{message.rstrip('. ')}. {state.solution}" if message else state.solution
    return str(service_messages.ServiceMessage(service_messages.one_line(message), state.code))
