"""Whether the caller still lives: real processes, real deaths, and everything that only looks like one."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qx_supervisor.watcher import driver_process
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess, lives
from qx_supervisor.watcher.host_identity import start_ticks

DEADLINE = 60.0

EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)

MAIN_THREAD_LEAVES = f"""
import ctypes, os, threading
def work():
    os.read(0, 1)
threading.Thread(target=work).start()
os.write(1, b"leaving\\n")
ctypes.CDLL(None).syscall({EXIT_OF_A_THREAD}, 0)
"""


class Child:
    """A program that says lines, and goes on when it is given a byte."""

    def __init__(self, code: str) -> None:
        command = [sys.executable, "-ISc", code]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.pid = self.process.pid
        ticks = start_ticks(self.pid)
        assert ticks is not None
        self.identity = DriverIdentity(self.pid, ticks)
        self.pidfd = os.pidfd_open(self.pid)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"x")

    def wait_for_death(self) -> None:
        """Wait until it is dead, and not reaped."""
        assert select.select([self.pidfd], [], [], DEADLINE)[0]

    def reap(self) -> None:
        self.process.wait()

    def clear(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.pidfd)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


Bearer = Callable[[str], Child]


@pytest.fixture
def bear() -> Iterator[Bearer]:
    children: list[Child] = []

    def begin(code: str) -> Child:
        children.append(Child(code))
        return children[-1]

    yield begin
    for child in children:
        child.clear()


@pytest.fixture
def child(bear: Bearer) -> Child:
    """One that waits."""
    return bear("import os; os.read(0, 1)")


def both(child: Child) -> list[DriverProcess]:
    """With a pidfd, and without."""
    return [DriverProcess(child.identity, child.pidfd), DriverProcess(child.identity, None)]


def wait_for_state(pid: int, *states: str) -> None:
    """Wait until the kernel shows a process in a state; there is no event for that, so it is asked again and again."""
    end = time.monotonic() + DEADLINE
    while psutil.Process(pid).status() not in states:
        assert time.monotonic() < end, psutil.Process(pid).status()
        os.sched_yield()


def test_alive_then_a_zombie_then_gone(child):
    for seen in both(child):
        assert not seen.is_dead()
        assert not seen.poll_finds_dead()
    child.process.kill()
    child.wait_for_death()
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    for seen in both(child):
        assert seen.is_dead()
        assert seen.poll_finds_dead()
    child.reap()
    assert not psutil.pid_exists(child.pid)
    for seen in both(child):
        assert seen.is_dead()
        assert seen.poll_finds_dead()


def test_a_pidfd_is_readable_at_a_death_and_not_before(child):
    assert not select.select([child.pidfd], [], [], 0)[0]
    child.go_on()
    child.wait_for_death()
    assert DriverProcess(child.identity, child.pidfd).is_dead()


def test_a_stopped_process_lives(child):
    os.kill(child.pid, signal.SIGSTOP)
    wait_for_state(child.pid, psutil.STATUS_STOPPED)
    for seen in both(child):
        assert not seen.is_dead()
        assert not seen.poll_finds_dead()


# A pid that is used again ---------------------------------------------------------------------------------------


def test_another_start_is_another_process(child):
    assert lives(child.identity)
    for ticks in (child.identity.start_ticks - 1, child.identity.start_ticks + 1, 0):
        assert not lives(DriverIdentity(child.pid, ticks))


def test_a_pid_that_is_really_used_again(tmp_path):
    """In a PID namespace of its own, where the next pid can be chosen."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, sys
sys.path[:0] = sys.argv[1:]
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess, lives
from qx_supervisor.watcher.host_identity import start_ticks

def bear():
    pid = os.fork()
    if not pid:
        signal.pause()
    return pid, start_ticks(pid)

