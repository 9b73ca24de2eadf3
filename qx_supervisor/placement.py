"""Warns of environments in which the watcher dies with the driver: a container, a batch job, a unit, a supervisor.

Then only the ledger remains, and a later `reap` on the same machine cancels. The warning is logged once per process, in
one line with the remedy, and never at an ordinary terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from . import ancestry, settings
from .watcher import system

logger = logging.getLogger("qx_supervisor")

_SHELL = "sh -c 'python driver.py; qx-supervisor reap --wait 60'"
_TIMER = "have a timer reap what both leave (`qx-supervisor reap --install-timer`)"
_REAPER = "let a reaper elsewhere know of its jobs (QX_LEDGER)"

_BATCH_SYSTEMS = {
    "PBS": ("PBS_JOBID",),
    "LSF": ("LSB_JOBID",),
    "HTCondor": ("_CONDOR_SCRATCH_DIR", "_CONDOR_JOB_AD"),
    "Flux": ("FLUX_JOB_ID",),
    "OAR": ("OAR_JOB_ID",),
    "PJM": ("PJM_JOBID",),
    "Nomad": ("NOMAD_ALLOC_ID",),
}
"""Variables that a batch system sets in its jobs, and nowhere else.

All of these kill what a job has left, by its control group or another mark that it can't take off. Slurm is not among
them: it sets its variables also in the shell of an allocation, whose processes it leaves alone.
"""

_GRID_ENGINE = ("SGE_TASK_ID", "SGE_JOB_SPOOL_DIR", "SGE_ROOT")
"""Grid Engine's own variables, beside a JOB_ID that others set too."""

_CONTAINER = re.compile(r"/docker/|/docker-\w+\.scope|/kubepods|/libpod-|/crio-|/cri-containerd|/ecs/")
"""What runtimes call the control groups of their containers. Docker itself is in docker.service."""

_RAY_SUBREAPER = "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper"


def advice(
    pid: int,
    environ: Mapping[str, str],
    cgroup: str,
    *,
    at_terminal: bool,
    kill_mode: Callable[[str, bool], str],
    user_manager: bool = False,
    ends_container: bool | None = None,
    adopter: str = "",
) -> str:
    """The warning for a driver, or "".

    Args:
        pid: The driver's process id.
        environ: Its environment.
        cgroup: The content of /proc/self/cgroup.
        at_terminal: Whether it has a terminal.
        kill_mode: Returns the `KillMode` of a unit; the second argument says whether it is a user unit.
        user_manager: Whether a systemd user manager is running for this user.
        ends_container: Whether its container ends with it (`ancestry.ends_container`); None: unknown.
        adopter: The name of the supervisor that has adopted its watcher (`ancestry.adopter`), or "".
    """
    if pid == 1:
        return (
            "this driver is process 1 of its container: when it dies, the container ends, and the watcher with it. "
            f"Start it from a shell that outlives it: {_SHELL}"
        )
    is_pod = "KUBERNETES_SERVICE_HOST" in environ
    is_container = (
        is_pod or environ.get("container", "") not in ("", "flatpak") or _CONTAINER.search(cgroup) is not None
    )
    if ends_container or (ends_container is None and is_container and not at_terminal):
        ends = "ends" if ends_container else "may end"
        return (
            f"process 1 of this driver's container {ends} with the driver, as an init does, and the watcher is killed "
            f"then. Start the driver from a shell that outlives it: {_SHELL}, or {_REAPER}"
        )
    if environ.get(settings.PLACEMENT) == "systemd":
        return ""  # the watcher is in its own unit
    outside = ", or have the watcher started outside it: QX_WATCHER_PLACEMENT=systemd" if user_manager else ""
    if "SLURM_JOB_ID" in environ and "slurm" in cgroup:
        return (
            f"this driver is in a step of Slurm job {environ['SLURM_JOB_ID']}: at its end Slurm kills the watcher too. "
            f"Run `qx-supervisor reap --wait 60` after the step, in the batch script on the same node{outside}"
        )
    if system := _batch_system(environ):
        return (
            f"this driver is in a job of {system}: at the job's end {system} kills the watcher too. Run `qx-supervisor "
            f"reap --wait 60` after the driver, in the job's script on the same node, or {_REAPER}{outside}"
        )
    if adopter == "raylet" or environ.get(_RAY_SUBREAPER, "").lower() in ("1", "true"):
        return (
            "this driver is in a worker of Ray, and Ray kills what a dead worker leaves, the watcher too. "
            f"Start Ray without {_RAY_SUBREAPER}, or {_TIMER}{outside}"
        )
    # What is run for CI ends with its pod, and is begun anew.
    if is_pod and not (at_terminal or settings.LEDGER in environ or "CI" in environ):
        return (
            "this driver is in a pod of Kubernetes: the watcher dies with the container, at its memory limit, and with "
            "the pod. Set QX_LEDGER to a database outside, and run `qx-supervisor reaper` there"
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
                f"too, {when}. Set KillMode=process in the unit, or {_TIMER}{outside}"
            )
    if adopter and not at_terminal:
        return (
            f"this driver's watcher was adopted by {adopter}, a supervisor of the driver's, which may end what its "
            f"programs leave. Have it spare processes in sessions of their own, or {_TIMER}{outside}"
        )
    return ""


def _batch_system(environ: Mapping[str, str]) -> str:
    """The name of the batch system in whose job a process is, or ""."""
    for name, variables in _BATCH_SYSTEMS.items():
        if any(each in environ for each in variables):
            return name
    return "Grid Engine" if "JOB_ID" in environ and any(each in environ for each in _GRID_ENGINE) else ""


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


def here(watcher: int | None = None) -> str:
    """The warning for this process, or "".

    Args:
        watcher: The pid of its watcher, if it has one.
    """
    from .systemd_launch import runtime_directory

    cgroup = ""
    if system.HAS_LINUX:
        with contextlib.suppress(OSError):
            cgroup = Path("/proc/self/cgroup").read_text()
    return advice(
        os.getpid(),
        os.environ,
        cgroup,
        at_terminal=_has_terminal(),
        kill_mode=_kill_mode,
        user_manager=runtime_directory() is not None,
        ends_container=ancestry.ends_container(),
        adopter="" if watcher is None else ancestry.adopter(watcher),
    )


def warn(watcher: int) -> None:
    """Log the warning for this process, which has this watcher, if there is one."""
    if text := here(watcher):
        logger.warning("the watcher may not outlive this driver: %s", text)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
