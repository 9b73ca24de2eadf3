"""The logger `qx_supervisor`, silent unless the program or `QX_LOG_LEVEL` enables it."""

from __future__ import annotations

import logging
import sys

from . import settings


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
    level = settings.log_level()
    if not level:
        return
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s qx_supervisor %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level if level in settings.LOG_LEVELS else logging.WARNING)
    if level not in settings.LOG_LEVELS:
        logger.warning("QX_LOG_LEVEL is %r; give one of %s", level, ", ".join(settings.LOG_LEVELS))
