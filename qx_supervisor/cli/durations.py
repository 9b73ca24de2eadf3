"""Lengths of time, as options take them."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_WRITTEN = re.compile(r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[0-9]+)?) ?(s|min|m|h|d|)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """A length of time: seconds, or a number with s, min, h or d.

    Args:
        least: The shortest, in seconds.
    """

    name = "time"

    def __init__(self, least: float = 0.0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, in seconds; a default is a number already."""
        if isinstance(value, int | float):
            return float(value)
        found = _WRITTEN.fullmatch(value)
        seconds = float(found[1]) * _SECONDS[found[2]] if found is not None else math.inf
        if math.isinf(seconds):
            self.fail(
                f"{value!r} is not a length of time; give seconds, or a number with a unit (s, min, h, d), "
                "such as 90 or 10min",
                param,
                ctx,
            )
        if seconds < self._least:
            self.fail(f"{value!r} is too short; give at least {self._least:g} s", param, ctx)
        return seconds
