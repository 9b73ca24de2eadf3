"""Waits for file descriptors by poll(2), since select(2) is limited to numbers below 1024."""

from __future__ import annotations

import math
import select


def is_readable(descriptor: int, seconds: float | None) -> bool:
    """Wait until a descriptor is readable or at its end; returns whether it is, within `seconds` (None: no limit)."""
    return _wait(descriptor, select.POLLIN, seconds)


def is_writable(descriptor: int, seconds: float) -> bool:
    """Wait until a descriptor is writable or has no reader; returns whether it is, within `seconds`."""
    return _wait(descriptor, select.POLLOUT, seconds)


def _wait(descriptor: int, event: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
