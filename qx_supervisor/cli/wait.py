"""`qx-supervisor wait`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..watcher.remote import RemoteError
from . import account, exits, jobs, output
from .durations import Duration
from .group import debug_option, json_option
from .results import FIELDS

if TYPE_CHECKING:
    from ..result import RunResult
    from ..results_fetch import ResultsFetch
    from ..watcher import remote
    from .waiting import KnownGuards, Shows

T = TypeVar("T")

EPILOG = f"""\b
  qx-supervisor wait d1a2b3c4e5f6g7h8i9j0
  qx-supervisor wait --exit-status $IDS && python evaluate.py

\b
The exit code says how the job ended: 0 done, 1 failed, 3 cancelled, 5 the
--timeout passed. Of several jobs, that of the first that is not 0.

{FIELDS}
With --exit-status, of a job that is done: job_id, backend and state."""

SINGLY = 10
"""Jobs that are read as often as one alone; more are each read less often."""

DETAILS_PAUSE = 15.0
"""Seconds between two readings of a queued job's place."""


@click.command("wait", epilog=EPILOG)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=jobs.completions)
@account.account_options
@click.option(
    "--timeout", type=Duration(), metavar="TIME", help="Wait no longer, as 90, 10min or 2h; the job continues."
)
@click.option(
    "--exit-status", is_flag=True, help="Print no result, and fetch none: the exit code alone says how a job ended."
)
@json_option
@debug_option
def wait_command(
    *, ids: tuple[str, ...], local: bool, instance: str | None, timeout: float | None, exit_status: bool, as_json: bool
) -> int:
    """Wait until jobs end, and print their results.

    On a terminal the panel shows them meanwhile. Neither Ctrl-C nor --timeout cancels a job. If a result has neither
    counts nor expectation values, the command only reports that the job is done.
    """
    from ..errors import QxError
    from . import results, waiting

    wanted = list(dict.fromkeys(ids))
    waits: list[_Wait] = []
    try:
        for job_id in wanted:
            jobs.check(job_id)
        service = account.connect(local, instance)
        shows = waiting.OnPanel if waiting.is_on_terminal() else waiting.Lines
        guards = waiting.KnownGuards()
        waits += [_Wait(service, each, timeout, shows(each), guards, fetches=not exit_status) for each in wanted]
        for each in waits:  # from here on a Ctrl-C finds them all
            each.shows.begin()
        for each in waits:
            each.begin(of=len(waits))
        if shows is waiting.OnPanel:  # what is printed meanwhile would move what is drawn
            for each in waits:
                each.join()
        return next(filter(None, [_report(each, len(waits), as_json=as_json) for each in waits]), exits.DONE)
    except KeyboardInterrupt as error:
        going = [each for each in waits if not each.outcome.done()]
        told = [each.job_id for each in going if each.shows.is_drawn]
        for each in going:
            each.shows.close(error)
        for job_id in [each.job_id for each in going] if waits else wanted:
            if as_json:
                results.show_failure(error, job_id)
            if job_id not in told:
                output.say(f"the job {job_id} goes on")
        raise
    except QxError as error:
        if as_json and not waits:
            results.show_failure(error, wanted[0])
        raise


def _report(ended: _Wait, of: int, *, as_json: bool) -> int:
    """Wait for the end of a job's wait, and print what came of it.

    Returns:
        The exit code.

    Raises:
        Exception: It failed, and no other job was to be waited for.
    """
    from ..errors import QxError
    from . import results

    ended.join()
    try:
        result = ended.outcome.result()
    except Exception as error:
        if as_json and isinstance(error, QxError):
            results.show_failure(error, ended.job_id)
        if of == 1:
            raise
        exits.tell(error)
        return exits.code_of(error)
    if ended.fetches:
        results.show(result, [None] * len(result), as_json=as_json)
    elif as_json:
        output.record(job_id=ended.job_id, backend=result.backend, state="done")
    return exits.DONE


