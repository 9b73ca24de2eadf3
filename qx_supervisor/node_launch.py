"""The watcher that all drivers of this user on this node share: it is found, or started by whoever comes first.

They share one if they are in the same control group and the same namespaces, use the same installation and the same
state directory, and reach the service the same way. All that is in the name of the socket: a driver that differs in any
of it finds no watcher there, and starts another one. So an upgrade leaves the old watcher to the old programs.

Whoever finds nobody listening takes a lock, looks again, makes the socket and starts the watcher with it. From then on
no connection is refused, though the watcher may take a second to begin.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import detached, forks
from .descriptors import is_readable
from .errors import WatcherError
from .watcher import host_identity, protocol, rendezvous, sockets
from .watcher.robust_lock import RobustLock

LINGER_SECONDS = 60.0
"""How long the watcher stays when its last driver is gone, for the next one."""

KNOCKS = 5
"""How often a driver whose connection is closed at once tries again: the watcher was leaving."""

LONGEST_BASE = 55
"""Of the folder that the sockets' folder is in, in bytes: Linux takes 108 for all of a path (unix(7)), macOS 104."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Seconds between two looks at whether the driver that has the lock has made the socket."""

_NAMESPACES = ("mnt", "net", "pid", "time", "user", "uts")

# Of the environment that a watcher gets: what it does not act upon, and what each login has of its own.
_WITHOUT_EFFECT = re.compile(r"LANG|LC_.*|TZ|XDG_.*")

_SLURM_TASK = re.compile(r"(?<=/)task_\w+$", re.MULTILINE)

_INSTEAD = "or unset QX_WATCHER_PLACEMENT for a watcher of each driver's own"

_word = secrets.token_hex(8)
"""For all connections of this program: a later one replaces an earlier one that broke. A program that replaces this one
in the same process (exec) has another word, and what this one left is still guarded."""

_listeners: list[socket.socket] = []
"""The socket that is being made. A child that is forked at that moment must not keep it open: who connects would wait
for a watcher that is gone."""


def _close_listeners() -> None:
    while _listeners:
        _listeners.pop().close()


forks.reset_in_child(_close_listeners)


@dataclass
class Shared:
    """The watcher of this node.

    Attributes:
        path: The path of its socket.
        way_in: The path of the lock under which that is made and removed.
        caller: What this process says of itself.
        lock: See `launch.Starting`.
        spawn: Starts a watcher, which inherits a listening socket.
        child: The child that was started here, if one was. It forks the watcher, and ends at once.
        connection: A connection that was made by `begin`.
    """

    path: str
    way_in: str
    caller: protocol.CallerOrder
    lock: RobustLock | None
    spawn: Callable[[socket.socket], subprocess.Popen[bytes]]
    is_shared: bool = True
    child: subprocess.Popen[bytes] | None = None
    connection: socket.socket | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Find it, or start it, unless another process is just doing that.

        Raises:
            OSError: If it can't be started.
            WatcherError: If it is another user's.
        """
        self.connection = self._call() or self._start()

    def connect(self, seconds: float) -> socket.socket:
        """The driver's end of the connection, on which the watcher is bound to answer.

        Raises:
            WatcherError: If there is no watcher within that many seconds.
        """
        try:
            return self._connect(seconds)
        finally:
            if self.lock is not None:
                self.lock.close_descriptor()  # it has been passed on

    def _connect(self, seconds: float) -> socket.socket:
        deadline, pause, knocks = time.monotonic() + seconds, FIRST_PAUSE, 0
        while True:
            connection, self.connection = self.connection, None
            if connection is not None:
                knocks += 1
                if self.child is not None or knocks >= KNOCKS or self._is_open(connection, deadline):
                    return connection
                connection.close()
            elif time.monotonic() >= deadline:
                raise WatcherError(
                    "config",
                    f"no watcher could be started within {seconds:.0f} s: another process has {self.way_in}; end that, "
                    f"{_INSTEAD}",
                )
            else:
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            with contextlib.suppress(OSError):
                self.begin()

    @staticmethod
    def _is_open(connection: socket.socket, deadline: float) -> bool:
        """Whether the watcher has begun to answer, or takes its time; False if it was leaving."""
        if not is_readable(connection.fileno(), max(0.0, deadline - time.monotonic())):
            return True
        try:
            return bool(connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _call(self) -> socket.socket | None:
        """A connection on which this process has said who it is; None if nobody listens."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)  # where too many wait already, it is tried again
            connection.connect(self.path)
            connection.setblocking(True)
            _, user = sockets.other_end(connection)
            if user != os.geteuid():
                raise WatcherError("config", f"{self.path} is the socket of another user's process; remove it")
            self._say(connection)
        except OSError:
            connection.close()
            return None
        except WatcherError:
            connection.close()
            raise
        return connection

    def _say(self, connection: socket.socket) -> None:
        pidfd = host_identity.pidfd_of(os.getpid())
        found = {"pidfd": pidfd, "lock": None if self.lock is None else self.lock.descriptor}
        passed = {name: descriptor for name, descriptor in found.items() if descriptor is not None}
        said = json.dumps({**self.caller, "passed": list(passed)}).encode()
        try:
            frame = struct.pack("!i", len(said)) + said
            sockets.send_with_descriptors(connection, frame, list(passed.values()))
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def _start(self) -> socket.socket | None:
        with rendezvous.locked(self.way_in) as has_lock:
            if not has_lock:
                return None
            if (connection := self._call()) is not None:
                return connection
            Path(self.path).unlink(missing_ok=True)  # of a watcher that was killed
            listener = socket.socket(socket.AF_UNIX)
            _listeners.append(listener)
            try:
                listener.bind(self.path)
                listener.listen(4096)
                self.child = self.spawn(listener)
                return self._call()
            except BaseException:
                Path(self.path).unlink(missing_ok=True)
                raise
            finally:
                _close_listeners()


