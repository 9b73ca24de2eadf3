"""One watcher for all drivers on a node: real drivers that share it, their deaths and its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.cgroups import cgroup, where
from testkit.drivers import RUN, TELL_WATCHERS, Driver, assert_cancelled_once
from testkit.pages import CHECKOUT
from testkit.processes import DEADLINE, until, wait_for_end
from testkit.watchers import wait_for_watchers_in, wait_until_written

from qx_supervisor import WatcherError, node_launch, reap
from qx_supervisor.watcher.accounts import Account, Accounts
from qx_supervisor.watcher.ledger import Ledger
from qx_supervisor.watcher.loop import Loop
from qx_supervisor.watcher.protocol import Credentials
from qx_supervisor.watcher.workers import Lane, Workers

SHARED = f"""
from qx_supervisor import node_launch
node_launch.LINGER_SECONDS = 0.2
{TELL_WATCHERS}
"""
"""Lines of a driver that says which watcher it has, and lets that leave soon after the last driver."""

GUARDED = SHARED + RUN


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, state: Path) -> Iterator[Path]:
    """The folder of the sockets, of a test's own: its drivers share a watcher."""
    base = Path(tempfile.mkdtemp(prefix="qx-node-"))  # pytest's own path is too long for a socket
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("QX_WATCHER_PLACEMENT", "node")
    yield base / "qx_supervisor"
    wait_for_watchers_in(state)
    shutil.rmtree(base)


def watcher_of(driver: Driver) -> psutil.Process:
    """The watcher that a driver has told all its runs."""
    return psutil.Process(int(driver.line("watcher ")[0]))


def test_two_drivers_share_one_and_each_dies_for_itself(ibm, fork, runtime):
    ibm.hold("queued")
    first, second = fork(GUARDED), fork(GUARDED)
    jobs = [first.queued(), second.queued()]
    watcher = watcher_of(first)
    assert watcher_of(second) == watcher
    assert watcher.cmdline()[-3:-1] == ["qx-watcher", "node"]
    first.kill()
    assert ibm.wait_job(jobs[0], "Cancelled").cancel_requests == 1
    ibm.hold(None)
    assert second.end() == 0
    assert ibm.wait_job(jobs[1], "Completed").cancel_requests == 0
    wait_for_end(watcher)
    assert list(runtime.iterdir()) == []  # neither the socket nor the lock is left


def test_all_that_start_at_one_moment_share_one(ibm, fork, runtime):
    ibm.hold("queued")
    drivers = [fork(GUARDED) for _ in range(8)]
    jobs = [driver.queued() for driver in drivers]
    [watcher] = {watcher_of(driver) for driver in drivers}
    for driver in drivers:
        driver.kill()
    for job in jobs:
        ibm.wait_job(job, "Cancelled")
    wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


def test_the_watcher_is_killed_and_all_go_on_with_one_other(ibm, fork, runtime):
    ibm.hold("queued")
    drivers = [fork(GUARDED) for _ in range(4)]
    jobs = [driver.queued() for driver in drivers]
    [first] = {watcher_of(driver) for driver in drivers}
    first.kill()
    [second] = {watcher_of(driver) for driver in drivers}
    assert second.pid != first.pid
    drivers[0].kill()
    assert ibm.wait_job(jobs[0], "Cancelled").cancel_requests == 1
    assert [ibm.wait_job(job, "Queued").cancel_requests for job in jobs[1:]] == [0, 0, 0]
    for driver in drivers[1:]:
        driver.kill()
    for job in jobs[1:]:
        ibm.wait_job(job, "Cancelled")
    wait_for_end(second)
    assert_cancelled_once(ibm, *jobs)


HELD = """
known = threading.Event()
held = submit(isa(), backend(), on_status=lambda status: status.state == "queued" and known.set())
known.wait()
say("queued", held.job_id)
"""
"""A job that is in the queue, and a program that goes on."""

