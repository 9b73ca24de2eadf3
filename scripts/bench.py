"""How long from the death of a driver to the cancel of its job, side by side with what people would do instead.

Each try starts a plain script, waits until the id of its job is known and some random milliseconds more, and kills it
with SIGKILL. Measured is the time from the kill to the arrival of the cancel request in the embedded service's journal,
both by the machine's monotonic clock. Beside it, how long a SIGTERM takes to end in a confirmed cancel, and how long a
driver is without a watcher when that is killed. The baselines are written for this alone:

bare      a process that holds a pidfd of the driver and an open connection, and sends a prepared request: the floor
textbook  a forked child that polls `psutil.pid_exists` once a second and cancels with the official client
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qx_supervisor import local

COMMON = """
import json, os, subprocess, sys, time
from qiskit import QuantumCircuit
from qx_supervisor.local.client import connect
pid, port = int(sys.argv[1]), int(sys.argv[2])
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
service = connect(port, "local-key")

def submit():
    from qiskit.transpiler import generate_preset_pass_manager
    from qiskit_ibm_runtime.executor_sampler import Sampler
    backend = service.backend("ibm_brisbane")
    return Sampler(backend).run([generate_preset_pass_manager(1, backend).run(circuit)])
"""

OURS = (
    COMMON
    + """
from qx_supervisor import run
def tell(status):
    if status.state == "submitted":
        print(status.job_id, flush=True)
run(circuit, "ibm_brisbane", service=service, panel=None, on_status=tell)
"""
)

BARE = (
    COMMON
    + """
WATCH = '''
import select, socket, sys
pidfd, port, job, token, crn = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
connection = socket.create_connection(("127.0.0.1", port))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
lines = [f"POST /api/v1/jobs/{job}/cancel HTTP/1.1", "Host: local", f"Authorization: Bearer {token}",
         f"Service-CRN: {crn}", "Content-Length: 0", "", ""]
request = (chr(13) + chr(10)).join(lines).encode()
print("ready", flush=True)
select.select([pidfd], [], [])
connection.sendall(request)
connection.recv(1)
'''
job = submit()
auth = job._api_client._session.auth
pidfd = os.pidfd_open(os.getpid())
watcher = subprocess.Popen(
    [sys.executable, "-c", WATCH, str(pidfd), str(port), job.job_id(), auth.tm.get_token(), auth.crn],
    pass_fds=[pidfd], stdout=subprocess.PIPE, start_new_session=True)
watcher.stdout.readline()
print(job.job_id(), flush=True)
job.wait_for_final_state()
"""
)

TEXTBOOK = (
    COMMON
    + """
import multiprocess, psutil
job = submit()
parent = os.getpid()

def watch():
    os.setsid()
    print(job.job_id(), flush=True)
    while psutil.pid_exists(parent):
        time.sleep(1)
    job.cancel()

multiprocess.get_context("fork").Process(target=watch).start()
job.wait_for_final_state()
"""
)


def kill_to_cancel(ibm: local.Service, code: str, tries: int, chance: random.Random) -> list[float]:
    """Milliseconds from the kill to the arrival of the cancel, per try."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "driver.py"
        script.write_text(code)
        environment = {**os.environ, "QX_STATE_DIR": str(Path(folder) / "state")}
        for _ in range(tries):
            after = ibm.cursor()
            command = [sys.executable, str(script), str(ibm.pid), str(ibm.port)]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(command, env=environment, **quiet) as driver:
                assert driver.stdout is not None
                job = driver.stdout.readline().decode().strip()
                assert job, "the driver ended early"
                time.sleep(chance.uniform(0, 0.3))  # at any time after its id is known
                killed = time.monotonic_ns()
                driver.kill()
                driver.wait()
                (arrived, *more) = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", after=after)
                assert not more, "cancelled twice"
                ibm.wait_job(job, "Cancelled")
                times.append((arrived.arrived - killed) / 1e6)
                if code is OURS:
                    ibm.wait_for("GET", "/api/v1/jobs", after=after, answered=True)  # its watcher has nothing more
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


