"""What `run` adds to what the official client takes by itself."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from qx_supervisor import local

from .programs import Program, environment, started, tick
from .table import OURS, Measure

CLIENT = "official client"
PLAIN = "EstimatorV2, unguarded"
THREAD = "official client, in a thread"

IN_TURN = """
ours(), theirs()
while True:
    sys.stdin.readline()
    for work in (ours, theirs):
        began = time.perf_counter()
        work()
        print(time.perf_counter() - began, flush=True)
"""

WHOLE = """
from qx_supervisor import run
isa, backend = make_isa(), service.backend("ibm_brisbane")
from qiskit_ibm_runtime.executor_sampler import Sampler
def ours():
    return run(isa, backend, service=service, panel=None, poll_interval=0.5)
def theirs():
    return Sampler(backend).run([isa]).result(poll_interval=0.5)
"""

FIRST = """
import qiskit_ibm_runtime, qx_supervisor
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime.executor_sampler import Sampler
mine, transpiles = sys.argv[3] == "qx_supervisor", sys.argv[4] == "transpiles"
backend = service.backend("ibm_brisbane")
if not transpiles:
    circuit = make_isa()
sys.stdin.readline()
print(time.monotonic_ns(), flush=True)
if mine:
    qx_supervisor.run(circuit, backend, service=service, panel=None)
else:
    if transpiles:
        circuit = generate_preset_pass_manager(1, backend).run(circuit)
    Sampler(backend).run([circuit])
    print("submitted", flush=True)
    time.sleep(60)
"""

LATER = """
from concurrent.futures import ThreadPoolExecutor
from qx_supervisor import submit
from qiskit_ibm_runtime.executor_sampler import Sampler
isa, backend = make_isa(), service.backend("ibm_brisbane")
primitive = Sampler(backend)
def ours():
    return submit([isa], primitive=primitive, service=service, poll_interval=30)
def theirs():
    return primitive.run([isa])
pool = ThreadPoolExecutor(1)
def in_a_thread():
    return pool.submit(theirs).result()
ours(), theirs(), in_a_thread()
while True:
    for work in (ours, theirs, in_a_thread):
        sys.stdin.readline()
        print(time.monotonic_ns(), flush=True)
        made = work()
        sys.stdin.readline()
        made.cancel()  # with a thousand in flight it is the server that would be measured
        print("cancelled", flush=True)
"""


ITERATION = """
import warnings
import numpy as np
from qiskit.circuit.library import efficient_su2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import EstimatorV2
from qx_supervisor.primitives import Estimator
backend = service.backend("ibm_brisbane")
ansatz = generate_preset_pass_manager(1, backend, seed_transpiler=1).run(efficient_su2(2, reps=1))
energy = SparsePauliOp(["ZZ", "XI", "IX"], [1.0, 0.5, 0.5]).apply_layout(ansatz.layout)
angles = np.linspace(0.1, 0.8, ansatz.num_parameters)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    plain, guarded = EstimatorV2(backend), Estimator(backend, EstimatorV2(backend).options, poll_interval=0.1)
def ours():
    return guarded.run([(ansatz, energy, angles)]).result()
def theirs():
    return plain.run([(ansatz, energy, angles)]).result(poll_interval=0.1)
"""


def _in_turn(ibm: local.Service, folder: Path, code: str, order: tuple[str, str], tries: int) -> dict[str, list[float]]:
    """Seconds that a program's `ours` and `theirs` take, which are called in turn."""
    found: dict[str, list[float]] = {whose: [] for whose in order}
    with started(ibm, code + IN_TURN, folder) as driver:
        for _ in range(tries):
            driver.tell()
            for whose in order:
                found[whose].append(float(driver.line()[0]))
            tick()
    return found


def iteration(ibm: local.Service, folder: Path, tries: int) -> Measure:
    """Milliseconds of one step of VQE: an estimator's job, from the call to the result, which takes no time itself."""
    found = _in_turn(ibm, folder, ITERATION, (OURS, PLAIN), tries)
    values = {whose: [seconds * 1e3 for seconds in found[whose]] for whose in (PLAIN, OURS)}
    made = Measure("an iteration of VQE: an estimator's job, call → result", "ms", values)
    made.verdict = f"{made.median() - made.median(PLAIN):+.0f} ms ({made.median() / made.median(PLAIN):.2f} ×)"
    return made


