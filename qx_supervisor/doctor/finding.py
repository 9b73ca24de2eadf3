"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault"]
"""All is well; it works with restrictions; it does not work, or jobs are not protected."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: The check's name: "versions", "account" and so on.
        verdict: The severity.
        text: What was found.
        next_step: What to do, or "".
    """

    check: str
    verdict: Verdict
    text: str
    next_step: str = ""
