"""Whether the driver still lives.

On Linux there are three ways to tell, and the first word counts:

- The *lock* that a thread of the driver holds (`robust_lock`). It opens within a millisecond of a kill. It
  tells only that this thread has ended, so the state of the process is looked at before that is called a death.
- The *pidfd*, which the driver opened on itself. It becomes readable once the memory has been freed, which takes 25 ms
  for a program with Qiskit and seconds for many gigabytes. It needs no look, and is not fooled by a reused pid.
- The *poll*, once a second. It knows also the deaths that the others are told late or never: a core dump, a thread that
  waits for a dead file server, a tracer that does not let go, a frozen control group.

Lock and poll call a driver dead only if the kernel can't take that back (`process_state`), because a false death is a
false cancel.

Elsewhere there is no such lock. Where there are kqueues, one takes the place of the pidfd (`exit_queue`); the watcher
makes it, since it can't be passed on. Where there is neither, the closed connection prompts a look. By itself that is
no sign of death: a forked child may hold the connection open for long after one, and a daemonizing driver may close it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import linux_process, portable_process, process_state, system
from .exit_queue import ExitQueue, exit_queue_of
from .process_state import Verdict
from .robust_lock import RobustLock
from .wake import Wake

WRITING_SECONDS = 0.1
"""How long a driver that was killed is given to complete the system calls that it was in: a message may be among them.

Each thread has then ended, unless it waits for something that does not come, or gets no processor. That such a thread
was writing just then is next to impossible, and a write that has not returned is no promise to anybody."""

_LOOK_PAUSES = (0.0, 0.001, 0.004, 0.016, 0.064)
"""Seconds before each look after the lock has opened: its holder may end before the others are told to."""

_WRITING_PAUSE = 0.0005

_STACK = 256 << 10
"""Bytes: of the usual 8 MB the kernel may make huge pages, one for each driver."""


@dataclass(frozen=True)
class DriverIdentity:
    """A process, for as long as the machine is up: pids are reused.

    Attributes:
        pid: The process id.
        start_ticks: Its start, as `process_state.start_ticks` gives it.
    """

    pid: int
    start_ticks: int


def look_at(identity: DriverIdentity) -> Verdict:
    """What is seen of a process: by psutil where /proc is not as `linux_process` knows it.

    A process that can't be seen counts as alive: it may be hidden or forbidden, or `/proc` can't be read at the moment,
    as when this process has run out of descriptors.
    """
    verdict = process_state.judge(identity.pid, identity.start_ticks)
    if verdict == "unknown" and system.HAS_LINUX:
        verdict = portable_process.judge(identity.pid, None)
        return "ended" if verdict == "ended" else "alive"
    return "alive" if verdict == "unknown" else verdict


class DriverProcess:
    """The driver, as its watcher sees it.

    Args:
        identity: Which process it is.
        pidfd: A pidfd of it, or None if the kernel has none.
        lock: What a thread of it holds, or soon will; None if there is no such lock.
    """

    def __init__(self, identity: DriverIdentity, pidfd: int | None, lock: RobustLock | None = None) -> None:
        self.identity = identity
        self.pidfd = pidfd
        self._lock = lock
        self._status: int | None = None  # /proc/PID/status, once it was opened
        self._found_dead: Wake | None = Wake()
        self._is_dead = False
        self._closing = threading.Lock()
        self._exits: ExitQueue | None = None
        if pidfd is None:
            self._exits = exit_queue_of(identity.pid, lambda: look_at(identity) == "alive")
        self._attend()

    def descriptors(self) -> list[int]:
        """What becomes readable when `is_dead` is to be asked."""
        signs = [each.fileno() for each in (self._found_dead, self._exits) if each is not None]
        return signs if self.pidfd is None else [*signs, self.pidfd]

    def is_dead(self) -> bool:
        """Whether it is dead, by the lock, the pidfd or the kqueue; without either of these, by the poll."""
        if self._is_dead:
            return True
        if self._exits is not None:
            return self._exits.has_exited()
        if self.pidfd is None:
            return self.poll_finds_dead()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        happened = poll.poll(0)
        if happened and happened[0][1] & select.POLLNVAL:
            self.pidfd = None  # the descriptor is closed: from now on lock and poll decide
            return False
        return bool(happened)

    def poll_finds_dead(self) -> bool:
        """Whether the poll says that it is dead.

        While one of its threads may still be writing, that is said a moment later, by `descriptors`.
        """
        self._attend()
        if self._is_plainly_alive():
            return False
        match look_at(self.identity):
            case "ended" if process_state.may_still_write(self.identity.pid):
                _start(self._confirm)
                return False
            case "ended":
                return True
            case "gone":
                return self._has_nothing_to_signal()
            case _:
                return False

    def hung_up(self) -> None:
        """Look at it soon, for its connection was closed, unless the kernel will say when it ends."""
        if self.pidfd is None and self._exits is None:
            _start(self._confirm)

    def close(self) -> None:
        """Close its descriptors: it is not watched any more."""
        with self._closing:
            for sign in (self._found_dead, self._exits):
                if sign is not None:
                    sign.close()
            for descriptor in (self._status, self.pidfd):
                if descriptor is not None:
                    os.close(descriptor)
            self._found_dead = self._exits = self._status = self.pidfd = None

    def _is_plainly_alive(self) -> bool:
        if not system.HAS_LINUX:
            return False
        # The file is opened once, which takes most of the time of a poll. It stays this process's.
        pid, ticks = self.identity.pid, self.identity.start_ticks
        try:
            if self._status is None:
                self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
                if process_state.start_ticks(pid) != ticks:
                    os.close(self._status)
                    self._status = None
                    return False
            return linux_process.is_plainly_alive(os.pread(self._status, 65536, 0))
        except (OSError, ValueError):
            return False

    def _has_nothing_to_signal(self) -> bool:
        """Whether the pidfd, if there is one, agrees that there is no process left.

        That covers a sandbox whose pidfds can be opened, but never become readable.
        """
        pidfd = self.pidfd
        if pidfd is None or self.is_dead():
            return True
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    # The lock

    def _attend(self) -> None:
        """Wait for the end of the thread that holds the lock, as soon as one does."""
        lock = self._lock
        if lock is None or not lock.is_held():
            return

        def wait() -> None:
            if lock.wait_for_holder():
                self._confirm()

        if _start(wait):
            self._lock = None

    def _confirm(self) -> None:
        """Look whether it has ended, and if so say it, as soon as it can't write any more."""
        for pause in _LOOK_PAUSES:
            time.sleep(pause)
            verdict = look_at(self.identity)
            if verdict == "ended" or (verdict == "gone" and self._has_nothing_to_signal()):
                break
        else:
            return  # only the thread has ended, or another program is executed: it is left to the pidfd and the poll
        end = time.monotonic() + WRITING_SECONDS
        while process_state.may_still_write(self.identity.pid) and time.monotonic() < end:
            time.sleep(_WRITING_PAUSE)
        with self._closing:
            if self._found_dead is not None:
                self._is_dead = True
                self._found_dead.set()


def _start(work: Callable[[], None]) -> bool:
    """Have a thread do something; False if no more can be started: then the next poll tries again."""
    usual = threading.stack_size(_STACK)
    try:
        threading.Thread(target=work, name="qx-driver", daemon=True).start()
    except RuntimeError:
        return False
    finally:
        threading.stack_size(usual)
    return True
