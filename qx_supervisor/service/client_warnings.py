"""What the client has to say at a submission is told, and ends none.

Before it posts a job, the client warns that a backend is paused, or that an instance's time is used up. Where a program
turns warnings into errors (`python -W error`, a test run), such advice would keep its job from being submitted, though
nothing is wrong with it. The same is told as the detail of the run's state, for as long as it lasts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


class _Advice:
    """Python's `warnings`, but that none of them ends a submission of ours."""

    def __init__(self, told: Callable[[str], bool]) -> None:
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, *arguments: Any, **more: Any) -> None:
        """Warn as the client does."""
        # Not the address of the instance's page, which names the whole of it.
        is_ours = self._told(str(message).partition(" Check http")[0].replace("ismade", "is made"))
        more["stacklevel"] = more.get("stacklevel", 1) + 1
        try:
            warnings.warn(message, *arguments, **more)
        except Warning:
            if not is_ours:
                raise


def let_none_end(told: Callable[[str], bool]) -> None:
    """Have the client's advice end no submission.

    Args:
        told: Is told it; returns whether a submission of ours is under way in this thread.
    """
    from qiskit_ibm_runtime import qiskit_runtime_service as client

    if not isinstance(client.warnings, _Advice):
        client.warnings = _Advice(told)
