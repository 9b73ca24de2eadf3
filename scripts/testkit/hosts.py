"""Hosts of the tests' own: network namespaces, with a machine id, a host name and an address each.

A host reaches other hosts, and what it is given: a port that something on this machine's loopback listens at. Between
hosts is a namespace more, the wire, with an end of each host's link in it. The traffic never leaves these namespaces:
sockets that listen in the wire are served here, by `Relay`, which connects them to the loopback. All of it ends with
the descriptors that hold it, so that nothing stays even if the tests are killed.

    with Network() as network:
        port = network.offer(ibm.port)
        a, b = network.host(), network.host()
        driver = start(a.prelude(port) + RUN, wrap=a.wrap)   # its `service()` is reached over the link
        a.cut(); a.mend()                                    # the cable is pulled, and put back
        a.kill()                                             # the host is gone: all that ran there, at one time
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from .processes import DEADLINE

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why no hosts can be made here, or ""."""
    if os.geteuid():
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("nsenter"):
        return "ip and nsenter are not installed (Debian: apt-get install iproute2 util-linux)"
    if not Path("/etc/machine-id").exists():
        return "this machine has no /etc/machine-id, in whose place a host's could be shown (systemd-machine-id-setup)"
    tried = ["unshare", "--net", "--mount", "--uts", "ip", "link", "add", "qxa", "type", "veth", "peer", "name", "qxb"]
    done = subprocess.run(tried, check=False, capture_output=True, text=True)
    return f"no network namespace with a link can be made here: {done.stderr.strip()}" if done.returncode else ""


