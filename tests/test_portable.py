"""What does without anything that only Linux has: `QX_PORTABLE` takes that away, and what is left is as on a Mac.

What a Mac has in its place is tested as far as it can be here: against stand-ins for its C library and its kqueues.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from testkit.drivers import RUN, end
from testkit.processes import DEADLINE, Process, wait_for_end, wait_for_state
from testkit.watchers import wait_until_written

from qx_supervisor import WatcherError, launch
from qx_supervisor.watcher import (
    driver_process,
    exit_queue,
    host_identity,
    linux_process,
    macos,
    portable_process,
    process_state,
    sockets,
    system,
)
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess
from qx_supervisor.watcher.ledger import Ledger, file
from qx_supervisor.watcher.process_handle import ProcessHandle
from qx_supervisor.watcher.wake import Wake


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process does without, and so do the drivers that it starts, and their watchers."""
    monkeypatch.setenv(system.PORTABLE, "1")
    monkeypatch.setattr(system, "HAS_LINUX", False)
    monkeypatch.setattr(process_state, "_here", portable_process)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-ISc", "input()"], stdin=subprocess.PIPE) as begun:
        yield begun
        begun.kill()


# Deaths --------------------------------------------------------------------------------------------------------


def test_a_killed_drivers_job_is_cancelled_once(ibm, start, portable, state):
    ibm.hold("queued")
    driver = start(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    shown = watcher.cmdline()
    assert shown[-4:-2] == ["qx-watcher", str(driver.pid)]
    assert not any(str(Path.cwd()) in word for word in shown)
    assert os.getsid(watcher.pid) not in (os.getsid(driver.pid), os.getsid(0))
    assert watcher.ppid() != driver.pid
    wait_until_written(driver)
    driver.kill()
    [request] = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    assert request.status == 204
    assert ibm.wait_job(job).status == "Cancelled"
    end(driver)
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_a_death_that_closes_no_connection_is_found_by_the_poll(ibm, start, portable):
    """A forked child has the driver's files: it was made in C, so that nothing was closed in it."""
    ibm.hold("queued")
    driver = start(
        """
        import ctypes
        def told(status):
            tell(status)
            if status.state == "queued":
                child = ctypes.CDLL(None).fork()
                if child == 0:
                    ctypes.CDLL(None).pause()
                say("child", child)
        run(isa(), backend(), shots=64, on_status=told)
        """
    )
    job = driver.queued()
    [pid] = driver.line("child ")
    child = Process(pid)
    driver.send(signal.SIGKILL)
    try:
        ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
        assert child.is_running()
    finally:
        child.kill()
        wait_for_end(child)
    end(driver)
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_a_closed_connection_is_no_death(ibm, start, portable):
    """The driver is looked at and found alive; its next watcher is told its run."""
    ibm.hold("queued")
    driver = start(
        """
        from qx_supervisor.link import link
        said = []
        def told(status):
            tell(status)
            if status.state == "queued" and not said:
                said.append(link.watcher_pid)
                os.close(link._process.connection.fileno())
                with link._changed:
                    link._changed.wait_for(lambda: link.watcher_pid not in (None, said[0]))
                say("again", link.watcher_pid)
        run(isa(), backend(), shots=64, on_status=told)
        """
    )
    job = driver.queued()
    driver.line("again ")
    assert ibm.job(job).cancel_requests == 0
    ibm.hold(None)
    driver.line("done ")
    end(driver)
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_machine_that_slept_is_no_death(ibm, start, portable):
    """Driver and watcher are stopped and go on, as when a machine wakes up: no look in between, and no message."""
    ibm.hold("queued")
    driver = start(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    for process in (driver, watcher):
        (process.send if process is driver else watcher.send_signal)(signal.SIGSTOP)
    for process in (psutil.Process(driver.pid), watcher):
        while process.status() != psutil.STATUS_STOPPED:
            os.sched_yield()
    for number in (signal.SIGCONT,):
        watcher.send_signal(number)  # first, so that it looks at a driver that is stopped still
        driver.send(number)
    ibm.hold(None)
    driver.line("done ")
    assert driver.end() == 0
    wait_for_end(watcher)
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_watcher_has_nothing_of_one_system_alone(ibm, start, portable):
    ibm.hold("queued")
    driver = start(
        """
        from qx_supervisor.link import link
        def told(status):
            if status.state == "queued":
                seen = link.inspect()
                say("has", sorted({target.partition("[")[0] for target in seen["descriptors"].values()}))
                say("dumpable", seen["dumpable"])
                say("memory", seen["pss_kb"])
                os.kill(os.getpid(), 9)
        run(isa(), backend(), shots=64, on_status=told)
        """
    )
    has = " ".join(driver.line("has "))
    assert "anon_inode" not in has
    assert "memfd" not in has
    assert "/proc" not in has
    assert driver.line("dumpable ") == ["None"]
    assert int(driver.line("memory ")[0]) > 1000
    end(driver)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("IS_WINDOWS", True, "run the program in WSL 2"), ("os", None, "on Linux or macOS")],
    ids=["windows", "another one"],
)
def test_where_no_watcher_can_run(monkeypatch, name, value, words):
    """It is said when one is asked for, with the next step."""
    monkeypatch.setattr(system, name, SimpleNamespace(name="java") if value is None else value)
    with pytest.raises(WatcherError, match=words):
        launch.start()


