"""Waiting for processes that are no children of ours."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait

import psutil
from drivers import DEADLINE


@contextlib.contextmanager
def open_pidfd(pid: int) -> Iterator[int | None]:
    """A pidfd, None where the process is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def wait_for_end(process: psutil.Process) -> None:
    """Wait until a process has ended."""
    with open_pidfd(process.pid) as pidfd:
        assert pidfd is None or ends(pidfd, DEADLINE), f"{process} still runs"


def ends(pidfd: int, seconds: float, stopping: threading.Event | None = None) -> bool:
    """Whether a process ends within so many seconds, and before the drill is to stop."""
    end = time.monotonic() + seconds
    while not (ready := wait([pidfd], max(0.0, min(0.5, end - time.monotonic())))):
        if time.monotonic() >= end or (stopping is not None and stopping.is_set()):
            break
    return bool(ready)
