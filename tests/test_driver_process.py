"""Whether the driver still lives: real processes, real deaths, and everything that only looks like one."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from testkit.processes import until, wait_for_state

from qx_supervisor.watcher import driver_process, linux_process
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess, look_at
from qx_supervisor.watcher.host_identity import start_ticks
from qx_supervisor.watcher.robust_lock import RobustLock

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

    def __init__(self, code: str, passed: Sequence[int] = ()) -> None:
        command = [sys.executable, "-ISc", code]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=passed
        )
        self.pid = self.process.pid
        ticks = start_ticks(self.pid)
        assert ticks is not None
        self.identity = DriverIdentity(self.pid, ticks)
        self.pidfd = os.pidfd_open(self.pid)
        self._seen: list[DriverProcess] = []

    def seen(self, pidfd: int | None, lock: RobustLock | None = None) -> DriverProcess:
        """As a watcher sees it that has this pidfd, which is copied."""
        self._seen.append(DriverProcess(self.identity, None if pidfd is None else os.dup(pidfd), lock))
        return self._seen[-1]

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
        for seen in self._seen:
            seen.close()
        for attendant in attendants():
            attendant.join(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


Bearer = Callable[..., Child]


@pytest.fixture
def bear() -> Iterator[Bearer]:
    children: list[Child] = []

    def begin(code: str, passed: Sequence[int] = ()) -> Child:
        children.append(Child(code, passed))
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
    return [child.seen(child.pidfd), child.seen(None)]


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


def test_linux_a_pidfd_is_readable_at_a_death_and_not_before(child):
    assert not select.select([child.pidfd], [], [], 0)[0]
    child.go_on()
    child.wait_for_death()
    assert child.seen(child.pidfd).is_dead()


def test_a_stopped_process_lives(child):
    os.kill(child.pid, signal.SIGSTOP)
    wait_for_state(psutil.Process(child.pid), psutil.STATUS_STOPPED)
    for seen in both(child):
        assert not seen.is_dead()
        assert not seen.poll_finds_dead()


# A pid that is used again ---------------------------------------------------------------------------------------


def test_another_start_is_another_process(child):
    assert look_at(child.identity) == "alive"
    for ticks in (child.identity.start_ticks - 1, child.identity.start_ticks + 1, 0):
        assert look_at(DriverIdentity(child.pid, ticks)) == "gone"


def test_a_pid_that_is_really_used_again(tmp_path):
    """In a PID namespace of its own, where the next pid can be chosen."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, signal, sys
sys.path[:0] = sys.argv[1:]
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess, look_at
from qx_supervisor.watcher.host_identity import start_ticks
from qx_supervisor.watcher.robust_lock import RobustLock

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
assert look_at(identity) == "alive"
before = DriverProcess(identity, None)
assert not before.poll_finds_dead()
bury(pid)
assert look_at(identity) == "gone"
while True:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    again, later = bear()
    assert again == pid, (again, pid)
    if later != ticks:
        break
    bury(again)  # in the same hundredth of a second
assert look_at(DriverIdentity(again, later)) == "alive"
for seen in (DriverProcess(identity, pidfd), DriverProcess(identity, None), before):
    assert seen.is_dead()
    assert seen.poll_finds_dead()
