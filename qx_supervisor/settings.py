"""Reads settings from the environment, so that a mistake is reported before anything is submitted."""

from __future__ import annotations

import os

from .errors import WatcherError

DAY = 86400.0


def seconds(name: str, default: float) -> float:
    """Read a number of seconds from the environment.

    Args:
        name: The variable.
        default: The value if the variable is unset or empty.

    Raises:
        WatcherError: It is not a number between 0 and a day.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < DAY:
        raise WatcherError("config", f"{name} is {text!r}; it must be a number of seconds, such as {default:g}")
    return found
