"""What users set in the environment, read so that a slip is named before anything is submitted."""

from __future__ import annotations

import os

from .errors import WatcherError

DAY = 86400.0


def seconds(name: str, default: float) -> float:
    """A time in seconds from the environment.

    Args:
        name: The variable.
        default: What it is where the variable is not set, or empty.

    Raises:
        WatcherError: If it is no time between nothing and a day.
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
