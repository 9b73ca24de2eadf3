"""What keeps a killed process from ending: a file server that does not answer, and a tracer that does not let go."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_INIT = 26  # fuse(4), FUSE_INIT
_DETACH, _FORCE = 2, 1  # umount2(2)

_TRACER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
pid, options = int(sys.argv[1]), int(sys.argv[2])
for thread in os.listdir(f"/proc/{pid}/task"):
    if libc.ptrace(0x4206, int(thread), None, options):  # PTRACE_SEIZE
        raise OSError(ctypes.get_errno(), "PTRACE_SEIZE")
print("attached", flush=True)
sys.stdin.read()
"""

AT_EXIT = 0x40
"""PTRACE_O_TRACEEXIT: each thread stops as it exits, until the tracer lets it go on."""


def no_dead_mount() -> str:
    """Why there can be no `dead_mount` here, or ""."""
    if os.geteuid():
        return "mounting needs root"
    return "" if Path("/dev/fuse").exists() else "there is no /dev/fuse"


def no_tracer() -> str:
    """Why no process can be `traced` here, or ""."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    is_free = os.geteuid() == 0 or not scope.exists() or scope.read_text() == "0\n"
    return "" if is_free else "tracing another process needs root, or kernel.yama.ptrace_scope=0"


@dataclass
class DeadMount:
    """A file system whose server takes every request and answers none, as NFS without its server.

    Attributes:
        file: The name of a file there. Whoever looks at it waits, and not even SIGKILL ends that.
        has_visitor: Set once somebody waits.
    """

    file: Path
    has_visitor: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Unmount it: the wait of all who wait fails."""
        ctypes.CDLL(None).umount2(bytes(self.file.parent), _FORCE | _DETACH)


@contextlib.contextmanager
def dead_mount(folder: Path) -> Iterator[DeadMount]:
    """A dead mount for the time of a block.

    Args:
        folder: An empty folder.
    """
    made = DeadMount(folder / "file")
    library = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
        if library.mount(b"qx-dead", bytes(folder), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        thread = threading.Thread(target=_serve, args=(server, made))
        thread.start()
        try:
            yield made
        finally:
            made.release()
            thread.join()  # its read fails too
    finally:
        os.close(server)


def _serve(server: int, made: DeadMount) -> None:
    with contextlib.suppress(OSError):
        while True:
            request = os.read(server, 1 << 20)
            _, operation, number = struct.unpack_from("=IIQ", request)
            if operation == _INIT:
                reply = struct.pack("=4I 2H I 40x", 7, 31, 0, 0, 0, 0, 1 << 16)
                os.write(server, struct.pack("=IiQ", 16 + len(reply), 0, number) + reply)
            else:
                made.has_visitor.set()


@contextlib.contextmanager
def traced(pid: int, options: int = 0) -> Iterator[None]:
    """Have all threads of a process traced, for the time of the block, by a process that never waits for them.

    Raises:
        OSError: If it may not be traced.
    """
    tracer = subprocess.Popen(
        [sys.executable, "-ISc", _TRACER, str(pid), str(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tracer.stdout is not None
    with tracer:
        try:
            if tracer.stdout.readline() != b"attached\n":
                raise OSError(f"process {pid} could not be traced")
            yield
        finally:
            tracer.kill()
