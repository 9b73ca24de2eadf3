"""The logger `qx_supervisor`, silent unless the program or `QX_LOG_LEVEL` enables it."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (AttributeError, OSError, ValueError):
            pass  # no stderr, or a closed one


def set_up() -> None:
    """Add the logger's handlers; called once, at import."""
    logger = logging.getLogger("qx_supervisor")
    logger.addHandler(logging.NullHandler())
    level = os.environ.get("QX_LOG_LEVEL", "").strip().upper()
    if not level:
        return
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s qx_supervisor %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level if level in LEVELS else logging.WARNING)
    if level not in LEVELS:
        logger.warning("QX_LOG_LEVEL is %r; give one of %s", level, ", ".join(LEVELS))
