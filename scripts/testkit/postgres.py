"""A real PostgreSQL server, on loopback, for tests, drill and benchmark: to be stopped, killed and started again.

It comes from Debian's packages. The server refuses to be run by root, so root runs it as another user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

from .processes import wait_for_state

PACKAGE = "postgresql"
USER = "qx"
"""Its superuser."""

SECONDS = 60.0

SETTINGS = {
    "fsync": "off",  # what is tested is a process's death, not the power's
    "listen_addresses": "127.0.0.1",
    "max_connections": "1200",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "5s",
}


class Missing(Exception):
    """There is no PostgreSQL on this machine."""


def programs() -> Path:
    """Where the server's programs are.

    Raises:
        Missing: If they are not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise Missing(f"PostgreSQL is not installed (apt-get install {PACKAGE})")
    return found[-1].parent


class Server:
    """A server of our own, with a data directory that `close` deletes.

    Args:
        is_durable: Whether a commit waits for the disk: for what is measured.

    Attributes:
        port: Its TCP port on 127.0.0.1, the same after each start.
        password: The superuser's.
        process: The server's first process, as it was started last.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        self._settings = SETTINGS | {"fsync": "on"} if is_durable else SETTINGS
        self._programs = programs()
        self._folder = Path(tempfile.mkdtemp(prefix="qxpg-"))
        self._user = None if os.getuid() else _unprivileged()
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self.password = f"sentinel-{secrets.token_hex(20)}"
        self._numbers = iter(range(1_000_000))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        secret = self._folder / "password"
        secret.write_text(self.password)
        if self._user is not None:
            shutil.chown(secret, self._user)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
        secret.unlink()
        self.start()

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words],
            user=self._user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}; {self.log()[-2000:]}"

    def log(self) -> str:
        """What the server has said."""
        file = self._folder / "log"
        return file.read_text() if file.exists() else ""

    def url(self, database: str = "postgres") -> str:
        """The URL of a database."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Make a database; returns its URL."""
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers. It is no child of ours."""
        settings = " ".join(f"-c {name}={value}" for name, value in self._settings.items())
        options = f"-p {self.port} -k {self._folder} {settings}"
        self._run("pg_ctl", "-D", self._data, "-l", str(self._folder / "log"), "-w", "-o", options, "start")
        # The file stays when the server is killed, and the pid may be another's then.
        self.process = psutil.Process(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]))

    def stop(self) -> None:
        """Stop it: connections are closed, and none is accepted."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """End it, and all its processes, by SIGKILL, as the out-of-memory killer does."""
        _stop(self.process)
        everything = [self.process, *self.process.children(recursive=True)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs(everything, SECONDS)
        assert not alive, (gone, alive)

    def freeze(self) -> None:
        """Stop all its processes (SIGSTOP): connections stay open, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if number == signal.SIGSTOP:
            _stop(self.process)
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """Stop it for good."""
        if self.process.is_running():
            self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(self._folder)


def _stop(server: psutil.Process) -> None:
    """Stop a server. It starts no other process then, so that all there are can be listed."""
    server.suspend()
    wait_for_state(server, psutil.STATUS_STOPPED)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise Missing("there is no user to run PostgreSQL as")


class Cable:
    """A way to a server that can be cut: all that goes through it stops, and nothing is closed, as with a real one.

    Attributes:
        port: Where to connect to on 127.0.0.1, in place of the server.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._whole = threading.Event()
        self._whole.set()
        self._is_over = False
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def leads_to(self, url: str) -> str:
        """A server's URL, by way of this cable."""
        return url.replace(f":{self._to}/", f":{self.port}/")

    def cut(self) -> None:
        """Cut it."""
        self._whole.clear()

    def mend(self) -> None:
        """Mend it: what was sent meanwhile arrives."""
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._whole.wait()
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            for ends in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._carry, args=ends, daemon=True))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                if self._is_over:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all that goes through it."""
        self._is_over = True
        self._whole.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        for each in self._sockets:
            each.close()
