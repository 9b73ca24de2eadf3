"""Waiting for a file descriptor, whatever its number: select(2) takes none beyond 1023, which programs do have."""

from __future__ import annotations

import math
import select


def is_readable(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read, or an end, within so many seconds; None: however long that takes."""
    return _comes(descriptor, select.POLLIN, seconds)


def is_writable(descriptor: int, seconds: float) -> bool:
    """Whether something can be written, or nobody reads any more, within so many seconds."""
    return _comes(descriptor, select.POLLOUT, seconds)


def _comes(descriptor: int, event: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
