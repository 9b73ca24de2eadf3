"""On which host a process is, and whether it still runs.

The ledger outlives processes, containers and boots, and a home directory may be shared by many machines. A pid from the
ledger means something only in one PID namespace, of one boot, of one machine. In doubt, a process counts as alive: to
take a dead driver for a live one leaves a job running, but to take a live driver for a dead one is a false cancel.
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
"""What one host can say of another's processes: it sees them; they ended with an earlier boot; it can't tell."""


@dataclass(frozen=True)
class HostIdentity:
    """The host of a process. A part that is not known is empty, or 0, and then less can be said of its processes.

    Attributes:
        machine: The machine id (machine-id(5)). Container images and cloned disks may carry a copy of another's.
        host: The host name.
        boot: The kernel's boot id: one boot of one machine.
        pid_ns: The inode of the PID namespace. It is reused once the namespace is gone.
    """

    machine: str
    host: str
    boot: str
    pid_ns: int

    def view_of(self, other: HostIdentity) -> View:
        """What can be said here of the processes of another host."""
        if not self.boot or not other.boot:
            return "elsewhere"
        if self.boot == other.boot:
            sees = self.machine == other.machine and self.pid_ns == other.pid_ns != 0
            return "same" if sees else "elsewhere"
        # Machine ids get copied, with disks and images, and across the nodes of a cluster that boot from one image. So
        # the host name must agree as well. The orphans of a machine that was renamed between two boots stay.
        if self.machine and (self.machine, self.host) == (other.machine, other.host):
            return "rebooted"
        return "elsewhere"


def this_host() -> HostIdentity:
    """The host of this process."""
    return HostIdentity(_machine(), os.uname().nodename, _read(BOOT_ID_FILE), _pid_namespace())


def _machine() -> str:
    # There is no fallback. A random id of our own would have to be stored in the state directory, and machines that
    # share that would share the id. Within one boot the boot id distinguishes machines too; across boots nothing can be
    # said.
    for file in MACHINE_ID_FILES:
        machine = _read(file)
        # Before the first boot is complete, the file may say "uninitialized".
        if len(machine) == 32 and set(machine) <= set("0123456789abcdef") and machine != "0" * 32:
            return machine
    return ""


def _pid_namespace() -> int:
    try:
        # /proc is of another namespace (this one has no mount of its own): its pids are not ours.
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - one string is compared
            return 0
        # In a time namespace start times are shifted: the same process would have two.
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
        place: Its host.
        pid: Its pid there.
        start_ticks: Its start, in clock ticks since boot; None if it could not be read.
    """

    place: HostIdentity
    pid: int
    start_ticks: int | None


def this_process(place: HostIdentity | None = None) -> Process:
    """This process; `place` if that is known already."""
    return Process(place or this_host(), os.getpid(), start_ticks(os.getpid()))


IsRunning = Callable[[int, int | None], bool]
"""`is_running`, or its replacement in a test."""


def start_ticks(pid: int) -> int | None:
    """The start of a process, in clock ticks since boot; None if there is no such process, or it is hidden."""
    stat = _stat(f"/proc/{pid}/stat")
    return stat and stat[1]


def pidfd_of(pid: int) -> int | None:
    """A pidfd, or None if the kernel has none or forbids it, or the process is gone."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def is_running(pid: int, start_ticks: int | None) -> bool:
    """Whether the process with this pid and start runs.

    It does not if it is gone, its pid is another's now, or it is a zombie, unless other threads of the zombie live:
    then only its main thread has ended. In doubt, it runs.
    """
    if pid <= 0:  # to kill(2) that is a group of processes
        return False
    stat = _stat(f"/proc/{pid}/stat")
    if stat is None:
        return _exists(pid)
    state, ticks = stat
    if start_ticks is not None and ticks != start_ticks:
        return False
    return state not in "ZX" or _has_living_task(pid)


def _exists(pid: int) -> bool:
    # If /proc is mounted with hidepid, a process that is not dumpable, such as a watcher, is hidden from its own user.
    # A signal still reaches it.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _has_living_task(pid: int) -> bool:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - only names are needed
    except OSError:
        return False
    stats = (_stat(f"/proc/{pid}/task/{task}/stat") for task in tasks if task != str(pid))
    return any(stat is not None and stat[0] not in "ZX" for stat in stats)


def _stat(path: str) -> tuple[str, int] | None:
    """The state and the start of a task (proc_pid_stat(5), fields 3 and 22), or None if they can't be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - read for every row; a Path costs as much as the read
            stat = file.read()
    except OSError:
        return None
    # The second field is the command's name in parentheses, and may itself contain blanks and parentheses.
    fields = stat.rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])
