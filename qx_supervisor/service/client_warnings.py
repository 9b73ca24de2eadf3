"""Keeps the client's warnings from ending a submission.

Before it posts a job, the client warns that a backend is paused, or that an instance's time is used up. In a program
that turns warnings into errors (`python -W error`, a test run), such a warning would prevent the submission of a valid
job. The run shows it as the detail of its state instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from . import internals


class _Warnings:
    """Python's `warnings`, except that no warning ends a submission of ours."""

    def __init__(self, report: Callable[[str], bool]) -> None:
        self._report = report

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(self, message: Any, *arguments: Any, **more: Any) -> None:
        """Warn as the client does."""
        # Without the address of the instance's page, which contains its CRN.
        is_ours = self._report(str(message).partition(" Check http")[0].replace("ismade", "is made"))
        more["stacklevel"] = more.get("stacklevel", 1) + 1
        try:
            warnings.warn(message, *arguments, **more)
        except Warning:
            if not is_ours:
                raise


def keep_from_ending(report: Callable[[str], bool]) -> None:
    """Keep the client's warnings from ending submissions.

    Args:
        report: Called with a warning; returns whether this thread is in a submission of ours.
    """
    module = internals.loaded_service_module()
    if module is not None and not isinstance(module.warnings, _Warnings):
        module.warnings = _Warnings(report)
