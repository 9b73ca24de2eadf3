"""Killed drivers that the kernel takes long to end: a core, a dead file server, a tracer, a busy machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from testkit import stuck
from testkit.processes import DEADLINE

from . import code
from .attempt import Try
from .kills import CANCELLED
from .row import Row

_numbers = itertools.count()

DUMPS_CORE = """
resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
os.chdir({folder!r})
ballast = os.urandom(1 << 20) * 256
"""


def _no_core() -> str:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return "no core may be written (ulimit -Hc)"
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return "" if pattern.startswith("core") else f"cores are not written to the working directory, but to {pattern}"


def _folder(one: Try, name: str) -> Path:
    made = one.lane.folder / f"{name}{next(_numbers)}"
    made.mkdir()
    return made


def _killed_as_it_dumps_core(one: Try) -> None:
    folder = _folder(one, "core")
    driver = one.start(DUMPS_CORE.format(folder=str(folder)) + code.DRIVE)
    one.queued()
    one.gives_up()
    one.signal(signal.SIGABRT)
    one.sleep(0.3)
    one.signal(signal.SIGKILL)
    driver.end()
    for core in folder.iterdir():
        core.unlink()


def _killed(one: Try, job: str) -> None:
    """SIGKILL, a while from now; returns when the job is cancelled, with whatever keeps the driver still there."""
    one.sleep(1.0)
    one.gives_up()
    one.signal(signal.SIGKILL)
    one.ibm.wait_job(job, "Cancelled", timeout=DEADLINE)


def _stuck(one: Try) -> None:
    folder = _folder(one, "dead")
    with stuck.dead_mount(folder) as mount:
        look = f"threading.Thread(target=os.stat, args=({str(mount.file)!r},), daemon=True).start()"
        driver = one.start(code.at("queued", look))
        job = one.queued()
        assert mount.has_visitor.wait(DEADLINE), "nobody looks at the dead mount"
        _killed(one, job)
    driver.end()


def _traced(one: Try) -> None:
    driver = one.start()
    job = one.queued()
    with stuck.traced(driver.pid, stuck.AT_EXIT):
        _killed(one, job)
    driver.end()


def _low_in_priority(one: Try) -> None:
    driver = one.start(f"os.nice(19)\n{code.DRIVE}")  # its watcher inherits that
    job = one.queued()
    with _busy_machine():
        _killed(one, job)
    driver.end()


@contextlib.contextmanager
def _busy_machine() -> Iterator[None]:
    with ExitStack() as loops:
        for _ in range(2 * (os.cpu_count() or 1)):
            loop = loops.enter_context(subprocess.Popen([sys.executable, "-ISc", "while True: pass"]))
            loops.callback(loop.kill)
        yield


ROWS = [
    Row("SIGABRT, then SIGKILL while it dumps its core", CANCELLED, _killed_as_it_dumps_core, 2, obstacle=_no_core),
    Row("SIGKILL, a thread waits for a dead mount", CANCELLED, _stuck, 2, obstacle=stuck.no_dead_mount),
    Row("SIGKILL, a tracer does not let it go", CANCELLED, _traced, 2, obstacle=stuck.no_tracer),
    Row("SIGKILL, low in priority on a busy machine", CANCELLED, _low_in_priority, 1, most=24),
]
