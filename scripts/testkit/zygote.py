"""A process that drivers are forked from, so that no test waits for imports: see `zygote_child.py`."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from qx_supervisor.watcher.driver_process import DriverIdentity

from .processes import DEADLINE


class Zygote:
    """Forks drivers quickly.

    Args:
        port: Where the embedded service listens that it is connected to; None: it is connected to none.
        environment: Its own, from its first instruction, where that is not this process's; a driver has this process's.
    """

    def __init__(self, port: int | None = None, environment: dict[str, str] | None = None) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = Path(__file__).with_name("zygote_child.py")
        command = [sys.executable, str(program), str(theirs.fileno()), *([] if port is None else [str(port)])]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        theirs.close()
        # A child is known by a number of ours: its pid may be another child's as soon as it has ended.
        self._numbers = itertools.count()
        self._started: dict[int, tuple[DriverIdentity, int]] = {}
        self._ended: dict[int, int] = {}

    def fork(self, script: Path) -> Forked:
        """Run a script in a forked child."""
        number = next(self._numbers)
        outs, errs = os.pipe(), os.pipe()
        order = {"child": number, "script": str(script), "environment": dict(os.environ)}
        socket.send_fds(self._control, [json.dumps(order).encode()], [outs[1], errs[1]])
        os.close(outs[1])
        os.close(errs[1])
        while number not in self._started:
            self._next()
        identity, pidfd = self._started.pop(number)
        return Forked(self, number, identity, pidfd, os.fdopen(outs[0], "rb", 0), os.fdopen(errs[0], "rb", 0))

    def _next(self) -> None:
        assert wait([self._control], DEADLINE), "the zygote does not answer"
        data, descriptors, _, _ = socket.recv_fds(self._control, 65536, 1)
        assert data, f"the zygote has ended with {self._process.wait(DEADLINE)}"
        message = json.loads(data)
        if "ended" in message:
            self._ended[message["ended"]] = message["status"]
        else:
            identity = DriverIdentity(message["pid"], message["start_ticks"])
            self._started[message["started"]] = identity, descriptors[0]

    def poll(self, number: int) -> int | None:
        """The return code of a child that has ended, else None."""
        while wait([self._control], 0):
            self._next()
        return os.waitstatus_to_exitcode(self._ended[number]) if number in self._ended else None

    def wait(self, number: int) -> int:
        """The return code of a child, once it has ended."""
        while number not in self._ended:
            self._next()
        return os.waitstatus_to_exitcode(self._ended[number])

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait(DEADLINE)


class Forked:
    """A forked driver, as `subprocess.Popen` would show it.

    Attributes:
        identity: Its pid and start.
        pidfd: A descriptor of it, which is its owner's to close.
    """

    stdin = None

    def __init__(
        self, zygote: Zygote, number: int, identity: DriverIdentity, pidfd: int, stdout: Any, stderr: Any
    ) -> None:
        self._zygote = zygote
        self._number = number
        self.identity = identity
        self.pid = identity.pid
        self.pidfd = pidfd
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its return code, None while it runs."""
        self.returncode = self._zygote.poll(self._number)
        return self.returncode

    def wait(self) -> int:
        """Its return code, once it has ended."""
        self.returncode = self._zygote.wait(self._number)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """What is left of its output, up to its end."""
        streams = {stream.fileno(): b"" for stream in (self.stdout, self.stderr) if not stream.closed}
        open_ones = set(streams)
        while open_ones:
            ready = wait(open_ones, timeout)
            assert ready, f"driver {self.pid} does not end: {streams}"
            for number in ready:
                assert isinstance(number, int)
                data = os.read(number, 65536)
                streams[number] += data
                if not data:
                    open_ones.discard(number)
        self.wait()
        out = streams.get(self.stdout.fileno(), b"") if not self.stdout.closed else b""
        err = streams.get(self.stderr.fileno(), b"") if not self.stderr.closed else b""
        return out, err