AGAIN = """
with link._changed:
    link._changed.wait_for(lambda: link._process not in (None, before))
say("again", link.watcher_pid)
"""
"""The watcher closes the connection, and the driver says everything again on another."""

NUISANCES = {
    "half a message": r'os.write(pipe, b"\0\0\1\0half")',
    "no length": r'os.write(pipe, b"\xff\xff\xff\xffx")' + AGAIN,
    "too long": r'os.write(pipe, b"\x7f\xff\xff\xffx")' + AGAIN,
    "no JSON": r'os.write(pipe, b"\0\0\0\4junk")',
    "a flood": """
message = b'{"kind":"done","seq":1,"run":"another"}'
frames = (len(message).to_bytes(4, "big") + message) * 1000
def flood():
    while True:
        os.write(pipe, frames)
threading.Thread(target=flood, daemon=True).start()
""",
    "nobody reads": """
from qx_supervisor.watcher import protocol
for number in range(2000):
    link._send(protocol.Inspect())
os.kill(os.getpid(), signal.SIGSTOP)
""",
}


@pytest.mark.parametrize("nuisance", NUISANCES)
@pytest.mark.short_only("a flood", "nobody reads")
def test_what_one_driver_sends_holds_up_no_other(ibm, fork, runtime, nuisance):
    ibm.hold("queued")
    one = fork(
        f"""{SHARED}{HELD}
before = link._process
pipe = before.connection.fileno()
say("begins")
{NUISANCES[nuisance]}
signal.pause()
"""
    )
    other = fork(GUARDED)
    jobs = [one.queued(), other.queued()]
    watcher = watcher_of(other)
    one.line("begins")
    other.kill()
    assert ibm.wait_job(jobs[1], "Cancelled").cancel_requests == 1
    if AGAIN in NUISANCES[nuisance]:
        assert one.line("again ") == [str(watcher.pid)]
    one.kill()
    assert ibm.wait_job(jobs[0], "Cancelled").cancel_requests == 1
    wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


REACHED_BY = """
import dataclasses
from qx_supervisor import service as services
credentials = services.credentials
services.credentials = lambda *of, **how: dataclasses.replace(credentials(*of, **how), {changes})
"""
"""Lines of a driver whose watcher is to reach the service, or the token service, in another way."""


def test_a_token_service_that_hangs_holds_up_no_death(ibm, fork, runtime):
    """Nor the arming of another driver with the same key that has a token."""
    ibm.hold("queued")
    other = fork(GUARDED)
    jobs = [other.queued()]
    with socket.create_server(("127.0.0.1", 0)) as token_service:
        token_service.settimeout(DEADLINE)
        port = token_service.getsockname()[1]
        there = f"endpoint='{ibm.url}/api/v1', iam_url='http://127.0.0.1:{port}', proxies=None"
        waiting = fork(REACHED_BY.format(changes=f"{there}, token=''") + GUARDED)
        asked, _ = token_service.accept()
        with asked:
            armed = fork(REACHED_BY.format(changes=there) + GUARDED)
            jobs.append(armed.queued())
            other.kill()
            assert ibm.wait_job(jobs[0], "Cancelled").cancel_requests == 1
            asked.recv(65536)
            with pytest.raises(BlockingIOError):  # the answer is waited for still
                asked.recv(1, socket.MSG_DONTWAIT)
            armed.kill()
            assert ibm.wait_job(jobs[1], "Cancelled").cancel_requests == 1
            waiting.kill()
    assert_cancelled_once(ibm, *jobs)


# Its beginning and its end ------------------------------------------------------------------------------------------


