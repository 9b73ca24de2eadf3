"""Drivers that the kernel takes long to end, or never ends: from the death to the cancel of the job."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from testkit import stuck

from qx_supervisor import local

from .kills import BARE, RUNS
from .programs import Program, started, tick
from .table import OURS, Measure, NotHere

BALLAST = """
import mmap
size = int(sys.argv[3]) << 30
if size:
    ballast = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ballast.madvise(mmap.MADV_NOHUGEPAGE)
    filling = os.urandom(4 << 20)
    for place in range(0, size, len(filling)):
        ballast[place : place + len(filling)] = filling
"""

CORE = """
import resource
os.chdir(sys.argv[4])
limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
"""

LOOKS = """
import threading
threading.Thread(target=os.stat, args=(sys.argv[3],), daemon=True).start()
"""


def big_drivers(
    ibm: local.Service, folder: Path, gigabytes: tuple[int, ...], tries: int, chance: random.Random
) -> list[Measure]:
    """Milliseconds from the kill to the cancel request, by how much memory the kernel has to free first."""
    made = []
    for size in gigabytes:
        values: dict[str, list[float]] = {"bare": [], OURS: []}
        turns = [*values] * max(2, tries if size < 4 else tries // 2)
        chance.shuffle(turns)
        for whose in turns:
            with started(ibm, BALLAST + (RUNS if whose == OURS else BARE), folder, size) as driver:
                values[whose].append(_death_to_cancel(ibm, driver, signal.SIGKILL, chance))
            tick()
        name = f"kill -9 → cancel request, {size} GiB more memory"
        measure = Measure(name, "ms", values, "≤ 100 ms; sooner than bare")
        sooner = measure.median() < measure.median("bare")
        made.append(measure.judge(_ratio(measure), is_met=sooner and measure.median() <= 100))
    return made


def core_dump(ibm: local.Service, folder: Path, gigabytes: int, tries: int, chance: random.Random) -> Measure:
    """Milliseconds from a SIGABRT to the cancel request, while a core of so many GiB is written.

    Raises:
        NotHere: If cores are not written to the working directory here.
    """
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if not pattern.startswith("core"):
        raise NotHere(f"cores are not written to the working directory here, but to {pattern.strip()}")
    values: dict[str, list[float]] = {"bare": [], OURS: []}
    for _ in range(tries):
        for whose, found in values.items():
            code = BALLAST + CORE + (RUNS if whose == OURS else BARE)
            with started(ibm, code, folder, gigabytes, folder) as driver:
                found.append(_death_to_cancel(ibm, driver, signal.SIGABRT, chance))
            for core in folder.glob("core*"):
                core.unlink()
            tick()
    measure = Measure(f"death with a core dump of {gigabytes} GiB → cancel request", "ms", values, "≤ 1.5 s")
    return measure.judge(_ratio(measure), is_met=max(values[OURS]) <= 1500)


def stuck_driver(ibm: local.Service, folder: Path, tries: int, chance: random.Random) -> Measure:
    """Milliseconds from the kill to the cancel request, while a thread waits for a file server that is dead.

    Raises:
        NotHere: If there can be no such mount here.
    """
    if obstacle := stuck.no_dead_mount():
        raise NotHere(obstacle)
    values = []
    place = folder / "dead"
    place.mkdir()
    for _ in range(tries):
        with stuck.dead_mount(place) as mount, started(ibm, LOOKS + RUNS, folder, mount.file) as driver:
            mount.has_visitor.wait()
            values.append(_death_to_cancel(ibm, driver, signal.SIGKILL, chance, released=mount.release))
        tick()
    measure = Measure("kill -9 → cancel request, stuck on a dead mount", "ms", {OURS: values}, "≤ 1.5 s; bare: never")
    return measure.judge("", is_met=max(values) <= 1500)


def _ratio(measure: Measure) -> str:
    return f"{measure.median() / measure.median('bare'):.2f} × bare"


def _death_to_cancel(
    ibm: local.Service,
    driver: Program,
    number: signal.Signals,
    chance: random.Random,
    released: Callable[[], None] = lambda: None,
) -> float:
    """End a driver, and return the milliseconds until its cancel request arrived. It must stay the only one."""
    ibm.hold("queued")
    after = ibm.cursor()
    [job] = driver.line()
    pidfd = os.pidfd_open(driver.process.pid)
    time.sleep(chance.uniform(0.2, 1.2))  # at any time between two polls of the watcher
    died = time.monotonic_ns()
    driver.process.send_signal(number)
    [arrived, *_] = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", after=after)
    released()
    select.select([pidfd], [], [])
    os.close(pidfd)
    driver.process.wait()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1, "cancelled twice"
    ibm.hold(None)
    return (arrived.arrived - died) / 1e6
