"""Makes the error for a job that ended without a result, in the service's own words."""

from __future__ import annotations

import re

from .errors import JobCancelled, JobFailed, RunError, RunTimeout
from .watcher import remote, service_messages


def ending(
    state: remote.JobState, job_id: str, *, text: str, by: str, running_timeout: float | None = None
) -> RunError:
    """The error for a job that is final and not completed.

    Args:
        state: The job's state.
        job_id: Its id.
        text: Its results as the service returned them; of a failed job, mostly a traceback.
        by: Who cancelled it: the words after "the job was cancelled".
        running_timeout: The run's, if the service was to end the job for that.
    """
    if state.ran_too_long and running_timeout is not None:
        message = f"{ran_out(running_timeout)}, of QPU time alone, so IBM Quantum cancelled it; {MORE}"
        code = remote.RAN_TOO_LONG if state.code is None else state.code
        return RunTimeout("timeout", message, job_id, code=code, service_message=state.reason)
    if not state.is_cancelled or state.ran_too_long:
        return _failure(state, job_id, text)
    reason = _reason(state)
    message = f"the job was cancelled{by}{f': {reason}' if reason else ''}"
    return JobCancelled("job", message, job_id, code=state.code, service_message=state.reason)


def ran_out(running_timeout: float) -> str:
    """That a job has run for as long as it may."""
    return f"the job has run for the {running_timeout:g} s of its running_timeout"


MORE = "give it more, or submit less at once"
"""What to do about that."""


RETRYABLE = frozenset(
    {
        *(1000, 1006, 1008, 1010, 1011, 1999),  # its interface, its queue, a planned outage
        *(3202, 3203, 3204, 3210, 3212, 3213, 3214, 3233, 3234, 3235, 3251, 3253, 3300, 3301),  # its storage
        *(5203, 5204, 9999),  # the execution; an internal error
    }
)
"""Codes of the errors for which IBM Quantum's registry (quantum.cloud.ibm.com/docs/errors) advises to try the job again
as it is, and 9999, "Internal error". All others are about the job: its circuits, shots, size, or time."""

_INTERNAL = re.compile(r"\b(internal|unknown) (server )?error\b", re.IGNORECASE)
_ADVICE = re.compile(
    r"(please )?(retry|(try|submit|run)( (the|your))?( action| job)? again|try to run the job again)"
    r"( (the|your) (action|job))?( later| in .*)?",
    re.IGNORECASE,
)
"""A sentence that advises to try again, and nothing else: "correct your program and try again" is no such advice."""


def is_retryable(state: remote.JobState) -> bool:
    """Whether a job has failed for a reason of the service's that may pass.

    By its code, where the service gives one that its registry has; else by its words.
    """
    if state.is_cancelled or state.ran_too_long:
        return False
    if isinstance(state.code, int) and state.code in RETRYABLE:
        return True
    # A code that is not in the list says that the fault is the job's, unless the words say otherwise.
    sentences = [each.strip() for each in re.split(r"[.;\n]", f"{state.solution}. {state.reason}")]
    return any(_ADVICE.fullmatch(each) for each in sentences) or (
        state.code is None and _INTERNAL.search(state.reason) is not None
    )


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
    error = JobFailed("job", message, job_id, code=code, service_message=whole)
    error.is_retryable = is_retryable(state)
    return error


def _reason(state: remote.JobState) -> str:
    """The service's reason, with its solution and its code."""
    message = state.reason
    if state.solution and state.solution not in message:
        message = f"{message.rstrip('. ')}. {state.solution}" if message else state.solution
    return str(service_messages.ServiceMessage(service_messages.one_line(message), state.code))
