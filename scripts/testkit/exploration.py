"""Every state that a modelled world can come to, breadth first, and whether each leads to an end."""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeVar

Move = tuple[Any, ...]


class World(Protocol):
    """A state. It can be pickled, which is how it is copied."""

    def make(self, move: Move) -> None:
        """Make a move; raises AssertionError if that breaks what must hold."""


W = TypeVar("W", bound=World)


def explore(
    first: W,
    key: Callable[[W], Hashable],
    moves: Callable[[W], Sequence[Move]],
    is_end: Callable[[W], bool],
    *,
    others: Callable[[W], Sequence[Move]] = lambda _: (),
    check_end: Callable[[W], object] = lambda _: None,
    depth: int | None = None,
) -> int:
    """Come to every state; each must lead to an end.

    Args:
        first: Where it begins.
        key: What tells two states apart.
        moves: The moves that will come by themselves.
        is_end: Whether a state is an end.
        others: Moves that may come as well, and never need to.
        check_end: Checks an end.
        depth: Come no further than that many moves, and don't look whether all lead to an end.

    Returns:
        How many states there are.

    Raises:
        AssertionError: As a move or `check_end` raises it, with the way there; or there is no way out of a state.
    """
    numbers = {key(first): 0}
    came_by: list[tuple[int, Move]] = [(0, ())]
    before: list[list[int]] = [[]]  # from which states each can be come to
    waiting = deque([(0, pickle.dumps(first))])
    ends: list[int] = []
    for number in itertools.count():
        if not waiting:
            break
        level, state = waiting.popleft()
        world: W = pickle.loads(state)
        if is_end(world):
            try:
                check_end(world)
            except AssertionError as error:
                error.add_note(f"after {_way(came_by, number)}")
                raise
            ends.append(number)
        if level == depth:
            continue
        own = moves(world)
        for i, move in enumerate([*own, *others(world)]):
            after: W = pickle.loads(state)
            try:
                after.make(move)
            except AssertionError as error:
                error.add_note(f"after {_way(came_by, number)}, {move}")
                raise
            following = numbers.setdefault(key(after), len(before))
            if following == len(before):
                before.append([])
                came_by.append((number, move))
                waiting.append((level + 1, pickle.dumps(after)))
            if i < len(own):
                before[following].append(number)
    if depth is None:
        ending = set(ends)
        while ends:
            ends = [number for end in ends for number in before[end] if number not in ending]
            ending |= set(ends)
        stuck = set(range(len(before))) - ending
        assert not stuck, f"no way out after {_way(came_by, min(stuck))}"
    return len(before)


def _way(came_by: list[tuple[int, Move]], number: int) -> list[Move]:
    way: list[Move] = []
    while number:
        number, move = came_by[number]
        way.insert(0, move)
    return way