def folder() -> Path:
    """The folder of the sockets, which only this user can enter; it is made if there is none.

    Raises:
        WatcherError: If there is another one.
    """
    mine = os.geteuid()
    for base in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{mine}"):
        if base and Path(base).is_absolute() and len(base) <= LONGEST_BASE and os.access(base, os.W_OK | os.X_OK):
            found = Path(base) / "qx_supervisor"
            break
    else:
        found = Path(f"/tmp/qx_supervisor-{mine}")  # noqa: S108 - it is refused unless it is ours alone
    with contextlib.suppress(FileExistsError):
        found.mkdir(mode=0o700)
    status = found.lstat()
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        fault = "is no folder of its own"
    elif status.st_uid != mine:
        fault = "is another user's"
    elif status.st_mode & 0o077:
        fault = "can be entered by others"
    else:
        return found
    raise WatcherError("config", f"{found}, where the watcher's socket is to be, {fault}: remove it, {_INSTEAD}")


def start(
    command: list[str],
    order: protocol.Order,
    given: Callable[[protocol.Order], bytes],
    boot: Path,
) -> Shared:
    """Find the watcher of this node, or start it.

    Args:
        command: A watcher's command, without the number of the descriptor that it reads its order from.
        order: The order for a watcher beside this process.
        given: What it reads, for an order.
        boot: The script that it runs.

    Raises:
        WatcherError: If there is no place for its socket.
        OSError: If it can't be started.
    """
    where = folder()
    name = _name(order, command, boot)
    path, lock = str(where / f"{name}.socket"), str(where / f"{name}.lock")

    def spawn(listener: socket.socket) -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        try:
            kept = [detached.above_streams(each) for each in (reader, listener.fileno())]
            try:
                title = f"qx-watcher node {order['title'].rpartition(' ')[2]}"
                door: protocol.Door = {"listener": kept[1], "socket": path, "lock": lock, "linger": LINGER_SECONDS}
                os.write(writer, given({**order, "title": title, "door": door}))  # less than a pipe holds
                shown = [*command, str(kept[0]), *detached.title_words(title)]
                return detached.spawn(shown, detached.environment(), passed=kept)
            finally:
                for each in kept:
                    os.close(each)
        finally:
            os.close(reader)
            os.close(writer)

    caller: protocol.CallerOrder = {
        "protocol": order["protocol"],
        "pid": order["pid"],
        "start_ticks": order["start_ticks"],
        "sweep_window": float(order["sweep_window"]),
        "word": _word,
        "passed": (),
    }
    made = Shared(path, lock, caller, RobustLock.make(), spawn)
    made.begin()
    return made


def _name(order: protocol.Order, command: list[str], boot: Path) -> str:
    """A name for all that must be equal in two drivers that share a watcher."""
    script = boot.stat()
    parts = (
        order["protocol"],
        str(boot),
        (script.st_dev, script.st_ino, script.st_mtime_ns),
        command,
        order["path"],
        order["state"],
        order["lease_seconds"],
        control_group(_own_control_group()),
        [_namespace(each) for each in _NAMESPACES],
        sorted((each, value) for each, value in detached.environment().items() if not _WITHOUT_EFFECT.fullmatch(each)),
    )
    # Half of what is hashed can't be guessed, and the folder is closed to others: a proxy's password is safe in it.
    return hashlib.sha256(json.dumps(parts).encode(errors="surrogateescape")).hexdigest()[:24]


def _own_control_group() -> str:
    try:
        return Path("/proc/self/cgroup").read_text()
    except FileNotFoundError:
        return ""  # a system without them


def control_group(cgroup: str) -> str:
    """What must be equal in /proc/PID/cgroup. Slurm gives each task a group of its own, but ends a step as a whole."""
    return _SLURM_TASK.sub("", cgroup) if "/step_" in cgroup else cgroup


def _namespace(kind: str) -> int:
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino
    except OSError:
        return 0  # a kernel without it
