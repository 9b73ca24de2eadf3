"""The files of `scripts/deploy`: each is checked by its own tool, and run for real as far as this machine can."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from testkit import units
from testkit.drivers import RUN, assert_cancelled_once
from testkit.pages import BLOCKS, parse, uses
from testkit.processes import DEADLINE, Process, wait_for_end
from testkit.watchers import watchers_of

from qx_supervisor.cli import main

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "deploy"
EPILOG = FOLDER / "slurm" / "epilog"
UNITS = sorted((FOLDER / "systemd").iterdir())
PAGES = sorted((FOLDER / "kubernetes").iterdir())

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user, and namespaces, need root")

COMMAND = f"""#!{sys.executable}
import qx_supervisor.service
from qx_supervisor import local
from qx_supervisor.cli import main
qx_supervisor.service.accounts.default_service = lambda *_: local.Service({{pid}}, {{port}}).service()
qx_supervisor.service.accounts.every_service = lambda: [local.Service({{pid}}, {{port}}).service()]
main()
"""
"""`qx-supervisor`, whose saved account is the embedded service."""


@pytest.fixture
def programs(ibm, tmp_path) -> Path:
    """A folder with `python` and `qx-supervisor`."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "qx-supervisor").write_text(COMMAND.format(pid=ibm.pid, port=ibm.port))
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for each in folder.iterdir():
        each.chmod(0o755)
    return folder


def _arguments() -> Iterator[list[str]]:
    """What the files have `qx-supervisor` do."""
    yield from (shlex.split(found) for found in re.findall(r'"\$command" (.*?)(?= \d?>)', EPILOG.read_text()))
    for unit in UNITS:
        for line in re.findall(r"^Exec\w+=-?(.*)$", unit.read_text(), re.MULTILINE):
            yield from uses(shlex.split(line))
    for page in PAGES:
        yield from uses(_container(page.name)["command"])


def test_every_command_in_them_parses():
    found = list(_arguments())
    assert sorted(map(" ".join, found)) == ["reap", "reap", "reap --wait 60", "reaper", "reaper"]
    for arguments in found:
        parse(main, arguments)


# Slurm ------------------------------------------------------------------------------------------------------------


