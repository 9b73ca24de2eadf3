"""What a row of the drill is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .attempt import Try
from .judge import Requests

Steps = Iterator[float]
Attempt = Callable[[Try], Steps | None]


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        name: What is done.
        expected: What must come of it.
        attempt: Does it once. A generator yields seconds to wait, which the tries of the row spend side by side.
        weight: Its share of the tries.
        requests: How often a job that is to be cancelled may be asked to stop.
        outcome: What the driver comes to: its end by the drill's hand, or its result.
        most: The most tries that make sense.
        obstacle: Says why it can't be tried here, or "".
    """

    name: str
    expected: str
    attempt: Attempt
    weight: float = 1.0
    requests: Requests = "one"
    outcome: Literal["end", "result"] = "end"
    most: int | None = None
    obstacle: Callable[[], str] = str
