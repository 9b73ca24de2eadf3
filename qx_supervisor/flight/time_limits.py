"""How long a run may take in all, and how long its job may run, queue aside."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable

from .. import service, threads
from ..job_errors import MORE, ran_out
from ..watcher import remote
from ..watcher.facts import Figures
from .core import Core

CLOCK_SECONDS = 5.0
"""How long the service's clock is waited for, by which a job that was taken up has begun to run."""


class TimeLimits:
    """The time limits of one run.

    Args:
        core: The run.
        end: Ends it; called with why, and with the next step, or "".
    """

    def __init__(self, core: Core, end: Callable[[str, str], object]) -> None:
        self._core = core
        self._end = end
        self._timers: list[threads.Timer] = []

    def begin(self) -> None:
        """The run begins."""
        seconds = self._core.request.timeout
        if seconds is not None:
            self._set(seconds, self.time_out)

    def runs(self) -> None:
        """The job is seen running. One that was taken up may have run for long, and no clock here says how long."""
        seconds = self._core.request.running_timeout
        if seconds is None:
            return
        self._set(seconds, self.run_out)
        if self._core.is_taken_up:
            with contextlib.suppress(RuntimeError):  # no thread can be had
                threads.looking.do(functools.partial(self._count_earlier, seconds))

    def time_out(self) -> None:
        """End the run: it has taken as long as it may."""
        self._end(f"no result within {self._core.request.timeout:g} s", "")

    def run_out(self) -> None:
        """End the run: its job has run for as long as it may."""
        core = self._core
        if core.machine.phase == "submitted":  # else its results are being fetched
            self._end(ran_out(core.request.running_timeout or 0.0), MORE)

    def lift(self) -> None:
        """There is no limit any more."""
        for timer in self._timers:
            timer.cancel()

    def _set(self, seconds: float, end: Callable[[], object]) -> None:
        self._timers.append(threads.ending.after(min(seconds, threading.TIMEOUT_MAX), end))
        machine = self._core.machine
        if machine.is_over or machine.is_detached:  # meanwhile
            self.lift()

    def _count_earlier(self, seconds: float) -> None:
        """Count for how long the job had run before, if the service tells.

        When it began is a time of the service's clock, and so is now. A gateway on the way may answer for it, so this
        machine's clock must agree: of the two, the one counts by which the job has run for less.
        """
        core = self._core
        try:
            ran = Figures.read({}, core.there.metrics(str(core.job_id))).ran
        except remote.RemoteError:
            return
        now = None if ran is None else service.server_clock(core.place.client, CLOCK_SECONDS)
        if ran is not None and now is not None:
            before = max(0.0, min(now, time.time()) - ran)
            self._set(max(0.0, seconds - before), self.run_out)
