"""Starts the watcher, detached.

By exec of a clean interpreter, never by a bare fork of the driver: a forked watcher would pin the dead driver's memory,
and a child forked from a process that has transpiled hangs in Qiskit's thread pool. `subprocess` uses vfork here, so
the driver's size does not matter. Where it is started: beside the driver, in the driver's control group, or outside it
(`outside`), if `QX_WATCHER_PLACEMENT` says so.
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
"""How long a watcher may take to say that it is there: a loaded node and a cold file system take seconds."""

BOOT = Path(host_identity.__file__).with_name("boot.py")
"""What a watcher's interpreter runs, of this installation's watcher."""

PLACEMENT = "QX_WATCHER_PLACEMENT"

_PACKAGES = ("psutil", "multiprocess", "requests", "ibm_cloud_sdk_core")


@dataclass
class WatcherProcess:
    """A watcher that runs.

    Attributes:
        pid: Its process id.
        connection: The caller's end of the pipe.
        pidfd: A pidfd of it, or None where the kernel has none.
        start_ticks: Its start, in clock ticks since boot.
    """

    pid: int
    connection: Connection
    pidfd: int | None
    start_ticks: int | None = None

    def __post_init__(self) -> None:
        """Mark the descriptors."""
        numbers = [self.connection.fileno(), *([] if self.pidfd is None else [self.pidfd])]
        self._marks = {number: _mark_of(number) for number in numbers}

    def is_whole(self) -> bool:
        """Whether the descriptors are the watcher's still.

        A driver may close all descriptors, as daemonizing code does, and open files of its own under the same numbers.
        """
        return all(_mark_of(number) == mark for number, mark in self._marks.items())

    def takes(self, seconds: float) -> bool:
        """Whether there is room for another message, or will be within so many seconds."""
        if not self.is_whole():
            return False
        return is_writable(self.connection.fileno(), seconds)

    def kill(self) -> None:
        """End it: it hears nothing any more, and what it knows would be acted upon when this process ends."""
        # Not by the pidfd: a driver that closes all descriptors may have another process's under that number now.
        if self.start_ticks is not None and host_identity.start_ticks(self.pid) == self.start_ticks:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; it goes on as it sees fit."""
        for number, mark in self._marks.items():
            if _mark_of(number) == mark:
                with contextlib.suppress(OSError):
                    os.close(number)
        self._marks.clear()
        self.connection._handle = self.pidfd = None  # noqa: SLF001 - it would close the number, whoever has it now


