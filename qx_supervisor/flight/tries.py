"""When a job is submitted again, as a pure state machine: no threads, no I/O, no clock.

Whatever happens:

- the tries follow each other: none begins while there is another that is not over;
- none begins when the program has wished the end of the run;
- there are no more than were asked for, and the run ends once.
"""

from __future__ import annotations

from typing import Literal

State = Literal["ready", "trying", "pausing", "over"]
Order = Literal["try", "pause", "end", "abandon", "nothing"]
"""What is to be done: begin a try; wait until the next one; end the run; end the try that is under way."""


class Tries:
    """The tries of one run.

    Args:
        retries: How many there may be after the first.

    Attributes:
        state: Where it is.
        made: The number of tries so far.
        is_wished: Whether the program wishes the end of the run.
    """

    def __init__(self, retries: int) -> None:
        self._most = 1 + retries
        self.state: State = "ready"
        self.made = 0
        self.is_wished = False

    @property
    def may_follow(self) -> bool:
        """Whether another try may follow the present one."""
        return self.made < self._most and not self.is_wished and self.state != "over"

    def begin(self) -> Order:
        """The run begins, or a pause is over."""
        if self.state not in ("ready", "pausing"):
            return "nothing"
        self.state, self.made = "trying", self.made + 1
        return "try"

    def ended(self, *, is_retryable: bool) -> Order:
        """The try that was under way is over.

        Args:
            is_retryable: Whether it failed for a reason that may pass.
        """
        assert self.state == "trying"
        if is_retryable and self.may_follow:
            self.state = "pausing"
            return "pause"
        self.state = "over"
        return "end"

    def wish(self) -> Order:
        """The program wishes the end of the run."""
        self.is_wished = True
        if self.state == "trying":
            return "abandon"
        if self.state == "over":
            return "nothing"
        self.state = "over"
        return "end"