bury(again)
print("all well")
"""
    )
    folders = [str(Path(driver_process.__file__).parents[2]), str(Path(psutil.__file__).parent.parent)]
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
    assert look_at(child.identity) == "alive"


# Threads and exec -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(EXIT_OF_A_THREAD is None, reason="the number of exit(2) is not known here")
def test_the_main_thread_leaves_and_the_others_work_on(bear):
    child = bear(MAIN_THREAD_LEAVES)
    assert child.line() == "leaving"
    wait_for_state(psutil.Process(child.pid), psutil.STATUS_ZOMBIE)
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


@pytest.fixture
def unreadable(monkeypatch):
    """/proc is not as `linux_process` knows it, and psutil is asked."""

    def fail(folder: int | None, path: str) -> bytes:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(linux_process, "_read", fail)
    monkeypatch.setattr(linux_process, "is_plainly_alive", lambda status: False)


@pytest.mark.parametrize(
    "error",
    [psutil.AccessDenied(1), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "I/O error")],
    ids=repr,
)
def test_what_cannot_be_seen_is_not_called_dead(child, monkeypatch, unreadable, error):
    def fail(self: psutil.Process) -> str:
        raise error

    monkeypatch.setattr(psutil.Process, "status", fail)
    assert look_at(child.identity) == "alive"
    for seen in both(child):
        assert not seen.poll_finds_dead()


def test_out_of_descriptors(child, monkeypatch):
    def fail(*arguments: object, **more: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    assert look_at(child.identity) == "alive"


def test_by_psutil_alone(child, unreadable):
    assert look_at(child.identity) == "alive"
    child.process.kill()
    child.wait_for_death()
    assert look_at(child.identity) == "ended"
    child.reap()
    assert look_at(child.identity) == "gone"


def test_hidden_from_proc_and_there(child, monkeypatch):
    """As where /proc is mounted with hidepid, and the driver is not dumpable."""
    usual = os.open

    def hide(path: str, *arguments: int, **more: int) -> int:
        if str(path).startswith(f"/proc/{child.pid}"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return usual(path, *arguments, **more)

    monkeypatch.setattr(os, "open", hide)
    assert look_at(child.identity) == "alive"
    child.process.kill()
    child.reap()
    assert look_at(child.identity) == "gone"


# The pidfd and the poll -----------------------------------------------------------------------------------------


def test_linux_beside_a_pidfd_nobody_is_gone_without_its_word(child, monkeypatch):
    monkeypatch.setattr(driver_process, "look_at", lambda identity: "gone")
    monkeypatch.setattr(linux_process, "is_plainly_alive", lambda status: False)
    seen = child.seen(child.pidfd)
    assert not seen.poll_finds_dead()
    assert not seen.is_dead()
    child.process.kill()
    child.wait_for_death()
    assert seen.poll_finds_dead()


def test_linux_a_pidfd_that_is_none_any_more_leaves_it_to_the_poll(child):
    seen = child.seen(child.pidfd)
    assert seen.pidfd is not None
    os.close(seen.pidfd)
    assert not seen.is_dead()
    assert seen.pidfd is None
    assert not seen.poll_finds_dead()
    child.process.kill()
    child.wait_for_death()
    assert seen.poll_finds_dead()


def test_linux_a_pidfd_that_never_becomes_readable(child, monkeypatch):
    """As in a sandbox that lets pidfds be opened and signalled, and no more."""
    reader, writer = os.pipe()
    try:
        seen = child.seen(reader)
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: os.kill(child.pid, number))
        assert not seen.poll_finds_dead()
        child.process.kill()
        child.reap()
        assert not seen.is_dead()
        assert seen.poll_finds_dead()
    finally:
        os.close(reader)
        os.close(writer)


# The lock -------------------------------------------------------------------------------------------------------

HOLDS = """
import mmap, os, sys, threading
sys.path.insert(0, {folder!r})
from qx_supervisor.watcher.robust_lock import RobustLock
lock = RobustLock({descriptor}, mmap.PROT_READ | mmap.PROT_WRITE)
let_go, told = threading.Event(), []
def hold():
    lock.hold()
    print("held", flush=True)
    let_go.wait()
    if told == [b"r"]:
        lock.release()
