"""Drivers that are told that their watcher may die with them, and those that are not."""

from __future__ import annotations

import os

import pytest
from testkit.drivers import RUN

from qx_supervisor.placement import advice

SERVICE = "0::/system.slice/vqe.service\n"


LOGIN = "0::/user.slice/user-1000.slice/session-2.scope\n"


def ask(cgroup=LOGIN, pid=4711, environ=None, mode="control-group", at_terminal=False, **more):
    return advice(pid, environ or {}, cgroup, at_terminal=at_terminal, kill_mode=lambda unit, of_user: mode, **more)


@pytest.mark.parametrize(
    ("cgroup", "at_terminal", "mode"),
    [
        ("0::/user.slice/user-1000.slice/session-2.scope\n", True, "control-group"),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", False, "control-group"),  # nohup, cron of a login
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n", True, "control-group"),
        ("0::/user.slice/user-1000.slice/user@1000.service\n", False, "control-group"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-konsole.service\n", True, "control-group"),
        ("0::/system.slice/cron.service\n", False, "process"),
        ("0::/system.slice/vqe.service\n", False, ""),  # no systemctl to ask
        ("12:memory:/system.slice/vqe.service\n1:name=systemd:/user.slice/session-1.scope\n", False, "control-group"),
        ("0::/\n", False, "control-group"),
        ("", False, "control-group"),
        ("nonsense", False, "control-group"),
    ],
)
def test_no_word_where_there_is_no_need(cgroup, at_terminal, mode):
    assert ask(cgroup, at_terminal=at_terminal, mode=mode) == ""


def test_process_one():
    assert "sh -c 'python driver.py" in ask(pid=1)


def test_slurm():
    cgroup = "0::/system.slice/slurmstepd.scope/job_77/step_0/user/task_0\n"
    told = ask(cgroup, environ={"SLURM_JOB_ID": "77"})
    assert "Slurm job 77" in told
    assert "qx-supervisor reap" in told
    assert ask(environ={"SLURM_JOB_ID": "77"}) == ""  # an allocation's shell, outside a step's cgroup


@pytest.mark.parametrize(
    ("mode", "when"),
    [("control-group", "once TimeoutStopSec has passed"), ("mixed", "as soon as the driver has ended")],
)
@pytest.mark.parametrize("cgroup", [SERVICE, "1:name=systemd:/system.slice/vqe.service\n0::/\n"])
def test_a_unit_that_kills_its_control_group(cgroup, mode, when):
    asked = []

    def kill_mode(unit, of_user):
        asked.append((unit, of_user))
        return mode

    told = advice(5, {}, cgroup, at_terminal=False, kill_mode=kill_mode)
    assert "KillMode=process" in told
    assert when in told
    assert asked == [("vqe.service", False)]


@pytest.mark.parametrize(
    ("cgroup", "environ"),
    [(SERVICE, {}), ("0::/system.slice/slurmstepd.scope/job_77/step_0/user/task_0\n", {"SLURM_JOB_ID": "77"})],
)
def test_where_a_watcher_can_be_outside(cgroup, environ):
    assert "QX_WATCHER_PLACEMENT" not in ask(cgroup, environ=environ)
    assert ask(cgroup, environ=environ, user_manager=True).endswith("QX_WATCHER_PLACEMENT=systemd")
    assert ask(cgroup, environ={**environ, "QX_WATCHER_PLACEMENT": "systemd"}, user_manager=True) == ""


def test_nothing_is_outside_a_container():
    told = ask(pid=1, environ={"QX_WATCHER_PLACEMENT": "systemd"}, user_manager=True)
    assert "process 1 of its container" in told
    assert "QX_WATCHER_PLACEMENT" not in told


def test_a_users_unit():
    asked = []
    cgroup = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vqe.service\n"
    advice(5, {}, cgroup, at_terminal=False, kill_mode=lambda unit, of_user: asked.append((unit, of_user)) or "")
    assert asked == [("vqe.service", True)]


@pytest.mark.skipif(os.getuid() != 0, reason="unshare --pid needs root")
def test_process_one_of_a_pid_namespace_is_told_once(ibm, start):
    """A container without an init, in small: its first process is the driver."""
    driver = start(
        f"""
        import logging
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        {RUN}
        {RUN}
        """,
        wrap=lambda command: ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command],
    )
    assert driver.end() == 0, driver.errors
    assert driver.errors.decode().count("qx_supervisor: the watcher may not outlive this driver") == 1


def test_an_ordinary_driver_is_told_nothing(ibm, fork):
    driver = fork(f"import logging\nlogging.basicConfig(level=logging.INFO)\n{RUN}")
    assert driver.end() == 0
    assert "outlive" not in driver.errors.decode()