def test_it_leaves_when_its_drivers_are_idle_and_another_one_comes(ibm, fork, runtime):
    driver = fork(
        SHARED
        + f"""
from qx_supervisor import link as links
links.LINGER_SECONDS = 0.2
{RUN}
with link._changed:
    link._changed.wait_for(lambda: link.watcher_pid is None)
say("idle")
signal.sigwait({{signal.SIGUSR1}})
"""
    )
    first = watcher_of(driver)
    driver.line("idle")
    wait_for_end(first)
    assert list(runtime.iterdir()) == []
    second = fork(GUARDED)
    assert watcher_of(second) != first
    assert second.end() == 0
    driver.kill()


def test_a_sigterm_ends_it_only_when_nothing_is_guarded(ibm, fork, runtime):
    ibm.hold("queued")
    idle, busy = fork(SHARED + RUN + "\nsay('over')\nsignal.pause()"), fork(GUARDED)
    job = busy.queued()
    watcher = watcher_of(busy)
    watcher.terminate()
    busy.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    ibm.hold(None)
    idle.kill()
    wait_for_end(watcher)


def test_a_socket_that_nobody_listens_on_is_replaced(ibm, fork, runtime):
    """A watcher that was killed leaves it; so does a driver that was killed before it started one."""
    ibm.hold("queued")
    driver = fork(GUARDED)
    driver.queued()
    first = watcher_of(driver)
    driver.send(signal.SIGSTOP)
    first.kill()
    wait_for_end(first)
    assert len(list(runtime.iterdir())) == 2
    driver.kill()
    ibm.hold(None)
    other = fork(GUARDED)
    second = watcher_of(other)
    assert other.end() == 0
    wait_for_end(second)
    assert list(runtime.iterdir()) == []


@pytest.mark.long
def test_after_an_upgrade_the_old_one_stays_with_its_drivers(ibm, fork, start, runtime, tmp_path):
    ibm.hold("queued")
    shutil.copytree(CHECKOUT / "qx_supervisor", tmp_path / "new" / "qx_supervisor")
    old = fork(GUARDED)
    new = start(GUARDED, env={**os.environ, "PYTHONPATH": str(tmp_path / "new")})
    jobs = [old.queued(), new.queued()]
    watchers = [watcher_of(old), watcher_of(new)]
    assert watchers[0] != watchers[1]
    for driver in (old, new):
        driver.kill()
    for job, watcher in zip(jobs, watchers, strict=True):
        ibm.wait_job(job, "Cancelled")
        wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


def test_what_was_let_go_without_a_connection_is_left_alone(ibm, fork, runtime, state):
    """A beside watcher is killed then; this one goes on, and finds in the ledger what it could not be told."""
    ibm.hold("queued")
    driver = fork(
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"  # before there are other threads
        + SHARED
        + HELD
        + """
signal.sigwait({signal.SIGUSR1})
from qx_supervisor import link as links
links.launch = lambda *_: threading.Event().wait()  # it does not get to connect anew
import socket
socket.socket(fileno=os.dup(link._process.connection.fileno())).shutdown(socket.SHUT_RDWR)
with link._changed:
    link._changed.wait_for(lambda: link.watcher_pid is None)
held.detach()
say("let go")
signal.pause()
"""
    )
    job = driver.queued()
    watcher = watcher_of(driver)
    wait_until_written(driver)
    driver.send(signal.SIGUSR1)
    driver.line("let go")
    with Ledger.open(state) as book:
        until(book.rows, lambda rows: [row.state for row in rows] == ["done"])
    driver.kill()
    wait_for_end(watcher)
    assert ibm.job(job).cancel_requests == 0


def test_a_driver_that_closes_its_descriptors_costs_the_others_nothing(ibm, fork, runtime):
    ibm.hold("queued")
    first = fork(
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"  # before there are other threads
        + SHARED
        + HELD
        + """
signal.sigwait({signal.SIGUSR1})
import contextlib
from qx_supervisor import QxError
os.closerange(3, 4096)
with contextlib.suppress(QxError):
    link.inspect()  # that it can't be told closes the connection, and there is another one
say("inspected", link.inspect()["pid"])
signal.pause()
"""
    )
    second = fork(GUARDED)
    jobs = [first.queued(), second.queued()]
    watcher = watcher_of(second)
    first.send(signal.SIGUSR1)
    assert first.line("inspected ") == [str(watcher.pid)]
    for driver in (first, second):
        driver.kill()
    for job in jobs:
        ibm.wait_job(job, "Cancelled")
    wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


