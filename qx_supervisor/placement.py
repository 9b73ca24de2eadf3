"""Warns of environments in which the watcher dies with the driver: a container, a job step, a systemd unit.

Then only the ledger remains, and a later `reap` on the same machine cancels. The warning is logged once per process, in
one line with the remedy, and never at an ordinary terminal.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from . import settings

logger = logging.getLogger("qx_supervisor")


def advice(
    pid: int,
    environ: Mapping[str, str],
    cgroup: str,
    *,
    at_terminal: bool,
    kill_mode: Callable[[str, bool], str],
    user_manager: bool = False,
) -> str:
    """The warning for a driver, or "".

    Args:
        pid: The driver's process id.
        environ: Its environment.
        cgroup: The content of /proc/self/cgroup.
        at_terminal: Whether it has a terminal.
        kill_mode: Returns the `KillMode` of a unit; the second argument says whether it is a user unit.
        user_manager: Whether a systemd user manager is running for this user.
    """
    if pid == 1:
        return (
            "this driver is process 1 of its container: when it dies, the container ends, and the watcher with it. "
            "Start it from a shell that outlives it: sh -c 'python driver.py; qx-supervisor reap --wait 60'"
        )
    if environ.get(settings.PLACEMENT) == "systemd":
        return ""  # the watcher is in its own unit
    outside = ", or have the watcher started outside it: QX_WATCHER_PLACEMENT=systemd" if user_manager else ""
    if "SLURM_JOB_ID" in environ and "slurm" in cgroup:
        return (
            f"this driver is in a step of Slurm job {environ['SLURM_JOB_ID']}: at its end Slurm kills the watcher too. "
            f"Run `qx-supervisor reap --wait 60` after the step, in the batch script on the same node{outside}"
        )
    unit = _unit(cgroup)
    if unit and not at_terminal:
        name, of_user = unit
        when = {
            "control-group": "once TimeoutStopSec has passed",
            "mixed": "as soon as the driver has ended",
        }.get(kill_mode(name, of_user))
        if when:
            return (
                f"this driver is in the unit {name}, and systemd ends all of a unit's processes with it, the watcher "
                f"too, {when}. Set KillMode=process in the unit{outside}"
            )
    return ""


def _unit(cgroup: str) -> tuple[str, bool] | None:
    """The service unit of a process, and whether it is a user unit; None in a scope, such as a login session."""
    for line in cgroup.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number != "0" and controllers != "name=systemd":
            continue
        name = path.rstrip("/").rpartition("/")[2]
        # Logins and terminals run in scopes, or in the user manager itself.
        if name.endswith(".service") and not name.startswith("user@"):
            return name, "/user@" in path
    return None


def _kill_mode(unit: str, of_user: bool) -> str:
    command = ["systemctl", *(["--user"] if of_user else []), "show", "--property=KillMode", "--value", unit]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def here() -> str:
    """The warning for this process, or ""."""
    from .systemd_launch import runtime_directory

    try:
        cgroup = Path("/proc/self/cgroup").read_text()
    except OSError:
        cgroup = ""
    return advice(
        os.getpid(),
        os.environ,
        cgroup,
        at_terminal=_has_terminal(),
        kill_mode=_kill_mode,
        user_manager=runtime_directory() is not None,
    )


def warn() -> None:
    """Log the warning for this process, if there is one."""
    if text := here():
        logger.warning("the watcher may not outlive this driver: %s", text)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
