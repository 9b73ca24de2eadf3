"""Drivers: real programs in processes of their own, to be killed. For the tests and the drill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from qx_supervisor.ours import FOLDER
from watcher.ledger import Ledger

if TYPE_CHECKING:
    from qx_supervisor import local

DEADLINE = 60.0
"""Seconds for anything to happen: generous, because the machine may be loaded."""

T = TypeVar("T")

BOOT = str(FOLDER / "boot.py")

PRELUDE = """
import os, signal, sys, threading, time
from qiskit import QuantumCircuit
from qx_supervisor import *
from qx_supervisor import local
from qx_supervisor.local.client import connect
try:
    ibm = local.Service({pid}, {port})
except ProcessLookupError:
    ibm = None  # this driver is in a PID namespace of its own
def service(token="local-key"):
    return connect({port}, token)
def bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def tell(status):
    say(status.state, status.job_id)
"""

RUN = 'run(bell(), "ibm_brisbane", service=service(), shots=64, on_status=tell)'
"""A driver's most common line: its status lines are "state job-id"."""


class Zygote:
    """Forks drivers quickly: see `zygote.py`.

    Args:
        environment: Its own, from its first instruction, where that is not this process's; a driver has this process's.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        theirs.close()
        self._ends: dict[int, int] = {}

    def fork(self, script: Path) -> Forked:
        """Run a script in a forked child."""
        outs, errs = os.pipe(), os.pipe()
        order = json.dumps({"script": str(script), "environment": dict(os.environ)}).encode()
        socket.send_fds(self._control, [order], [outs[1], errs[1]])
        os.close(outs[1])
        os.close(errs[1])
        while "started" not in (message := self._next()):
            pass
        return Forked(self, message["started"], os.fdopen(outs[0], "rb", 0), os.fdopen(errs[0], "rb", 0))

    def _next(self) -> dict[str, int]:
        assert wait([self._control], DEADLINE), "the zygote does not answer"
        message = json.loads(self._control.recv(65536))
        if "ended" in message:
            self._ends[message["ended"]] = message["status"]
        return message

    def poll(self, pid: int) -> int | None:
        """The return code of a child that has ended, else None."""
        while wait([self._control], 0):
            self._next()
        return os.waitstatus_to_exitcode(self._ends[pid]) if pid in self._ends else None

    def wait(self, pid: int) -> int:
        """The return code of a child, once it has ended."""
        while pid not in self._ends:
            self._next()
        return os.waitstatus_to_exitcode(self._ends[pid])

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait(DEADLINE)


class Forked:
    """A forked driver, as `subprocess.Popen` would show it."""

    stdin = None

    def __init__(self, zygote: Zygote, pid: int, stdout: Any, stderr: Any) -> None:
        self._zygote = zygote
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.returncode = self._zygote.poll(self.pid)
        return self.returncode

    def wait(self) -> int:
        self.returncode = self._zygote.wait(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """What is left of its output, up to its end."""
        streams = {stream.fileno(): b"" for stream in (self.stdout, self.stderr) if not stream.closed}
        open_ones = set(streams)
        while open_ones:
            ready = wait(open_ones, timeout)
            assert ready, f"driver {self.pid} does not end"
            for number in ready:
                data = os.read(number, 65536)
                streams[number] += data
                if not data:
                    open_ones.discard(number)
        self.wait()
        out = streams.get(self.stdout.fileno(), b"") if not self.stdout.closed else b""
        err = streams.get(self.stderr.fileno(), b"") if not self.stderr.closed else b""
        return out, err


class Driver:
    """A program in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes] | Forked) -> None:
        self.process = process
        self.pid = process.pid
        self.errors = b""
        self._buffer = b""
        self._unasked: list[str] = []
        self.lines: list[str] = []

    def line(self, start: str) -> list[str]:
        """Wait for a line on stdout that begins so and was not asked for before; the order of lines is free.

        Returns:
            The words of the rest of the line.
        """
        end = time.monotonic() + DEADLINE
        assert self.process.stdout is not None
        while True:
            while b"\n" in self._buffer:
                raw, _, self._buffer = self._buffer.partition(b"\n")
                self.lines.append(raw.decode())
                self._unasked.append(raw.decode())
            for text in self._unasked:
                if text.startswith(start):
                    self._unasked.remove(text)
                    return text[len(start) :].split()
            self._read(max(0.0, end - time.monotonic()), start)

    def _read(self, seconds: float, wanted: str) -> None:
        out, err = self.process.stdout, self.process.stderr
        streams = [stream for stream in (out, err) if stream is not None and not stream.closed]
        ready = wait(streams, seconds)
        assert ready, f"no line {wanted!r} in time; so far {self.lines}; stderr {self.errors.decode()}"
        if err in ready:
            data = os.read(err.fileno(), 65536)
            self.errors += data
            if not data:
                err.close()
        if out in ready:
            data = os.read(out.fileno(), 65536)
            self._buffer += data
            assert data, f"the driver ended without {wanted!r}: {self.lines}; stderr {self.errors.decode()}"

    def queued(self) -> str:
        """Wait until its job is queued; returns the job's id."""
        return self.line("queued ")[0]

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL, and its end."""
        self.process.kill()
        return self.end()

    def end(self) -> int:
        """Wait for its end.

        Returns:
            Its return code, as `subprocess` gives it: negative for a death by signal.
        """
        out, err = self.process.communicate(timeout=DEADLINE)
        self.lines += [line for line in (self._buffer + (out or b"")).decode().splitlines() if line]
        self._buffer = b""
        self.errors += err or b""
        return self.process.returncode

    def watcher(self) -> psutil.Process:
        """Its watcher."""
        found = watchers_of(self.pid)
        assert len(found) == 1, found
        return found[0]

    def clear(self) -> None:
        """End it if it still runs, and close its pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr, self.process.stdin):
            if stream is not None:
                stream.close()


