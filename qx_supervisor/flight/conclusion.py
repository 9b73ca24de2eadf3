"""What a job that is final has come to: its results, fetched and decoded, or why there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable

from .. import service, threads
from ..job_errors import ending
from ..result import RunResult
from ..results_fetch import Corrupt, ResultsFetch, read_results, reason_in_results
from ..watcher import remote
from . import machine as m
from .core import Core
from .failures import budget_bound_reached


class Conclusion:
    """The end of one run's job.

    Args:
        core: The run.
        step: Makes of some work a step of the run's, whose failure is the run's.
        done: Called with the result.
    """

    def __init__(
        self,
        core: Core,
        step: Callable[[Callable[[], None]], Callable[[], None]],
        done: Callable[[RunResult], None],
    ) -> None:
        self._core = core
        self._step = step
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
            text = reason_in_results(core.there, job_id, state)
            if core.budget_bound is not None and state.ran_too_long:
                raise budget_bound_reached(core, state)
            limit = core.request.running_timeout if core.is_bound_by_timeout or core.is_taken_up else None
            raise ending(state, job_id, text=text, by=by, running_timeout=limit)
        core.say("results", "fetching results")
        decoders = core.decoders or service.decoders_for(state.reply)
        self._results = ResultsFetch(job_id, decoders, core.say)
        self._fetch(self._results)

    def _wait_for_cost(self) -> None:
        """Wait a moment for what the job cost, if somebody looks at the last status."""
        if self._core.is_looked_at:
            self._core.cost.wait()

    def _fetch(self, results: ResultsFetch) -> None:
        core = self._core
        core.stop_if_wished()
        try:
            decoded = results.decode(read_results(core.there, str(core.job_id)))
        except (remote.RemoteError, Corrupt) as error:
            threads.asking.after(results.failed(error), self._step(functools.partial(self._fetch, results)))
            return
        core.handle(m.Fetched())
        self._wait_for_cost()
        result = RunResult(
            decoded,
            str(core.job_id),
            core.place.name,
            core.cost,
            is_list=core.request.is_list,
            seen=core.stopwatch.timeline,
        )
        core.say("results", "done")
        self._done(result)
