"""What befalls a whole place: a cgroup kill, the out-of-memory killer, a full disk. Mostly for root."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from . import code
from .attempt import Try
from .deaths import BY_REAP
from .kills import CANCELLED
from .row import Row

MEMORY = 256 << 20
"""Bytes that the driver and its watcher may use of what they don't share."""

_numbers = itertools.count()


def _parents(controller: str) -> list[Path]:
    """Where a cgroup of our own may be made, for the memory controller or, named "", for cgroup v2."""
    mine = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mine[controllers] = path.lstrip("/")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount, (kind, _, options) = Path(before.split(" ")[4]), after.split(" ", 2)
        if kind == "cgroup2":
            found += [mount / mine.get("", ""), mount]
        elif kind == "cgroup" and controller and controller in options.split(","):
            found += [mount / mine.get(controller, ""), mount]
    return found


def _make(controller: str, needed: tuple[str, ...]) -> Path:
    """Make a cgroup that has one of the files.

    Raises:
        OSError: There is no place for it.
    """
    reason = OSError("no cgroup is mounted")
    for parent in _parents(controller):
        group = parent / f"qx-drill-{os.getpid()}-{next(_numbers)}"
        try:
            group.mkdir()
        except OSError as error:
            reason = error
            continue
        if any((group / name).exists() for name in needed):
            return group
        group.rmdir()
        reason = OSError(f"a cgroup in {parent} has no {' or '.join(needed)}")
    raise reason


def _remove(group: Path) -> None:
    end = time.monotonic() + 10
    while group.exists():
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()
        try:
            group.rmdir()
        except OSError:  # what was in it is not quite gone
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


KILL = ("", ("cgroup.kill",))
LIMIT = ("memory", ("memory.max", "memory.limit_in_bytes"))


def _obstacle(controller: str, needed: tuple[str, ...]) -> str:
    try:
        _remove(_make(controller, needed))
    except OSError as error:
        return str(error)
    return ""


def _within(group: Path, program: str) -> str:
    return f"with open({str(group / 'cgroup.procs')!r}, 'w') as _procs:\n    _procs.write(str(os.getpid()))\n{program}"


def _cgroup_kill(one: Try) -> None:
    group = _make(*KILL)
    one.lane.at_row_end.callback(_remove, group)
    driver = one.start(_within(group, code.DRIVE))
    one.queued()
    one.sleep(0.3)
    assert len((group / "cgroup.procs").read_text().split()) == 2, "driver and watcher are to be in the cgroup"
    one.gives_up()
    (group / "cgroup.kill").write_text("1")
    driver.end()
    one.lane.wait_for_watchers()
    one.lane.reap()


def _out_of_memory(one: Try) -> None:
    group = _make(*LIMIT)
    one.lane.at_row_end.callback(_remove, group)
    limit = next(group / name for name in LIMIT[1] if (group / name).exists())
    limit.write_text(str(MEMORY))
    with contextlib.suppress(OSError):
        (group / "memory.swap.max").write_text("0")
    eat = 'say("dying", time.monotonic_ns())\nhog = []\nwhile True: hog.append(b"x" * (1 << 20))'
    one.start(_within(group, code.at("queued", eat)))
    one.dies(-signal.SIGKILL)


def _full_disk(one: Try) -> None:
    state = one.lane.folder / f"full{next(_numbers)}"
    state.mkdir()
    _mount(state)
    one.lane.at_row_end.callback(_unmount, state)
    with contextlib.suppress(OSError), (state / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    one.start(state=state)
    one.queued()
    one.sleep(0.3)
    one.kill()


def _mount(folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
    folder.rmdir()


def _no_mount() -> str:
    return "" if os.geteuid() == 0 else "mounting a small file system needs root"


ROWS = [
    Row("cgroup.kill; reap()", BY_REAP, _cgroup_kill, 3, obstacle=lambda: _obstacle(*KILL)),
    Row(
        "the out-of-memory killer in a memory cgroup",
        f"{CANCELLED} (with the time to fill the memory)",
        _out_of_memory,
        2,
        obstacle=lambda: _obstacle(*LIMIT),
    ),
    Row("SIGKILL, the disk of the ledger full", CANCELLED, _full_disk, 2, obstacle=_no_mount),
]
