"""The library's log: the logger `qx_supervisor`, silent unless the program, or `QX_LOG_LEVEL`, wants to see it."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _Stderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (AttributeError, OSError, ValueError):
            pass  # no stderr, or a closed one


def set_up() -> None:
    """Give the logger its handlers; once, at import."""
    logger = logging.getLogger("qx_supervisor")
    logger.addHandler(logging.NullHandler())
    asked = os.environ.get("QX_LOG_LEVEL", "").strip().upper()
    if not asked:
        return
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s qx_supervisor %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(asked if asked in LEVELS else logging.WARNING)
    if asked not in LEVELS:
        logger.warning("QX_LOG_LEVEL is %r; give one of %s", asked, ", ".join(LEVELS))