class Namespaces:
    """Namespaces of a process that is not there any more; they last as long as this object."""

    def __init__(self, *kinds: str, script: str = "true") -> None:
        command = ["unshare", *(f"--{kind}" for kind in kinds), "sh", "-c", f"{script} && echo made && read _"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"made\n", "the namespaces can't be made"
            names = {"net": "net", "mount": "mnt", "uts": "uts"}
            self.held = {kind: os.open(f"/proc/{holder.pid}/ns/{names[kind]}", os.O_RDONLY) for kind in kinds}

    def path(self, kind: str) -> str:
        """Where other processes find one of them."""
        return f"/proc/{os.getpid()}/fd/{self.held[kind]}"

    def wrap(self, command: list[str]) -> list[str]:
        """The same command, in them."""
        return ["nsenter", *(f"--{kind}={self.path(kind)}" for kind in self.held), "--", *command]

    def inode(self) -> int:
        """The number of the network namespace."""
        return os.fstat(self.held["net"]).st_ino

    def run(self, *command: str) -> None:
        """Run a command in them."""
        subprocess.run(self.wrap(list(command)), check=True, capture_output=True, timeout=DEADLINE)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is in the network namespace; its sockets stay there."""
        result: list[T] = []

        def work() -> None:
            if ctypes.CDLL(None, use_errno=True).setns(self.held["net"], CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            result.append(function())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return result[0]

    def close(self) -> None:
        """Let go of them."""
        for descriptor in self.held.values():
            os.close(descriptor)


class Host:
    """A host on a wire.

    Attributes:
        name: Its host name.
        address: Its address.
        gateway: The address of the wire's end of its link, where it finds what is offered.
    """

    def __init__(self, wire: Namespaces, number: int, folder: Path) -> None:
        self.name = f"qx-host-{number}"
        self.address, self.gateway = f"10.213.{number}.2", f"10.213.{number}.1"
        self._wire, self._link = wire, f"host{number}"
        identity = folder / f"machine-id-{number}"
        identity.write_text(f"{secrets.token_hex(16)}\n")
        boot = folder / f"boot-id-{number}"
        boot.write_text(f"{secrets.token_hex(16)}\n")
        script = (
            f"mount --make-rprivate / && mount --bind {identity} /etc/machine-id"
            f" && mount --bind {boot} /proc/sys/kernel/random/boot_id && echo {self.name} >/proc/sys/kernel/hostname"
        )
        self._spaces = Namespaces("net", "mount", "uts", script=script)
        there = self._spaces.path("net")
        wire.run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", there)
        wire.run("ip", "address", "add", f"{self.gateway}/24", "dev", self._link)
        wire.run("ip", "link", "set", self._link, "up")
        self._spaces.run("ip", "link", "set", "lo", "up")
        self._spaces.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._spaces.run("ip", "link", "set", "eth0", "up")
        self._spaces.run("ip", "route", "add", "default", "via", self.gateway)

    def wrap(self, command: list[str]) -> list[str]:
        """The same command, on this host. Its pid is the one that `subprocess` knows."""
        return self._spaces.wrap(command)

    def namespaces(self) -> list[str]:
        """Where its namespaces are found, for a process with one thread that comes here by itself (setns)."""
        return [self._spaces.path(kind) for kind in self._spaces.held]

    def prelude(self, port: int) -> str:
        """A driver's lines that have its `service()` reached over the link.

        Args:
            port: What `Network.offer` gave for the service's.
        """
        return f"def service(token='local-key'):\n    return connect({port}, token, {self.gateway!r})\n"

    def cut(self) -> None:
        """Pull the cable: what is sent is lost, and no connection is told."""
        self._wire.run("ip", "link", "set", self._link, "down")

    def mend(self) -> None:
        """Put the cable back."""
        self._wire.run("ip", "link", "set", self._link, "up")

    def pids(self) -> list[int]:
        """The processes on it."""
        inode = self._spaces.inode()
        found = []
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                with contextlib.suppress(OSError):
                    if (each / "ns" / "net").stat().st_ino == inode:
                        found.append(int(each.name))
        return found

    def kill(self) -> None:
        """The host is gone: nothing leaves it any more, and all that ran there is ended."""
        self.cut()
        # Stopped first: what would start another process when it sees an end does not come to it.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            while pids := [pid for pid in self.pids() if not _has_got(pid, number)]:
                for pid in pids:
                    _send(pid, number)

    def tries_in_vain(self) -> subprocess.Popen[str]:
        """What says a line when someone on this host has not reached the other end of a link that is cut."""
        command = self.wrap(["ip", "monitor", "neigh", "dev", "eth0"])
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        """End what runs there, and the host."""
        self.kill()
        self._spaces.close()


def _send(pid: int, number: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if number == signal.SIGKILL:
            assert wait([pidfd], DEADLINE), f"process {pid} does not end"
    finally:
        os.close(pidfd)


def _has_got(pid: int, number: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return True
    return state in (b"Z", b"X") or (number == signal.SIGSTOP and state == b"T")


class Relay:
    """Connects what comes to sockets in another namespace to ports of this machine's loopback."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def serve(self, listener: socket.socket, port: int) -> None:
        """Connect what comes to a listener to a port."""

        async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # the relay ends
                try:
                    inner = await asyncio.open_connection("127.0.0.1", port)
                except OSError:  # nobody listens: what a caller would see of that without a relay
                    writer.transport.abort()
                    return
                await asyncio.gather(_pour(reader, inner[1]), _pour(inner[0], writer))

        async def begin() -> None:
            self._servers.append(await asyncio.start_server(both, sock=listener))

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(DEADLINE)

    def close(self) -> None:
        """End it, with all its connections."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    except asyncio.CancelledError:
        writer.transport.abort()  # what is not sent yet may have nowhere to go: its host is lost
        raise
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Network:
    """A wire with hosts on it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="qxn"))
        self._wire = Namespaces("net")
        self._wire.run("sh", "-c", "ip link set lo up && echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._relay = Relay()
        self._hosts: list[Host] = []

    def host(self) -> Host:
        """A host more."""
        self._hosts.append(Host(self._wire, len(self._hosts) + 1, self._folder))
        return self._hosts[-1]

    def offer(self, port: int) -> int:
        """Give all hosts a port of this machine's loopback; they find it at their `gateway`, at the port returned."""
        listener = self._wire.call(lambda: socket.create_server(("0.0.0.0", 0), backlog=1024))
        self._relay.serve(listener, port)
        return int(listener.getsockname()[1])

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.close()
        self._relay.close()
        self._wire.close()
        shutil.rmtree(self._folder)