def test_it_leaves_though_its_folder_is_gone(ibm, fork, runtime):
    """A logout removes the user's runtime folder."""
    ibm.hold("queued")
    driver = fork(GUARDED)
    driver.queued()
    watcher = watcher_of(driver)
    shutil.rmtree(runtime)
    ibm.hold(None)
    assert driver.end() == 0
    wait_for_end(watcher)


def test_a_forked_child_is_a_driver_of_its_own(ibm, fork, runtime):
    ibm.hold("queued")
    driver = fork(
        SHARED
        + HELD
        + """
say("parents", held.job_id, link.watcher_pid)
if not os.fork():
    known = threading.Event()
    second = submit(isa(), backend(), on_status=lambda status: status.state == "queued" and known.set())
    known.wait()
    say("childs", second.job_id, link.watcher_pid, os.getpid())
    signal.pause()
signal.pause()
"""
    )
    parents, watcher = driver.line("parents ")
    childs, its_watcher, child = driver.line("childs ")
    assert watcher == its_watcher
    os.kill(int(child), signal.SIGKILL)
    assert ibm.wait_job(childs, "Cancelled").cancel_requests == 1
    assert ibm.job(parents).cancel_requests == 0
    driver.kill()
    assert ibm.wait_job(parents, "Cancelled").cancel_requests == 1


@pytest.mark.long
@pytest.mark.skipif(where() is None, reason="no version 2 of control groups can be written to here")
def test_a_control_group_has_one_of_its_own(ibm, fork, start, runtime):
    ibm.hold("queued")
    with cgroup() as group:
        inside, outside = start(GUARDED, wrap=group.wrap), fork(GUARDED)
        jobs = [inside.queued(), outside.queued()]
        watchers = [watcher_of(inside), watcher_of(outside)]
        assert watchers[0].pid in group.pids()
        assert watchers[1].pid not in group.pids()
        for driver in (inside, outside):
            driver.kill()
        for watcher in watchers:
            wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


# Who may come -------------------------------------------------------------------------------------------------------

STRANGER = """
import json, os, socket, struct, sys
path, order, user = sys.argv[1:]
if int(user):
    os.setuid(int(user))
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
said = order.encode()
connection.sendall(struct.pack("!i", len(said)) + said)
print(connection.recv(65536)[4:].decode())
"""


@pytest.mark.parametrize("user", [0, pytest.param(65534, marks=pytest.mark.skipif(os.getuid() != 0, reason="root"))])
def test_a_process_that_is_not_who_it_says_is_refused(ibm, fork, runtime, user):
    ibm.hold("queued")
    driver = fork(GUARDED)
    job = driver.queued()
    [path] = runtime.glob("*.socket")
    for each in (runtime.parent, runtime):
        each.chmod(0o755)  # its own fault, then; the kernel says who comes all the same
    path.chmod(0o777)
    pid, ticks = driver.identity.pid, driver.identity.start_ticks
    order = {"protocol": 1, "pid": pid, "start_ticks": ticks, "sweep_window": 2.0}
    order |= {"word": "another's", "passed": []}
    said = subprocess.run(
        [sys.executable, "-c", STRANGER, path, json.dumps(order), str(user)], capture_output=True, text=True, check=True
    )
    refusal = "this watcher is another user's" if user else "this connection was made by another process"
    assert json.loads(said.stdout) == {"kind": "nack", "seq": 0, "reason": refusal}
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_a_folder_that_is_not_the_users_alone_is_refused(runtime):
    assert node_launch.folder() == runtime
    assert runtime.stat().st_mode & 0o777 == 0o700
    runtime.chmod(0o770)
    with pytest.raises(WatcherError, match="can be entered by others: remove it, or unset QX_WATCHER_PLACEMENT"):
        node_launch.folder()
    runtime.rename(runtime.with_name("elsewhere"))
    runtime.symlink_to("elsewhere")
    with pytest.raises(WatcherError, match="is no folder of its own"):
        node_launch.folder()
    runtime.unlink()
    runtime.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(runtime, 65534, -1)
        with pytest.raises(WatcherError, match="is another user's"):
            node_launch.folder()


