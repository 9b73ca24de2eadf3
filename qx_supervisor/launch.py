"""Starts the watcher, detached.

It is a clean interpreter, never a fork of the driver: a forked watcher would pin the dead driver's memory, and a child
forked from a process that has transpiled hangs in Qiskit's thread pool. `subprocess` uses vfork here, so the driver's
size does not matter. The watcher starts beside the driver, in the driver's control group, or outside it
(`systemd_launch`), if `QX_WATCHER_PLACEMENT` says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from . import detached, settings, shared_ledger
from .descriptors import is_writable
from .errors import WatcherError
from .watcher import host_identity, ledger, protocol

if TYPE_CHECKING:
    from multiprocess.connection import Connection

logger = logging.getLogger("qx_supervisor")

START_SECONDS = 30.0
"""How long a watcher may take to say hello: a loaded node and a cold file system take seconds."""

BOOT = Path(host_identity.__file__).with_name("boot.py")
"""What a watcher's interpreter runs, of this installation's watcher."""

_PACKAGES = ("psutil", "multiprocess", "requests", "ibm_cloud_sdk_core")


@dataclass
class WatcherProcess:
    """A watcher that runs.

    Attributes:
        pid: Its process id.
        connection: The driver's end of the connection.
        pidfd: A pidfd of it, or None if the kernel has none.
        start_ticks: Its start, in clock ticks since boot.
        version: The version of the protocol that it speaks.
    """

    pid: int
    connection: Connection
    pidfd: int | None
    start_ticks: int | None
    version: int

    def __post_init__(self) -> None:
        """Remember what the descriptors refer to."""
        numbers = [self.connection.fileno(), *([] if self.pidfd is None else [self.pidfd])]
        self._files = {number: _file_of(number) for number in numbers}

    def is_intact(self) -> bool:
        """Whether the descriptors still are the watcher's.

        A driver may close all descriptors, as daemonizing code does, and open files of its own under the same numbers.
        """
        return all(_file_of(number) == file for number, file in self._files.items())

    def has_room(self, seconds: float) -> bool:
        """Whether there is room for another message, or will be within some seconds."""
        if not self.is_intact():
            return False
        return is_writable(self.connection.fileno(), seconds)

    def kill(self) -> None:
        """Kill it: it receives nothing any more, and would act on outdated knowledge when this process ends."""
        # Not by the pidfd: if the driver closed all descriptors, that number may be another process's now.
        if self.start_ticks is not None and host_identity.start_ticks(self.pid) == self.start_ticks:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the descriptors; the watcher goes on by itself."""
        for number, file in self._files.items():
            if _file_of(number) == file:
                with contextlib.suppress(OSError):
                    os.close(number)
        self._files.clear()
        self.connection._handle = self.pidfd = None  # noqa: SLF001 - it would close that number, whatever it is now


