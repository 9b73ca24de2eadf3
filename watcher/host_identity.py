"""On which host a process is, and whether it still runs.

The ledger outlives processes, containers and boots, and a home directory may be shared by many machines. A pid from the
ledger means something only in one PID namespace, of one boot, of one machine. In doubt, a process counts as alive: to
take a dead driver for a live one leaves a job running, but to take a live driver for a dead one is a false cancel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import process_state, system

MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")

start_ticks = process_state.start_ticks

INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the namespace that a kernel starts with (`PROC_PID_INIT_INO`), the same number on every machine."""

_NO_NAMESPACES = 1

View = Literal["same", "rebooted", "elsewhere"]
"""What one host can say of another's processes: it sees them; they ended with an earlier boot; it can't tell."""


@dataclass(frozen=True)
class HostIdentity:
    """The host of a process. A part that is not known is empty, or 0, and then less can be said of its processes.

    Attributes:
        machine: The machine id (machine-id(5)). Container images and cloned disks may carry a copy of another's.
        host: The host name.
        boot: The kernel's boot id: one boot of one machine.
        pid_ns: The inode of the PID namespace. It is reused once the namespace is gone. Where there are no namespaces,
            1: it is on the same machine if the boot is the same.
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
    # Not a question of `system.HAS_LINUX`: on Linux nobody but the kernel tells PID namespaces apart, and to take
    # another one for this one would be to take its processes for dead.
    if sys.platform.startswith("linux"):
        return HostIdentity(_machine(), os.uname().nodename, _read(BOOT_ID_FILE), _pid_namespace())
    elif sys.platform == "darwin":  # noqa: RET505 - so that mypy knows which of them is for which platform
        from . import macos  # what it needs is no one else's

        return HostIdentity(macos.machine(), os.uname().nodename, macos.boot_session(), _NO_NAMESPACES)
    else:
        import platform

        return HostIdentity("", platform.node(), "", 0)


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
        if not sees_itself():
            return 0
        # In a time namespace start times are shifted: the same process would have two.
        for line in _read(Path("/proc/self/timens_offsets")).splitlines():
            if line.split()[0] == "boottime" and line.split()[1:] != ["0", "0"]:
                return 0
        return Path("/proc/self/ns/pid").stat().st_ino
    except (OSError, IndexError):
        return 0


def sees_itself() -> bool:
    """Whether this process is seen under its pid: on Linux, whether /proc has it so.

    It may be of another PID namespace, if this one has no mount of its own: there the pid is another process's, whose
    death would be taken for this one's.
    """
    if not sys.platform.startswith("linux"):
        return True
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 - one string is compared
    except OSError:
        return False


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class Process:
    """One process, and no later one with its pid.

    Attributes:
        host_identity: Its host's.
        pid: Its pid there.
        start_ticks: Its start (`process_state.start_ticks`); None if it could not be read.
    """

    host_identity: HostIdentity
    pid: int
    start_ticks: int | None


def this_process(where: HostIdentity | None = None) -> Process:
    """This process; `where` it is, if that is known already."""
    return Process(where or this_host(), os.getpid(), start_ticks(os.getpid()))


IsRunning = Callable[[int, int | None], bool]
"""`is_running`, or its replacement in a test."""


def pidfd_of(pid: int) -> int | None:
    """A pidfd, or None if the kernel has none or forbids it, or the process is gone."""
    if not system.HAS_LINUX:
        return None
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def is_running(pid: int, start_ticks: int | None) -> bool:
    """Whether the process with this pid and start runs, or may run: in doubt, it does.

    It does not if it is gone, its pid is another's now, or it will never run its own code again, though it may take the
    kernel long to end it (`process_state`).
    """
    return process_state.judge(pid, start_ticks) in ("alive", "unknown")