@pytest.mark.parametrize(
    "step",
    ["0::/system.slice/slurmstepd.scope/job_42/step_0/user/", "9:memory:/slurm/uid_7/job_42/step_0/\n1:name=x:/"],
)
def test_the_tasks_of_a_slurm_step_share_one(step):
    first, *others = step.split("\n")
    groups = {node_launch.control_group("\n".join([f"{first}task_{number}", *others])) for number in (0, 1)}
    assert groups == {step}
    assert node_launch.control_group("0::/user.slice/task_1") == "0::/user.slice/task_1"


def test_without_a_runtime_directory_it_is_in_tmp(runtime, monkeypatch):
    for base in ("", "relative", "/nowhere", "/tmp/" + "x" * 60):
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        assert node_launch.folder() in (Path(f"/run/user/{os.geteuid()}/qx_supervisor"), FALLBACK)


FALLBACK = Path(f"/tmp/qx_supervisor-{os.geteuid()}")


# What is shared, and what is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledgers", ["local", "both"])
@pytest.mark.short_only("local")
def test_a_key_of_one_driver_is_refused_to_the_other(ibm, fork, runtime, ledgers, request, monkeypatch):
    if ledgers == "both":
        monkeypatch.setenv("QX_LEDGER", request.getfixturevalue("shared_url"))
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")  # after a third of it a watcher looks who has the key
    ibm.hold("queued")
    keyed = SHARED + RUN.replace("shots=64", 'shots=64, key="step", grace=60')
    first = fork(keyed)
    job = first.queued()
    second = fork(keyed)
    assert second.end() != 0
    assert f"the key 'step' is held by process {first.pid}" in second.errors.decode()
    assert ibm.job(job).cancel_requests == 0
    watcher = watcher_of(first)
    first.kill()
    third = fork(keyed)  # it takes the job up, while the watcher that they share waits for the grace period
    assert watcher_of(third) == watcher
    ibm.hold(None)
    assert third.end() == 0
    [only] = ibm.jobs()
    assert (only.id, only.status, only.cancel_requests) == (job, "Completed", 0)


def test_the_ledger_has_a_row_of_each_driver(ibm, fork, runtime, state):
    ibm.hold("queued")
    drivers = [fork(GUARDED) for _ in range(2)]
    jobs = [driver.queued() for driver in drivers]
    watcher = watcher_of(drivers[0])
    for driver in drivers:
        wait_until_written(driver)
    with Ledger.open(state) as book:
        rows = {row.pid: row for row in book.rows()}
        assert rows.keys() == {driver.pid for driver in drivers}
        assert {row.watcher_pid for row in rows.values()} == {watcher.pid}
        drivers[0].kill()
        ibm.wait_job(jobs[0], "Cancelled")
        until(book.rows, lambda found: {row.pid: row.state for row in found}[drivers[0].pid] == "cancelled")
        assert {row.pid: row.state for row in book.rows()}[drivers[1].pid] == "guarded"
    drivers[1].kill()


