"""The timer that runs `reap`: with a real user manager of systemd, and as a line of a crontab."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit import units
from testkit.drivers import RUN, assert_cancelled_once, kill_both
from testkit.watchers import wait_until_written

from qx_supervisor import ancestry, doctor, reap_timer
from qx_supervisor.local import registry

SERVICE, TIMER = "qx-supervisor-reap.service", "qx-supervisor-reap.timer"
ODD = "a $HOME ${HOME} %h %% 'b\" \\ ü"
URL = "postgresql://qx@db.example.org/qx"


@pytest.fixture(scope="module")
def manager() -> Iterator[units.UserSystemd]:
    if units.why_not():
        pytest.skip(units.why_not())
    with units.user_systemd() as made:
        yield made


@pytest.fixture
def systemd(manager, monkeypatch) -> Iterator[units.UserSystemd]:
    """The user's manager, in whose home no timer is installed before and after."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(manager.runtime))
    monkeypatch.setenv("HOME", str(manager.runtime))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    yield manager
    reap_timer.remove()
    assert not list(manager.runtime.rglob("qx-supervisor-reap*"))


@pytest.fixture
def no_manager(tmp_path, monkeypatch) -> Path:
    """A home on a machine where no user manager runs."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def reap(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qx_supervisor", "reap", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_the_timer_reaps_what_both_left(ibm, fork, systemd):
    registry.claim(ibm.pid, ibm.port)  # where --local finds it
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    wait_until_written(driver)
    done = reap("--local", "--install-timer")
    folder = systemd.runtime / ".config/systemd/user"
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f"written  {folder / SERVICE}",
            f"written  {folder / TIMER}",
            f"started  {TIMER}, which reaps every 5 minutes",
        ],
    )
    assert TIMER in systemd.ctl("list-timers")
    systemd.ctl("start", SERVICE)
    assert [each.cancel_requests for each in ibm.jobs()] == [0]  # its driver lives
    kill_both(driver)
    systemd.ctl("start", SERVICE)
    assert systemd.ctl("show", "--property=Result", "--value", SERVICE).strip() == "success"
    assert_cancelled_once(ibm, job)
    assert reap("--remove-timer").returncode == 0
    assert TIMER not in systemd.ctl("list-timers", "--all")
    assert not list(systemd.runtime.rglob("qx-supervisor-reap*"))


@pytest.mark.long
def test_installing_it_again_changes_it(systemd):
    reap_timer.install(5, [])
    first = [path.read_text() for path in reap_timer.files()]
    reap_timer.install(5, [])
    assert [path.read_text() for path in reap_timer.files()] == first
    reap_timer.install(120, ["--instance", "crn:v1:x"])
    assert "OnUnitInactiveUSec=2h" in systemd.ctl("show", "--property=TimersMonotonic", TIMER)
    assert "crn:v1:x" in systemd.ctl("show", "--property=ExecStart", SERVICE)
    assert reap_timer.state() == "running"
    systemd.ctl("stop", TIMER)
    assert reap_timer.state() == "stopped"


@pytest.mark.long
def test_odd_characters_reach_it_as_they_are(systemd, tmp_path, monkeypatch):
    state = tmp_path / ODD
    monkeypatch.setenv("QX_STATE_DIR", str(state))
    reap_timer.install(5, ["--instance", ODD])
    systemd.ctl("start", SERVICE)
    assert systemd.ctl("show", "--property=Result", "--value", SERVICE).strip() == "success"
    assert (state / "ledger.db").exists()


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_no_fault_in_the_units(systemd, monkeypatch):
    monkeypatch.setenv("QX_STATE_DIR", f"/tmp/{ODD}")
    reap_timer.install(5, ["--ledger", URL])
    for path in reap_timer.files():
        command = ["systemd-analyze", "--user", "--man=no", "--recursive-errors=no", "verify", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_it_takes_no_secret_along_and_says_so(systemd, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "sentinel-key")
    monkeypatch.setenv("QX_LEDGER", "postgresql://qx:sentinel-password@db/qx")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:sentinel-of-the-proxy@proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    done = reap("--install-timer")
    assert done.returncode == 0, done.stderr
    text = "".join(path.read_text() for path in reap_timer.files())
    assert "sentinel" not in text + done.stdout + done.stderr
    assert 'Environment="HTTP_PROXY=http://proxy:3128"' in text
    assert [name for name in ("QISKIT_IBM_TOKEN", "QX_LEDGER", "HTTPS_PROXY") if name not in done.stderr] == []
    assert "save_account" in done.stderr
    assert "loginctl enable-linger" in done.stderr


@pytest.mark.long
def test_there_is_no_account_yet(systemd, monkeypatch):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    done = reap("--install-timer")
    assert (done.returncode, "no IBM Quantum account is saved" in done.stderr) == (0, True)
    assert "QISKIT_IBM_TOKEN" not in done.stderr


@pytest.mark.long
def test_systemd_refuses(systemd, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # not the manager's
    done = reap("--install-timer", "--local")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, f"systemctl --user restart {TIMER} failed:" in line) == (1, True)
    assert line.endswith("does systemd know of XDG_CONFIG_HOME? If not, unset it")
    assert reap("--remove-timer").returncode == 0
    assert [path for path in tmp_path.rglob("qx-supervisor-reap*") if "state" not in path.parts] == []


def test_no_secret_is_in_its_environment(monkeypatch):
    for name in ("QISKIT_IBM_TOKEN", "QX_LEDGER", "QX_IBM_API_KEY"):
        monkeypatch.setenv(name, "sentinel")
    monkeypatch.setenv("https_proxy", "http://user:sentinel@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("PYTHONPATH", "modules::/opt/modules")
    found = reap_timer.environment()
    assert "sentinel" not in "".join(found.values())
    assert reap_timer.left_out() == ["https_proxy"]
    assert (found["NO_PROXY"], found["PYTHONPATH"]) == ("localhost", f"{Path.cwd()}/modules:/opt/modules")
    assert {"HOME", "XDG_RUNTIME_DIR"}.isdisjoint(found)


def test_a_line_break_is_refused(monkeypatch):
    monkeypatch.setenv("QX_STATE_DIR", "/tmp/a\nb")
    with pytest.raises(reap_timer.QxError, match="QX_STATE_DIR has a line break"):
        reap_timer.environment()


# Without a user manager


def test_a_crontab_line(no_manager, monkeypatch):
    monkeypatch.setattr(ancestry, "is_in_pid_namespace", lambda: False)
    monkeypatch.setenv("QX_STATE_DIR", str(no_manager / ODD))
    line = reap_timer.crontab_line(5, ["--instance", "a%b"])
    assert line.startswith("*/5 * * * * ")
    assert line.count("\\%") == line.count("%") > 0
    command = line.removeprefix("*/5 * * * * ").replace("\\%", "%")  # as cron does
    subprocess.run(["sh", "-c", command], check=True, env={"HOME": str(no_manager), "PATH": os.environ["PATH"]})
    assert (no_manager / ODD / "ledger.db").exists()
    assert reap_timer.crontab_line(120, []).startswith("0 */2 * * * ")


@pytest.mark.long
def test_nothing_is_installed_where_there_is_no_manager(no_manager):
    if ancestry.is_in_pid_namespace():
        pytest.skip("this is a container")
    done = reap("--install-timer", "--local", "--every", "1h")
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith("0 */1 * * * ")
    assert shlex.split(line)[-5:-2] == ["qx_supervisor", "reap", "--local"]
    assert "crontab -e" in done.stderr
    assert not (no_manager / ".config").exists()


def test_in_a_container(no_manager, monkeypatch):
    monkeypatch.setattr(ancestry, "is_in_pid_namespace", lambda: True)
    with pytest.raises(reap_timer.QxError, match=r"in this container would end with it.*QX_LEDGER"):
        reap_timer.crontab_line(5, [])


@pytest.mark.long
def test_removing_it_where_the_manager_is_gone(no_manager):
    folder = no_manager / ".config/systemd/user"
    (folder / "timers.target.wants").mkdir(parents=True)
    for name in (SERVICE, TIMER):
        (folder / name).touch()
    (folder / "timers.target.wants" / TIMER).symlink_to(folder / TIMER)
    assert reap_timer.state() == "stopped"
    done = reap("--remove-timer")
    assert done.stdout.splitlines() == [f"removed  {folder / name}" for name in (SERVICE, TIMER)]
    assert "crontab -e" in done.stderr
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []
    assert "no timer of systemd was installed" in reap("--remove-timer").stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--install-timer", "--remove-timer"], "give one of --install-timer and --remove-timer"),
        (["--every", "5min"], "--every is for --install-timer"),
        (["--install-timer", "--every", "5"], "'5' is no pause from 1min to 59min, or from 1h to 23h"),
        (["--install-timer", "--every", "0min"], "'0min' is no pause"),
        (["--install-timer", "--every", "60min"], "'60min' is no pause"),
        (["--install-timer", "--wait", "5"], "--wait and --json are not for a timer"),
        (["--remove-timer", "--json"], "--wait and --json are not for a timer"),
    ],
)
def test_wrong_use(no_manager, capsys, words, told):
    from qx_supervisor.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["reap", *words])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert (told in said.err, len(said.err.splitlines()), said.out) == (True, 1, "")
    assert not (no_manager / ".config").exists()


# The doctor


@pytest.mark.parametrize(
    ("timer", "verdict", "told"),
    [("none", "ok", ""), ("running", "ok", "reaps what is left behind"), ("stopped", "warning", "does not run")],
)
def test_the_doctor_tells_of_it(monkeypatch, timer, verdict, told):
    monkeypatch.setattr(reap_timer, "state", lambda: timer)
    [found] = [each for each in doctor.machine.check() if each.check == "guarded runs"]
    assert (found.verdict, told in found.text) == (verdict, True)
    assert (TIMER in found.text) == bool(told)
