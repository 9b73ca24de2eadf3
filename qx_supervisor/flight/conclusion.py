"""What a job that is final has come to: its results, fetched and decoded, or why there are none."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from .. import service, threads
from ..job_errors import ending
from ..poller import ask
from ..result import RunResult
from ..results_fetch import Corrupt, ResultsFetch
from ..watcher import remote
from . import machine as m
from .core import Core

_REASON_TRIES = 3  # to learn why a job failed: that is worth a second, and no more


class Conclusion:
    """The end of one run's job.

    Args:
        core: The run.
        step: Makes of some work a step of the run's, whose failure is the run's.
        wait_for_cost: Waits a moment for what the job cost.
        done: Called with the result.
    """

    def __init__(
        self,
        core: Core,
        step: Callable[[Callable[[], None]], Callable[[], None]],
        wait_for_cost: Callable[[], None],
        done: Callable[[RunResult], None],
    ) -> None:
        self._core = core
        self._step = step
        self._wait_for_cost = wait_for_cost
        self._done = done
        self._results: ResultsFetch | None = None

    @property
    def raw(self) -> str | None:
        """The results as text, where they came and could not be decoded."""
        return self._results.raw if self._results is not None else None

    def conclude(self) -> None:
        """Fetch the results.

        Raises:
            RunError: The job has none.
        """
        core = self._core
        state, job_id = core.final, str(core.job_id)
        assert state is not None
        if not state.is_completed:
            self._wait_for_cost()
            by = ", though not by this program"
            if core.machine.lease_lost:
                by += f"; this host had lost its lease on it: {core.machine.lease_lost}"
            raise ending(state, job_id, text=self._reason_in_results(state), by=by)
        core.say("results", "fetching results")
        decoders = core.decoders or service.decoders_for(state.reply)
        self._results = ResultsFetch(job_id, decoders, core.say)
        self._fetch(self._results)

    def _reason_in_results(self, state: remote.JobState) -> str:
        """What a failed job has for results, where the service gives no reason for its failure."""
        if state.reason or state.is_cancelled:
            return ""
        for _ in range(_REASON_TRIES):
            try:
                return self._read()
            except remote.Transient as error:
                time.sleep(min(error.retry_after or 0.5, 2.0))
            except remote.RemoteError:
                break
        return ""

    def _read(self) -> str:
        there = self._core.there
        return ask(there, lambda: there.results(str(self._core.job_id)))

    def _fetch(self, results: ResultsFetch) -> None:
        core = self._core
        core.stop_if_wished()
        try:
            decoded = results.decode(self._read())
        except (remote.RemoteError, Corrupt) as error:
            threads.asking.after(results.failed(error), self._step(functools.partial(self._fetch, results)))
            return
        core.handle(m.Fetched())
        self._wait_for_cost()
        cost, is_list = core.details.qpu_seconds, core.request.is_list
        result = RunResult(decoded, str(core.job_id), core.place.name, cost, is_list=is_list)
        core.say("results", "done")
        self._done(result)
