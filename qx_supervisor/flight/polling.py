"""The state of a run's job, read until it is final, and what is shown beside it: its place in the queue, its cost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future

from .. import queue_info, threads
from ..backoff import Backoff
from ..poller import Poller, poller_of
from ..queue_blockers import FIRST_LOOK, QueueBlockers, blockers_of
from ..watcher import remote
from . import machine as m
from .core import Core, state_of

logger = logging.getLogger("qx_supervisor")

COST_SECONDS = 0.3
"""How long a result waits for the answer that says what it cost."""

_LONGEST_POLL = 15.0
_POLL_SHARE = 0.02  # of the time that a job has taken so far: an hour in the queue is asked after every 15 s
_DETAILS_PAUSE = 15.0  # between two readings of a queued job's place


class Polling:
    """The polling of one run's job. Its steps are done by whatever thread is free.

    Args:
        core: The run.
        conclude: Called when the job is final.
        fail: Called with an error that is there to stay.
    """

    def __init__(self, core: Core, conclude: Callable[[], object], fail: Callable[[BaseException], object]) -> None:
        self._core = core
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
        self._cost: Future[None] | None = None

    def begin(self, driver: str) -> None:
        """Poll the job, which was submitted by the driver with this tag."""
        core = self._core
        self._since = time.monotonic()
        self._backoff = Backoff("poll", core.job_id, core.say)
        poller = self._poller = poller_of(core.there, driver)
        watched = poller.watch(str(core.job_id), self._saw, self._missed)
        self.leave = lambda: poller.leave(watched)
        if core.machine.is_over:
            self.leave()

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
            if self._shows_details:
                with contextlib.suppress(RuntimeError):  # no thread can be had for it
                    self._cost = threads.looking.begin(functools.partial(self._read_details, state))
            if core.finished(m.Finished(state_of(state)), state):
                self._conclude()
            return None
        if state.status != self._seen:
            self._seen = state.status
            core.say("poll", state.status.lower())
        if state.status.lower() == "queued":
            self._look_for_blockers()
            if self._shows_details and time.monotonic() >= self._details_due:
                self._details_due = math.inf  # until it is read
                with contextlib.suppress(RuntimeError):
                    threads.looking.do(functools.partial(self._read_details, state))
        # Noticed late by 2 % at most, and never more often than the official client asks.
        shortest = 0.1 if core.place.in_session else 0.5
        pause = min(_LONGEST_POLL, max(shortest, _POLL_SHARE * (time.monotonic() - self._since)))
        return core.request.poll_interval or pause

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
                logger.warning("job %s is queued: %s", core.job_id, why, extra={"in_panel": True})
            core.say("poll", "queued", why)

    @property
    def _shows_details(self) -> bool:
        return self._core.asks_details and self._poller is not None and not self._poller.is_crowd

    def _read_details(self, state: remote.JobState) -> None:
        """Read the job's place in the queue and its cost, and tell them where they are news. No failure matters."""
        core = self._core
        try:
            known = queue_info.read(state.reply, core.there.metrics(str(core.job_id)))
        except remote.RemoteError:
            return
        finally:
            self._details_due = time.monotonic() + _DETAILS_PAUSE
        with core.telling:
            if not state.is_final:
                has_moved_on = core.status.state != state.status.lower()
                if core.machine.phase != "submitted" or core.machine.is_over or has_moved_on:
                    return
                known = dataclasses.replace(known, qpu_seconds=None)
            is_news = known != core.details
            core.details = known
            if is_news and not state.is_final:
                core.say("poll", core.status.state, core.status.detail)

    def wait_for_cost(self) -> None:
        """Wait a moment for the answer that says what the job cost, if that was asked for."""
        if self._cost is not None:
            with contextlib.suppress(Exception):  # the result is what the run is about
                self._cost.result(COST_SECONDS)