def orders() -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """Every watcher on this machine, with what it was started for."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[-2:-1] == [BOOT]:
                yield process, json.loads(command[-1])


def watchers_of(pid: int) -> list[psutil.Process]:
    """The watchers of a process."""
    found = []
    for process, order in orders():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end at this very moment
            if order["pid"] == pid and process.ppid() != pid:
                found.append(process)
    return found


def wait_for_end(process: psutil.Process) -> None:
    """Wait until a process that is no child of ours has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.is_running():
            assert wait([pidfd], DEADLINE), f"{process} still runs"
    finally:
        os.close(pidfd)


def kill_both(driver: Driver) -> None:
    """As a cgroup kill, a power cut or the loss of a host does: neither lives to see the other's death."""
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.send_signal(signal.SIGKILL)
    wait_for_end(watcher)
    driver.kill()


def until(look: Callable[[], T], is_so: Callable[[T], object]) -> T:
    """Look again and again until it is so: at what tells nobody when it changes."""
    end = time.monotonic() + DEADLINE
    while not is_so(found := look()):
        assert time.monotonic() < end, found
    return found


def wait_until_written(pid: int, *, answered: bool = True) -> None:
    """Wait until the watcher of a process has written down its job, and that no other one is unknown.

    A driver says "queued" by itself; its watcher writes in a thread of its own.
    """
    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        until(book.rows, lambda rows: any(row.pid == pid and row.jobs and row.answered >= answered for row in rows))


def wait_for_watchers(pid: int) -> None:
    """Wait until no request can come any more for a process."""
    for watcher in watchers_of(pid):
        wait_for_end(watcher)


def end(driver: Driver) -> int:
    """The driver's return code, once its watcher has ended too: no request can come any more."""
    code = driver.end()
    wait_for_watchers(driver.pid)
    return code


def assert_cancelled_once(ibm: local.Service, *jobs: str) -> None:
    """These jobs there are, and no others, and each was cancelled by one request."""
    made = sorted((job.id, job.status, job.cancel_requests) for job in ibm.jobs())
    assert made == sorted((job, "Cancelled", 1) for job in jobs)
