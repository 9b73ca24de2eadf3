"""Whether the driver still lives.

There are two ways to tell. The *pidfd*, which the driver opened on itself, becomes readable within half a millisecond
of its death, and is not fooled by a reused pid. The *poll* asks psutil once a second. It decides alone only if the
kernel has no pidfd; beside a pidfd it never declares a death by itself, because a false death is a false cancel.
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
    """A process, for as long as the machine is up: pids are reused.

    Attributes:
        pid: The process id.
        start_ticks: Its start, in clock ticks since boot (`/proc/PID/stat`, field 22: proc_pid_stat(5)). Not a time of
            day, which changes when the clock is set.
    """

    pid: int
    start_ticks: int


def lives(identity: DriverIdentity) -> bool:
    """The poll: whether psutil sees this very process alive.

    A zombie is dead, unless other threads of it live: then only its main thread has exited, and the process works on.
    A process that can't be seen counts as alive: it may be hidden or forbidden, or `/proc` can't be read at the moment,
    as when this process has run out of descriptors.
    """
    import psutil  # 20 ms, for which no driver needs to wait

    try:
        status = _process(identity.pid).status()
    except (psutil.AccessDenied, OSError):
        return True
    except psutil.NoSuchProcess:
        return is_running(identity.pid, identity.start_ticks)  # a signal reaches what `/proc` hides
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return is_running(identity.pid, identity.start_ticks)
    return start_ticks(identity.pid) in (identity.start_ticks, None)


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    # Made once, because making it reads the boot time and more, and takes most of the time of a poll. It does not
    # notice a reused pid; the start time shows that.
    import psutil

    return psutil.Process(pid)


class DriverProcess:
    """The driver, as its watcher sees it.

    Args:
        identity: Which process it is.
        pidfd: A pidfd of it, or None if the kernel has none.
    """

    def __init__(self, identity: DriverIdentity, pidfd: int | None) -> None:
        self.identity = identity
        self.pidfd = pidfd

    def is_dead(self) -> bool:
        """Whether the pidfd says that it is dead; without one, whether the poll does."""
        if self.pidfd is None:
            return not lives(self.identity)
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        happened = poll.poll(0)
        if happened and happened[0][1] & select.POLLNVAL:
            self.pidfd = None  # the descriptor is closed: from now on the poll decides
            return False
        return bool(happened)

    def poll_finds_dead(self) -> bool:
        """Whether the poll says that it is dead.

        If there is a pidfd, it must agree that there is no process left to signal. That covers a sandbox whose pidfds
        can be opened, but never become readable.
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