# Processes -----------------------------------------------------------------------------------------------------


def test_both_judges_know_a_process_by_the_same_start(child):
    """So the ledger's rows mean the same to both."""
    for pid in (os.getpid(), os.getppid(), child.pid):
        start = linux_process.start_ticks(pid)
        assert start is not None
        assert portable_process.start_ticks(pid) == start
        for judge in (linux_process.judge, portable_process.judge):
            assert judge(pid, start) == judge(pid, None) == "alive"
            assert judge(pid, start - 1) == "gone"


def test_both_judges_see_a_death(child):
    start = linux_process.start_ticks(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert portable_process.judge(child.pid, start) == linux_process.judge(child.pid, start) == "ended"
    child.wait()
    assert portable_process.judge(child.pid, start) == linux_process.judge(child.pid, start) == "gone"
    assert portable_process.start_ticks(child.pid) is None
    assert portable_process.judge(0, None) == portable_process.judge(-1, None) == "gone"


MAIN_THREAD_LEAVES = """
import ctypes, os, threading
threading.Thread(target=os.read, args=(0, 1)).start()
os.write(1, b"leaving\\n")
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_main_thread_has_ended_lives():
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-ISc", MAIN_THREAD_LEAVES], **streams) as begun:
        assert begun.stdout is not None
        begun.stdout.readline()
        wait_for_state(psutil.Process(begun.pid), psutil.STATUS_ZOMBIE)
        assert portable_process.judge(begun.pid, None) == "alive"
        begun.kill()


def test_a_start_that_may_move_is_none(monkeypatch):
    """What a later psutil calls the time of a process's creation may follow the clock."""

    def create_time() -> float:
        return 0.0

    made = SimpleNamespace(_proc=SimpleNamespace(create_time=create_time))
    assert portable_process._start(made) is None
    monkeypatch.setattr(psutil, "version_info", (7, 0, 0))
    monkeypatch.setattr(sys, "platform", "darwin")
    made._proc.create_time = lambda: 1_790_000_000.123457
    assert portable_process._start(made) == 1_790_000_000_123_457


def test_a_start_by_an_earlier_psutil(monkeypatch):
    """It adds the boot time that it was last asked for."""
    made = SimpleNamespace(_proc=SimpleNamespace(create_time=lambda: 1_790_000_000.0 + 12.34))
    monkeypatch.setattr(psutil, "version_info", (5, 9, 0))
    monkeypatch.setattr(psutil, "boot_time", lambda: 1_790_000_000.0)
    assert portable_process._start(made) == round(12.34 * os.sysconf("SC_CLK_TCK"))


def test_what_cannot_be_looked_at_counts_as_alive(child, monkeypatch, portable):
    start = portable_process.start_ticks(child.pid)
    assert start is not None

    def denied(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    with monkeypatch.context() as patch:
        patch.setattr(psutil, "Process", denied)
        assert portable_process.judge(child.pid, start) == "unknown"
        assert driver_process.look_at(DriverIdentity(child.pid, start)) == "alive"
        assert host_identity.is_running(child.pid, start)


def test_a_handle_without_a_descriptor(child, portable):
    handle = ProcessHandle(child.pid)
    assert handle.descriptor is None
    assert not handle.ends_within(0.0)
    handle.send(signal.SIGTERM)
    assert handle.ends_within(DEADLINE)
    handle.reap()
    with pytest.raises(ProcessLookupError):
        handle.send(signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        ProcessHandle(child.pid)
    handle.reap()
    handle.close()


# A kqueue: its place is taken by an object that does what kqueue(2) says ---------------------------------------------


class Queue:
    """A kqueue that reports the exit of one process."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.wanted: Any = None
        self.is_closed = False

    def fileno(self) -> int:
        return self.reader

    def control(self, changes: Any, most: int, timeout: float | None = None) -> list[Any]:
        assert timeout == 0
        if changes:
            [self.wanted] = changes
            if not psutil.pid_exists(self.wanted.ident):
                raise ProcessLookupError
        if most == 0 or not select.select([self.reader], [], [], 0)[0]:
            return []
        os.read(self.reader, 1)  # KQ_EV_ONESHOT: it is told once
        return [self.wanted]

    def exit(self) -> None:
        os.write(self.writer, b"x")

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> list[Queue]:
    made: list[Queue] = []

    def kqueue() -> Queue:
        made.append(Queue())
        return made[-1]

    def kevent(ident: int, *rest: int) -> SimpleNamespace:
        return SimpleNamespace(ident=ident, rest=rest)

    monkeypatch.setattr(select, "kqueue", kqueue, raising=False)
    monkeypatch.setattr(select, "kevent", kevent, raising=False)
    for number, name in enumerate(("KQ_FILTER_PROC", "KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_NOTE_EXIT")):
        monkeypatch.setattr(select, name, 1 << number, raising=False)
    return made


def test_a_kqueue_takes_the_place_of_a_pidfd(child, portable, queues):
    start = process_state.start_ticks(child.pid)
    assert start is not None
    seen = DriverProcess(DriverIdentity(child.pid, start), None)
    [queue] = queues
    assert queue.wanted.rest == (1, 2 | 4, 8)
    assert queue.fileno() in seen.descriptors()
    assert not seen.is_dead()
    assert not seen.poll_finds_dead()
    queue.exit()
    assert select.select(seen.descriptors(), [], [], 0)[0] == [queue.fileno()]
    assert seen.is_dead()
    assert seen.is_dead(), "it is told once, and stays true"
    seen.close()
    assert queue.is_closed


def test_a_kqueue_of_another_process_is_dropped(child, portable, queues):
    """The pid was another's by the time that the queue was made."""
    start = process_state.start_ticks(child.pid)
    assert start is not None
    seen = DriverProcess(DriverIdentity(child.pid, start - 1), None)
    assert queues[0].is_closed
    assert seen.is_dead()
    seen.close()


def test_a_process_that_is_gone_has_no_kqueue(child, queues):
    child.kill()
    child.wait()
    assert exit_queue.exit_queue_of(child.pid, lambda: True) is None
    assert queues[0].is_closed


def test_a_handle_with_a_kqueue(child, portable, queues):
    handle = ProcessHandle(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert handle.ends_within(DEADLINE)
    assert queues[0].is_closed
    handle.close()


# macOS, by its C library's words -----------------------------------------------------------------------------------

SESSION = "8E5B0F1A-6E4D-4C0E-9A39-0F6C9B6D2A11"


class Library:
    """The functions of macOS that are asked, as its manual describes them."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def sysctlbyname(self, name: bytes, old: Any, size: Any, new: None, new_size: Any) -> int:
        assert (name, new, new_size.value) == (b"kern.bootsessionuuid", None, 0)
        old.value = SESSION.encode()
        return self.status

    def gethostuuid(self, found: Any, wait: Any) -> int:
        assert wait._obj.seconds == 1
        ctypes.memmove(found, uuid.UUID(SESSION).bytes, 16)
        return self.status


def test_which_boot_of_which_mac_this_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(sys, "platform", "darwin")
    here = host_identity.this_host()
    assert here.boot == SESSION.lower()
    assert here.machine == SESSION.replace("-", "").lower()
    assert here.view_of(here) == "same"
    assert host_identity.sees_itself()


def test_a_mac_that_does_not_tell(monkeypatch):
    """Then nothing is said of processes of another time: only a later boot that is known for one ends them."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(-1))
    assert (macos.boot_session(), macos.machine()) == ("", "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert (macos.boot_session(), macos.machine()) == ("", "")
    monkeypatch.setattr(sys, "platform", "darwin")
    here = host_identity.this_host()
    assert here.view_of(here) == "elsewhere"


def test_who_is_at_the_other_end_on_a_mac(monkeypatch):
    told = {(0, 2): struct.pack("i", 4711), (0, 1): struct.pack("=IIhxx16I", 0, 501, 1, *range(16))}
    connection = SimpleNamespace(getsockopt=lambda level, name, size: told[level, name][:size])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sockets.other_end(connection) == (4711, 501)  # type: ignore[arg-type]


def test_a_system_that_does_not_tell_who_is_at_the_other_end(monkeypatch):
    monkeypatch.delattr(socket, "SO_PEERCRED")
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="does not tell who"):
        sockets.other_end(ours)


# The ledger, sockets, wake-ups ---------------------------------------------------------------------------------------


def test_the_ledgers_file_is_made_without_mknod(tmp_path, monkeypatch, portable):
    monkeypatch.delattr(os, "mknod")
    with Ledger.open(tmp_path / "state") as book:
        assert book.rows() == []
    [*found] = (tmp_path / "state").iterdir()
    assert all(path.name.startswith("ledger.db") for path in found), "no draft is left"
    assert (tmp_path / "state" / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_a_local_disk_of_a_mac(tmp_path, monkeypatch):
    mounted = str(tmp_path)
    while not os.path.ismount(mounted):
        mounted = str(Path(mounted).parent)
    partitions = [
        SimpleNamespace(mountpoint="/nowhere", opts="rw"),
        SimpleNamespace(mountpoint=mounted, opts="rw,local"),
    ]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: partitions)
    assert file._is_local(tmp_path)
    partitions[1].opts = "rw,automounted"
    assert not file._is_local(tmp_path)


def test_passed_descriptors_are_not_inherited(monkeypatch):
    monkeypatch.setattr(sockets, "_CLOSE_ON_EXEC", 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs, contextlib.closing(Wake()) as wake:
        socket.send_fds(ours, [b"here"], [wake.fileno()])
        data, [passed] = sockets.receive_with_descriptors(theirs, 16, 1)
        assert data == b"here"
        assert not os.get_inheritable(passed)
        os.close(passed)


@pytest.mark.parametrize("is_windows", [False, True], ids=["pipe", "sockets"])
def test_a_wake_up(monkeypatch, is_windows):
    monkeypatch.setattr(system, "IS_WINDOWS", is_windows)
    with contextlib.closing(Wake()) as wake:
        assert not select.select([wake], [], [], 0)[0]
        for _ in range(70_000):  # more than it holds
            wake.set()
        assert select.select([wake], [], [], 0)[0]
        while select.select([wake], [], [], 0)[0]:
            wake.clear()
        wake.clear()
        wake.set()
        assert select.select([wake], [], [], 0)[0]


def test_the_switch_and_the_watchers_environment(monkeypatch):
    from qx_supervisor import detached

    monkeypatch.setenv(system.PORTABLE, "1")
    assert detached.environment()[system.PORTABLE] == "1"
