"""When a job is submitted again, and what becomes of parts: every state that the two machines can come to.

As in `test_flight`, a world has what is around the machine, does anything that might be done, and checks every order.
"""

from __future__ import annotations

from typing import Any

import pytest
from testkit.exploration import explore

from qx_supervisor.flight.parts import Orders, Parts
from qx_supervisor.flight.tries import Order, Tries

Move = tuple[Any, ...]


class Trying:
    """A run with `retries`."""

    def __init__(self, retries: int) -> None:
        self.tries = Tries(retries)
        self.retries = retries
        self.flights: list[str] = []  # "flies", "retryable", "final"
        self.is_abandoned = self.is_waiting = self.is_wished = self.is_over = False

    def moves(self) -> list[Move]:
        moves: list[Move] = [] if self.flights or self.is_over else [("begin",)]
        if "flies" in self.flights:
            moves += [("ends", "retryable"), ("ends", "final")]
        return moves + ([("pause is over",)] if self.is_waiting else [])

    def others(self) -> list[Move]:
        return [("wish",), ("pause is over",)]  # a timer that was cancelled may fire all the same

    def make(self, move: Move) -> None:
        match move:
            case ("begin",):
                self.do(self.tries.begin())
            case ("pause is over",):
                if not self.flights and not self.is_over:
                    return
                self.is_waiting = False
                self.do(self.tries.begin())
            case ("ends", how):
                self.flights[-1] = how
                self.do(self.tries.ended(is_retryable=how == "retryable"))
            case ("wish",):
                self.is_wished = True
                self.do(self.tries.wish())

    def do(self, order: Order) -> None:
        match order:
            case "try":
                assert "flies" not in self.flights, "two jobs at a time"
                assert not self.is_wished, "a job of a run that is to end"
                assert not self.is_over
                assert "final" not in self.flights, "a failure that does not pass is tried again"
                self.flights.append("flies")
                assert len(self.flights) <= self.retries + 1
            case "pause":
                assert self.flights[-1] == "retryable"
                assert not self.is_wished
                self.is_waiting = True
            case "abandon":
                assert self.flights[-1] == "flies"
            case "end":
                assert not self.is_over, "it ends twice"
                assert "flies" not in self.flights, "it ends, and a job is forgotten"
                self.is_over, self.is_waiting = True, False
                has_tried_all = len(self.flights) == self.retries + 1
                assert self.is_wished or "final" in self.flights or has_tried_all, "it gives up too soon"


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_every_state_of_tries(retries: int) -> None:
    states = explore(
        Trying(retries),
        lambda world: repr({**vars(world), "tries": vars(world.tries)}),
        lambda world: world.moves(),
        lambda world: world.is_over,
        others=lambda world: world.others(),
    )
    assert states > 5


class Splitting:
    """A run with `split`."""

    def __init__(self, number: int) -> None:
        self.parts = Parts(number)
        self.flights = ["flies"] * number
        self.abandoned: set[int] = set()
        self.wishes = 2
        self.is_wished = self.is_over = False

    def moves(self) -> list[Move]:
        return [
            ("ends", part, has_result)
            for part, doing in enumerate(self.flights)
            for has_result in (True, False)
            if doing == "flies"
        ]

    def others(self) -> list[Move]:
        return [("wish",)] if self.wishes and not self.is_over else []

    def make(self, move: Move) -> None:
        match move:
            case ("ends", part, has_result):
                self.flights[part] = "done" if has_result else "failed"
                self.do(self.parts.ended(part, has_result=has_result))
            case ("wish",):
                self.wishes -= 1
                self.is_wished = True
                orders = self.parts.wish()
                assert {part for part, doing in enumerate(self.flights) if doing == "flies"} == set(orders.abandon)
                self.abandoned |= set(orders.abandon)

    def do(self, orders: Orders) -> None:
        for part in orders.abandon:
            assert self.flights[part] == "flies"
            assert part not in self.abandoned, "a part is ended twice"
            assert "failed" in self.flights, "a part is ended for nothing"
            self.abandoned.add(part)
        left = {part for part, doing in enumerate(self.flights) if doing == "flies"}
        if "failed" in self.flights:
            assert left <= self.abandoned, "a part goes on, though another has failed"
        assert orders.is_over == (not left)
        if orders.is_over:
            assert not self.is_over, "it ends twice"
            self.is_over = True
            has_all = self.parts.failed is None
            assert has_all == (set(self.flights) == {"done"})


@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_state_of_parts(number: int) -> None:
    states = explore(
        Splitting(number),
        lambda world: repr({**vars(world), "parts": vars(world.parts), "abandoned": sorted(world.abandoned)}),
        lambda world: world.moves(),
        lambda world: world.is_over,
        others=lambda world: world.others(),
    )
    assert states > 2**number
