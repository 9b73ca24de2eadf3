"""Drivers that are told that their watcher may die with them, and those that are not."""

from __future__ import annotations

import os
import subprocess
import sys

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
        ("0::/system.slice/docker.service\n", False, "process"),  # what Docker itself runs
    ],
)
def test_no_word_where_there_is_no_need(cgroup, at_terminal, mode):
    assert ask(cgroup, at_terminal=at_terminal, mode=mode) == ""


@pytest.mark.parametrize(
    "environ",
    [
        {"CI": "true", "GITHUB_ACTIONS": "true", "RUNNER_TRACKING_ID": "x"},
        {"JOB_ID": "3"},  # anybody's variable
        {"SGE_ROOT": "/opt/sge"},  # the node where jobs are submitted
        {"FLUX_URI": "local:///run/flux/local"},
        {"CONDOR_CONFIG": "/etc/condor/condor_config"},
        {"PBS_SERVER": "srv"},
        {"LSF_BINDIR": "/opt/lsf/bin"},
        {"RAY_ADDRESS": "auto"},
        {"RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "false"},
        {"container": ""},
        {"container": "flatpak"},
    ],
    ids=" ".join,
)
def test_no_word_for_variables_that_say_nothing_of_a_death(environ):
    assert ask(environ=environ, cgroup="0::/\n") == ""


def test_process_one():
    assert "sh -c 'python driver.py" in ask(pid=1)


@pytest.mark.parametrize(
    ("system", "environ"),
    [
        ("PBS", {"PBS_JOBID": "1.srv"}),
        ("LSF", {"LSB_JOBID": "77"}),
        ("Grid Engine", {"JOB_ID": "3", "SGE_TASK_ID": "undefined"}),
        ("HTCondor", {"_CONDOR_SCRATCH_DIR": "/scratch"}),
        ("HTCondor", {"_CONDOR_JOB_AD": "/scratch/.job.ad"}),
        ("Flux", {"FLUX_JOB_ID": "f1"}),
        ("OAR", {"OAR_JOB_ID": "5"}),
        ("PJM", {"PJM_JOBID": "8"}),
        ("Nomad", {"NOMAD_ALLOC_ID": "a-b"}),
    ],
)
@pytest.mark.parametrize("at_terminal", [True, False])
def test_batch_systems(system, environ, at_terminal):
    told = ask(environ=environ, at_terminal=at_terminal)
    assert f"in a job of {system}: at the job's end {system} kills the watcher too" in told
    assert "qx-supervisor reap --wait 60" in told
    assert "QX_LEDGER" in told
    assert ask(environ=environ, user_manager=True).endswith("QX_WATCHER_PLACEMENT=systemd")
    assert ask(environ={**environ, "QX_WATCHER_PLACEMENT": "systemd"}, user_manager=True) == ""


@pytest.mark.parametrize(
    ("cgroup", "environ"),
    [
        ("0::/\n", {"container": "podman"}),
        ("0::/\n", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
        ("12:pids:/docker/0123456789abcdef\n0::/\n", {}),
        ("0::/system.slice/docker-0123456789abcdef.scope\n", {}),
        ("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1.scope\n", {}),
        ("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0123.scope/container\n", {}),
    ],
)
def test_a_container_whose_processes_cannot_be_seen(cgroup, environ):
    assert "container may end with the driver" in ask(cgroup, environ=environ)


@pytest.mark.parametrize("environ", [{}, {"container": "podman"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
def test_a_container_that_ends_with_the_driver(environ):
    for at_terminal in (True, False):  # docker run --init -it
        told = ask(environ=environ, at_terminal=at_terminal, ends_container=True)
        assert "container ends with the driver" in told
        assert "sh -c 'python driver.py" in told
        assert "QX_LEDGER" in told


def test_a_container_that_outlives_the_driver():
    assert ask(environ={"container": "podman"}, cgroup="0::/docker/1\n", ends_container=False) == ""
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert "QX_LEDGER" in ask(environ=pod, ends_container=False)
    assert ask(environ={**pod, "QX_LEDGER": "postgresql://db/qx"}, ends_container=False) == ""
    assert ask(environ={**pod, "CI": "true"}, ends_container=False) == ""
    assert ask(environ=pod, ends_container=False, at_terminal=True) == ""  # kubectl exec -it


@pytest.mark.parametrize(
    "more",
    [
        {"environ": {"RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": value}}
        for value in ("true", "True", "1")
    ]
    + [{"adopter": "raylet"}],
)
def test_ray_with_its_subreaper(more):
    told = ask(**more)
    assert "Ray kills what a dead worker leaves" in told
    assert "reap --install-timer" in told


def test_a_supervisor_that_adopts():
    told = ask(adopter="supervisor1")
    assert "adopted by supervisor1" in told
    assert "reap --install-timer" in told
    assert ask(adopter="supervisor1", at_terminal=True) == ""
    assert ask(adopter="supervisor1", environ={"QX_WATCHER_PLACEMENT": "systemd"}) == ""


def test_the_doctor_can_tell_the_remedy_from_the_rest():
    """It takes what follows the last full stop."""
    asked = [
        {"pid": 1},
        {"ends_container": True},
        {"environ": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "ends_container": False},
        {"environ": {"PBS_JOBID": "1"}},
        {"adopter": "raylet"},
        {"adopter": "supervisor1"},
        {"cgroup": SERVICE},
    ]
    for each in asked:
        text, stop, remedy = ask(**each, user_manager=True).rpartition(". ")
        assert (stop, remedy[0].isupper(), ". " in text) == (". ", True, False)


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


@pytest.mark.long
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


INIT = '#!/bin/sh\n"$@"\nexit $?\n'
"""A program that runs a command and ends with it, as an init of containers does."""

SUBREAPER = f"#!{sys.executable}\nimport ctypes, subprocess, sys\nctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
SUBREAPER += "sys.exit(subprocess.run(sys.argv[1:]).returncode)\n"
"""A program that runs a command, and adopts what this leaves: PR_SET_CHILD_SUBREAPER, prctl(2)."""

WARNED = f'import logging\nlogging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")\n{RUN}'
TOLD = "qx_supervisor: the watcher may not outlive this driver: "


@pytest.fixture
def program(tmp_path):
    """Writes a program of a name, and returns its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    return write


@pytest.mark.skipif(os.getuid() != 0, reason="unshare --pid needs root")
@pytest.mark.parametrize(("name", "ends"), [("tini", True), ("docker-init", True), ("entrypoint.sh", False)])
@pytest.mark.short_only("tini*")
def test_process_one_above_a_driver(ibm, start, program, name, ends):
    """Containers in small, with an init and with a shell that may go on."""
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", program(name, INIT)]
    driver = start(WARNED, wrap=lambda command: [*container, *command])
    assert driver.end() == 0, driver.errors
    assert driver.errors.decode().count(f"{TOLD}process 1 of this driver's container ends with the driver") == ends
    assert driver.errors.decode().count(TOLD) == ends


@pytest.mark.skipif(os.getuid() != 0, reason="unshare --pid needs root")
@pytest.mark.long
def test_an_orphan_that_an_init_has_adopted(start, program):
    """What was left in the background of a container goes on for as long as the init's own command does."""
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", program("tini", INIT)]
    driver = start(
        """
        from qx_supervisor import placement
        while os.getppid() != 1:
            pass
        say("told", placement.here() or "nothing")
        """,
        wrap=lambda command: [*container, "sh", "-c", '("$@" &); read _', "sh", *command],
        stdin=subprocess.PIPE,
    )
    assert driver.line("told ") == ["nothing"]
    assert driver.end() == 1  # of `read`, at the end of its input


@pytest.mark.parametrize(("name", "warns"), [("supervisor1", True), ("systemd", False)])
@pytest.mark.long
def test_a_supervisor_has_adopted_the_watcher(ibm, start, program, name, warns):
    """One that is a service manager of the user's adopts too, and kills nobody."""
    driver = start(WARNED, wrap=lambda command: [program(name, SUBREAPER), *command])
    assert driver.end() == 0, driver.errors
    told = f"{TOLD}this driver's watcher was adopted by {name}, a supervisor of the driver's"
    assert driver.errors.decode().count(told) == warns
    assert driver.errors.decode().count(TOLD) == warns


def test_an_ordinary_driver_is_told_nothing(ibm, fork):
    driver = fork(f"import logging\nlogging.basicConfig(level=logging.INFO)\n{RUN}")
    assert driver.end() == 0
    assert "outlive" not in driver.errors.decode()
