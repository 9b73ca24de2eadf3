"""What becomes of the parts of a split run, as a pure state machine: no threads, no I/O, no clock.

Whatever happens: when a part fails, all others that are not over are ended, once; and the run ends once, after all.
"""

from __future__ import annotations

from typing import NamedTuple


class Orders(NamedTuple):
    """What is to be done.

    Attributes:
        abandon: The parts to be ended.
        is_over: Whether all are over, so that the run ends.
    """

    abandon: tuple[int, ...] = ()
    is_over: bool = False


class Parts:
    """The parts of one run.

    Args:
        number: How many there are.

    Attributes:
        left: Those that are not over.
        done: Those that have a result.
        failed: The first that ended without; None: none did.
        is_wished: Whether the program wishes the end of the run.
    """

    def __init__(self, number: int) -> None:
        self.left = set(range(number))
        self.done: set[int] = set()
        self.failed: int | None = None
        self.is_wished = False
        self._is_ending = False

    def ended(self, part: int, *, has_result: bool) -> Orders:
        """A part is over."""
        self.left.remove(part)
        if has_result:
            self.done.add(part)
        elif self.failed is None:
            self.failed = part
        abandoned = () if has_result or self._is_ending else tuple(sorted(self.left))
        self._is_ending |= not has_result
        return Orders(abandoned, not self.left)

    def wish(self) -> Orders:
        """The program wishes the end of the run: each time, since a part that has completed all the same goes on."""
        self.is_wished = self._is_ending = True
        return Orders(tuple(sorted(self.left)))
