"""Starts the watcher, detached.

It is a clean interpreter, never a fork of the driver: a forked watcher would pin the dead driver's memory, and a child
forked from a process that has transpiled hangs in Qiskit's thread pool. `subprocess` uses vfork here, so the driver's
size does not matter. The watcher starts beside the driver, in the driver's control group, or outside it
(`systemd_launch`), if `QX_WATCHER_PLACEMENT` says so, or all drivers on a node share one (`node_launch`).
"""

from __future__ import annotations

import _socket
import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from . import detached, interpreter, settings, shared_ledger
from .descriptors import is_writable
from .errors import WatcherError
from .watcher import host_identity, ledger, protocol, sockets, system
from .watcher.robust_lock import RobustLock

if TYPE_CHECKING:
    from multiprocess.connection import Connection

logger = logging.getLogger("qx_supervisor")

START_SECONDS = 30.0
"""How long a watcher may take to say hello: a loaded node and a cold file system take seconds."""

BOOT = Path(host_identity.__file__).with_name("boot.py")
"""What a watcher's interpreter runs, of this installation's watcher."""

_LOADER = (
    "import json,sys;sys.argv=json.loads(open(int(sys.argv[1]),'rb',0,closefd=False).readline());"
    "__file__=sys.argv[0];exec(compile(open(__file__,'rb').read(),__file__,'exec'))"
)
"""Runs a script with arguments that no command line shows, by which tools would find the watcher (`pkill -f`).

It is given the number of a descriptor, from which it reads the script's path and its arguments: a JSON array on a line.
It reads no further, byte by byte, for what follows is the script's."""

_PACKAGES = ("psutil", "requests", "urllib3", "certifi", "idna")
"""What the watcher imports, and what that imports: each may be in a folder of its own (Spack, `pip install --user`)."""


@dataclass
class WatcherProcess:
    """A watcher that runs.

    Attributes:
        pid: Its process id.
        connection: The driver's end of the connection, for what is received.
        socket: The same, for what is sent.
        pidfd: A pidfd of it, or None if the kernel has none.
        start_ticks: Its start (`watcher.process_state.start_ticks`).
        version: The version of the protocol that it speaks.
        is_shared: Whether it is other drivers' watcher, too.
        lock: The lock by which it knows that this process ends; None if there is none.
    """

    pid: int
    connection: Connection
    socket: _socket.socket
    pidfd: int | None
    start_ticks: int | None
    version: int
    is_shared: bool = False
    lock: RobustLock | None = None

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

    def send(self, message: bytes) -> None:
        """Send a message, as `Connection` would, except that no SIGPIPE ends a driver whose watcher has died.

        Raises:
            OSError: If the connection broke.
        """
        self.socket.sendall(struct.pack("!i", len(message)) + message, sockets.NO_SIGNAL)

    def kill(self) -> None:
        """Kill it: it receives nothing any more, and would act on outdated knowledge when this process ends."""
        # Not by the pidfd: if the driver closed all descriptors, that number may be another process's now.
        seen = host_identity.start_ticks(self.pid)
        with contextlib.suppress(OSError):
            if seen is not None and seen == self.start_ticks:
                os.kill(self.pid, signal.SIGKILL)
            # But where /proc is mounted with hidepid, a watcher is hidden from its own user, for it is not dumpable.
            elif seen is None and self.pidfd is not None and _pid_of(self.pidfd) == self.pid:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def give_up(self) -> None:
        """End it if it is this driver's own; a shared one forgets this driver's runs when it is connected to anew."""
        if not self.is_shared:
            self.kill()

    def close(self) -> None:
        """Close the descriptors; the watcher goes on by itself."""
        for number, file in self._files.items():
            if _file_of(number) == file:
                with contextlib.suppress(OSError):
                    os.close(number)
        self._files.clear()
        if self.lock is not None:
            self.lock.release()
        self.connection._handle = self.pidfd = None  # noqa: SLF001 - it would close that number, whatever it is now
        self.socket.detach()


