"""A user manager of systemd of the tests' own: the real one, with a control group and a runtime directory of its own.

systemd wants to see that it runs under systemd (`/run/systemd/system`), and version 2 of control groups in its usual
place. A mount namespace shows it both, and changes nothing for anyone else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .cgroups import Cgroup, where
from .processes import DEADLINE

PROGRAM = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if Path(path).exists()), "")

USUAL = """
set -e
mount --make-rprivate /
mkdir -p /run/user
mount -t tmpfs none /run/user
mkdir /run/user/$(id -u)
mount --bind "$RUNTIME" /run/user/$(id -u)
"""
"""Shows a runtime directory in its usual place too, in a mount namespace."""

SCENE = f"""
{USUAL}
mkdir -p /run/systemd
mount -t tmpfs none /run/systemd
mkdir /run/systemd/system
mount -t cgroup2 none /sys/fs/cgroup
exec {PROGRAM} --user --unit=basic.target
"""


def why_not() -> str:
    """Why no user manager can be started here, or ""."""
    if os.geteuid():
        return "a user manager in a mount namespace of its own needs root"
    if not PROGRAM or not shutil.which("systemd-run"):
        return "systemd is not installed (Debian: apt-get install systemd)"
    if where() is None:
        return "no version 2 of control groups can be written to here"
    if subprocess.run(["unshare", "--mount", "--cgroup", "true"], check=False, capture_output=True).returncode:
        return "no mount namespace can be made here"
    return ""


class UserSystemd:
    """A user manager that runs.

    Attributes:
        runtime: Its runtime directory.
        environment: What a program's environment needs to find it.
        group: The control group of it and of all of its units.
    """

    def __init__(self) -> None:
        self.runtime = Path(tempfile.mkdtemp(prefix="qxu", dir="/tmp"))
        self.environment = {"XDG_RUNTIME_DIR": str(self.runtime)}
        self.group = Cgroup()
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(str(self.runtime / "ready"))
        ready.settimeout(DEADLINE)
        # A key that someone has imported into the manager's environment must not come from there to a watcher.
        known = {"PATH": os.environ["PATH"], "HOME": str(self.runtime), "QISKIT_IBM_TOKEN": "of-the-manager"}
        places = {"RUNTIME": str(self.runtime), "NOTIFY_SOCKET": str(self.runtime / "ready")}
        self._process = subprocess.Popen(
            # It ends with the tests, however these end.
            self.group.wrap(["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--cgroup", "sh", "-c", SCENE]),
            env={**known, **self.environment, **places},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with ready:
            while b"READY=1" not in ready.recv(4096).split(b"\n"):
                pass

    def usual(self, command: list[str]) -> list[str]:
        """The same command, where the runtime directory is in its usual place, and no variable names it."""
        script = f'RUNTIME={self.runtime}\n{USUAL}unset XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS\nexec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *command]

    def ctl(self, *words: str) -> str:
        """What `systemctl --user` says."""
        command = ["systemctl", "--user", "--no-pager", *words]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    def wrap(self, unit: str, *properties: str) -> list[str]:
        """What starts a command as a service, waits for nothing, and ends."""
        given = [f"--property={each}" for each in properties]
        return ["systemd-run", "--user", "--quiet", "--collect", f"--unit={unit}", *given, "--"]

    def folder(self, unit: str) -> Path:
        """The control group of a unit."""
        [found] = self.group.folder.rglob(f"{unit}.service")
        return found

    def kill(self) -> None:
        """SIGKILL to it and to all of its units."""
        self.group.kill()
        self._process.wait()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEADLINE)
        self.group.remove()
        self._process.wait()
        shutil.rmtree(self.runtime)


@contextlib.contextmanager
def user_systemd() -> Iterator[UserSystemd]:
    """A user manager for the time of a block."""
    made = UserSystemd()
    try:
        yield made
    finally:
        made.close()
