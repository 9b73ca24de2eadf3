"""What a test has left behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def children() -> set[psutil.Process]:
    """What this process has started, and what that has: known by pid and start."""
    return set(psutil.Process().children(recursive=True))


def is_left(process: psutil.Process) -> bool:
    """Whether it lives, or has ended and is ours to reap; a parent such as a user manager reaps by itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE or process.ppid() == os.getpid()
    return False


def descriptors() -> set[str]:
    """This process's open files, pipes and pidfds; the sockets of kept-alive connections come and go."""
    found = set()
    for item in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(item.readlink())
            if not target.startswith(("socket:", "/proc/")):
                found.add(f"{item.name} {target}")
    return found
