"""Who is above a process: what ends a container with it, and who adopts what it leaves.

Both are facts that the kernel tells. A PID namespace ends, and everything in it is killed, when its process 1 ends. And
an orphan, as the watcher is, falls to the nearest of its ancestors that has asked for that (`PR_SET_CHILD_SUBREAPER`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .watcher import host_identity, system

_PASSING = frozenset(
    {"tini", "tini-static", "docker-init", "dumb-init", "catatonit", "podman-init", "appinit"}
    | {"su", "sudo", "runuser", "timeout", "uv", "pixi"}
)
"""Programs that run one command and end with it: inits of containers, and what is put before a command."""

_MANAGERS = re.compile(r"systemd|init|dinit|shepherd|Relay\(.*|SessionLeader")
"""Who adopts what a user's programs leave, and lets it live: service managers of users, and WSL's processes."""


def is_in_pid_namespace() -> bool:
    """Whether this process is in another PID namespace than the kernel's first, as in nearly every container."""
    if not sys.platform.startswith("linux"):
        return False
    return host_identity.this_host().pid_ns not in (0, host_identity.INITIAL_PID_NAMESPACE)


def ends_container() -> bool | None:
    """Whether the container of this process ends when this process does; None if that can't be seen.

    It does if all processes above this one end with their command, and process 1's command is this one, or above it. A
    shell among them may go on, and an orphan that process 1 has adopted is not its command.
    """
    match host_identity.this_host().pid_ns:
        case 0:
            return None
        case _ if not sys.platform.startswith("linux"):
            return False  # there are no PID namespaces
        case host_identity.INITIAL_PID_NAMESPACE:
            return False
    above = list(_ancestors(os.getpid()))
    if above:
        pids = [os.getpid(), *(pid for pid, _ in above)]
        return all(name in _PASSING for _, name in above) and pids[-2] == _oldest_child(1)
    # Its parent is outside: the container's runtime has started it. If process 1 is the pod's, this is the process with
    # which a container of the pod ends; else it was started in a container that was there.
    return os.getpid() == 1 or _stat(1)[0] == "pause"


def adopter(pid: int) -> str:
    """The name of an ancestor of this process that has adopted another process, and that may kill it.

    Returns:
        "" if that other process fell to process 1, or to a manager of the user's services.
    """
    parent = _stat(pid)[1]
    name = next((name for above, name in _ancestors(os.getpid()) if above == parent != 1), "")
    return "" if _MANAGERS.fullmatch(name) else name


def _ancestors(pid: int) -> Iterator[tuple[int, str]]:
    """The pids and names of those above a process, as far as they are in its PID namespace; the nearest first."""
    while (pid := _stat(pid)[1]) > 0:
        yield pid, _stat(pid)[0]


def _oldest_child(pid: int) -> int:
    """The child that a process has had for the longest time; 0 if it has none."""
    children = [each for each in _pids() if _stat(each)[1] == pid]
    return min(children, key=lambda each: (host_identity.start_ticks(each) or 0, each), default=0)


def _pids() -> list[int]:
    if not system.HAS_LINUX:
        import psutil

        return psutil.pids()
    return [int(each) for each in os.listdir("/proc") if each.isdigit()]  # noqa: PTH208 - the names alone


def _stat(pid: int) -> tuple[str, int]:
    """The name and the parent of a process (proc_pid_stat(5), fields 2 and 4); "" and 0 if they can't be read."""
    if not system.HAS_LINUX:
        return _stat_by_psutil(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", 0
    head, _, rest = text.rpartition(")")
    return head.partition("(")[2], int(rest.split()[1])


def _stat_by_psutil(pid: int) -> tuple[str, int]:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.name(), process.ppid()
    except (psutil.Error, OSError, ValueError):
        return "", 0
