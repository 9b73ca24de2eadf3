"""`qx-supervisor wait`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import account, jobs, output
from .group import debug_option, json_option
from .results import FIELDS

if TYPE_CHECKING:
    from ..results_fetch import ResultsFetch
    from ..watcher import remote

T = TypeVar("T")

SHORTEST_LOOK, LONGEST_LOOK, LOOK_SHARE = 0.5, 15.0, 0.02
"""Seconds between polls of the state; as in `run`, they add at most 2 % to the wait."""


@click.command("wait", epilog=FIELDS)
@click.argument("job_id", metavar="ID", shell_complete=jobs.completions)
@account.account_options
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer; the job continues.")
@json_option
@debug_option
def wait_command(job_id: str, local: bool, instance: str | None, timeout: float | None, as_json: bool) -> None:
    """Wait until a job ends, and print its result.

    Neither Ctrl-C nor --timeout cancels the job. The exit code says how it ended. If the result has neither counts nor
    expectation values, the command only reports that the job is done.
    """
    from ..errors import QxError
    from . import results

    end = None if timeout is None else time.monotonic() + timeout
    try:
        jobs.check(job_id)
        service = account.connect(local, instance)
        patient = _Patient(job_id, timeout, end)
        client, state = jobs.find(service, job_id, patient.ask_first)
        state = _final(patient, client, state)
        _raise_for(patient, client, state)
        result = _fetch(patient, client, state)
    except (QxError, KeyboardInterrupt) as error:
        if as_json:
            results.show_failure(error, job_id)
        if isinstance(error, QxError):
            raise
        output.say(f"the job {job_id} goes on")
        raise
    results.show(result, [None] * len(result), as_json=as_json)


class _Patient:
    """Repeats requests until there is an answer or the time is up."""

    def __init__(self, job_id: str, timeout: float | None, end: float | None) -> None:
        self.job_id = job_id
        self.began = time.monotonic()
        self._timeout = timeout
        self._end = end

    def ask_first(self, there: remote.Remote, question: Callable[[], T]) -> T:
        """Send a request for a job that may not exist."""
        return self.ask("poll", there, question, believes=jobs.UNKNOWN)

    def ask(self, stage: Any, there: remote.Remote, question: Callable[[], T], *, believes: tuple[int, ...] = ()) -> T:
        """Send a request, and repeat it through outages.

        Raises:
            RunError: The obstacle is permanent.
            RemoteError: The answer has one of the statuses in `believes`, which are not retried.
        """
        from ..backoff import REFUSED_SECONDS, Backoff
        from ..poller import ask
        from ..watcher import remote

        def passing(error: Exception) -> Exception:
            if isinstance(error, remote.RemoteError) and error.status in believes:
                raise error
            return error

        backoff = Backoff(stage, self.job_id, self.say, believes=REFUSED_SECONDS if believes else None)
        return backoff.until_answered(lambda: ask(there, question), self.sleep, passing)

    def fetch(self, there: remote.Remote, fetch: ResultsFetch) -> Any:
        """Request the job's results until they arrive.

        Raises:
            RunError: They can't be obtained.
        """
        from ..poller import ask
        from ..results_fetch import Corrupt
        from ..watcher import remote

        while True:
            try:
                return fetch.decode(ask(there, lambda: there.results(self.job_id)))
            except (remote.RemoteError, Corrupt) as error:
                self.sleep(fetch.failed(error))

    def sleep(self, seconds: float) -> None:
        """Sleep, at most until the time is up.

        Raises:
            RunTimeout: If the time is up.
        """
        left = seconds if self._end is None else self._end - time.monotonic()
        time.sleep(max(0.0, min(seconds, left)))
        if left <= seconds and self._end is not None:
            from ..errors import RunTimeout

            reason = f"job {self.job_id} is not over after {self._timeout:g} s; it goes on"
            raise RunTimeout("timeout", reason, self.job_id)

    def say(self, _stage: Any, state: str, detail: str) -> None:
        """Tell the user about an obstacle."""
        output.say(f"job {self.job_id}: {state}{f' ({detail})' if detail else ''}")


def _final(patient: _Patient, client: Any, state: remote.JobState) -> remote.JobState:
    """Wait until the job is final."""
    from .. import service as qiskit_service

    there = qiskit_service.remote_of(client)
    said = ""
    while not state.is_final:
        if state.status != said:
            said = state.status
            output.say(f"job {patient.job_id}: {said.lower()}")
        patient.sleep(min(LONGEST_LOOK, max(SHORTEST_LOOK, LOOK_SHARE * (time.monotonic() - patient.began))))
        state = patient.ask("poll", there, lambda: there.job(patient.job_id))
    return state


def _raise_for(patient: _Patient, client: Any, state: remote.JobState) -> None:
    from .. import service as qiskit_service
    from ..job_errors import ending
    from ..watcher import remote

    if state.is_completed:
        return
    text = ""
    if not state.reason and not state.is_cancelled:  # the reason may be in the results
        with contextlib.suppress(remote.RemoteError):
            text = qiskit_service.remote_of(client).results(patient.job_id)
    raise ending(state, patient.job_id, text=text, by="")


def _fetch(patient: _Patient, client: Any, state: remote.JobState) -> Any:
    """Fetch the job's result and its cost."""
    from .. import queue_info
    from .. import service as qiskit_service
    from ..result import RunResult
    from ..results_fetch import ResultsFetch
    from ..watcher import remote

    there, job_id = qiskit_service.remote_of(client), patient.job_id
    decoded = patient.fetch(there, ResultsFetch(job_id, qiskit_service.decoders_for(state.reply), patient.say))
    cost = None
    with contextlib.suppress(remote.RemoteError):
        cost = queue_info.read(state.reply, there.metrics(job_id)).qpu_seconds
    return RunResult(decoded, job_id, str(state.reply.get("backend") or ""), cost)
