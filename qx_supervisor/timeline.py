"""How long the parts of a run took: it was transpiled, its job waited in the queue, and it ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .watcher.facts import Figures


class Timeline(NamedTuple):
    """How long the parts of a run took, in seconds; None: there was no such part, or its length is not known.

    The times in the queue and at work are IBM Quantum's, where it reports them, otherwise what this program saw while
    it polled the job. What lies between the parts, such as the submission, is in none of them.

    Attributes:
        transpiled: How long Qiskit took to adapt the circuits to the backend.
        queued: How long the job waited in the queue.
        ran: How long it ran, with its preparations on classical computers: this is not the QPU time. On a local
            backend, the simulation.
    """

    transpiled: float | None = None
    queued: float | None = None
    ran: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {rough(length)}" for name, length in self._asdict().items() if length is not None)

    def corrected(self, figures: Figures) -> Timeline:
        """This one, with the service's own times in place of what was seen from here.

        Args:
            figures: What is known of the job.
        """
        queued, ran = _between(figures.queued, figures.ran), _between(figures.ran, figures.ended)
        return Timeline(self.transpiled, self.queued if queued is None else queued, self.ran if ran is None else ran)


NOTHING_SEEN = Timeline()
"""Of a run that this program has not seen at work."""


def longest(timelines: Sequence[Timeline]) -> Timeline:
    """Of several jobs at the same time, the longest of each part.

    Args:
        timelines: Those of the jobs.
    """
    columns = ([each for each in lengths if each is not None] for lengths in zip(*timelines, strict=True))
    return Timeline(*(max(lengths, default=None) for lengths in columns))


class Stopwatch:
    """Takes the times of a run's parts from its states, as they come.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step = ""
        self._since = 0.0
        self._lengths: dict[str, float] = {}

    def see(self, stage: str, state: str) -> None:
        """Take a state in which the run is from now on."""
        step = "running" if state == "simulating" else step_of(stage, state, self._step)
        if step == self._step:
            return
        now = self._clock()
        if self._step:
            self._lengths[self._step] = self._lengths.get(self._step, 0.0) + now - self._since
        self._step, self._since = step, now

    @property
    def timeline(self) -> Timeline:
        """The parts that are over."""
        return Timeline(*(self._lengths.get(step) for step in ("transpile", "queued", "running")))


def step_of(stage: str, state: str, current: str) -> str:
    """The step of a run that a status belongs to; "" of what is none, such as the way to the service.

    Args:
        stage: The status's stage.
        state: Its state.
        current: The step that the run was in until now.
    """
    match stage, state:
        case "transpile", _:
            return "transpile"
        case "poll", "queued" | "running":
            return state
        case "poll", _:
            return current  # the connection is lost, say
        case "results", state if state != "done":
            return "fetch"
    return ""


def rough(length: float) -> str:
    """A duration as people say it: <0.1 s, 0.4 s, 8 s, 3 min, 2 h 5 min, 3 d 4 h."""
    if length < 9.95:
        return f"{length:.1f} s".replace(".0 ", " ") if length >= 0.1 else "<0.1 s"
    if length < 99.5:
        return f"{length:.0f} s"
    minutes = round(length / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(length / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)
