"""What the client has to say at a submission is told, and ends none.

Before it posts a job, the client warns that a backend is paused, or that an instance's time is used up. Where a program
turns warnings into errors (`python -W error`, a test run), such advice would keep its job from being submitted, though
nothing is wrong with it. The same is told as the detail of the run's state, for as long as it lasts.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("qx_supervisor")


class _Advice:
    """Python's `warnings`, but that none of them ends a submission of ours."""

    def __init__(self, is_ours: Callable[[], bool]) -> None:
        self._is_ours = is_ours

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, *arguments: Any, **more: Any) -> None:
        """Warn as the client does."""
        more["stacklevel"] = more.get("stacklevel", 1) + 1
        try:
            warnings.warn(message, *arguments, **more)
        except Warning:
            if not self._is_ours():
                raise
            logger.warning("%s", message)


def let_none_end(is_ours: Callable[[], bool]) -> None:
    """Have the client's advice end no submission.

    Args:
        is_ours: Says whether one of ours is under way in this thread.
    """
    from qiskit_ibm_runtime import qiskit_runtime_service as client

    if not isinstance(client.warnings, _Advice):
        client.warnings = _Advice(is_ours)