def _file_of(number: int) -> tuple[int, int] | None:
    """The file that a descriptor refers to."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _pid_of(pidfd: int) -> int | None:
    """The pid of the process that a descriptor refers to; None if it is no pidfd, or that process has been waited for.

    See pidfd_open(2) and proc_pid_fdinfo(5).
    """
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
        return next((int(line.partition(":")[2]) for line in lines if line.startswith("Pid:")), None)
    except (OSError, ValueError):
        return None


class Starting(Protocol):
    """A watcher that was started and has not said hello.

    Attributes:
        child: The child that starts it, into a session of its own; None if it runs already.
        is_shared: Whether it is other drivers' watcher, too.
        lock: The lock that was passed on to it, for the link's thread to hold; None if there is none.
    """

    is_shared: bool
    lock: RobustLock | None

    @property
    def child(self) -> subprocess.Popen[bytes] | None:
        """See above."""

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
        child: The child that was started. It forks the watcher, into its own session, and ends at once.
        lock: See `Starting`.
    """

    ours: socket.socket
    child: subprocess.Popen[bytes]
    lock: RobustLock | None
    is_shared: bool = False

    def connect(self, seconds: float) -> socket.socket:  # noqa: ARG002 - it has inherited its end
        return self.ours


def start(placement: str = "") -> Starting:
    """Start a watcher for this process; that takes some milliseconds.

    Args:
        placement: "beside" this process, "systemd", outside its control group, or "node", for all drivers; "": as
            `QX_WATCHER_PLACEMENT` says, by default "beside".

    Raises:
        WatcherError: If it can't be started; the text says why, and what to do.
    """
    if reason := system.why_no_watcher():
        raise WatcherError("config", reason)
    where = placement or settings.placement()
    executable = interpreter.find()
    me = os.getpid()
    ticks = _own_start(me)
    settings.notify()  # a mistake in it is named before anything is submitted
    # -I ignores PYTHONUTF8, and a watcher must read the names of files as this process does.
    command = [executable, "-I", "-S", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _LOADER]
    state = _state_directory()
    order: protocol.Order = {
        "protocol": protocol.VERSION,
        "pid": me,
        "start_ticks": ticks,
        "path": _package_folders(),
        "state": state,
        "sweep_window": settings.sweep_window(),
        "lease_seconds": settings.lease_seconds(),
        "title": f"qx-watcher {me} {ticks} {ledger_word(state)}",
    }
    try:
        if where == "systemd":
            from . import systemd_launch  # not needed by most

            return systemd_launch.start(command, order, given)
        if where == "node":
            from . import node_launch

            return node_launch.start(command, order, given, BOOT)
        return _start_beside(command, order)
    except OSError as error:
        raise WatcherError("config", f"the watcher could not be started: {error}") from None


def _own_start(me: int) -> int:
    """The start of this process, by which the watcher recognizes it.

    Raises:
        WatcherError: If it is not to be seen.
    """
    if host_identity.sees_itself() and (ticks := host_identity.start_ticks(me)) is not None:
        return ticks
    if sys.platform.startswith("linux"):
        raise WatcherError("config", "the watcher needs this PID namespace's /proc to recognize this process; mount it")
    raise WatcherError(
        "config",
        "the watcher recognizes this process by when it began, and the installed psutil does not tell it; install "
        "another one: pip install --upgrade psutil",
    )


def ledger_word(state: str) -> str:
    """A word for a state directory, by which watchers of different ledgers can be told apart in a list of processes.

    Not its path, for that may be the project's.
    """
    return f"{zlib.crc32(state.encode(errors='surrogateescape')):08x}"


def given(order: protocol.Order) -> bytes:
    """What the loader reads from its descriptor, for a watcher."""
    return json.dumps([str(BOOT), json.dumps(order)]).encode() + b"\n"


