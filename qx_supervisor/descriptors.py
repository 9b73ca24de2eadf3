"""Waits for file descriptors by poll(2), since select(2) is limited to numbers below 1024."""

from __future__ import annotations

import math
import select


def is_readable(descriptor: int, seconds: float | None) -> bool:
    """Wait until a descriptor is readable or at its end; returns whether it is, within `seconds` (None: no limit)."""
    return _wait(descriptor, seconds, writes=False)


def is_writable(descriptor: int, seconds: float) -> bool:
    """Wait until a descriptor is writable or has no reader; returns whether it is, within `seconds`."""
    return _wait(descriptor, seconds, writes=True)


def _wait(descriptor: int, seconds: float | None, *, writes: bool) -> bool:
    if not hasattr(select, "poll"):
        # eventlet takes it away, since it would hold up all green threads, and has a `select` that does not, and takes
        # any number. This one is looked for at each call, for a program may patch itself after its imports.
        wanted: tuple[list[int], list[int], list[int]] = ([], [descriptor], []) if writes else ([descriptor], [], [])
        return any(select.select(*wanted, seconds))
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if writes else select.POLLIN)
    return bool(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
