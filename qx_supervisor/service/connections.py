"""Connections that a forked child must not share with its parent."""

from __future__ import annotations

import os
import weakref
from typing import Any

_forked = False
_owned: weakref.WeakSet[Any] = weakref.WeakSet()


def own_connections(clients: list[Any]) -> None:
    """In a forked child, give clients that may be the parent's connections of their own.

    On a connection that both have, each reads the other's answers.
    """
    for client in clients:
        if _forked and client not in _owned:
            _owned.add(client)
            for adapter in client._session.adapters.values():
                adapter.__setstate__(adapter.__getstate__())  # as `requests` does for one that was pickled


def _begin_anew() -> None:
    global _forked  # noqa: PLW0603 - what it says is true of the process
    _forked = True
    _owned.clear()


os.register_at_fork(after_in_child=_begin_anew)
