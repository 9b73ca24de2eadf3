"""Whether a process will ever run its own code again: deaths that the kernel tells late or never, and false ones."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testkit import cgroups, stuck
from testkit.processes import DEADLINE, until

from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess
from qx_supervisor.watcher.host_identity import is_running
from qx_supervisor.watcher.process_state import judge, start_ticks

POLLS = 10_000

Bearer = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def bear(tmp_path) -> Iterator[Bearer]:
    """Start a program, Python code or a command, that says a line."""
    children: list[subprocess.Popen[bytes]] = []

    def begin(program: str | list[str], *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-ISc", program] if isinstance(program, str) else program
        command += map(str, arguments)
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline()
        return child

    yield begin
    for child in children:
        with child:
            child.kill()


WAITS = "import sys; print('begun', flush=True); sys.stdin.read()"

BUSY = """
import os, sys, threading
def work():
    while True:
        os.getpid()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
print("begun", flush=True)
sys.stdin.read()
"""

# Deaths --------------------------------------------------------------------------------------------------------


def sees_death_before_the_kernel_says_so(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)
    try:
        ticks = start_ticks(child.pid)
        until(lambda: judge(child.pid, ticks), lambda verdict: verdict == "ended")
        assert not is_running(child.pid, ticks), "ledger, reap and reaper have the same judge"
        assert not select.select([pidfd], [], [], 0)[0]
    finally:
        os.close(pidfd)


STUCK = """
import os, sys, threading
looking = threading.Thread(target=os.stat, args=sys.argv[1:2], daemon=True)
looking.start()
print("begun", flush=True)
sys.stdin.readline()
os._exit(0)
"""


@pytest.mark.skipif(bool(stuck.no_dead_mount()), reason=stuck.no_dead_mount())
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "os._exit"])
def test_a_thread_that_waits_for_a_dead_file_server(bear, tmp_path, end):
    folder = tmp_path / "dead"
    folder.mkdir()
    with stuck.dead_mount(folder) as mount:
        child = bear(STUCK, mount.file)
        assert mount.has_visitor.wait(DEADLINE)
        assert judge(child.pid, None) == "alive"
        if end == "os._exit":
            child.stdin.write(b"\n")
            child.stdin.flush()
        else:
            child.send_signal(getattr(signal, end))
        sees_death_before_the_kernel_says_so(child)


@pytest.mark.skipif(bool(stuck.no_tracer()), reason=stuck.no_tracer())
def test_a_tracer_that_does_not_let_go(bear):
    child = bear(BUSY)
    with stuck.traced(child.pid, stuck.AT_EXIT):
        assert judge(child.pid, None) == "alive"
        child.kill()
        sees_death_before_the_kernel_says_so(child)


@pytest.mark.skipif(cgroups.freezer() is None, reason="there is no freezer of control groups, version 1")
def test_killed_in_a_frozen_control_group(bear):
    child = bear(BUSY)
    with cgroups.frozen(child.pid):
        assert judge(child.pid, None) == "alive"
        child.kill()
        sees_death_before_the_kernel_says_so(child)


@pytest.mark.skipif(
    not Path("/proc/sys/kernel/core_pattern").read_text().startswith("core"),
    reason="here cores are not written to the working directory",
)
def test_a_core_dump(bear):
    child = bear(
        """
import os, resource
limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
memory = os.urandom(1 << 20) * 300
print("begun", flush=True)
os.read(0, 1)
os.abort()
"""
    )
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("no core may be written here")
    child.stdin.write(b"\n")
    child.stdin.flush()
    sees_death_before_the_kernel_says_so(child)


# Lives ---------------------------------------------------------------------------------------------------------

CHANGES = """
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <stdlib.h>
#include <unistd.h>
static char **arguments;
static void *replace(void *x) { execv("/proc/self/exe", arguments); _exit(9); }
static void *nothing(void *x) { return 0; }
static void *successor(void *x) {
  pthread_attr_t a; pthread_t t;
  pthread_attr_init(&a); pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
  while (pthread_create(&t, &a, successor, 0));
  return 0;
}
int main(int n, char **given) {
  pthread_t t; pid_t p;
  arguments = given;
  if (n == 2) { arguments = (char *[]){given[0], given[1], "", 0}; write(1, "begun\\n", 6); }
  const char *how = given[1];
  if (!strcmp(how, "exec by a thread")) {
    for (int i = 0; i < 3; i++) pthread_create(&t, 0, replace, 0);
    for (;;) pause();
  }
  if (!strcmp(how, "threads, each by the one before")) { pthread_create(&t, 0, successor, 0); syscall(SYS_exit, 0); }
  if (!strcmp(how, "threads")) for (;;) if (!pthread_create(&t, 0, nothing, 0)) pthread_join(t, 0);
  if (!strcmp(how, "forks")) for (;;) { if (!(p = fork())) _exit(0); waitpid(p, 0, 0); }
  if (!strcmp(how, "children that share its memory and dump core"))
    for (;;) { if (!(p = vfork())) abort(); waitpid(p, 0, 0); }
}
"""
"""A program that changes as fast as it can, in one of several ways."""


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("changes")
    source, program = folder / "changes.c", folder / "changes"
    source.write_text(CHANGES)
    subprocess.run(["cc", "-O1", "-w", "-pthread", "-o", program, source], check=True)
    return program


def assert_lives(child: subprocess.Popen[bytes]) -> None:
    """Polled again and again, it is never called dead; not by a judge that looks at all its threads either."""
    ticks = start_ticks(child.pid)
    assert ticks is not None
    driver = DriverProcess(DriverIdentity(child.pid, ticks), os.pidfd_open(child.pid))
    try:
        for _ in range(POLLS):
            assert not driver.poll_finds_dead()
            assert judge(child.pid, ticks) == "alive"
        assert not driver.is_dead()
    finally:
        driver.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        "exec by a thread",
        "threads, each by the one before",
        "threads",
        "forks",
        "children that share its memory and dump core",
    ],
)
def test_what_changes_as_fast_as_it_can_lives(bear, changes, how):
    assert_lives(bear([str(changes), how]))


@pytest.mark.long
def test_what_is_stopped_lives(bear):
    child = bear(BUSY)
    child.send_signal(signal.SIGSTOP)
    assert_lives(child)


@pytest.mark.skipif(bool(stuck.no_tracer()), reason=stuck.no_tracer())
@pytest.mark.long
def test_what_is_traced_lives(bear):
    child = bear(BUSY)
    with stuck.traced(child.pid):
        assert_lives(child)


@pytest.mark.long
@pytest.mark.skipif(cgroups.freezer() is None, reason="there is no freezer of control groups, version 1")
def test_what_is_frozen_lives(bear):
    child = bear(BUSY)
    with cgroups.frozen(child.pid):
        assert_lives(child)


def test_a_poll_is_cheap(bear):
    """Of a hundred drivers, in one watcher. The bar is 50 µs; on a machine under load it is not measured to that."""
    child = bear(WAITS)
    ticks = start_ticks(child.pid)
    assert ticks is not None
    driver = DriverProcess(DriverIdentity(child.pid, ticks), None)
    try:
        before = time.thread_time()
        for _ in range(1000):
            driver.poll_finds_dead()
        assert (time.thread_time() - before) / 1000 < 0.0005
    finally:
        driver.close()