class _Wait:
    """The wait for one job, in a thread of its own.

    Args:
        service: The account's service.
        job_id: The job.
        timeout: After how many seconds to wait no longer, or None.
        shows: Shows it.
        guards: Who guards jobs.
        fetches: Whether its result is wanted.

    Attributes:
        outcome: The result, or the error.
    """

    def __init__(
        self,
        service: Any,
        job_id: str,
        timeout: float | None,
        shows: Shows,
        guards: KnownGuards,
        *,
        fetches: bool,
    ) -> None:
        self.job_id = job_id
        self.shows = shows
        self.fetches = fetches
        self.outcome: Future[RunResult] = Future()
        self._service = service
        self._guards = guards
        self._timeout = timeout
        self._patient = _Patient(job_id, timeout, shows.say)
        self._share = 1.0

    def begin(self, of: int) -> None:
        """Begin to wait, as one of so many."""
        self._share = max(1.0, of / SINGLY)
        threading.Thread(target=self._run, name="qx-wait", daemon=True).start()

    def join(self) -> None:
        """Wait for the end."""
        while not self.outcome.done():
            wait([self.outcome], 0.5)  # a Ctrl-C that another thread takes does not end a wait without a bound

    def _run(self) -> None:
        try:
            result = self._wait()
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            self.shows.close(error)
            self.outcome.set_exception(error)
        else:
            self.shows.close(result)
            self.outcome.set_result(result)

    def _wait(self) -> RunResult:
        from ..result import RunResult

        client, state = jobs.find(self._service, self.job_id, self._patient.ask_first)
        state = self._final(client, state)
        _raise_for(self._patient, client, state)
        if self.fetches:
            return _fetch(self._patient, client, state)
        nothing: Any = []
        return RunResult(nothing, self.job_id, str(state.reply.get("backend") or ""))

    def _final(self, client: Any, state: remote.JobState) -> remote.JobState:
        """Wait until the job is final."""
        from .. import queue_info
        from .. import service as qiskit_service
        from ..poller import interval

        there, patient = qiskit_service.remote_of(client), self._patient
        url = qiskit_service.job_url(client, self.job_id)
        metrics: remote.Json = {}
        metrics_due = 0.0
        while True:
            if self.shows.wants_details and not state.is_final and time.monotonic() >= metrics_due:
                metrics_due = time.monotonic() + DETAILS_PAUSE
                with contextlib.suppress(RemoteError):
                    metrics = there.metrics(self.job_id)
            guard = self._guards.of(state, self.job_id) if self.shows.wants_details else None
            self.shows.see(state, queue_info.read(state.reply, metrics), guard, url)
            if state.is_final:
                return state
            patient.sleep(interval(time.monotonic() - patient.began) * self._share)
            state = patient.ask("poll", there, lambda: there.job(self.job_id))


class _Patient:
    """Repeats requests until there is an answer or the time is up."""

    def __init__(self, job_id: str, timeout: float | None, say: Callable[[Any, str, str], None]) -> None:
        self.job_id = job_id
        self.began = time.monotonic()
        self.say = say
        self._timeout = timeout
        self._end = None if timeout is None else self.began + timeout

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
        from ..results_fetch import Corrupt, read_results
        from ..watcher import remote

        while True:
            try:
                return fetch.decode(read_results(there, self.job_id))
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


def _raise_for(patient: _Patient, client: Any, state: remote.JobState) -> None:
    from .. import service as qiskit_service
    from ..job_errors import ending
    from ..results_fetch import reason_in_results

    if state.is_completed:
        return
    text = reason_in_results(qiskit_service.remote_of(client), patient.job_id, state)
    raise ending(state, patient.job_id, text=text, by="")


def _fetch(patient: _Patient, client: Any, state: remote.JobState) -> RunResult:
    """Fetch the job's result and its cost."""
    from .. import service as qiskit_service
    from ..job_cost import JobCost
    from ..result import RunResult
    from ..results_fetch import ResultsFetch
    from ..watcher import remote
    from ..watcher.facts import Figures

    there, job_id = qiskit_service.remote_of(client), patient.job_id
    decoded = patient.fetch(there, ResultsFetch(job_id, qiskit_service.decoders_for(state.reply), patient.say))
    metrics: remote.Json = {}
    with contextlib.suppress(remote.RemoteError):
        metrics = there.metrics(job_id)
    cost = JobCost(Figures.read(state.reply, metrics))
    return RunResult(decoded, job_id, str(state.reply.get("backend") or ""), cost)
