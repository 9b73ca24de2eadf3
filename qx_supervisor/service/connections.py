"""Connections that a forked child must not share with its parent."""

from __future__ import annotations

import weakref
from typing import Any

from .. import forks
from . import internals

_forked = False
_owned: weakref.WeakSet[Any] = weakref.WeakSet()


def own_connections(clients: list[Any]) -> None:
    """In a forked child, give inherited clients new connections.

    On a shared connection, parent and child would read each other's answers.
    """
    for client in clients:
        if _forked and client not in _owned:
            _owned.add(client)
            for adapter in internals.session_of(client).adapters.values():
                adapter.__setstate__(adapter.__getstate__())  # new pools, as `requests` makes them when it unpickles


def _reset_after_fork() -> None:
    global _forked  # noqa: PLW0603 - it is a fact about the process
    _forked = True
    _owned.clear()


forks.reset_in_child(_reset_after_fork)