def _file_of(number: int) -> tuple[int, int] | None:
    """The file that a descriptor refers to."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Starting(Protocol):
    """A watcher that was started and has not said hello."""

    def connect(self, seconds: float) -> socket.socket:
        """The driver's end of the connection, once the watcher has its own, or is bound to get it.

        Raises:
            WatcherError: If it does not get it within that many seconds.
        """


@dataclass
class _Beside:
    """A watcher in this process's control group.

    Attributes:
        ours: The driver's end of the connection.
        child: The child that was started. It forks the watcher, and ends at once.
    """

    ours: socket.socket
    child: subprocess.Popen[bytes]

    def connect(self, seconds: float) -> socket.socket:  # noqa: ARG002 - it has inherited its end
        self.child.wait()
        return self.ours


def start(placement: str = "") -> Starting:
    """Start a watcher for this process; that takes some milliseconds.

    Args:
        placement: "here", beside this process; "systemd", outside its control group; "": as `QX_WATCHER_PLACEMENT`
            says, by default "here".

    Raises:
        WatcherError: If it can't be started; the text says why, and what to do.
    """
    where = placement or settings.placement()
    executable = _interpreter()
    me = os.getpid()
    ticks = host_identity.start_ticks(me)
    if ticks is None:
        raise WatcherError("config", "the watcher needs /proc to recognize this process; mount it")
    command = [executable, "-I", "-S", str(BOOT)]
    order: protocol.Order = {
        "protocol": protocol.VERSION,
        "pid": me,
        "start_ticks": ticks,
        "path": _package_folders(),
        "state": _state_directory(),
        "sweep_window": settings.sweep_window(),
        "lease_seconds": settings.lease_seconds(),
    }
    try:
        if where == "systemd":
            from . import systemd_launch  # not needed by most

            return systemd_launch.start(command, order)
        return _start_beside(command, order)
    except OSError as error:
        raise WatcherError("config", f"the watcher could not be started: {error}") from None


def _start_beside(command: list[str], order: protocol.Order) -> _Beside:
    ours, theirs = socket.socketpair()
    pidfd = host_identity.pidfd_of(os.getpid())
    passed: list[int] = []
    try:
        passed.extend(_above_streams(each) for each in (theirs.fileno(), pidfd) if each is not None)
        order["connection"], order["pidfd"] = passed[0], None if pidfd is None else passed[1]
        return _Beside(ours, detached.spawn([*command, json.dumps(order)], detached.environment(), passed=passed))
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        for each in (*passed, *([] if pidfd is None else [pidfd])):
            os.close(each)


def launch(begun: Starting | None = None) -> WatcherProcess:
    """Wait for a watcher: the one that was started, or another one.

    Raises:
        WatcherError: If it can't be started; the text says why, and what to do.
    """
    if begun is not None:
        return _meet(begun)
    try:
        return _meet(start())
    except WatcherError as error:
        if settings.placement() == "here":
            raise
        # Runs are in flight, and systemd's user manager may have ended with a login. Any watcher is better than none.
        logger.warning("%s. The runs in flight have one beside this program, in its control group", error.reason)
        return _meet(start("here"))


def _meet(starting: Starting) -> WatcherProcess:
    from multiprocess.connection import Connection  # 40 ms, for which nobody needs to wait

    connection = Connection(starting.connect(START_SECONDS).detach())
    try:
        hello = _hello(connection)
    except WatcherError:
        connection.close()
        raise
    pidfd = host_identity.pidfd_of(hello.pid)
    return WatcherProcess(hello.pid, connection, pidfd, hello.start_ticks, hello.version)


def _hello(connection: Connection) -> protocol.Hello:
    try:
        if not connection.poll(START_SECONDS):
            raise WatcherError(
                "config", f"the watcher did not answer within {START_SECONDS:.0f} s; is the machine overloaded?"
            )
        hello = protocol.decode_hello(connection.recv_bytes())
    except protocol.VersionError as error:
        raise WatcherError("config", f"the installed watcher can't be used: {error}") from None
    except (EOFError, OSError, protocol.ProtocolError):
        raise WatcherError(
            "config", f"the watcher ended as it started; run `{sys.executable} -c 'import psutil, multiprocess'`"
        ) from None
    if isinstance(hello, protocol.Nack):
        raise WatcherError("config", f"the watcher could not be started: {hello.reason}")
    return hello


def _above_streams(descriptor: int) -> int:
    """A copy above the standard streams, which a driver may have closed: the watcher opens its own there."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def _state_directory() -> str:
    try:
        return str(ledger.state_directory())
    except ledger.LedgerError:
        return ""  # the watcher will report that there is no ledger


def _interpreter() -> str:
    executable = sys.executable
    if getattr(sys, "frozen", False) or not executable or not os.access(executable, os.X_OK):
        raise WatcherError(
            "config",
            "the watcher needs a Python interpreter to run in, and sys.executable names none (a frozen or embedded "
            "program); run the driver with python itself",
        )
    return executable


def _package_folders() -> list[str]:
    """The folders from which this process imports the watcher's packages, in order, each once."""
    folders = []
    for name in (*_PACKAGES, *shared_ledger.packages()):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise WatcherError("config", f"the watcher needs the package {name}; reinstall qx-supervisor")
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))
