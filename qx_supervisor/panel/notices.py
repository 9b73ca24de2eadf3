"""The library's warnings, shown by the open panels where the program has not set up logging.

Without logging, Python shows no warning of a library, and users would miss "the watcher may not outlive this driver".

The log handler only queues them, and a panel writes them at its next turn: the thread that warns may be the one that
starts a new watcher, and must not wait for a terminal that was stopped with Ctrl-S.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import forks
from .view import printable

if TYPE_CHECKING:
    from . import Panel

logger = logging.getLogger("qx_supervisor")

_open: weakref.WeakSet[Panel] = weakref.WeakSet()
_waiting: deque[str] = deque(maxlen=100)
_changing = forks.make_lock()


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "in_panel", False):  # shown already, as the detail of a run's state
            return
        if _open and not _is_set_up():
            _waiting.append(f"{record.levelname.lower()}: {printable(record.getMessage())}")


def _is_set_up() -> bool:
    handlers = (*logger.handlers, *logger.root.handlers)
    return any(not isinstance(each, logging.NullHandler | _Notices) for each in handlers)


def take() -> Iterator[str]:
    """Remove and yield the warnings that no panel has shown yet."""
    while _waiting:
        try:
            yield _waiting.popleft()
        except IndexError:
            return  # another panel took it


def follow(panel: Panel) -> None:
    """Queue warnings for a panel until `leave`, or until it is garbage-collected."""
    with _changing:
        _open.add(panel)
        if not any(isinstance(each, _Notices) for each in logger.handlers):
            logger.addHandler(_Notices(logging.WARNING))


def leave(panel: Panel) -> None:
    """Queue no more for a panel."""
    with _changing:
        _open.discard(panel)


forks.reset_in_child(_waiting.clear)
