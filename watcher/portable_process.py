"""Whether a process has ended, by psutil: where /proc is not as Linux has it.

A death is known once the kernel has ended the process, when its memory is freed and its core is written: not when that
is decided, as on Linux (`linux_process`).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .verdict import Verdict

MICROSECONDS = 1_000_000


def judge(pid: int, start_ticks: int | None) -> Verdict:
    """See `process_state.judge`."""
    if pid <= 0:
        return "gone"
    import psutil  # 20 ms, for which no program needs to wait that guards nothing

    try:
        process = psutil.Process(pid)
        if start_ticks is not None:
            start = _start(process)
            if start is None:
                return "unknown"
            if start != start_ticks:
                return "gone"
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "alive"
        # Of a process whose first thread has ended, Linux shows that thread, and the others work on.
        return "ended" if process.num_threads() <= 1 else "alive"
    except psutil.ZombieProcess:
        return "ended"
    except psutil.NoSuchProcess:
        return "gone"
    except (psutil.Error, OSError):
        return "unknown"


def may_still_write(pid: int) -> bool:  # noqa: ARG001 - the contract is `process_state`'s
    """See `process_state.may_still_write`: what is seen to have ended here has no thread left."""
    return False


def start_ticks(pid: int) -> int | None:
    """See `process_state.start_ticks`."""
    import psutil

    try:
        return _start(psutil.Process(pid))
    except (psutil.Error, OSError, ValueError):
        return None


def _start(process: Any) -> int | None:
    """The start of a `psutil.Process`, as psutil itself knows it: its `create_time()` moves when the clock is set.

    For macOS that is the time of day that the kernel noted at the fork, and never changes; for Linux, the time since
    boot, which is given in ticks, as everywhere.
    """
    import psutil

    is_linux = sys.platform.startswith("linux")
    try:
        seconds: float = process._proc.create_time(monotonic=True)  # noqa: SLF001 - no public name gives it
    except AttributeError:
        return None
    except TypeError:
        if psutil.version_info >= (7, 1):
            return None  # it was taken away: a start that may move would be taken for another process's
        # Before 7.1 psutil adds the boot time that it has asked for last, for Linux, and nothing for macOS.
        since = psutil.boot_time() if is_linux else 0.0
        seconds = process._proc.create_time() - since  # noqa: SLF001
    return round(seconds * (os.sysconf("SC_CLK_TCK") if is_linux else MICROSECONDS))