def _above_streams(connection: socket.socket) -> socket.socket:
    """The same connection, where nothing writes to it that means stdout or stderr, which the program has closed."""
    if connection.fileno() > 2:
        return connection
    with connection:
        return socket.socket(fileno=detached.above_streams(connection.fileno()))


def _start_beside(command: list[str], order: protocol.Order) -> _Beside:
    ours, theirs = socket.socketpair()
    ours = _above_streams(ours)
    # Sockets of gevent and eventlet do not block, and the loader, which has nothing else to do, waits for its order.
    os.set_blocking(theirs.fileno(), True)
    pidfd = host_identity.pidfd_of(os.getpid())
    lock = RobustLock.make()
    passed: list[int] = []

    def passed_on(descriptor: int) -> int:
        passed.append(detached.above_streams(descriptor))
        return passed[-1]

    try:
        order["connection"] = passed_on(theirs.fileno())
        order["pidfd"] = None if pidfd is None else passed_on(pidfd)
        order["lock"] = None if lock is None else passed_on(lock.descriptor)
        shown = [*command, str(order["connection"]), *detached.title_words(order["title"])]
        child = detached.spawn(shown, detached.environment(), passed=passed)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        if lock is not None:
            lock.close_descriptor()
        for each in (*passed, *([] if pidfd is None else [pidfd])):
            os.close(each)
    with contextlib.suppress(OSError):  # it has ended already: no hello comes
        sockets.spare_from_signal(ours)
        ours.sendall(given(order), sockets.NO_SIGNAL)
    return _Beside(ours, child, lock)


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
        if settings.placement() == "beside":
            raise
        # Runs are in flight, and what was there may have ended with a login. Any watcher is better than none.
        logger.warning("%s. The runs in flight have one beside this program, in its control group", error.reason)
        return _meet(start("beside"))


def _meet(starting: Starting) -> WatcherProcess:
    from multiprocess.connection import Connection  # 40 ms, for which nobody needs to wait

    if starting.lock is not None:
        starting.lock.hold()  # in the link's thread, which lives for as long as the watcher is needed
    try:
        theirs = _above_streams(starting.connect(START_SECONDS))
        # Python's own: those of gevent do not block, and `Connection` needs one that does.
        plain = _socket.socket(fileno=theirs.detach())
        plain.setblocking(True)
        connection = Connection(plain.fileno())
        try:
            hello = _hello(connection)
        except WatcherError:
            connection.close()
            plain.detach()
            raise
    except WatcherError:
        if starting.child is not None:
            detached.end(starting.child)
        if starting.lock is not None:
            starting.lock.release()
        raise
    if starting.child is not None:
        starting.child.wait()
    pidfd = host_identity.pidfd_of(hello.pid)
    return WatcherProcess(
        hello.pid, connection, plain, pidfd, hello.start_ticks, hello.version, starting.is_shared, starting.lock
    )


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
            "config", f"the watcher ended as it started; run `{sys.executable} -c 'import psutil, requests'`"
        ) from None
    if isinstance(hello, protocol.Nack):
        raise WatcherError("config", f"the watcher could not be started: {hello.reason}")
    return hello


def _state_directory() -> str:
    try:
        return str(ledger.state_directory())
    except ledger.LedgerError:
        return ""  # the watcher will report that there is no ledger


def _package_folders() -> list[str]:
    """The folders from which this process imports the watcher's packages, in this process's order, each once."""
    folders = []
    for name in (*_PACKAGES, *shared_ledger.packages()):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise WatcherError("config", f"the watcher needs the package {name}; reinstall qx-supervisor")
        folders.append(str(Path(spec.origin).parent.parent))
    places = []
    for each in sys.path:
        with contextlib.suppress(OSError):  # a relative one, and the current folder is gone
            places.append(os.path.abspath(each))  # noqa: PTH100 - a link is left as it is, as in the origins
    return sorted(dict.fromkeys(folders), key=lambda each: places.index(each) if each in places else len(places))