def bury(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

pid, ticks = bear()
identity, pidfd = DriverIdentity(pid, ticks), os.pidfd_open(pid)
assert lives(identity)
bury(pid)
assert not lives(identity)
while True:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    again, later = bear()
    assert again == pid, (again, pid)
    if later != ticks:
        break
    bury(again)  # in the same hundredth of a second
assert lives(DriverIdentity(again, later))
for seen in (DriverProcess(identity, pidfd), DriverProcess(identity, None)):
    assert seen.is_dead()
    assert seen.poll_finds_dead()
bury(again)
print("all well")
"""
    )
    folders = [str(Path(driver_process.__file__).parent.parent), str(Path(psutil.__file__).parent.parent)]
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid():
        alone.insert(1, "--map-root-user")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespace can be had here")
    command = [*alone, sys.executable, "-I", str(script), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stdout == "all well\n", done.stderr


def test_a_stepped_clock_changes_nothing(child, monkeypatch):
    """`create_time()` is the boot time, by the wall clock, plus the start: it moves when the clock is set."""
    times = iter(range(10**9, 2 * 10**9, 86400))
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: next(times))
    monkeypatch.setattr(psutil, "boot_time", lambda: next(times))
    monkeypatch.setattr(time, "time", lambda: next(times))
    assert psutil.Process(child.pid).create_time() != psutil.Process(child.pid).create_time()
    for seen in both(child):
        assert not seen.is_dead()
        assert not seen.poll_finds_dead()


def test_a_name_with_parentheses(bear):
    rename = "open('/proc/self/comm', 'w').write('a) R 1 (b')"
    child = bear(f"import os; {rename}; print('named', flush=True); os.read(0, 1)")
    assert child.line() == "named"
    assert "a) R 1 (b" in Path(f"/proc/{child.pid}/stat").read_text()
    assert lives(child.identity)


# Threads and exec -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(EXIT_OF_A_THREAD is None, reason="the number of exit(2) is not known here")
def test_the_main_thread_leaves_and_the_others_work_on(bear):
    child = bear(MAIN_THREAD_LEAVES)
    assert child.line() == "leaving"
    wait_for_state(child.pid, psutil.STATUS_ZOMBIE)
    for seen in both(child):
        assert not seen.is_dead()
        assert not seen.poll_finds_dead()
    child.go_on()
    child.wait_for_death()
    for seen in both(child):
        assert seen.is_dead()
        assert seen.poll_finds_dead()


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_exec_makes_no_other_process(bear, where):
    execute = "os.execv(sys.executable, [sys.executable, '-ISc', 'import os; print(2, flush=True); os.read(0, 1)'])"
    if where == "another thread":
        execute = f"threading.Thread(target=lambda: {execute}).start(); threading.Event().wait()"
    child = bear(f"import os, sys, threading; print(1, flush=True); os.read(0, 1); {execute}")
    assert child.line() == "1"
    seen = both(child)
    child.go_on()
    # Watched through all of the exec, when the one task takes over the other's identity.
    assert select.select([child.pidfd, child.process.stdout], [], [], DEADLINE)[0] == [child.process.stdout]
    assert child.line() == "2"
    for each in seen:
        assert not each.is_dead()
        assert not each.poll_finds_dead()


# What can't be seen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [psutil.AccessDenied(1), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "I/O error")],
    ids=repr,
)
def test_what_cannot_be_seen_is_not_called_dead(child, monkeypatch, error):
    def fail(self: psutil.Process) -> str:
        raise error

    monkeypatch.setattr(psutil.Process, "status", fail)
    assert lives(child.identity)


def test_a_start_that_cannot_be_read_is_no_other_start(child, monkeypatch):
    monkeypatch.setattr(driver_process, "start_ticks", lambda pid: None)
    assert lives(child.identity)


def test_hidden_from_proc_and_there(child, monkeypatch):
    """As where /proc is mounted with hidepid, and the caller is not dumpable."""

    def hide(self: psutil.Process) -> str:
        raise psutil.NoSuchProcess(child.pid)

    monkeypatch.setattr(psutil.Process, "status", hide)
    monkeypatch.setattr("qx_supervisor.watcher.host_identity._stat", lambda path: None)
    assert lives(child.identity)
    child.process.kill()
    child.reap()
    assert not lives(child.identity)


# The pidfd and the poll -----------------------------------------------------------------------------------------


def test_beside_a_pidfd_the_poll_is_not_believed(child, monkeypatch):
    monkeypatch.setattr(driver_process, "lives", lambda identity: False)
    seen = DriverProcess(child.identity, child.pidfd)
    assert not seen.poll_finds_dead()
    assert not seen.is_dead()
    child.process.kill()
    child.wait_for_death()
    assert seen.poll_finds_dead()


def test_a_pidfd_that_is_none_any_more_leaves_it_to_the_poll(child):
    closed = os.pidfd_open(child.pid)
    os.close(closed)
    seen = DriverProcess(child.identity, closed)
    assert not seen.is_dead()
    assert seen.pidfd is None
    assert not seen.poll_finds_dead()
    child.process.kill()
    child.wait_for_death()
    assert seen.poll_finds_dead()


def test_a_pidfd_that_never_becomes_readable(child, monkeypatch):
    """As in a sandbox that lets pidfds be opened and signalled, and no more."""
    reader, writer = os.pipe()
    try:
        seen = DriverProcess(child.identity, reader)
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: os.kill(child.pid, number))
        assert not seen.poll_finds_dead()
        child.process.kill()
        child.reap()
        assert not seen.is_dead()
        assert seen.poll_finds_dead()
    finally:
        os.close(reader)
        os.close(writer)
