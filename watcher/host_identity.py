"""Where a process is, and whether it still runs.

The ledger outlives processes, containers and boots, and a home directory may be shared by many machines. A pid read
from it means something only where it was given: in one PID namespace, of one boot, of one machine. Everything here
errs on one side. Taking a dead driver for a living one leaves a job to run; taking a living driver for a dead one
cancels its job, and that is the worst that can happen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the namespace that a kernel starts with (`PROC_PID_INIT_INO`), the same number on every machine."""

View = Literal["same", "rebooted", "elsewhere"]
"""What one place can say of another's processes: it sees them; they ended with an earlier boot; it can't tell."""


@dataclass(frozen=True)
class HostIdentity:
    """Where a process is. A part that is not known is empty, or 0, and then less can be said of its processes.

    Attributes:
        machine: The machine id (machine-id(5)). Container images and cloned disks may carry a copy of another's.
        host: The host name.
        boot: The kernel's boot id: one boot of one machine.
        pid_ns: The inode of the PID namespace. A number is given again once its namespace is gone.
    """

    machine: str
    host: str
    boot: str
    pid_ns: int

    def view_of(self, other: HostIdentity) -> View:
        """What can be said from here of the processes of another place."""
        if not self.boot or not other.boot:
            return "elsewhere"
        if self.boot == other.boot:
            sees = self.machine == other.machine and self.pid_ns == other.pid_ns != 0
            return "same" if sees else "elsewhere"
        # Machine ids get copied, with disks, with images, across the nodes of a cluster that boot from one image. So
        # the host name must agree as well. A machine that was renamed between its boots keeps its orphans.
        if self.machine and (self.machine, self.host) == (other.machine, other.host):
            return "rebooted"
        return "elsewhere"


def this_host() -> HostIdentity:
    """The place of this process."""
    return HostIdentity(_machine(), os.uname().nodename, _read(BOOT_ID_FILE), _pid_namespace())


def _machine() -> str:
    # Without one there is no fallback. A random id of our own would have to be kept in the state directory, and where
    # that is shared by machines, they would share the id. Within one boot the boot id tells machines apart as well;
    # across boots nothing can be said then.
    for file in MACHINE_ID_FILES:
        machine = _read(file)
        # The file may also hold "uninitialized", before the first boot is complete.
        if len(machine) == 32 and set(machine) <= set("0123456789abcdef") and machine != "0" * 32:
            return machine
    return ""


def _pid_namespace() -> int:
    try:
        # A /proc of another namespace (one of its own without a mount of its own): its pids are not ours.
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - one string is compared
            return 0
        # In a time namespace start times are shifted: the same process would have two of them.
        for line in _read(Path("/proc/self/timens_offsets")).splitlines():
            if line.split()[0] == "boottime" and line.split()[1:] != ["0", "0"]:
                return 0
        return Path("/proc/self/ns/pid").stat().st_ino
    except (OSError, IndexError):
        return 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class Process:
    """One process, and no later one with its pid.

    Attributes:
        place: Where it is.
        pid: Its pid there.
        start_ticks: Its start, in clock ticks since boot; None where it could not be read.
    """

    place: HostIdentity
    pid: int
    start_ticks: int | None


def this_process(place: HostIdentity | None = None) -> Process:
    """This process; `place` where that is known already."""
    return Process(place or this_host(), os.getpid(), start_ticks(os.getpid()))


IsRunning = Callable[[int, int | None], bool]
"""`is_running`, or what stands in for it in a test."""


def start_ticks(pid: int) -> int | None:
    """The start of a process, in clock ticks since boot; None where there is none, or it is hidden."""
    stat = _stat(f"/proc/{pid}/stat")
    return stat and stat[1]


def pidfd_of(pid: int) -> int | None:
    """A pidfd, or None where the kernel has none, or forbids it, or the process is gone."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def is_running(pid: int, start_ticks: int | None) -> bool:
    """Whether the process that had this pid and start runs.

    Not where it is gone, where its pid is another's now, or where it is a zombie. A zombie whose other threads live
    runs: only its main thread has ended. What can't be known counts as running.
    """
    if pid <= 0:  # kill(2) would take it for a group of processes
        return False
    stat = _stat(f"/proc/{pid}/stat")
    if stat is None:
        return _exists(pid)
    state, ticks = stat
    if start_ticks is not None and ticks != start_ticks:
        return False
    return state not in "ZX" or _has_living_task(pid)


def _exists(pid: int) -> bool:
    # Where /proc is mounted with hidepid, a process that is not dumpable, as a watcher, is hidden from its own user.
    # A signal still finds it.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _has_living_task(pid: int) -> bool:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names are all that is needed
    except OSError:
        return False
    stats = (_stat(f"/proc/{pid}/task/{task}/stat") for task in tasks if task != str(pid))
    return any(stat is not None and stat[0] not in "ZX" for stat in stats)


def _stat(path: str) -> tuple[str, int] | None:
    """The state and the start of a task (proc_pid_stat(5), fields 3 and 22), or None where they can't be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - read for every row; a Path costs as much as the read
            stat = file.read()
    except OSError:
        return None
    # The second field is the command's name in parentheses, and may itself hold blanks and parentheses.
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])
