"""Control groups of the tests' own (version 2), to be killed as a whole."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from .processes import DEADLINE, until

_numbers = itertools.count()


def where() -> Path | None:
    """The folder of version 2, if groups can be made in it."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(folder, os.W_OK):
            return Path(folder)
    return None


class Cgroup:
    """A control group. Made where the tests' own process is, so that it needs no rights beyond that."""

    def __init__(self) -> None:
        top = where()
        assert top is not None
        self.folder = top / f"qx-test-{os.getpid()}-{next(_numbers)}"
        self.folder.mkdir()

    def wrap(self, command: list[str]) -> list[str]:
        """The same command, in the group from its first instruction."""
        return ["sh", "-c", f'echo $$ >{self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    def pids(self) -> list[int]:
        """The processes in it and in the groups below it."""
        found: list[int] = []
        for file in self.folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found += map(int, file.read_text().split())
        return found

    def kill(self) -> None:
        """SIGKILL to all of it, at one time where the kernel can (Linux 5.14)."""
        before = []
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                before.append(os.pidfd_open(pid))
        switch = self.folder / "cgroup.kill"
        if switch.exists():
            switch.write_text("1")
        else:
            # Two rounds: none can act upon another's death in between.
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pidfd in before:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, number)
        for pidfd in before:
            assert select.select([pidfd], [], [], DEADLINE)[0]
            os.close(pidfd)

    def remove(self) -> None:
        """End what is in it, and remove it."""
        self.kill()
        for folder in sorted(self.folder.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        self.folder.rmdir()


@contextlib.contextmanager
def cgroup() -> Iterator[Cgroup]:
    """A control group for the time of a block."""
    made = Cgroup()
    try:
        yield made
    finally:
        made.remove()


def freezer() -> Path | None:
    """The folder of version 1's freezer, whose groups keep a killed process from ending; None without one."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "freezer" in options.split(",") and os.access(folder, os.W_OK):
            return Path(folder)
    return None


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze a process for the time of a block."""
    top = freezer()
    assert top is not None
    group = top / f"qx-test-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        until((group / "freezer.state").read_text, lambda state: state == "FROZEN\n")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        with contextlib.suppress(ProcessLookupError):  # it has ended
            (top / "cgroup.procs").write_text(str(pid))
        until((group / "cgroup.procs").read_text, lambda pids: not pids)
        group.rmdir()
