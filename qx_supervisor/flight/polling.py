"""The state of a run's job, read until it is final, and what is shown beside it: its place in the queue."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable

from .. import queue_info, quota, threads
from ..backoff import Backoff
from ..poller import SHORTEST_INTERVAL, Poller, interval, poller_of
from ..queue_blockers import FIRST_LOOK, QueueBlockers, blockers_of
from ..watcher import remote
from . import machine as m
from .core import Core, state_of
from .cost import CostReader
from .failures import estimate_exceeds

_SHORTEST_IN_SESSION = 0.1  # between two readings of the state: who has a session to themselves waits for nobody
_DETAILS_PAUSE = 15.0  # between two readings of a queued job's place


class Polling:
    """The polling of one run's job. Its steps are done by whatever thread is free.

    Args:
        core: The run.
        cost: Reads what its job cost.
        runs: Called when the job is seen to run.
        conclude: Called when the job is final.
        fail: Called with an error that is there to stay.
    """

    def __init__(
        self,
        core: Core,
        cost: CostReader,
        runs: Callable[[], object],
        conclude: Callable[[], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        self._core = core
        self._cost = cost
        self._runs = runs
        self._conclude = conclude
        self._fail = fail
        self._backoff: Backoff | None = None
        self._poller: Poller | None = None
        self.leave: Callable[[], None] = lambda: None
        self._since = 0.0
        self._seen = ""
        self._blockers: QueueBlockers | None = None
        self._blocked = ""  # by what
        self._details_due = 0.0

    def begin(self, driver: str) -> None:
        """Poll the job, which was submitted by the driver with this tag."""
        core = self._core
        self._since = time.monotonic()
        self._backoff = Backoff("poll", core.job_id, core.say, log=core.log)
        poller = self._poller = poller_of(core.there, driver)
        watched = poller.watch(str(core.job_id), self._saw, self._missed)
        self.leave = lambda: poller.leave(watched)
        if core.machine.is_over:
            self.leave()

    @property
    def sees_it_run(self) -> bool:
        """Whether the job ran when its state was read last."""
        return self._seen.lower() == "running"

    @property
    def _is_wanted(self) -> bool:
        machine = self._core.machine
        return not (machine.is_stopping or machine.is_over)

    def _saw(self, state: remote.JobState) -> float | None:
        """The job's state was read; returns the seconds until it is to be read again, or None."""
        core = self._core
        if not self._is_wanted or self._backoff is None or core.machine.phase == "final":
            return None
        self._backoff.answered()
        if state.is_final:
            self._cost.read(state)
            if core.finished(m.Finished(state_of(state)), state):
                self._conclude()
            return None
        self._cost.see(state)
        if state.status != self._seen:
            self._seen = state.status
            core.say("poll", state.status.lower())
            if self.sees_it_run:
                self._runs()
        if core.asks_details:
            self._look_at_quota()
        if state.status.lower() == "queued":
            if (error := estimate_exceeds(core)) is not None:
                threads.ending.do(functools.partial(self._fail, error))
                return None
            self._look_for_blockers()
            if self._shows_details and time.monotonic() >= self._details_due:
                self._details_due = math.inf  # until it is read
                with contextlib.suppress(RuntimeError):
                    threads.looking.do(functools.partial(self._read_details, state))
        shortest = _SHORTEST_IN_SESSION if core.place.in_session else SHORTEST_INTERVAL
        return core.request.poll_interval or interval(time.monotonic() - self._since, shortest)

    def _missed(self, error: Exception) -> float | None:
        """The job's state could not be read; returns the seconds until the next try, or None."""
        if not self._is_wanted or self._backoff is None:
            return None
        try:
            return self._backoff.failed(error)
        except Exception as failure:  # noqa: BLE001 - the run ends in it
            threads.ending.do(functools.partial(self._fail, failure))
            return None

    def _look_for_blockers(self) -> None:
        """Tell what keeps the job in the queue, once it has been there for longer than others."""
        core = self._core
        if time.monotonic() - self._since < FIRST_LOOK:
            return
        if self._blockers is None:
            self._blockers = blockers_of(core.there, core.place.name)
        why = self._blockers.words()
        if why != self._blocked:
            self._blocked = why
            if why:  # the panel shows it as the state's
                core.log.warning("job %s is queued: %s", core.job_id, why, extra={"in_panel": True})
            core.say("poll", "queued", why)

    def _look_at_quota(self) -> None:
        """Tell what the instance has left, if that is low."""
        core = self._core
        known = quota.latest(core.there)
        low = known if known is not None and known.is_low(core.cost.figures.estimated) else None
        if low != core.quota:
            core.quota = low
            core.say("poll", core.status.state, core.status.detail)

    @property
    def _shows_details(self) -> bool:
        return self._core.asks_details and self._poller is not None and not self._poller.is_crowd

    def _read_details(self, state: remote.JobState) -> None:
        """Read the job's place in the queue, and tell it where it is news. No failure matters."""
        core = self._core
        try:
            known = queue_info.read(state.reply, core.there.metrics(str(core.job_id)))
        except remote.RemoteError:
            return
        finally:
            self._details_due = time.monotonic() + _DETAILS_PAUSE
        with core.telling:
            has_moved_on = core.status.state != state.status.lower()
            if core.machine.phase != "submitted" or core.machine.is_over or has_moved_on:
                return
            is_news, core.details = known != core.details, known
            if is_news:
                core.say("poll", core.status.state, core.status.detail)
