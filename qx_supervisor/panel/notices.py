"""The library's warnings, shown beside the runs that they may concern.

Whoever has set up logging sees them there. Everybody else would miss "the watcher may not outlive this driver": a
library logs, and Python shows none of it by default. So while a panel is open, it shows the warnings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Panel

logger = logging.getLogger("qx_supervisor")

_open: weakref.WeakSet[Panel] = weakref.WeakSet()
_changing = threading.Lock()
os.register_at_fork(after_in_child=_changing._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if _is_set_up():
            return
        with _changing:
            panel = next(iter(_open), None)  # all of them write to the same place
        if panel is not None:
            with contextlib.suppress(Exception):
                panel.notice(f"{record.levelname.lower()}: {record.getMessage()}")


def _is_set_up() -> bool:
    handlers = (*logger.handlers, *logger.root.handlers)
    return any(not isinstance(each, logging.NullHandler | _Notices) for each in handlers)


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
