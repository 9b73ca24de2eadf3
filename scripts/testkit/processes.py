"""Processes that are no children of ours, known by pid and start: a pid alone may be another's after its end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Protocol, TypeVar

import psutil

from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.host_identity import start_ticks

DEADLINE = 60.0
"""Seconds for anything to happen: generous, because the machine may be loaded."""

A_LOOK = 0.005
"""Seconds between two looks at what tells nobody: whom the look waits for needs the processor."""

T = TypeVar("T")


class Known(Protocol):
    """What is known by pid and start: a `Driver`, a `Process`."""

    @property
    def identity(self) -> DriverIdentity:
        """Its pid and start."""


class Process(psutil.Process):
    """A process that runs, or is a zombie still. Signals reach it alone: `psutil` compares the start before it sends.

    Args:
        pid: Its pid, as a number or as a driver has written it.
    """

    def __init__(self, pid: int | str | bytes) -> None:
        super().__init__(int(pid))
        ticks = start_ticks(self.pid)
        if ticks is None:
            raise psutil.NoSuchProcess(self.pid)
        self.identity = DriverIdentity(self.pid, ticks)


@contextlib.contextmanager
def open_pidfd(process: psutil.Process) -> Iterator[int | None]:
    """A pidfd, None where the process is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Whoever has the pid now has the descriptor, so this look comes after it.
        yield pidfd if process.is_running() else None
    finally:
        os.close(pidfd)


def ends(pidfd: int, seconds: float, stopping: threading.Event | None = None) -> bool:
    """Whether a process ends within so many seconds, and before `stopping` is set."""
    end = time.monotonic() + seconds
    while not (ready := wait([pidfd], max(0.0, min(0.5, end - time.monotonic())))):
        if time.monotonic() >= end or (stopping is not None and stopping.is_set()):
            break
    return bool(ready)


def wait_for_end(process: psutil.Process) -> None:
    """Wait until a process has ended."""
    with open_pidfd(process) as pidfd:
        assert pidfd is None or ends(pidfd, DEADLINE), f"{process} still runs"


def until(look: Callable[[], T], is_so: Callable[[T], object]) -> T:
    """Look again and again until it is so: at what tells nobody when it changes."""
    end = time.monotonic() + DEADLINE
    while not is_so(found := look()):
        assert time.monotonic() < end, found
        time.sleep(A_LOOK)
    return found


def wait_for_state(process: psutil.Process, state: str) -> None:
    """Wait until the kernel shows a process in a state, such as `psutil.STATUS_ZOMBIE`."""
    until(process.status, lambda now: now == state)


def wait_for_first_run() -> None:
    """Wait for what this process's first run begins beside itself, at the ledger: it reaps, and looks around."""
    begun = {"qx-reaper", "qx-placement"}
    until(lambda: begun.intersection(thread.name for thread in threading.enumerate()), lambda names: not names)
