"""Drivers that start at one moment, as the tasks of an array do: what guarding them adds, in time and in CPU.

From the start of their processes to the arrival of the last submission. The official client's programs import nothing
of this package. The service's own CPU is nobody's here, and the same for all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from qx_supervisor import WatcherError, local, settings
from qx_supervisor.local.client import _INSTANCE
from qx_supervisor.local.records import HOST

from .overhead import CLIENT
from .programs import Program, environment, tick
from .table import OURS, Measure

NODE = f"{OURS}, one watcher for all"
MOST = 1.15

CONNECTED = """
import os, sys, threading
from qiskit import QuantumCircuit
from qiskit_ibm_runtime import QiskitRuntimeService
proxy, host, instance = sys.argv[1:]
service = QiskitRuntimeService(
    channel="ibm_quantum_platform", token="local-key", instance=instance, url=f"http://{host}",
    url_resolver=lambda *_, **__: f"http://{host}/api/v1", proxies={"urls": {"http": proxy, "https": proxy}},
)
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
"""

OFFICIAL = """
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime.executor_sampler import Sampler
backend = service.backend("ibm_brisbane")
Sampler(backend).run([generate_preset_pass_manager(1, backend).run(circuit)])
print(sum(os.times()[:4]), 0, flush=True)
sys.stdin.readline()
"""

GUARDED = """
from qx_supervisor import submit
from qx_supervisor.link import link
submitted = threading.Event()
def note(status):
    if status.state == "submitted":
        submitted.set()
held = submit(circuit, "ibm_brisbane", service=service, poll_interval=3600, on_status=note)
submitted.wait()
spent = sum(os.times()[:4])
print(spent, link.inspect()["pid"], flush=True)
sys.stdin.readline()
"""


@dataclass
class Start:
    """What one start took.

    Attributes:
        wall: Seconds until the last submission arrived.
        cpu: Seconds of CPU by then, of all drivers, their children and their watchers.
    """

    wall: float
    cpu: float


def together(ibm: local.Service, folder: Path, number: int, rounds: int) -> list[Measure]:
    """So many drivers at once, guarded and not, in turns."""
    ibm.hold("queued")
    kinds = {CLIENT: None, OURS: "", **({NODE: "node"} if _has_node() else {})}
    seen: dict[str, list[Start]] = {whose: [] for whose in kinds}
    for _, whose in itertools.product(range(rounds), kinds):
        seen[whose].append(_start(ibm, folder, number, kinds[whose]))
        tick()
    ibm.hold(None)
    name = f"start of {number} drivers at once, from their processes' start to the last POST"
    walls = {whose: [each.wall for each in starts] for whose, starts in seen.items()}
    cpus = {whose: [each.cpu / number for each in starts] for whose, starts in seen.items()}
    return [_judged(Measure(name, "s", walls)), _judged(Measure(f"{name}: CPU for each", "s", cpus))]


def _judged(made: Measure) -> Measure:
    ratios = {whose: made.median(whose) / made.median(CLIENT) for whose in made.values if whose != CLIENT}
    made.bar = f"≤ {MOST} ×"
    verdict = f"{ratios[OURS]:.2f} ×"
    if NODE in ratios:
        verdict += f"; with one watcher for all {ratios[NODE]:.2f} ×"
    return made.judge(verdict, is_met=ratios[OURS] <= MOST)


def _has_node() -> bool:
    before = os.environ.get(settings.PLACEMENT)
    os.environ[settings.PLACEMENT] = "node"
    try:
        settings.placement()
    except WatcherError:
        return False
    finally:
        del os.environ[settings.PLACEMENT]
        if before is not None:
            os.environ[settings.PLACEMENT] = before
    return True


def _end(watcher: psutil.Process) -> None:
    """Have a watcher end that may wait for more drivers; while it guards anything it ignores that."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            watcher.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            watcher.wait(0.5)
            return


def _start(ibm: local.Service, folder: Path, number: int, placement: str | None) -> Start:
    """Start drivers whose watchers are placed so; None: the official client's, which have none."""
    script = folder / "driver.py"
    script.write_text(CONNECTED + (OFFICIAL if placement is None else GUARDED))
    command = [sys.executable, str(script), f"http://127.0.0.1:{ibm.port}", HOST, _INSTANCE]
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(tempfile.TemporaryDirectory(prefix="qx-start-"))
        variables = environment(folder / "state") | {
            "IAM_URL": f"http://iam.{HOST}",
            "NO_PROXY": HOST,
            "XDG_RUNTIME_DIR": runtime,
            settings.PLACEMENT: placement or "",
        }
        after, began = ibm.cursor(), time.monotonic_ns()
        drivers = []
        for _ in range(number):
            driver = subprocess.Popen(
                command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            drivers.append(Program(stack.enter_context(driver)))
            stack.callback(driver.kill)
        posts = ibm.wait_for("POST", "/api/v1/jobs", after=after, count=number, timeout=1800)
        told = [driver.line() for driver in drivers]
        watchers = [psutil.Process(pid) for pid in {int(pid) for _, pid in told} - {0}]
        cpu = sum(float(spent) for spent, _ in told) + sum(sum(each.cpu_times()[:2]) for each in watchers)
        stack.close()
    if watchers:
        ibm.wait_idle(timeout=600)
    for watcher in watchers:
        _end(watcher)
    ibm.reset()
    ibm.hold("queued")
    return Start((max(post.arrived for post in posts) - began) / 1e9, cpu)
