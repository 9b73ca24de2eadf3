"""One, ten, a hundred, a thousand jobs in flight in one driver, and its death with a thousand."""

from __future__ import annotations

import time
from pathlib import Path

from testkit.processes import Process, wait_for_end

from qx_supervisor import local

from .programs import started, tick
from .table import OURS, Measure

POLL = 1.0
INTERVALS = 8

FLIGHT = """
import threading
from qx_supervisor import submit
from qx_supervisor.link import link
def memory():
    gc.collect()
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
isa, backend = make_isa(), service.backend("ibm_brisbane")
from qiskit_ibm_runtime.executor_sampler import Sampler
primitive = Sampler(backend)
poll = float(sys.argv[4])
def begin(number):
    made = [submit([isa], primitive=primitive, service=service, poll_interval=poll) for _ in range(number)]
    for each in made:
        while each.status().state != "queued":
            time.sleep(0.005)
    return made
held = begin(1)
before = memory()
held += begin(int(sys.argv[3]) - 1)
print("queued", link.inspect()["pid"], flush=True)
sys.stdin.readline()
print(threading.active_count(), (memory() - before) / max(1, len(held) - 1), flush=True)
sys.stdin.readline()
"""


def in_flight(ibm: local.Service, folder: Path, numbers: tuple[int, ...]) -> list[Measure]:
    """Threads, memory and requests, for so many jobs in flight."""
    ibm.hold("queued")
    threads: dict[int, float] = {}
    memory: dict[int, float] = {}
    requests: dict[int, float] = {}
    for number in numbers:
        with started(ibm, FLIGHT, folder, number, POLL) as driver:
            watcher = Process(driver.line()[1])
            after = ibm.cursor()
            time.sleep(INTERVALS * POLL)
            seen = ibm.journal(method="GET", path="/api/v1/jobs*", after=after)
            requests[number] = len(seen) / number / INTERVALS
            driver.tell()
            threads[number], memory[number] = map(float, driver.line())
        wait_for_end(watcher)
        ibm.reset()
        ibm.hold("queued")
        tick()
    ibm.hold(None)
    most = max(numbers)
    made = [
        _by_number("threads of the driver", "", threads, "flat"),
        _by_number("status requests per job and poll interval", "", requests, "≤ 0.05 at 1,000"),
        _by_number("memory of the driver per job", "kB", memory, "≤ 50 kB"),
    ]
    made[0].judge("", is_met=threads[most] <= 32)
    made[1].judge("", is_met=requests[most] <= 0.05)
    made[2].judge("", is_met=memory[most] <= 50)
    return made


def _by_number(name: str, unit: str, values: dict[int, float], bar: str) -> Measure:
    *fewer, most = values
    shown: dict[str, list[float]] = {f"{OURS}, {number:,} in flight": [values[number]] for number in fewer}
    return Measure(f"{name}, at {most:,} in flight", unit, {**shown, OURS: [values[most]]}, bar)


def death(ibm: local.Service, folder: Path, number: int, *, limited: bool) -> Measure:
    """Seconds from the kill until all jobs are final."""
    ibm.hold("queued")
    with started(ibm, FLIGHT, folder, number, 30.0) as driver:
        watcher = Process(driver.line()[1])
        after = ibm.cursor()
        if limited:
            fault = {"path": "/api/v1/jobs/*/cancel", "status": 429, "retry_after": 1}
            ibm.scenario({"http_faults": [fault] * 8})
        killed = time.monotonic_ns()
        driver.process.kill()
        driver.process.wait()
        jobs = ibm.wait_idle(timeout=120)
        took = (max(job.ended or 0 for job in jobs) - killed) / 1e9
    wait_for_end(watcher)  # what it asks for after that is counted too
    seen = ibm.journal(after=after)
    cancels = [entry for entry in seen if entry.path.endswith("/cancel")]
    refused = sum(entry.status == 429 for entry in cancels)
    assert len(jobs) == number, len(jobs)
    assert all(job.status == "Cancelled" for job in jobs)
    ibm.reset()
    bar = "≤ 5 s, and the two seconds that it was asked to wait" if limited else "≤ 5 s, at most 4 connections"
    how = ", the first 8 cancels answered 429 with Retry-After: 1" if limited else ""
    made = Measure(f"kill -9 with {number:,} jobs in flight → all final{how}", "s", {OURS: [took]}, bar)
    connections = len({entry.connection for entry in cancels})
    made.notes.append(
        f"{len(seen)} requests over {connections} connections; {len(cancels)} of them cancels, of which {refused} were "
        f"answered 429 and {len(cancels) - refused - number} were more than one for a job"
    )
    return made.judge("", is_met=took <= (7 if limited else 5) and connections <= 4)
