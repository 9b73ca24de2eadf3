"""A watcher outside this process's control group: a transient service of the user's systemd.

What kills the driver's whole unit, job step or terminal scope then leaves its watcher. A service is started by the user
manager and inherits nothing of ours. So its watcher calls back, over a socket in the user's runtime directory, and is
given there what a child would have inherited: the pipe, a pidfd of this process, and its environment, of which nothing
needs to stand in a command line.

Who calls is known by what the kernel says of it: its user, and that it is in the unit that was asked for. No secret is
needed for that, and there is none that could be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import detached
from .errors import WatcherError
from .watcher import host_identity

LOOK_SECONDS = 1.0
"""After so long without a call it is asked whether the unit runs at all."""

_INSTEAD = "or unset QX_WATCHER_PLACEMENT for a watcher in the driver's own control group"


@dataclass
class Called:
    """A watcher that is to call back.

    Attributes:
        listener: Where it calls.
        address: The same, in the file system.
        unit: The unit that it runs in.
        child: The `systemd-run` that asks for it.
        known: The environment of `systemd-run`.
    """

    listener: socket.socket
    address: Path
    unit: str
    child: subprocess.Popen[bytes]
    known: dict[str, str]

    def connect(self, seconds: float) -> socket.socket:
        """Our end of the pipe, once the watcher has called.

        Raises:
            WatcherError: If it does not call within so many seconds.
        """
        deadline = time.monotonic() + seconds
        try:
            self._wait_for_systemd(seconds)
            theirs = self._answer(deadline)
        finally:
            self.listener.close()
            self.address.unlink(missing_ok=True)
        _give(theirs)
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
            os.set_blocking(errors.fileno(), False)  # what it has said is there, whoever else has the pipe
            reason = (errors.read() or b"").decode(errors="replace").strip() or f"it ended with status {status}"
            raise WatcherError("config", f"systemd-run can't start the watcher ({reason}): mend that, {_INSTEAD}")

    def _answer(self, deadline: float) -> socket.socket:
        self.listener.settimeout(LOOK_SECONDS)
        runs = True
        while (left := deadline - time.monotonic()) > 0:
            try:
                theirs = self.listener.accept()[0]
            except TimeoutError:
                if not runs:
                    break
                runs = _is_active(self.unit, self.known, left)
                continue
            if self._is_watcher(theirs):
                theirs.settimeout(None)
                return theirs
            theirs.close()
        raise WatcherError(
            "config", f"the watcher did not start in its unit; see `journalctl --user --unit {self.unit}`, {_INSTEAD}"
        )

    def _is_watcher(self, theirs: socket.socket) -> bool:
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack("3i", theirs.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        try:
            return uid == os.geteuid() and is_in(Path(f"/proc/{pid}/cgroup").read_text(), self.unit)
        except OSError:
            return False


def is_in(cgroup: str, unit: str) -> bool:
    """Whether a process is in a unit, by what its /proc/PID/cgroup says."""
    return any(line.endswith(f"/{unit}") for line in cgroup.splitlines())


def runtime_directory() -> Path | None:
    """The user's runtime directory, if a user manager of systemd answers there."""
    # Cron, Slurm and services of the system set no XDG_RUNTIME_DIR, where there may well be one.
    found = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
    return found if (found / "systemd" / "private").is_socket() else None


def check() -> tuple[str, Path]:
    """What starting a watcher outside takes: systemd-run, and the user's runtime directory.

    Raises:
        WatcherError: If there is no systemd to ask.
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


def start(command: list[str], order: dict[str, object]) -> Called:
    """Ask systemd for a watcher.

    Args:
        command: The watcher's command, without its order.
        order: What it is told, without what a child would inherit.

    Raises:
        WatcherError: If there is no systemd to ask.
        OSError: If it can't be asked.
    """
    tool, folder = check()
    name = f"qx-watcher-{secrets.token_hex(16)}"
    address = folder / f"{name}.socket"
    known = {**detached.environment(), "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(address))
        listener.listen()
        told = [*command, json.dumps(order | {"address": str(address)})]
        child = detached.spawn([tool, *_properties(name, known), "--", *_literal(told)], known, errors=subprocess.PIPE)
        return Called(listener, address, f"{name}.service", child, known)
    except OSError:
        listener.close()
        address.unlink(missing_ok=True)
        raise


def _properties(name: str, known: dict[str, str]) -> list[str]:
    # The interpreter may need the library path before it runs a line of ours; all else comes by the socket.
    libraries = known.get("LD_LIBRARY_PATH")
    return [
        "--user",
        "--quiet",
        "--collect",
        f"--unit={name}",
        f"--description=qx_supervisor's watcher of process {os.getpid()}",
        *(f"--property={each}" for each in ("WorkingDirectory=/", "StandardOutput=null", "StandardError=null")),
        *([f"--setenv=LD_LIBRARY_PATH={libraries}"] if libraries else []),
    ]


def _literal(command: list[str]) -> list[str]:
    """Two dollar signs for one: systemd puts variables in, even here."""
    return [each.replace("$", "$$") for each in command]


def _give(theirs: socket.socket) -> None:
    """Give the watcher what a child would have inherited."""
    message = json.dumps(detached.environment()).encode()
    pidfd = host_identity.pidfd_of(os.getpid())
    passed = [] if pidfd is None else [pidfd]
    try:
        with contextlib.suppress(OSError):  # it has ended, and may have said why
            sent = socket.send_fds(theirs, [struct.pack("!i", len(message)) + message], passed)
            theirs.sendall((struct.pack("!i", len(message)) + message)[sent:])
    finally:
        for each in passed:
            os.close(each)


def _is_active(unit: str, known: dict[str, str], seconds: float) -> bool:
    command = ["systemctl", "--user", "--quiet", "is-active", unit]
    try:
        return not subprocess.run(command, env=known, capture_output=True, timeout=seconds, check=False).returncode
    except (OSError, subprocess.SubprocessError):
        return True  # nobody knows; the deadline will tell
