"""A watcher outside this process's control group: a transient service of the user's systemd.

Whatever kills the driver's whole unit, job step or terminal scope then spares its watcher. The user manager starts the
service, which inherits nothing from this process. So the watcher calls back, over a socket in the user's runtime
directory, and is given there what a child would have inherited: the connection, a pidfd of this process, and an
environment, none of which has to stand in a command line.

The kernel says who calls: its user, and that it is in the unit that was asked for. That takes no secret, so there is
none to be read.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import detached
from .errors import WatcherError
from .watcher import host_identity, protocol, sockets
from .watcher.robust_lock import RobustLock

LOOK_SECONDS = 1.0
"""After this long without a call, systemd is asked whether the unit runs at all."""

_INSTEAD = "or unset QX_WATCHER_PLACEMENT for a watcher in the driver's own control group"


@dataclass
class Called:
    """A watcher that was asked for, and will call back.

    Attributes:
        listener: The socket on which it calls.
        address: The socket's path.
        unit: The unit that it runs in.
        child: The `systemd-run` that starts it.
        env: The environment of `systemd-run`.
        lock: The lock by which it will know that this process ends; None if there is none.
    """

    listener: socket.socket
    address: Path
    unit: str
    child: subprocess.Popen[bytes]
    env: dict[str, str]
    lock: RobustLock | None
    is_shared: bool = False

    def connect(self, seconds: float) -> socket.socket:
        """The driver's end of the connection, once the watcher has called.

        Raises:
            WatcherError: If it does not call within that many seconds.
        """
        deadline = time.monotonic() + seconds
        try:
            self._wait_for_systemd(seconds)
            theirs = self._answer(deadline)
            _give(theirs, self.lock)
        finally:
            self.listener.close()
            self.address.unlink(missing_ok=True)
            if self.lock is not None:
                self.lock.close_descriptor()
        return theirs

    def _wait_for_systemd(self, seconds: float) -> None:
        assert self.child.stderr is not None
        with self.child.stderr as errors:
            try:
                status = self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
                raise WatcherError(
                    "config",
                    f"systemd-run did not answer within {seconds:.0f} s; look at `systemctl --user status`, {_INSTEAD}",
                ) from None
            if not status:
                return
            os.set_blocking(errors.fileno(), False)  # what it said is in the pipe by now, whoever else holds that open
            reason = (errors.read() or b"").decode(errors="replace").strip() or f"it ended with status {status}"
            raise WatcherError("config", f"systemd-run can't start the watcher ({reason}): fix that, {_INSTEAD}")

    def _answer(self, deadline: float) -> socket.socket:
        self.listener.settimeout(LOOK_SECONDS)
        runs = True
        while (left := deadline - time.monotonic()) > 0:
            try:
                theirs = self.listener.accept()[0]
            except TimeoutError:
                if not runs:
                    break
                runs = _is_active(self.unit, self.env, left)
                continue
            if self._is_watcher(theirs):
                theirs.settimeout(None)
                return theirs
            theirs.close()
        raise WatcherError(
            "config", f"the watcher did not start in its unit; see `journalctl --user --unit {self.unit}`, {_INSTEAD}"
        )

    def _is_watcher(self, theirs: socket.socket) -> bool:
        pid, uid = sockets.other_end(theirs)
        try:
            return uid == os.geteuid() and is_in(Path(f"/proc/{pid}/cgroup").read_text(), self.unit)
        except OSError:
            return False


def is_in(cgroup: str, unit: str) -> bool:
    """Whether a process is in a unit, judged by its /proc/PID/cgroup."""
    return any(line.endswith(f"/{unit}") for line in cgroup.splitlines())


def runtime_directory() -> Path | None:
    """The user's runtime directory, if a user manager of systemd runs there."""
    # Cron, Slurm and system services do not set XDG_RUNTIME_DIR, though the directory may well exist.
    found = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    return found if (found / "systemd" / "private").is_socket() else None


def check() -> tuple[str, Path]:
    """What it takes to start a watcher outside: systemd-run, and the user's runtime directory.

    Raises:
        WatcherError: If one of them is missing.
    """
    tool, folder = shutil.which("systemd-run"), runtime_directory()
    if tool is None:
        raise WatcherError("config", f"QX_WATCHER_PLACEMENT=systemd needs systemd-run: install it, {_INSTEAD}")
    if folder is None:
        raise WatcherError(
            "config",
            "QX_WATCHER_PLACEMENT=systemd needs a user manager of systemd, and none runs for this user here: have one "
            f"kept by `loginctl enable-linger`, {_INSTEAD}",
        )
    return tool, folder


def start(command: list[str], order: protocol.Order, given: Callable[[protocol.Order], bytes]) -> Called:
    """Ask systemd for a watcher.

    Args:
        command: The watcher's command, without the number of the descriptor that it reads its order from.
        order: Its order, without what a child would inherit.
        given: What it reads, for an order.

    Raises:
        WatcherError: If there is no systemd.
        OSError: If systemd can't be asked.
    """
    tool, folder = check()
    name = f"qx-watcher-{secrets.token_hex(16)}"
    address = folder / f"{name}.socket"
    env = {**detached.environment(), "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(address))
        listener.listen()
        order["address"] = str(address)
        told = [*_properties(name, env, given(order)), "--", *_literal([*command, "0"])]
        child = detached.spawn([tool, *told], env, errors=subprocess.PIPE)
        return Called(listener, address, f"{name}.service", child, env, RobustLock.make())
    except OSError:
        listener.close()
        address.unlink(missing_ok=True)
        raise


def _properties(name: str, env: dict[str, str], stdin: bytes) -> list[str]:
    # The interpreter may need the library path before it runs any code; all else comes over the socket.
    libraries = env.get("LD_LIBRARY_PATH")
    return [
        "--user",
        "--quiet",
        "--collect",
        f"--unit={name}",
        f"--description=Watcher of process {os.getpid()}",
        *(f"--property={each}" for each in ("WorkingDirectory=/", "StandardOutput=null", "StandardError=null")),
        "--property=StandardInput=data",
        f"--property=StandardInputData={base64.b64encode(stdin).decode()}",
        *([f"--setenv=LD_LIBRARY_PATH={libraries}"] if libraries else []),
    ]


def _literal(command: list[str]) -> list[str]:
    """Double each dollar sign: systemd expands variables, even here."""
    return [each.replace("$", "$$") for each in command]


def _give(theirs: socket.socket, lock: RobustLock | None) -> None:
    """Give the watcher what a child would have inherited."""
    message = json.dumps(detached.environment()).encode()
    pidfd = host_identity.pidfd_of(os.getpid())
    passed = [] if pidfd is None else [pidfd]
    # Only beside a pidfd: the watcher takes the first descriptor for one.
    beside = [lock.descriptor] if passed and lock is not None else []
    try:
        with contextlib.suppress(OSError):  # the watcher has ended, and may have said why
            sockets.send_with_descriptors(theirs, struct.pack("!i", len(message)) + message, passed + beside)
    finally:
        for each in passed:
            os.close(each)


def _is_active(unit: str, env: dict[str, str], seconds: float) -> bool:
    command = ["systemctl", "--user", "--quiet", "is-active", unit]
    try:
        return not subprocess.run(command, env=env, capture_output=True, timeout=seconds, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return True  # unknown; the deadline decides
