"""What can be seen of a process that is no child of this one: its program, and how it has ended.

Only a parent can wait for a process. What others see of its wait status: Linux 6.15 and later tell it to whoever has a
pidfd, once the process has been waited for; until then `/proc/PID/stat` has it; and of one that is being killed the
pending signal shows.
"""

from __future__ import annotations

import os
import signal
import struct

from . import system

_PIDFD_GET_INFO = 0xC040FF0B
"""ioctl_pidfd(2), with the first version of its structure, of 64 bytes: `_IOWR(0xFF, 11, struct pidfd_info)`."""

_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60


def program_of(pid: int) -> str:
    """The name of a process's program: of a Python program the script's or the module's; "" if it can't be seen.

    Nothing else of its command line, which may have a secret.
    """
    if not system.HAS_LINUX:
        return _program_by_psutil(pid)
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return name_of(file.read(4096).decode(errors="replace").split("\0"))
    except OSError:
        return ""


def _program_by_psutil(pid: int) -> str:
    import psutil

    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return ""
    return name_of(words) if words else ""


def name_of(words: list[str]) -> str:
    """The program's name in a command line."""
    name = os.path.basename(words[0])  # noqa: PTH119
    if not name.startswith("python"):
        return name
    for number, word in enumerate(words[1:], 1):
        if word == "-m" and number + 1 < len(words):
            return words[number + 1]
        if word == "-c":
            return f"{name} -c"
        if word in ("-W", "-X"):
            continue
        if word and not word.startswith("-") and words[number - 1] not in ("-W", "-X"):
            return os.path.basename(word)  # noqa: PTH119
    return name


def wait_status_of(pid: int, start_ticks: int, pidfd: int | None) -> int | None:
    """The wait status of a process that is dead, or about to be; None if it is not known.

    Args:
        pid: The process.
        start_ticks: Its start: the pid may be another's by now.
        pidfd: A pidfd of it, or None.
    """
    if not system.HAS_LINUX:
        return None  # only its parent can know
    status = None if pidfd is None else _by_pidfd(pidfd)
    return _by_proc(pid, start_ticks) if status is None else status


def _by_pidfd(pidfd: int) -> int | None:
    import fcntl

    info = bytearray(64)
    struct.pack_into("Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    known, status = struct.unpack_from("Q", info, 0)[0], struct.unpack_from("i", info, _EXIT_CODE_AT)[0]
    return status if known & _INFO_EXIT else None


def _by_proc(pid: int, start_ticks: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()  # proc_pid_stat(5), from field 3 on
        if int(fields[19]) != start_ticks:
            return None
        if fields[0] in (b"Z", b"X"):
            return int(fields[49])
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            pending = next(line for line in file if line.startswith(b"ShdPnd:")).split()[1]
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return int(signal.SIGKILL) if int(pending, 16) >> (signal.SIGKILL - 1) & 1 else None


def in_words(status: int | None) -> str:
    """A wait status, as what a process did: "was killed (SIGKILL)"."""
    if status is None:
        return "died"
    number = status & 0x7F
    if not number:
        return f"exited with code {status >> 8 & 0xFF}"
    name = signal_name(number)
    return f"was killed ({name})" if name in ("SIGKILL", "SIGTERM") else f"died of {name}"


def signal_name(number: int) -> str:
    """The name of a signal, such as "SIGTERM"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
