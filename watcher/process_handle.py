"""A process that is waited for and sent signals, whoever its parent is: by a pidfd where there are any."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from math import ceil

from . import host_identity, process_state
from .exit_queue import exit_queue_of

LOOK_SECONDS = 0.02
"""How often it is looked at where the kernel reports no end."""


class ProcessHandle:
    """One process, and no later one with its pid.

    Args:
        pid: Its pid.

    Raises:
        ProcessLookupError: If there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = host_identity.pidfd_of(pid)
        self._start = None if self._pidfd is not None else process_state.start_ticks(pid)
        if self._pidfd is None and self._start is None:
            raise ProcessLookupError(f"there is no process {pid}")

    @property
    def descriptor(self) -> int | None:
        """The pidfd, if there is one."""
        return self._pidfd

    def send(self, number: int) -> None:
        """Send it a signal.

        Raises:
            ProcessLookupError: If it has ended and was waited for.
        """
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, number)
        elif process_state.start_ticks(self.pid) == self._start:
            os.kill(self.pid, number)
        else:
            raise ProcessLookupError(f"process {self.pid} has ended")

    def ends_within(self, seconds: float | None) -> bool:
        """Wait until it has ended, at most so many seconds (None: without a limit); returns whether it has."""
        if self._pidfd is not None:
            return _is_readable(self._pidfd, seconds)
        end = None if seconds is None else time.monotonic() + seconds
        queue = exit_queue_of(self.pid, lambda: process_state.start_ticks(self.pid) == self._start)
        try:
            while self._runs():
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if queue is None:
                    time.sleep(LOOK_SECONDS if left is None else min(left, LOOK_SECONDS))
                else:
                    _is_readable(queue.fileno(), 1.0 if left is None else min(left, 1.0))
            return True
        finally:
            if queue is not None:
                queue.close()

    def _runs(self) -> bool:
        return process_state.judge(self.pid, self._start) in ("alive", "unknown")

    def reap(self) -> None:
        """Take what is left of it once it has ended; nothing happens if it is no child of this process."""
        with contextlib.suppress(ChildProcessError):
            if self._pidfd is not None:
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            else:
                os.waitpid(self.pid, os.WNOHANG)

    def close(self) -> None:
        """Let go of it."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else ceil(max(0.0, seconds) * 1000)))
