"""Who asks what a run's job cost, and when: once at its end, and again for as long as the charge is pending.

Nobody waits for it. What comes too late for this process is read by its watcher after its end.
"""

from __future__ import annotations

import dataclasses
import functools

from .. import threads
from ..link import link
from ..poller import ask
from ..watcher import remote
from ..watcher.facts import Figures
from .core import Core

PAUSES = (2.0, 10.0, 60.0, 300.0)
"""Seconds until a charge that is pending is asked for again. After the last one it is left to `reap`."""

END_SECONDS = 1.0
"""How long a program that was sent a signal has to end: then its watcher asks, and the job is asked about once."""


class CostReader:
    """Reads what one run's job cost.

    Args:
        core: The run.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._is_begun = False

    def see(self, state: remote.JobState) -> None:
        """Take what the job's state says of it, which costs no request."""
        self._learn(Figures.read(state.reply, {}))

    def read(self, state: remote.JobState) -> None:
        """Begin to read it: the job is final."""
        core = self._core
        self.see(state)
        if self._is_begun:
            return
        self._is_begun = True
        wish = core.machine.ending
        pause = END_SECONDS if wish is not None and wish.signum else 0.0
        if not pause:
            core.cost.asking()
        self._later(pause, 0)

    def _later(self, seconds: float, tries: int) -> None:
        work = functools.partial(self._read, tries)
        try:
            if seconds:
                threads.looking.after(seconds, work)
            else:
                threads.looking.do(work)
        except RuntimeError:  # no thread can be had
            self._core.cost.answered()

    def _read(self, tries: int) -> None:
        core = self._core
        try:
            self._learn(Figures.read({}, ask(core.there, lambda: core.there.metrics(str(core.job_id)))))
        except remote.RemoteError as error:
            if error.status == 404:
                return  # it was deleted
        finally:
            core.cost.answered()
        if core.cost.figures.charged is None and tries < len(PAUSES):
            self._later(PAUSES[tries], tries + 1)

    def _learn(self, figures: Figures) -> None:
        core = self._core
        if not core.cost.learn(figures):
            return
        known = core.cost.figures
        with core.telling:
            core.status = dataclasses.replace(
                core.status, qpu_seconds_estimated=known.estimated, qpu_seconds=known.charged
            )
        if core.request.attached and not core.is_protected:
            return  # no ledger has it: it was final already
        if known.estimated is not None or known.charged is not None:
            link.figures(core.run_id, str(core.job_id), known)
