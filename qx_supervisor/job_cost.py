"""What a job cost, as far as that is known: whoever asks waits for an answer that is under way, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .watcher.facts import Figures

NONE = Figures()

WAIT_SECONDS = 0.3
"""How long one who asks waits for the answer that is under way."""


class JobCost:
    """What a job cost. Safe to use from any thread.

    Args:
        figures: What is known.
    """

    def __init__(self, figures: Figures = NONE) -> None:
        self.figures = figures
        self._lock = threading.Lock()
        self._is_answered = threading.Event()
        self._is_answered.set()

    @property
    def estimated(self) -> float | None:
        """The QPU time that was expected, in seconds; None: not reported."""
        return self.figures.estimated

    @property
    def charged(self) -> float | None:
        """The QPU time charged, in seconds; None: pending, or not known yet."""
        self.wait()
        return self.figures.charged

    def wait(self) -> None:
        """Wait for the first answer about the charge, if that is under way."""
        self._is_answered.wait(WAIT_SECONDS)

    def asking(self) -> None:
        """The charge is being asked for."""
        self._is_answered.clear()

    def answered(self) -> None:
        """There is an answer, or there will be none for a while."""
        self._is_answered.set()

    def learn(self, figures: Figures) -> bool:
        """Take what was read; returns whether it is news."""
        with self._lock:
            known = self.figures
            self.figures = known.updated(figures)
            return self.figures != known


class JoinedCost(JobCost):
    """What several jobs cost together.

    Args:
        costs: What each cost.
    """

    def __init__(self, costs: Sequence[JobCost]) -> None:
        super().__init__()
        self._costs = costs

    @property
    def estimated(self) -> float | None:
        """The QPU time that was expected, in seconds; None: not reported of all."""
        return _sum([each.estimated for each in self._costs])

    @property
    def charged(self) -> float | None:
        """The QPU time charged, in seconds; None: of one it is pending, or not known yet."""
        return _sum([each.charged for each in self._costs])


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if known and len(known) == len(seconds) else None


def in_words(seconds: float) -> str:
    """QPU time as it is shown: 0.333 s, 7.5 s, 1249 s."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