def test_the_epilog_is_well_formed():
    assert os.access(EPILOG, os.X_OK)
    subprocess.run(["bash", "-n", EPILOG], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed (Debian: apt-get install it)")
def test_the_epilog_passes_shellcheck():
    done = subprocess.run(["shellcheck", EPILOG], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that any user can look into; those of a test are its own user's."""
    with tempfile.TemporaryDirectory(prefix="qxs") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def epilog(tmp_path, common):
    """Runs the epilog as slurmd does, for a job of a user whom only this test knows; returns how it ended."""
    home = common / "home"
    (home / ".local" / "state" / "qx_supervisor").mkdir(parents=True)
    for each in (home, *home.rglob("*")):
        each.chmod(0o700)

    def run(command: Path, uid: int = 61234, user: str = "qxtest", **more: str) -> subprocess.CompletedProcess[str]:
        for each in (home, *home.rglob("*")):
            os.chown(each, uid, uid)
        (tmp_path / "passwd").write_text(f"{Path('/etc/passwd').read_text()}qxtest:x:{uid}:{uid}::{home}:/bin/sh\n")
        script = f'mount --make-rprivate / && mount --bind {tmp_path}/passwd /etc/passwd && exec "$0"'
        environment = {
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_USER": user,
            "QX_SUPERVISOR": str(command),
            "SECRET": "of-slurmd",
            **more,
        }
        return subprocess.run(
            [shutil.which("unshare"), "--mount", "/bin/sh", "-c", script, str(EPILOG)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    run.home = home
    return run


@pytest.fixture
def spy(common) -> tuple[Path, Path]:
    """A command that any user can run, and what it says of its place."""
    command, out = common / "command", common / "out"
    out.touch()
    out.chmod(0o666)
    command.write_text(f'#!/bin/sh\n{{ echo "$*"; id -u; pwd; readlink /proc/$$/fd/0; env; }} >{out}\nexit 3\n')
    command.chmod(0o755)
    return command, out


@AS_ROOT
def test_the_epilog_becomes_the_jobs_user(epilog, spy):
    command, out = spy
    done = epilog(command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said, uid, place, stdin, *environment = out.read_text().splitlines()
    assert (said, uid, place, stdin) == ("reap", "61234", "/", "/dev/null")
    names = {line.partition("=")[0] for line in environment} - {"PWD", "_", "SHLVL"}
    assert names == {"HOME", "USER", "LOGNAME", "PATH", "LANG"}


@AS_ROOT
@pytest.mark.parametrize("user", ["root", "", "nobody-of-this-name"])
def test_the_epilog_does_nothing_for_others(epilog, spy, user):
    command, out = spy
    assert epilog(command, user=user).returncode == 0
    assert out.read_text() == ""


@AS_ROOT
def test_the_epilog_does_nothing_for_users_without_a_ledger(epilog, spy):
    command, out = spy
    shutil.rmtree(epilog.home / ".local")
    assert epilog(command).returncode == 0
    assert out.read_text() == ""
    assert not (epilog.home / ".local").exists()


@AS_ROOT
def test_the_epilog_keeps_a_node_no_longer_than_it_may(epilog, spy):
    command, _ = spy
    command.write_text("#!/bin/sh\nexec sleep 1000\n")
    assert epilog(command, QX_EPILOG_SECONDS="0.2").returncode == 0


@AS_ROOT
@pytest.mark.long
def test_the_epilog_cancels_what_a_job_left(ibm, fork, epilog, programs, monkeypatch):
    """Driver and watcher are killed, as by the end of a Slurm job. (The user has root's number: others can't run the
    interpreter of these tests.)"""
    monkeypatch.setenv("QX_STATE_DIR", str(epilog.home / ".local" / "state" / "qx_supervisor"))
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.kill()
    driver.kill()
    wait_for_end(watcher)
    assert [each.cancel_requests for each in ibm.jobs()] == [0]
    done = epilog(programs / "qx-supervisor", uid=0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_cancelled_once(ibm, job)


# systemd ----------------------------------------------------------------------------------------------------------


def _home_with(folder: Path, programs: Path) -> None:
    """A home as the units expect it."""
    (folder / "drivers" / "venv").mkdir(parents=True)
    (folder / "drivers" / "venv" / "bin").symlink_to(programs)
    (folder / ".config").mkdir()
    (folder / ".config" / "qx-reaper.env").write_text("QX_LEDGER=postgresql://127.0.0.1:9/none\n")
    target = folder / ".config" / "systemd" / "user"
    target.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, target)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_as_systemd_wants_them(programs, tmp_path, unit):
    _home_with(tmp_path / "home", programs)
    done = _verify(tmp_path / "home", unit.name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_check_of_units_can_fail(programs, tmp_path):
    _home_with(tmp_path / "home", programs)
    unit = tmp_path / "home" / ".config" / "systemd" / "user" / "qx-reaper.service"
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=ever"))
    assert "Failed to parse service restart specifier" in _verify(tmp_path / "home", unit.name).stderr


def _verify(home: Path, name: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of a unit in a home."""
    unit = name.replace("@.", "@vqe.")
    folder = home / ".config" / "systemd" / "user"
    if unit != name:
        (folder / unit).symlink_to(folder / name)
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}
    command = ["systemd-analyze", "--user", "--man=no", "--recursive-errors=no", "verify", str(folder / unit)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.long
@pytest.mark.skipif(bool(units.why_not()), reason=units.why_not())
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_the_drivers_unit_runs(ibm, programs, state, write_script, end):
    """Under a real user manager: a driver that is killed is cancelled for by its watcher, in another unit; one that is
    stopped cancels by itself. Then the unit reaps."""
    ibm.hold("queued")
    with units.user_systemd() as systemd:
        home = systemd.runtime
        _home_with(home, programs)
        os.mkfifo(home / "output")
        script = f"os.dup2(os.open({str(home / 'output')!r}, os.O_WRONLY), 1)\n{RUN}"
        shutil.copy(write_script(script), home / "drivers" / "vqe.py")
        names = ("QX_STATE_DIR", "QX_SWEEP_WINDOW")
        systemd.ctl("set-environment", *(f"{name}={os.environ[name]}" for name in names))
        systemd.ctl("daemon-reload")
        systemd.ctl("start", "qx-driver@vqe")
        with (home / "output").open() as lines:
            job = next(line.split()[1] for line in lines if line.startswith("queued "))
        [watcher] = watchers_of(Process(systemd.ctl("show", "--property=MainPID", "--value", "qx-driver@vqe")))
        assert "qx-watcher-" in Path(f"/proc/{watcher.pid}/cgroup").read_text()
        systemd.ctl(*(["kill", "--signal=KILL"] if end == "kill" else ["stop"]), "qx-driver@vqe")
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
        wait_for_end(watcher)
        properties = "--property=Result,ActiveState"
        while "deactivating" in (shown := systemd.ctl("show", properties, "qx-driver@vqe")):
            pass  # it reaps
        assert (
            set(shown.split())
            == {
                "kill": {"Result=signal", "ActiveState=failed"},
                "stop": {"Result=exit-code", "ActiveState=failed"},  # 143: it did not come to its end
            }[end]
        )
    assert_cancelled_once(ibm, job)


@pytest.mark.skipif(bool(units.why_not()), reason=units.why_not())
@pytest.mark.long
def test_the_reapers_unit_runs(ibm, programs, postgres, shared_url, fork, monkeypatch):
    """Under a real user manager, with the database's address in the file that the unit names."""
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    monkeypatch.setenv("QX_LEDGER", shared_url)
    ibm.hold("queued")
    with units.user_systemd() as systemd:
        _home_with(systemd.runtime, programs)
        (systemd.runtime / ".config" / "qx-reaper.env").write_text(f"QX_LEDGER={shared_url}\nQX_LEASE_SECONDS=1\n")
        systemd.ctl("daemon-reload")
        driver = fork(RUN)
        job = driver.queued()
        watcher = driver.watcher()
        driver.send(signal.SIGSTOP)
        watcher.kill()
        wait_for_end(watcher)
        driver.kill()
        systemd.ctl("start", "qx-reaper")
        assert ibm.wait_job(job, "Cancelled", timeout=60).cancel_requests == 1
        assert systemd.ctl("is-active", "qx-reaper") == "active\n"
        systemd.ctl("stop", "qx-reaper")
        assert systemd.ctl("show", "--property=Result", "--value", "qx-reaper") == "success\n"
    assert_cancelled_once(ibm, job)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_unit_on_the_page(programs, tmp_path):
    [unit] = _on_the_page("ini")
    _home_with(tmp_path, programs)
    written = tmp_path / ".config" / "systemd" / "user" / "page.service"
    written.write_text(unit.replace("/opt/vqe/bin", str(programs)))
    done = _verify(tmp_path, written.name)
    assert (done.returncode, done.stderr) == (0, "")


def _on_the_page(language: str) -> list[str]:
    """The page's own examples in a language."""
    return [block.code for block in BLOCKS if block.page.name == "clusters.md" and block.language == language]


# Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_objects_are_as_kubernetes_wants_them(page):
    checker = pytest.importorskip("kubernetes_validate")
    import yaml

    objects = list(yaml.safe_load_all(page.read_text()))
    assert objects
    for each in objects:
        for version in ("1.30", checker.latest_version()):
            checker.validate(each, version, strict=True)
        each["spec"]["template"]["spec"]["containers"][0]["comand"] = []
        with pytest.raises(checker.ValidationError):
            checker.validate(each, version, strict=True)


def test_the_pod_on_the_page():
    checker = pytest.importorskip("kubernetes_validate")
    import yaml

    [text] = _on_the_page("yaml")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vqe"}} | yaml.safe_load(text)
    checker.validate(pod, checker.latest_version(), strict=True)


def _container(page: str) -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the files (pip install kubernetes-validate)")
    return yaml.safe_load((FOLDER / "kubernetes" / page).read_text())["spec"]["template"]["spec"]["containers"][0]


def test_secrets_are_not_in_the_files():
    for page in ("driver.yaml", "reaper.yaml"):
        for variable in _container(page)["env"]:
            if variable["name"] != "HOME":
                assert list(variable["valueFrom"]) == ["secretKeyRef"]


@pytest.fixture
def pod(ibm, programs, write_script, tmp_path, monkeypatch):
    """The driver's container, in small: its command is process 1 of a PID namespace.

    Yields what starts it, what runs its preStop, and the driver's output.
    """
    container = _container("driver.yaml")
    ibm.hold("queued")
    output, pidfile = tmp_path / "output", tmp_path / "driver.pid"
    os.mkfifo(output)
    driver = write_script(f"os.dup2(os.open({str(output)!r}, os.O_WRONLY), 1)\n{RUN}")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    paths = {"/app/driver.py": str(driver), "/tmp/driver.pid": str(pidfile)}

    def localized(command: list[str]) -> list[str]:
        for theirs, ours in paths.items():
            command = [word.replace(theirs, ours) for word in command]
        return command

    running = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *localized(container["command"])],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    hook = localized(container["lifecycle"]["preStop"]["exec"]["command"])

    def pre_stop() -> subprocess.CompletedProcess[bytes]:
        [first] = psutil.Process(running.pid).children()
        enter = ["nsenter", f"--target={first.pid}", "--pid", "--mount", "--"]
        return subprocess.run([*enter, *hook], timeout=DEADLINE, check=False)

    with output.open() as lines:
        yield running, pre_stop, lines
    if running.poll() is None:
        running.kill()
    running.communicate()


@AS_ROOT
@pytest.mark.long
def test_a_pods_driver_is_told_before_the_pod_ends(ibm, pod):
    running, pre_stop, lines = pod
    job = next(line.split()[1] for line in lines if line.startswith("queued "))
    assert pre_stop().returncode == 0
    assert_cancelled_once(ibm, job)  # when the hook returns, it is done
    _, errors = running.communicate(timeout=DEADLINE)
    assert running.returncode == 143, errors


@AS_ROOT
@pytest.mark.long
def test_a_pods_container_outlives_its_driver(ibm, pod):
    """The driver is killed: its watcher still runs, and cancels."""
    running, _, lines = pod
    job = next(line.split()[1] for line in lines if line.startswith("queued "))
    [first] = psutil.Process(running.pid).children()
    [driver] = [each for each in first.children() if each.cmdline()[-1].endswith(".py")]
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    _, errors = running.communicate(timeout=DEADLINE)
    assert running.returncode == 137, errors