def whole_run(ibm: local.Service, folder: Path, tries: int) -> Measure:
    """Seconds from the call to the result, of a job that takes two seconds."""
    ibm.scenario({"queue": {"delay_seconds": 1.7}})
    found = _in_turn(ibm, folder, WHOLE, (OURS, CLIENT), tries)
    values = {whose: found[whose] for whose in (CLIENT, OURS)}
    made = Measure("run, from the call to the result", "s", values, "≤ 1.02 ×")
    ratio = made.median() / made.median(CLIENT)
    return made.judge(f"{ratio:.3f} ×", is_met=ratio <= 1.02)


def first_run(ibm: local.Service, folder: Path, tries: int, *, transpiles: bool) -> Measure:
    """Milliseconds from a process's first call until its POST arrives."""
    ibm.hold("queued")
    values: dict[str, list[float]] = {CLIENT: [], OURS: []}
    for _, whose in itertools.product(range(tries), values):
        after = ibm.cursor()
        with started(ibm, FIRST, folder, whose, "transpiles" if transpiles else "as it is") as driver:
            driver.tell()
            called = int(driver.line()[0])
            [post] = ibm.wait_for("POST", "/api/v1/jobs", after=after)
            values[whose].append((post.arrived - called) / 1e6)
            driver.process.kill()
            driver.process.wait()
            if whose == OURS:
                ibm.wait_for("GET", "/api/v1/jobs", after=after, answered=True)
        tick()
    ibm.hold(None)
    how, most = ("transpiles", 50) if transpiles else ("does not transpile", 250)
    made = Measure(f"first run of a process, which {how}: call → POST", "ms", values, f"≤ {most} ms more")
    more = made.median() - made.median(CLIENT)
    return made.judge(f"{more:+.0f} ms ({made.median() / made.median(CLIENT):.2f} ×)", is_met=more <= most)


def later_runs(ibm: local.Service, folder: Path, tries: int) -> Measure:
    """Milliseconds from a later call until its POST arrives."""
    values = _later(ibm, folder, tries)
    made = Measure("later run: call → POST", "ms", values, "≤ 1 ms and one fsync more")
    fsync = statistics.median(_fsyncs(folder, tries))
    more = made.median() - made.median(CLIENT)
    made.notes.append(f"one write and fsync(2) in the same folder: {fsync:.2f} ms, median")
    beside = made.median() - made.median(THREAD)
    return made.judge(f"{more:+.2f} ms; {beside:+.2f} ms against the client in a thread", is_met=more <= 1 + fsync)


def _later(ibm: local.Service, folder: Path, tries: int) -> dict[str, list[float]]:
    ibm.hold("queued")
    values: dict[str, list[float]] = {CLIENT: [], THREAD: [], OURS: []}
    with started(ibm, LATER, folder) as driver:
        ibm.wait_for("POST", "/api/v1/jobs", count=3, answered=True)
        for _, whose in itertools.product(range(tries), (OURS, CLIENT, THREAD)):
            values[whose].append(_call_to_post(ibm, driver))
    ibm.hold(None)
    return values


def _call_to_post(ibm: local.Service, driver: Program) -> float:
    after = ibm.cursor()
    driver.tell()
    called = int(driver.line()[0])
    [post] = ibm.wait_for("POST", "/api/v1/jobs", after=after, answered=True)
    driver.tell()
    driver.line()
    time.sleep(0.05)  # what follows an answer, ours or the client's, is not the next call's
    return (post.arrived - called) / 1e6


def _fsyncs(folder: Path, tries: int) -> list[float]:
    values = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(tries):
            began = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            values.append((time.perf_counter() - began) * 1e3)
    return values


def imports(tries: int) -> list[Measure]:
    """Milliseconds that `import qx_supervisor` takes, by itself and after the official client."""
    alone, client, both = [], [], []
    _import("qiskit_ibm_runtime", "qx_supervisor")  # its bytecode is kept from now on
    for _ in range(tries):
        alone.append(_import("qx_supervisor"))
        client.append(_import("qiskit_ibm_runtime"))
        both.append(_import("qiskit_ibm_runtime", "qx_supervisor"))
        tick()
    by_itself = Measure("import qx_supervisor", "ms", {OURS: alone}, "≤ 150 ms")
    on_top = Measure("import, on top of the official client's", "ms", {CLIENT: client, OURS: both}, "≤ 5 % more")
    share = on_top.median() / on_top.median(CLIENT) - 1
    return [
        by_itself.judge("", is_met=by_itself.median() <= 150),
        on_top.judge(f"{share:+.1%}", is_met=share <= 0.05),
    ]


def _import(*modules: str) -> float:
    code = f"import time; began = time.perf_counter(); import {', '.join(modules)}; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment())
    return float(done.stdout) * 1e3
