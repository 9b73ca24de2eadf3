"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "fault"]
"""All is well; it works, with less than there could be; it does not work, or does not protect."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: The check's name: "versions", "account" and so on.
        verdict: How bad it is.
        text: What was found.
        next_step: What to do, or "".
    """

    check: str
    verdict: Verdict
    text: str
    next_step: str = ""