TERMINATED = (
    COMMON
    + """
from qx_supervisor import Interrupted, run
def tell(status):
    if status.state == "submitted":
        print(status.job_id, flush=True)
try:
    run(circuit, "ibm_brisbane", service=service, panel=None, on_status=tell)
except Interrupted as interrupted:
    print(time.monotonic_ns(), interrupted.cancel, flush=True)
"""
)

RELAUNCHED = (
    COMMON
    + """
import signal
from qx_supervisor import submit
from qx_supervisor.link import link
queued = []
def tell(status):
    queued.append(status.state == "queued")
held = submit(circuit, "ibm_brisbane", service=service, on_status=tell)
while not any(queued):
    time.sleep(0.01)
for _ in range(int(sys.argv[3])):
    watcher = link.watcher_pid
    time.sleep(21)  # more deaths in a minute, and the link would take something to be at work against it
    began = time.monotonic_ns()
    os.kill(watcher, signal.SIGKILL)
    while link.watcher_pid in (watcher, None):
        time.sleep(0.001)
    assert link.inspect()["runs"], "not told of the run"
    print((time.monotonic_ns() - began) / 1e6, flush=True)
held.cancel()
"""
)


def from_terminate(ibm: local.Service, tries: int, chance: random.Random) -> list[float]:
    """Milliseconds from a SIGTERM to a raised `Interrupted` whose cancel is confirmed, per try."""
    times = []
    for _ in range(tries):
        command = [sys.executable, "-c", TERMINATED, str(ibm.pid), str(ibm.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline(), "the driver ended early"
            time.sleep(chance.uniform(0, 0.3))
            sent = time.monotonic_ns()
            driver.terminate()
            raised, cancel = driver.stdout.readline().decode().split()
            assert cancel == "confirmed", cancel
            times.append((int(raised) - sent) / 1e6)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def relaunches(ibm: local.Service, tries: int) -> list[float]:
    """Milliseconds from a watcher's death to another one that knows of the run, per try."""
    command = [sys.executable, "-c", RELAUNCHED, str(ibm.pid), str(ibm.port), str(tries)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def percentile(times: list[float], share: float) -> float:
    """The value that such a share of the values does not exceed."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100, help="kills of our own; the baselines get fewer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    counts = {"bare": max(1, asked.tries // 3), "textbook": max(1, asked.tries // 10), "qx_supervisor": asked.tries}
    codes = {"bare": BARE, "textbook": TEXTBOOK, "qx_supervisor": OURS}
    with local.start() as ibm:
        ibm.health()
        ibm.hold("queued")
        measured = {name: kill_to_cancel(ibm, codes[name], counts[name], chance) for name in codes}
        others = {
            "SIGTERM → cancel confirmed and Interrupted raised": from_terminate(ibm, max(1, asked.tries // 4), chance),
            "watcher killed → another one knows of the run": relaunches(ibm, max(1, asked.tries // 20)),
        }
    floor = statistics.median(measured["bare"])
    where = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores"
    print(f"kill -9 → cancel request at the service, {where}")
    print("| | tries | median ms | 99 % ms | worst ms | median / bare |")
    print("|---|---|---|---|---|---|")
    for name, times in measured.items():
        row = [statistics.median(times), percentile(times, 0.99), max(times), statistics.median(times) / floor]
        print(f"| {name} | {len(times)} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    ours = measured["qx_supervisor"]
    print(f"\nwithin 100 ms: {sum(value <= 100 for value in ours)} of {len(ours)}")
    print("\n| | tries | median ms | worst ms |")
    print("|---|---|---|---|")
    for name, times in others.items():
        print(f"| {name} | {len(times)} | {statistics.median(times):.0f} | {max(times):.0f} |")
    if asked.json:
        asked.json.write_text(json.dumps({**measured, **others}))


if __name__ == "__main__":
    main()
