"""Watchers that systemd starts, outside their drivers' control groups: with a real user manager, and real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest
from testkit import units
from testkit.cgroups import Cgroup, cgroup, where
from testkit.drivers import RUN, TELL_WATCHERS, assert_cancelled_once
from testkit.processes import DEADLINE, Process, wait_for_end
from testkit.watchers import wait_until_written, watchers_of

needs_cgroups = pytest.mark.skipif(where() is None, reason="no version 2 of control groups can be written to here")


@pytest.fixture(scope="module")
def systemd() -> Iterator[units.UserSystemd]:
    if units.why_not():
        pytest.skip(units.why_not())
    with units.user_systemd() as made:
        yield made


@pytest.fixture
def outside(systemd, monkeypatch) -> units.UserSystemd:
    """Whatever is started has its watcher put outside by the user manager."""
    monkeypatch.setenv("QX_WATCHER_PLACEMENT", "systemd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(systemd.runtime))
    return systemd


@pytest.fixture
def group() -> Iterator[Cgroup]:
    with cgroup() as made:
        yield made


def test_killed_driver(ibm, fork, outside):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    unit = Path(f"/proc/{watcher.pid}/cgroup").read_text().rstrip().rpartition("/")[2]
    assert unit.startswith("qx-watcher-")
    assert outside.ctl("is-active", unit).strip() == "active"
    assert driver.kill() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)
    assert outside.ctl("show", "--property=LoadState", "--value", unit).strip() == "not-found"  # nothing stays of it
    assert not list(outside.runtime.glob("qx-watcher-*"))


def test_a_run_to_its_end(ibm, fork, outside):
    ibm.hold("queued")
    driver = fork(f"say(sorted({RUN}.counts))")
    driver.queued()
    watcher = driver.watcher()
    ibm.hold(None)
    assert driver.end() == 0
    wait_for_end(watcher)
    assert [job.status for job in ibm.jobs()] == ["Completed"]


@needs_cgroups
def test_the_drivers_whole_control_group_is_killed(ibm, start, outside, group):
    ibm.hold("queued")
    driver = start(RUN, wrap=group.wrap)
    job = driver.queued()
    watcher = driver.watcher()
    assert group.pids() == [driver.pid]
    group.kill()
    assert driver.end() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


@needs_cgroups
@pytest.mark.long
def test_it_writes_to_a_ledger_of_many_hosts(ibm, start, outside, group, shared_url, monkeypatch):
    from qx_supervisor.watcher.ledger.postgres import SharedLedger  # needs what the extra brings

    monkeypatch.setenv("QX_LEDGER", shared_url)
    ibm.hold("queued")
    driver = start(RUN, wrap=group.wrap)
    job = driver.queued()
    watcher = driver.watcher()
    assert "sentinel" not in " ".join(watcher.cmdline())  # the database's password
    group.kill()
    assert driver.end() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)
    book = SharedLedger.open(shared_url)
    [held] = book.held()
    book.close()
    assert (held.row.state, dict(held.row.jobs)) == ("cancelled", {job: "cancelled"})


@pytest.mark.long
@needs_cgroups
def test_without_it_both_die_and_the_ledger_is_left(ibm, start, group):
    """The same kill, with the watcher beside its driver."""
    ibm.hold("queued")
    driver = start(RUN, wrap=group.wrap)
    job = driver.queued()
    watcher = driver.watcher()
    assert sorted(group.pids()) == sorted([driver.pid, watcher.pid])
    wait_until_written(driver)
    group.kill()
    assert driver.end() == -signal.SIGKILL
    wait_for_end(watcher)
    assert [each.cancel_requests for each in ibm.jobs()] == [0]
    reaper = start("for reaped in reap(service()):\n    say('reaped', reaped.fate, *reaped.jobs)")
    assert reaper.end() == 0, reaper.errors
    assert reaper.lines == [f"reaped cancelled {job}"]
    assert_cancelled_once(ibm, job)


@pytest.fixture
def as_unit(ibm, outside, write_script, tmp_path) -> Iterator[tuple[str, Process, str]]:
    """A driver that the user manager has started, its watcher outside; its unit, its process and its output."""
    ibm.hold("queued")
    output = tmp_path / "output"
    script = write_script(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{RUN}")
    name = f"driver-{os.getpid()}"
    names = ("QX_WATCHER_PLACEMENT", "QX_STATE_DIR", "QX_SWEEP_WINDOW")
    os.mkfifo(output)
    given = [f"--setenv={each}={os.environ[each]}" for each in names]
    properties = [f"StandardOutput=file:{output}", "TimeoutStopSec=1s", "KillMode=control-group"]
    subprocess.run([*outside.wrap(name, *properties)[:-1], *given, "--", sys.executable, str(script)], check=True)
    with output.open() as lines:
        for line in lines:
            if line.startswith("queued "):
                break
        yield name, Process(outside.ctl("show", "--property=MainPID", "--value", name)), line.split()[1]


@pytest.mark.parametrize("words", [("stop",), ("kill", "--signal=KILL")])
@pytest.mark.long
def test_the_drivers_unit_is_ended(ibm, outside, as_unit, words):
    """`stop`, of a driver that ignores SIGTERM: then systemd kills all that is in the unit."""
    name, driver, job = as_unit
    [watcher] = watchers_of(driver)
    assert [int(pid) for pid in (outside.folder(name) / "cgroup.procs").read_text().split()] == [driver.pid]
    outside.ctl(*words, name)
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


@pytest.mark.long
def test_the_rules_of_the_watcher(ibm, start, outside, monkeypatch):
    """What it knows and has is the same as beside its driver."""
    told = {}
    monkeypatch.setenv("HTTPS_PROXY", "http://user:sentinel-in-a-proxy@127.0.0.1:9")
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "sentinel-of-the-driver")
    for placement in ("beside", "systemd"):
        monkeypatch.setenv("QX_WATCHER_PLACEMENT", placement)
        driver = start(
            f"""
            import json
            from qx_supervisor.link import link
            {RUN}
            say("told", json.dumps(link.inspect()))
            sys.stdin.read()
            """,
            stdin=subprocess.PIPE,
        )
        told[placement] = json.loads(" ".join(driver.line("told ")))
        watcher = driver.watcher()
        if placement == "systemd":
            unit = Path(f"/proc/{watcher.pid}/cgroup").read_text().rstrip().rpartition("/")[2]
            shown = outside.ctl("show", unit) + " ".join(watcher.cmdline())
            assert f"Id={unit}" in shown
            assert "sentinel" not in shown
            assert "Restart=no" in shown
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            watcher.send_signal(number)
        driver.process.stdin.close()
        driver.process.stdin = None
        assert driver.end() == 0, driver.errors
        wait_for_end(watcher)
    here, there = told["beside"], told["systemd"]
    assert there["environment"] == here["environment"]
    assert "QISKIT_IBM_TOKEN" not in there["environment"]
    assert there["cwd"] == "/"
    assert there["sid"] == there["pid"]
    assert there["dumpable"] == 0
    assert _kinds(there["descriptors"]) <= _kinds(here["descriptors"])
    assert not {name.partition(".")[0] for name in there["modules"]} & {"qiskit", "qx_supervisor", "rich", "numpy"}


def _kinds(descriptors: dict[str, str]) -> set[str]:
    """What is open, without what depends on the moment.

    A thread may read a module just now, and /proc/PID/status of the driver is opened with the first look at it.
    """
    return {
        _kind(each)
        for each in descriptors.values()
        if ".py" not in each and not Path(each).is_dir() and not fnmatch(each, "/proc/*/status")
    }


def _kind(target: str) -> str:
    return target.partition(":")[0] if target.startswith(("socket", "pipe")) else target


def test_it_ignores_signals_while_it_guards(ibm, fork, outside):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        watcher.send_signal(number)
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


@pytest.mark.long
def test_another_one_is_started_outside_too(ibm, fork, outside):
    ibm.hold("queued")
    driver = fork(TELL_WATCHERS + RUN)
    job = driver.queued()
    first = psutil.Process(int(driver.line("watcher ")[0]))
    first.kill()
    second = psutil.Process(int(driver.line("watcher ")[0]))
    assert "qx-watcher-" in Path(f"/proc/{second.pid}/cgroup").read_text()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(second)


@pytest.mark.long
def test_the_user_manager_ends_with_all_of_its_units(ibm, fork, monkeypatch):
    """A logout: the runs in flight get a watcher beside their driver, which is better than none."""
    if units.why_not():
        pytest.skip(units.why_not())
    ibm.hold("queued")
    with units.user_systemd() as systemd:
        monkeypatch.setenv("QX_WATCHER_PLACEMENT", "systemd")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(systemd.runtime))
        driver = fork(f"import logging\nlogging.basicConfig(level=logging.WARNING)\n{TELL_WATCHERS}{RUN}")
        job = driver.queued()
        driver.line("watcher ")
        systemd.kill()
        second = psutil.Process(int(driver.line("watcher ")[0]))
        assert Path(f"/proc/{second.pid}/cgroup").read_text() == Path(f"/proc/{driver.pid}/cgroup").read_text()
        driver.kill()
        assert b"have one beside this program" in driver.errors
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
        wait_for_end(second)


ODD = "a $HOME ${HOME} %h %% 'b\" \\ ü"


def test_odd_characters_reach_it_as_they_are(ibm, fork, outside, tmp_path, monkeypatch):
    folder = tmp_path / ODD
    monkeypatch.setenv("QX_STATE_DIR", str(folder))
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    wait_for_end(watcher)
    assert (folder / "ledger.db").exists()


@pytest.mark.long
def test_no_variable_names_the_runtime_directory(ibm, start, outside):
    """As in cron, and in Slurm."""
    ibm.hold("queued")
    driver = start(RUN, wrap=outside.usual)
    job = driver.queued()
    watcher = driver.watcher()
    assert "qx-watcher-" in Path(f"/proc/{watcher.pid}/cgroup").read_text()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


# Where it can't be had

REFUSED = """
try:
    run(isa(), backend(), shots=16)