def test_whoever_reaps_waits_for_the_work_and_not_for_the_watcher(ibm, fork, runtime):
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/*/cancel", "method": "POST", "status": 503, "times": 2}]})
    dead, living = fork(GUARDED), fork(GUARDED)
    jobs = [dead.queued(), living.queued()]
    dead.kill()
    assert reap(ibm.service(), wait=3600) == []
    assert ibm.job(jobs[0]).status == "Cancelled"
    assert ibm.job(jobs[1]).cancel_requests == 0
    living.kill()


@pytest.mark.long
def test_one_connection_to_the_shared_ledger(ibm, fork, runtime, postgres, shared_url, monkeypatch):
    import psycopg

    monkeypatch.setenv("QX_LEDGER", shared_url)
    ibm.hold("queued")
    drivers = [fork(GUARDED) for _ in range(3)]
    for driver in drivers:
        driver.queued()
    with psycopg.connect(shared_url) as connection:
        asked = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'qx-supervisor' AND datname = current_database()"
        )
        assert connection.execute(asked).fetchall() == [(1,)]
        assert connection.execute("SELECT count(*) FROM qx_holders").fetchall() == [(1,)]
        assert connection.execute("SELECT count(DISTINCT pid) FROM qx_runs").fetchall() == [(3,)]
    for driver in drivers:
        driver.kill()


class NoLoop(Loop):
    """A loop that is never run."""

    def __init__(self) -> None: ...


class NoUser:
    has_runs = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def token_refused(self, trouble: str) -> None:
        self.told.append(trouble)


MINE = Credentials("https://x", "crn", "https://iam", "key", "token", 5.0)
DIFFERENT: dict[str, Any] = {
    "endpoint": "https://y",
    "instance": "crn:2",
    "iam_url": "https://other",
    "api_key": "another",
    "verify": False,
    "proxies": {"https": "http://proxy"},
}


def test_only_equal_credentials_share_a_token_and_connections() -> None:
    accounts = Accounts(NoLoop(), Workers())
    mine = accounts.join(NoUser(), MINE)
    for name in (field.name for field in fields(Credentials)):
        if name in ("token", "token_expires"):
            continue
        assert accounts.join(NoUser(), replace(MINE, **{name: DIFFERENT[name]})) is not mine
    other = NoUser()
    assert accounts.join(other, replace(MINE, token="newer", token_expires=1e10)) is mine
    assert mine.remote._authorization() == "Bearer newer"
    assert accounts.join(other, replace(MINE, token="older", token_expires=6.0)) is mine
    assert mine.remote._authorization() == "Bearer newer"


def test_an_account_that_nobody_uses_is_forgotten() -> None:
    accounts, user = Accounts(NoLoop(), Workers()), NoUser()
    first = accounts.join(user, MINE)
    accounts.leave(user, first)
    second: Account = accounts.join(user, MINE)
    assert second is not first


def test_each_user_hears_once_that_the_token_service_refuses() -> None:
    accounts, first, second = Accounts(NoLoop(), Workers()), NoUser(), NoUser()
    account = accounts.join(first, MINE)
    account._tell_refused("gone")
    account._tell_refused("gone")
    accounts.join(second, MINE)
    account._tell_refused("gone")
    assert (first.told, second.told) == (["gone"], ["gone"])


def test_a_slow_service_keeps_only_its_own_lane_waiting() -> None:
    workers = Workers()
    slow, quick = Lane(workers, 2), Lane(workers, 2)
    may_end, done = threading.Event(), threading.Event()
    for _ in range(100):
        slow.submit("one", may_end.wait)
    quick.submit("other", done.set)
    assert done.wait(60)
    may_end.set()


def test_in_a_lane_they_take_turns() -> None:
    lane = Lane(Workers(), 1)
    begun, may_go, over = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []
    lane.submit("first", lambda: (begun.set(), may_go.wait()))
    assert begun.wait(60)
    for number in range(3):
        lane.submit("many", lambda number=number: seen.append(f"many {number}"))
    lane.submit("single", lambda: seen.append("single"))
    lane.submit("many", over.set)
    may_go.set()
    assert over.wait(60)
    assert seen == ["many 0", "single", "many 1", "many 2"]
