"""One timestamped line per change, on stderr: for logs, and wherever nothing better can be shown."""

from __future__ import annotations

import sys
import time

from ..status import Status


class Plain:
    """Writes lines to whatever `sys.stderr` is at the time."""

    def __init__(self) -> None:
        self._watched = False

    def show(self, status: Status) -> None:
        """Write a line."""
        parts = [str(status)]
        if status.watcher is not None and not self._watched:
            self._watched = True
            parts.append(f"watched by pid {status.watcher}")
        stamp = time.strftime("%H:%M:%S", time.localtime(status.time))
        try:
            sys.stderr.write(f"{stamp} qx: {' · '.join(parts)}\n")
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):
            pass  # no stderr, a closed one, or a terminal that has hung up: the run goes on
