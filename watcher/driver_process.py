"""Whether the caller still lives.

Two sights of the same process. The *pidfd*, which the caller opened on itself, becomes readable at its death, within
half a millisecond, and can't be fooled by a reused pid. The *poll* asks psutil once a second and is the judge only
where the kernel has no pidfd: beside one it never declares a death, because a false death is a false cancel.
"""

from __future__ import annotations

import functools
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .host_identity import is_running, start_ticks

if TYPE_CHECKING:
    import psutil


@dataclass(frozen=True)
class DriverIdentity:
    """A process, for as long as the machine is up: a pid alone is used again.

    Attributes:
        pid: The process id.
        start_ticks: Its start, in clock ticks since boot (`/proc/PID/stat`, field 22: proc_pid_stat(5)). Never a
            wall-clock time, which moves when the clock is stepped.
    """

    pid: int
    start_ticks: int


def lives(identity: DriverIdentity) -> bool:
    """The poll: whether psutil sees this very process, alive.

    A zombie is dead, though its pid exists; unless other tasks live in it: then only its leading thread has exited,
    and the process works on. What can't be seen is not called dead: a process that is hidden or forbidden, or a `/proc`
    that can't be read now, as where this process has run out of descriptors.
    """
    import psutil  # 20 ms, for which no caller needs to wait

    try:
        status = _process(identity.pid).status()
    except (psutil.AccessDenied, OSError):
        return True
    except psutil.NoSuchProcess:
        return is_running(identity.pid, identity.start_ticks)  # a signal finds what `/proc` hides
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return is_running(identity.pid, identity.start_ticks)
    return start_ticks(identity.pid) in (identity.start_ticks, None)


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    # Made once: that reads the boot time and more, and takes most of what a poll would. It does not tell a pid that is
    # used again; the start time does.
    import psutil

    return psutil.Process(pid)


class DriverProcess:
    """The caller, as the watcher sees it.

    Args:
        identity: Who it is.
        pidfd: A pidfd of it, or None where the kernel has none.
    """

    def __init__(self, identity: DriverIdentity, pidfd: int | None) -> None:
        self.identity = identity
        self.pidfd = pidfd

    def is_dead(self) -> bool:
        """What the pidfd says, at once; without one, what the poll says."""
        if self.pidfd is None:
            return not lives(self.identity)
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        happened = poll.poll(0)
        if happened and happened[0][1] & select.POLLNVAL:
            self.pidfd = None  # no descriptor of ours any more: from now on the poll is the judge
            return False
        return bool(happened)

    def poll_finds_dead(self) -> bool:
        """What the poll says, once a second.

        Beside a pidfd it is not believed alone: the pidfd must agree that there is nothing left to signal. That covers
        a sandbox whose pidfds can be opened and never become readable.
        """
        if lives(self.identity):
            return False
        if self.pidfd is None or self.is_dead():
            return True
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False
