"""Whether a process will ever run its own code again, by /proc: what Linux tells of a death before it has happened.

The kernel decides that a process dies long before it says so. A pidfd becomes readable, and a parent is told, only when
the memory has been freed, which takes seconds for some gigabytes, or the core has been written. They never are while a
thread waits for a file server that does not answer, is held by a tracer, or is frozen. /proc shows the decision at
once. Only what the kernel can't take back counts (kernel/signal.c, kernel/exit.c, fs/coredump.c):

- SIGKILL among the signals that are pending for the whole process. It stays there until the end, and no thread of a
  process that has it returns to its own code, not even a frozen or a traced one;
- a core dump: afterwards the process ends, whatever becomes of the dump;
- every thread exits, has exited, or has SIGKILL pending for itself. That is how the kernel tells the other threads that
  one of them has ended the process, by `os._exit` or by another fatal signal.

SIGKILL pending for *some* threads is no death: an `exec` ends all other threads with it, and the process lives on, with
the first thread's id.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .verdict import Verdict

_SIGKILL = 1 << 8
_PF_EXITING = 0x4


class _Stat(NamedTuple):
    """What the kernel says of one thread (proc_pid_stat(5)).

    Attributes:
        state: Field 3: "Z" for a zombie, "X" for a thread that has left its process.
        flags: Field 9: the `PF_` flags of the kernel's sched.h.
        threads: Field 20: how many threads its process has; 0 once it has left that.
        start_ticks: Field 22: its start, in clock ticks since boot.
        pending: Field 31: the signals that are pending for this thread alone.
    """

    state: str
    flags: int
    threads: int
    start_ticks: int
    pending: int

    @property
    def is_exiting(self) -> bool:
        """Whether it is past its last system call."""
        return self.state in "ZX" or bool(self.flags & _PF_EXITING)

    @property
    def has_ended(self) -> bool:
        """Whether it never runs its own code again."""
        return self.is_exiting or bool(self.pending & _SIGKILL)


def judge(pid: int, start_ticks: int | None) -> Verdict:
    """What is seen of a process.

    Args:
        pid: Its pid.
        start_ticks: Its start, in clock ticks since boot; None if that is not known.
    """
    if pid <= 0:  # to kill(2) that is a group of processes
        return "gone"
    try:
        # What is opened in this folder is this process's, and never that of a later one with its pid.
        folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return _judge_unseen(pid)
    try:
        if start_ticks not in (None, _stat(folder, "stat").start_ticks):
            return "gone"
        status = _read(folder, "status")
        return "ended" if _is_killed(status) or _have_all_threads_ended(folder) else "alive"
    except (OSError, ValueError, IndexError):
        return _judge_unseen(pid)
    finally:
        os.close(folder)


def is_plainly_alive(status: bytes) -> bool:
    """Whether /proc/PID/status alone shows that a process lives, which saves the look at its threads.

    If it does not, nothing is known yet: the main thread may have exited, and the others work on.
    """
    has_memory = b"\nVmSize:" in status  # a thread gives it up as it exits
    return has_memory and not _is_killed(status) and not _pending(status, b"\nSigPnd:\t") & _SIGKILL


def may_still_write(pid: int) -> bool:
    """Whether a thread of a process that has ended may still complete a system call that it was in, such as a write.

    It will not once every thread exits. A thread that waits for a dead file server never does.
    """
    try:
        folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return not all(_stat(folder, f"task/{thread}/stat").is_exiting for thread in _threads(folder))
    except (FileNotFoundError, ProcessLookupError):
        return True  # a thread has gone since they were listed
    except OSError:
        return False
    finally:
        os.close(folder)


def start_ticks(pid: int) -> int | None:
    """The start of a process, in clock ticks since boot; None if there is no such process, or it is hidden."""
    try:
        return _stat(None, f"/proc/{pid}/stat").start_ticks
    except OSError:
        return None


def _judge_unseen(pid: int) -> Verdict:
    # If /proc is mounted with hidepid, a process that is not dumpable, such as a watcher, is hidden from its own user.
    # A signal still reaches it.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return "gone"
    except PermissionError:
        pass
    return "unknown"


def _is_killed(status: bytes) -> bool:
    # The core dump is shown since Linux 4.15. Of processes that share their memory, as a parent does with its child
    # between vfork and exec, all show it before Linux 5.16, which ends them all. Later kernels end one, and show one.
    return bool(_pending(status, b"\nShdPnd:\t") & _SIGKILL) or b"\nCoreDumping:\t1" in status


def _pending(status: bytes, name: bytes) -> int:
    start = status.index(name) + len(name)  # the process's name is on the first line, without a line break of its own
    return int(status[start : status.index(b"\n", start)], 16)


def _have_all_threads_ended(folder: int) -> bool:
    """Whether every thread has ended, though they are read one after the other, while others start and exit.

    A thread may start another one after they were listed, and have ended when it is read. An exec by another thread
    puts that in the place of the first one, which is read as dead until then. So each must say that the process has as
    many threads as were listed, none may have left it, and all that must be seen twice. The second list is complete
    then: the kernel leaves out a thread only if another one leaves while it makes the list.
    """
    before: list[str] | None = None
    for _ in range(2):
        threads = _threads(folder)
        if before not in (None, threads):
            return False
        for thread in threads:
            try:
                seen = _stat(folder, f"task/{thread}/stat")
            except (FileNotFoundError, ProcessLookupError):
                return False
            if not seen.has_ended or seen.state == "X" or seen.threads != len(threads):
                return False
        before = threads
    return True


def _threads(folder: int) -> list[str]:
    tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        return os.listdir(tasks)  # noqa: PTH208 - of a descriptor
    finally:
        os.close(tasks)


def _stat(folder: int | None, path: str) -> _Stat:
    # The second field is the command's name in parentheses, and may itself contain blanks and parentheses.
    fields = _read(folder, path).rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), *(int(fields[field - 3]) for field in (9, 20, 22, 31)))


def _read(folder: int | None, path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)