except WatcherError as error:
    say("refused", error)
"""


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"QX_WATCHER_PLACEMENT": "system"}, "it may be beside (as if unset), node or systemd"),
        ({"XDG_RUNTIME_DIR": "/nowhere"}, "loginctl enable-linger"),
        ({"PATH": "/nowhere"}, "needs systemd-run"),
    ],
)
@pytest.mark.short_only("environment0*")
def test_it_is_said_that_it_cannot_be_had(ibm, fork, outside, monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    driver = fork(REFUSED)
    assert driver.end() == 0, driver.errors
    [line] = driver.lines
    assert told in line
    assert not ibm.jobs()
    assert not list(outside.runtime.glob("qx-watcher-*"))


@pytest.mark.long
def test_a_driver_in_a_pid_namespace_of_its_own(ibm, start, outside):
    """The user manager does not speak to who is no process to it; and its own mean nothing there."""
    driver = start(
        REFUSED, wrap=lambda command: ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
    )
    assert driver.end() == 0, driver.errors
    [line] = driver.lines
    assert "systemd-run can't start the watcher (Failed to connect to bus" in line
    assert not list(outside.runtime.glob("qx-watcher-*"))


def test_unprotected_if_that_is_allowed(ibm, fork, outside, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    driver = fork(RUN.replace("on_status=tell", 'on_unprotected="warn"') + "\nsay('ended')")
    assert driver.end() == 0, driver.errors
    assert driver.lines == ["ended"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program named systemd-run before systemd's own; it knows that one as REAL, and the call as `address`."""

    def make(code: str) -> None:
        real = subprocess.run(["which", "systemd-run"], check=True, capture_output=True, text=True).stdout.strip()
        program = tmp_path / "bin" / "systemd-run"
        program.parent.mkdir()
        program.write_text(
            f"#!{sys.executable}\nimport base64, json, os, select, socket, subprocess, sys, time\nREAL = {real!r}\n"
            "[data] = [word.partition('Data=')[2] for word in sys.argv if 'StandardInputData=' in word]\n"
            f"address = json.loads(json.loads(base64.b64decode(data))[1])['address']\n{code}"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return make


def test_another_process_calls_first(ibm, fork, outside, stand_in, tmp_path):
    """One of the same user, even: it hears nothing, and the watcher is still waited for."""
    stand_in(
        f"""
poser = socket.socket(socket.AF_UNIX)
poser.connect(address)
if not os.fork():
    open({str(tmp_path / "heard")!r}, "wb").write(poser.recv(65536))
    os._exit(0)
os.execv(REAL, [REAL, *sys.argv[1:]])
"""
    )
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    assert (tmp_path / "heard").read_bytes() == b""
    watcher = driver.watcher()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


def assert_refused(fork, outside, why):
    driver = fork(REFUSED)
    assert driver.end() == 0, driver.errors
    [line] = driver.lines
    assert why in line
    assert not list(outside.runtime.glob("qx-watcher-*"))


def test_systemd_refuses(ibm, fork, outside, stand_in):
    stand_in('os.execv(REAL, [REAL, "--property=NoSuch=1", *sys.argv[1:]])')
    assert_refused(fork, outside, "systemd-run can't start the watcher (Unknown assignment: NoSuch=1)")


@pytest.mark.long
def test_a_unit_that_ends_as_it_starts(ibm, fork, outside, stand_in):
    stand_in('os.execv(REAL, [REAL, *sys.argv[1:sys.argv.index("--")], "/bin/false"])')
    assert_refused(fork, outside, "journalctl --user --unit qx-watcher-")


def test_a_driver_that_dies_before_its_watcher_calls(ibm, fork, outside, stand_in, tmp_path):
    """It finds nobody there, leaves nothing, and ends."""
    os.mkfifo(tmp_path / "fifo")
    stand_in(
        f"""
driver = os.pidfd_open(os.getppid())
open({str(tmp_path / "fifo")!r}, "w").write(str(os.getpid()))
select.select([driver], [], [])
os.execv(REAL, [REAL, *sys.argv[1:]])
"""
    )
    driver = fork(RUN)
    asking = Process((tmp_path / "fifo").read_text())
    driver.kill()
    wait_for_end(asking)
    end = time.monotonic() + DEADLINE
    while list(outside.runtime.glob("qx-watcher-*")):
        assert time.monotonic() < end, "nobody removes the socket"
    for watcher in watchers_of(driver):
        wait_for_end(watcher)
    assert not ibm.jobs()
