"""Whether a process will ever run its own code again: the one judge of the watcher, the ledger, `reap` and the reaper.

On Linux /proc is asked (`linux_process`), elsewhere psutil (`portable_process`). Both know a process by its pid and its
start, and both call one dead only if that can't be taken back.
"""

from __future__ import annotations

from typing import Protocol

from . import linux_process, portable_process, system
from .verdict import Verdict

__all__ = ["Verdict", "judge", "may_still_write", "start_ticks"]


class _Judge(Protocol):
    def judge(self, pid: int, start_ticks: int | None) -> Verdict: ...

    def may_still_write(self, pid: int) -> bool: ...

    def start_ticks(self, pid: int) -> int | None: ...


_here: _Judge = linux_process if system.HAS_LINUX else portable_process


def judge(pid: int, start_ticks: int | None) -> Verdict:
    """What is seen of a process.

    Args:
        pid: Its pid.
        start_ticks: Its start, as `start_ticks` gives it; None if that is not known.
    """
    return _here.judge(pid, start_ticks)


def may_still_write(pid: int) -> bool:
    """Whether a thread of a process that has ended may still complete a system call that it was in, such as a write."""
    return _here.may_still_write(pid)


def start_ticks(pid: int) -> int | None:
    """The start of a process, by which it is told from an earlier one with its pid; None if it can't be seen.

    On Linux these are clock ticks since boot. Elsewhere it is what the kernel noted when the process was made, in
    microseconds. Neither changes when the clock is set, and both are read in the same way wherever they are compared.
    """
    return _here.start_ticks(pid)
