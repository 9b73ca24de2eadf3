"""The library's warnings, shown beside the runs that they may concern.

Whoever has set up logging sees them there. Everybody else would miss "the watcher may not outlive this driver": a
library logs, and Python shows none of it by default. So while a panel is open, it shows the warnings.

They are only put down here. A panel takes them when it is its turn to write: whoever warns may be the thread that sees
to a new watcher, and must not wait for a terminal that was stopped with Ctrl-S.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .view import printable

if TYPE_CHECKING:
    from . import Panel

logger = logging.getLogger("qx_supervisor")

_open: weakref.WeakSet[Panel] = weakref.WeakSet()
_waiting: deque[str] = deque(maxlen=100)
_changing = threading.Lock()


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "in_panel", False):  # as the detail of a run's state
            return
        if _open and not _is_set_up():
            _waiting.append(f"{record.levelname.lower()}: {printable(record.getMessage())}")


def _is_set_up() -> bool:
    handlers = (*logger.handlers, *logger.root.handlers)
    return any(not isinstance(each, logging.NullHandler | _Notices) for each in handlers)


def take() -> Iterator[str]:
    """The warnings that no panel has shown yet."""
    while _waiting:
        try:
            yield _waiting.popleft()
        except IndexError:
            return  # another one was quicker


def follow(panel: Panel) -> None:
    """Have a panel show warnings until it is closed or gone."""
    with _changing:
        _open.add(panel)
        if not any(isinstance(each, _Notices) for each in logger.handlers):
            logger.addHandler(_Notices(logging.WARNING))


def leave(panel: Panel) -> None:
    """The panel is closed."""
    with _changing:
        _open.discard(panel)


def _begin_anew() -> None:
    global _changing  # noqa: PLW0603 - a thread that is not here may have held the parent's
    _changing = threading.Lock()
    _waiting.clear()


os.register_at_fork(after_in_child=_begin_anew)
