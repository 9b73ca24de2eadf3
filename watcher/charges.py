"""Which jobs' charges are still to be read, by whom and when; pure, as the policy is, whose part it is.

A driver reads what its jobs cost, while it lives. The watcher reads what those cost that it cancels itself, and once a
driver is dead the others, whose charges it had not learned: what a death cost must be known. It delays no cancel, for
nothing is read while one is under way. Nor does the watcher stay for long: who knows when IBM Quantum settles a charge?
"""

from __future__ import annotations

from dataclasses import dataclass

PAUSES = (2.0, 8.0, 30.0)
"""Seconds until a charge that is pending is read again; after the last one it is left to `reap`."""

MOST = 1000
"""The most jobs that are left to a driver, the latest ones: it may live for months, and never learn what some cost."""


@dataclass
class Uncharged:
    """A job whose charge is not known.

    Attributes:
        run: Its run.
        account: The account that it is in.
        job: Its id.
        is_ours: Whether the watcher reads it.
        tries: How often it has been read.
    """

    run: str
    account: str
    job: str
    is_ours: bool
    tries: int = 0


class Charges:
    """The jobs whose charges are not known yet."""

    def __init__(self) -> None:
        self._jobs: dict[str, Uncharged] = {}
        self._due: list[Uncharged] = []

    @property
    def is_reading(self) -> bool:
        """Whether there is any left that the watcher reads."""
        return any(each.is_ours for each in self._jobs.values())

    def leave_to_driver(self, run: str, account: str, job: str) -> None:
        """The driver reads it, while it lives."""
        self._jobs.setdefault(job, Uncharged(run, account, job, is_ours=False))
        if len(self._jobs) > MOST:
            del self._jobs[next(iter(self._jobs))]

    def expect(self, run: str, account: str, job: str) -> None:
        """The watcher reads it."""
        if job not in self._jobs:
            self._jobs[job] = each = Uncharged(run, account, job, is_ours=True)
            self._due.append(each)

    def take_over(self) -> None:
        """The driver reads nothing any more."""
        for each in self._jobs.values():
            if not each.is_ours:
                each.is_ours = True
                self._due.append(each)

    def forget(self) -> None:
        """Read nothing any more."""
        self._jobs.clear()
        self._due.clear()

    def due(self) -> list[Uncharged]:
        """What is to be read now."""
        due = [each for each in self._due if self._jobs.get(each.job) is each]
        self._due.clear()
        return due

    def known(self, job: str) -> None:
        """A charge is known."""
        self._jobs.pop(job, None)

    def pending(self, job: str) -> float | None:
        """A charge could not be read, or is pending; returns the pause until the next try, if there is one."""
        each = self._jobs.get(job)
        if each is None:
            return None
        each.tries += 1
        if each.tries > len(PAUSES):
            del self._jobs[job]
            return None
        return PAUSES[each.tries - 1]

    def paused(self, job: str) -> None:
        """The pause is over."""
        each = self._jobs.get(job)
        if each is not None:
            self._due.append(each)
