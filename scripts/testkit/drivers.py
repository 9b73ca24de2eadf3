"""Drivers: real programs in processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import weakref
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import psutil

from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.host_identity import start_ticks

from .processes import DEADLINE, wait_for_end
from .watchers import wait_for_watchers, watchers_of
from .zygote import Forked

if TYPE_CHECKING:
    from qx_supervisor import local

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
warm = sys.modules.get("qx_warm")  # what it has from the process it was forked from: see `zygote_child.py`
def service(token="local-key"):
    if warm is not None and (token, {port}) == ("local-key", warm.port):
        return warm.service
    return connect({port}, token)
connected = service
def backend():
    if warm is not None and warm.port == {port} and service is connected:
        return warm.backend
    return service().backend("ibm_brisbane")
def Sampler(*mode, **more):  # Qiskit's, imported when it is needed
    from qx_supervisor.service.internals import primitive_class
    return primitive_class("sampler")(*mode, **more)
def bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit
def isa():
    circuit = QuantumCircuit(2)  # of this backend's gates, so there is nothing to transpile
    circuit.x([0, 1])
    circuit.measure_all()
    return circuit
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def tell(status):
    say(status.state, status.job_id)
"""
"""What every driver begins with: `service()`, `backend()`, two circuits, and words on stdout."""

RUN = "run(isa(), backend(), shots=64, on_status=tell)"
"""A driver's most common line: its status lines are "state job-id"."""

LETS_GO = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
held = submit(isa(), backend(), on_status=tell)
signal.sigwait({signal.SIGUSR1})
held.detach()
"""
"""A driver that lets its job go at SIGUSR1."""

TELL_WATCHERS = """
from qx_supervisor.link import link
def tell_watchers():
    seen = None
    while True:
        with link._changed:
            link._changed.wait_for(lambda: link.watcher_pid not in (None, seen))
            seen = link.watcher_pid
        say("watcher", seen)  # it has been told every run
threading.Thread(target=tell_watchers, daemon=True).start()
"""
"""Lines that have a driver say the pid of each of its watchers."""


made: weakref.WeakSet[Driver] = weakref.WeakSet()
"""The drivers of this process, for what is said of them when a test fails."""


class Driver:
    """A program in a process of its own.

    Attributes:
        process: The process, as `subprocess` shows one.
        pid: Its pid, for what is said of it; signals and waits go by `pidfd`.
        pidfd: A descriptor of it, open until `clear`.
        identity: Its pid and start.
        lines: What it has said on stdout so far.
        errors: What it has said on stderr so far.
    """

    def __init__(self, process: subprocess.Popen[bytes] | Forked) -> None:
        self.process = process
        self.pid = process.pid
        if isinstance(process, Forked):
            self.pidfd, self.identity = process.pidfd, process.identity
        else:  # a child of ours: until it is waited for nobody else can have its pid
            ticks = start_ticks(self.pid)
            assert ticks is not None
            self.pidfd, self.identity = os.pidfd_open(self.pid), DriverIdentity(self.pid, ticks)
        self._close = weakref.finalize(self, os.close, self.pidfd)
        self.errors = b""
        self._buffer = b""
        self._unasked: list[str] = []
        self.lines: list[str] = []
        made.add(self)

    def line(self, start: str, seconds: float | None = None) -> list[str]:
        """Wait for a line on stdout that begins so and was not asked for before; the order of lines is free.

        Args:
            start: How it begins.
            seconds: How long to wait; None: `DEADLINE`.

        Returns:
            The words of the rest of the line.
        """
        end = time.monotonic() + (DEADLINE if seconds is None else seconds)  # which a test may have made longer
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

    def forget_lines(self) -> None:
        """What it has said so far is no answer to what is asked from now on."""
        self._unasked.clear()

    def _read(self, seconds: float, wanted: str) -> None:
        out, err = self.process.stdout, self.process.stderr
        streams: list[Any] = [stream for stream in (out, err) if stream is not None and not stream.closed]
        ready = wait(streams, seconds)
        assert ready, f"no line {wanted!r} in time; so far {self.lines}; stderr {self.errors.decode()}"
        if err is not None and err in ready:
            data = os.read(err.fileno(), 65536)
            self.errors += data
            if not data:
                err.close()
        if out is not None and out in ready:
            data = os.read(out.fileno(), 65536)
            self._buffer += data
            assert data, f"the driver ended without {wanted!r}: {self.lines}; stderr {self.errors.decode()}"

    def read_what_there_is(self) -> None:
        """Take in what it has said, and wait for nothing."""
        streams = [stream for stream in (self.process.stdout, self.process.stderr) if stream and not stream.closed]
        for stream in streams:
            while wait([stream.fileno()], 0) and (data := os.read(stream.fileno(), 65536)):
                if stream is self.process.stderr:
                    self.errors += data
                else:
                    self._buffer += data
        self.lines += self._buffer.decode(errors="replace").splitlines()
        self._buffer = b""

    def queued(self) -> str:
        """Wait until its job is queued; returns the job's id."""
        return self.line("queued ")[0]

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> int:
        """SIGKILL, and its end."""
        self.send(signal.SIGKILL)
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
        code = self.process.returncode
        assert code is not None
        return code

    def watcher(self) -> psutil.Process:
        """Its watcher."""
        found = watchers_of(self)
        assert len(found) == 1, found
        return found[0]

    def clear(self) -> None:
        """End it if it still runs, and close its pipes."""
        self.send(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr, self.process.stdin):
            if stream is not None:
                stream.close()
        self._close()


def kill_both(driver: Driver) -> None:
    """As a cgroup kill, a power cut or the loss of a host does: neither lives to see the other's death."""
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.send_signal(signal.SIGKILL)
    wait_for_end(watcher)
    driver.kill()


def end(driver: Driver) -> int:
    """The driver's return code, once its watcher has ended too: no request can come any more."""
    code = driver.end()
    wait_for_watchers(driver)
    return code


def assert_cancelled_once(ibm: local.Service, *jobs: str) -> None:
    """These jobs there are, and no others, and each was cancelled by one request."""
    made = sorted((job.id, job.status, job.cancel_requests) for job in ibm.jobs())
    assert made == sorted((job, "Cancelled", 1) for job in jobs)