def _mark_of(number: int) -> tuple[int, int] | None:
    """What tells one open file from another under the same number."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Starting(Protocol):
    """A watcher that was started and has not said that it is there."""

    def connect(self, seconds: float) -> socket.socket:
        """Our end of the pipe, once the watcher has its own, or is bound to get it.

        Raises:
            WatcherError: If it does not get it within so many seconds.
        """


@dataclass
class _Beside:
    """A watcher in this process's control group.

    Attributes:
        ours: Our end of the pipe.
        child: What was started; its own fork is the watcher, and it ends at once.
    """

    ours: socket.socket
    child: subprocess.Popen[bytes]

    def connect(self, seconds: float) -> socket.socket:  # noqa: ARG002 - it has its end from the beginning
        self.child.wait()
        return self.ours


def sweep_window() -> float:
    """Seconds after a driver's death in which a POST of it may still make a job.

    Raises:
        WatcherError: If `QX_SWEEP_WINDOW` is no such time.
    """
    return settings.seconds("QX_SWEEP_WINDOW", 120.0)


def where(placement: str = "") -> str:
    """Where a watcher is to be: "here" or "systemd".

    Args:
        placement: As for `start`.

    Raises:
        WatcherError: If it is to be somewhere else.
    """
    found = placement or os.environ.get(PLACEMENT) or "here"
    if found not in ("here", "systemd"):
        raise WatcherError("config", f"{PLACEMENT} is {found!r}; it may be here (as if unset) or systemd")
    return found


def start(placement: str = "") -> Starting:
    """Start a watcher for this process; that takes some milliseconds.

    Args:
        placement: "here", beside this process; "systemd", outside its control group; "": as `QX_WATCHER_PLACEMENT`
            says, and "here" if it says nothing.

    Raises:
        WatcherError: If it can't be started; the text says why, and what to do.
    """
    asked = where(placement)
    executable = _interpreter()
    me = os.getpid()
    ticks = host_identity.start_ticks(me)
    if ticks is None:
        raise WatcherError("config", "the watcher needs /proc to know this process again; mount it")
    command = [executable, "-I", "-S", str(BOOT)]
    order = {
        "pid": me,
        "start_ticks": ticks,
        "path": _package_folders(),
        "state": _state_directory(),
        "sweep_window": sweep_window(),
        "lease_seconds": shared_ledger.lease_seconds(),
    }
    try:
        if asked == "systemd":
            from . import systemd_launch  # not needed by most

            return systemd_launch.start(command, order)
        return _start_beside(command, order)
    except OSError as error:
        raise WatcherError("config", f"the watcher could not be started: {error}") from None


def _start_beside(command: list[str], order: dict[str, object]) -> _Beside:
    ours, theirs = socket.socketpair()
    pidfd = host_identity.pidfd_of(os.getpid())
    passed: list[int] = []
    try:
        passed.extend(_above_streams(each) for each in (theirs.fileno(), pidfd) if each is not None)
        inherited = {"connection": passed[0], "pidfd": None if pidfd is None else passed[1]}
        return _Beside(
            ours, detached.spawn([*command, json.dumps(order | inherited)], detached.environment(), passed=passed)
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        for each in (*passed, *([] if pidfd is None else [pidfd])):
            os.close(each)


def launch(begun: Starting | None = None) -> WatcherProcess:
    """Wait until a watcher is there: the one that was started, or, where one has died, another one.

    Raises:
        WatcherError: If it can't be started; the text says why, and what to do.
    """
    if begun is not None:
        return _meet(begun)
    try:
        return _meet(start())
    except WatcherError as error:
        if os.environ.get(PLACEMENT) in (None, "", "here"):
            raise
        # Runs are in flight, and systemd's user manager may have ended with a login. Any watcher is better than none.
        logger.warning("%s. The runs in flight have one beside this program, in its control group", error.reason)
        return _meet(start("here"))


def _meet(starting: Starting) -> WatcherProcess:
    from multiprocess.connection import Connection  # 40 ms, for which no caller needs to wait

    return _welcome(Connection(starting.connect(START_SECONDS).detach()))


def _above_streams(descriptor: int) -> int:
    """A copy that the watcher's own streams can't take the place of: a driver may have closed its 0, 1 and 2."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def _state_directory() -> str:
    try:
        return str(ledger.state_directory())
    except ledger.LedgerError:
        return ""  # the watcher will say that it keeps no ledger


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
    """The folders from which this process has the watcher's packages, in order, each once."""
    folders = []
    for name in (*_PACKAGES, *shared_ledger.packages()):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise WatcherError("config", f"the watcher needs the package {name}; install qx-supervisor anew")
        folders.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(folders))


def _welcome(connection: Connection) -> WatcherProcess:
    try:
        if not connection.poll(START_SECONDS):
            raise WatcherError(
                "config", f"the watcher did not answer within {START_SECONDS:.0f} s; is the machine overloaded?"
            )
        hello = protocol.decode_from_watcher(connection.recv_bytes())
    except (EOFError, OSError, protocol.ProtocolError):
        connection.close()
        raise WatcherError(
            "config", f"the watcher ended as it started; run `{sys.executable} -c 'import psutil, multiprocess'`"
        ) from None
    except WatcherError:
        connection.close()
        raise
    if hello["kind"] != "ack":
        connection.close()
        raise WatcherError("config", f"the watcher could not be started: {hello.get('reason')}")
    return WatcherProcess(hello["pid"], connection, host_identity.pidfd_of(hello["pid"]), hello.get("start_ticks"))