threading.Thread(target=hold, daemon=True).start()
told.append(os.read(0, 1))
let_go.set()
os.read(0, 1)
"""
"""Has a thread hold the lock. Then, as it is told, that lets go of it, or ends without; and the process works on."""


@pytest.fixture
def holder(bear: Bearer) -> tuple[Child, DriverProcess]:
    """A child that holds a lock, and how a watcher without a pidfd sees it."""
    lock = RobustLock.make()
    assert lock is not None
    try:
        folder = str(Path(driver_process.__file__).parents[2])
        child = bear(HOLDS.format(folder=folder, descriptor=lock.descriptor), passed=[lock.descriptor])
        theirs = RobustLock.of_driver(os.dup(lock.descriptor))
    finally:
        lock.close_descriptor()
    seen = child.seen(None, theirs)
    assert child.line() == "held"
    assert not seen.poll_finds_dead()  # and begins to wait
    return child, seen


def attendants() -> list[threading.Thread]:
    """The threads that wait for the end of a driver's thread, or look what it was."""
    return [thread for thread in threading.enumerate() if thread.name == "qx-driver"]


def test_linux_the_lock_tells_of_a_kill(holder):
    child, seen = holder
    assert not select.select(seen.descriptors(), [], [], 0)[0]
    child.process.kill()
    assert select.select(seen.descriptors(), [], [], DEADLINE)[0]
    assert seen.is_dead()


def test_linux_the_lock_tells_of_a_kill_when_all_is_over(holder, monkeypatch):
    """Where there is no pidfd, and the parent is quicker than the look."""
    child, seen = holder

    def look(identity: DriverIdentity) -> str:
        child.reap()
        return look_at(identity)

    monkeypatch.setattr(driver_process, "look_at", look)
    child.process.kill()
    assert select.select(seen.descriptors(), [], [], DEADLINE)[0]
    assert seen.is_dead()


@pytest.mark.parametrize("how", ["let go", "end"])
def test_linux_what_becomes_of_the_thread_that_holds_the_lock_is_no_death(holder, how):
    child, seen = holder
    [attendant] = attendants()
    child.process.stdin.write(b"r" if how == "let go" else b"e")
    attendant.join(DEADLINE)
    assert not attendant.is_alive()
    assert not select.select(seen.descriptors(), [], [], 0)[0]
    assert not seen.is_dead()
    assert not seen.poll_finds_dead()
    assert not attendants(), "it is left to the poll"
    child.process.kill()
    child.wait_for_death()
    assert seen.poll_finds_dead()


def test_linux_a_lock_that_nobody_holds_yet(child):
    lock = RobustLock.make()
    assert lock is not None
    theirs = RobustLock.of_driver(os.dup(lock.descriptor))
    lock.close_descriptor()
    seen = child.seen(None, theirs)
    assert not seen.poll_finds_dead()
    assert not attendants()
    lock.hold()
    assert not seen.poll_finds_dead()
    [attendant] = attendants()
    lock.release()
    attendant.join(DEADLINE)
    assert not attendant.is_alive()


def test_linux_a_driver_that_writes_anything_there():
    lock = RobustLock.make()
    assert lock is not None
    theirs = RobustLock.of_driver(os.dup(lock.descriptor))
    lock.close_descriptor()
    assert theirs is not None
    for wild in (1, 65, 4096, 0xFFFFFFFF):
        lock._word(0).value = wild
        assert not theirs.is_held()


def test_linux_without_locks(monkeypatch):
    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", fail)
    assert RobustLock.make() is None


def test_linux_a_waiting_thread_uses_no_processor(holder):
    _, seen = holder
    [attendant] = attendants()
    statistics = Path(f"/proc/self/task/{attendant.native_id}/schedstat")
    until(lambda: Path(f"/proc/self/task/{attendant.native_id}/wchan").read_text(), lambda place: "futex" in place)
    before = statistics.read_text()
    for _ in range(100):
        assert not seen.poll_finds_dead()
    assert statistics.read_text() == before


def test_linux_a_driver_that_is_not_watched_any_more(holder):
    """Its descriptors are closed, and nobody writes to what has their numbers then."""
    child, seen = holder
    [attendant] = attendants()
    seen.close()
    child.process.kill()
    attendant.join(DEADLINE)
    assert not attendant.is_alive()
    assert not seen._is_dead
