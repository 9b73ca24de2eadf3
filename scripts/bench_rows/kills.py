"""From the death of a driver to the cancel of its job, from a SIGTERM to its proof, from watcher to watcher."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from qx_supervisor import local

from .programs import started, tick
from .table import OURS, Measure

RUNS = """
from qx_supervisor import Interrupted, run
def tell(status):
    if status.state == "submitted":
        print(status.job_id, flush=True)
try:
    run(circuit, "ibm_brisbane", service=service, panel=None, on_status=tell)
except Interrupted as interrupted:
    print(time.monotonic_ns(), interrupted.cancel, flush=True)
"""

HELD_OPEN = """
import ctypes
from qx_supervisor import run
def tell(status):
    if status.state == "submitted":
        child = ctypes.CDLL(None).fork()  # not Python's, which would close the watcher's connection in the child
        if child == 0:
            ctypes.CDLL(None).sleep(600)
            os._exit(0)
        print(status.job_id, child, flush=True)
run(circuit, "ibm_brisbane", service=service, panel=None, on_status=tell)
"""
"""Its child has the connection, which therefore stays open at its death."""

BARE = """
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
job = official()
auth = job._api_client._session.auth
pidfd = os.pidfd_open(os.getpid())
watcher = subprocess.Popen(
    [sys.executable, "-c", WATCH, str(pidfd), str(port), job.job_id(), auth.tm.get_token(), auth.crn],
    pass_fds=[pidfd], stdout=subprocess.PIPE, start_new_session=True)
watcher.stdout.readline()
print(job.job_id(), flush=True)
job.wait_for_final_state()
"""

TEXTBOOK = """
import multiprocess, psutil
job = official()
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

RELAUNCHED = """
from qx_supervisor import submit
from qx_supervisor.link import link
held = submit(circuit, "ibm_brisbane", service=service)
while held.status().state != "queued":
    time.sleep(0.01)
for _ in range(int(sys.argv[3])):
    watcher = link.watcher_pid
    time.sleep(21)  # more deaths in a minute, and the link would take something to be at work against it
    began = time.monotonic_ns()
    os.kill(watcher, 9)
    while link.watcher_pid in (watcher, None):
        time.sleep(0.001)
    assert link.inspect()["runs"], "not told of the run"
    print((time.monotonic_ns() - began) / 1e6, flush=True)
held.cancel()
"""


def kill_to_cancel(ibm: local.Service, folder: Path, tries: int, chance: random.Random) -> Measure:
    """Milliseconds from the kill to the arrival of the cancel request, by the service's journal."""
    ibm.hold("queued")
    programs = {"bare": (BARE, tries // 4), "textbook": (TEXTBOOK, tries // 16), OURS: (RUNS, tries)}
    values: dict[str, list[float]] = {whose: [] for whose in programs}
    # In turns: what else the machine does meets all of them.
    turns = [whose for whose, (_, count) in programs.items() for _ in range(max(1, count))]
    chance.shuffle(turns)
    for whose in turns:
        values[whose].append(_kill(ibm, folder, programs[whose][0], chance, watched=whose == OURS))
        tick()
    ibm.hold(None)
    made = Measure("kill -9 → cancel request", "ms", values, "sooner than bare; ≥ 100 × faster than textbook")
    median, tail = made.median() / made.median("bare"), made.tail() / made.tail("bare")
    faster = made.median("textbook") / made.median()
    within = sum(value <= 100 for value in values[OURS])
    made.notes.append(f"within 100 ms: {within} of {len(values[OURS])}; the worst {max(values[OURS]):.0f} ms")
    return made.judge(
        f"{median:.2f} × bare, 99 %: {tail:.2f} ×; {faster:.0f} × faster than textbook",
        is_met=median < 1 and tail < 1 and faster >= 100,
    )


def portable(ibm: local.Service, folder: Path, tries: int, chance: random.Random) -> Measure:
    """Milliseconds from the kill to the arrival of the cancel request, without what only Linux has, as on a Mac.

    There is no kqueue here, as a Mac has it. So half of the deaths are those that only the look once a second finds.
    """
    ibm.hold("queued")
    closes = "qx_supervisor, the driver's connection closes"
    programs = [(OURS, HELD_OPEN), (closes, RUNS)] * max(1, tries // 2)
    values: dict[str, list[float]] = {OURS: [], closes: []}
    for whose, code in programs:
        values[whose].append(_kill(ibm, folder, code, chance, watched=True, variables={"QX_PORTABLE": "1"}))
        tick()
    ibm.hold(None)
    made = Measure("kill -9 → cancel request, without what only Linux has", "ms", values, "≤ 1.5 s")
    worst = max(max(each) for each in values.values())
    return made.judge(f"the worst: {worst / 1000:.2f} s", is_met=worst <= 1500)


def _kill(
    ibm: local.Service,
    folder: Path,
    code: str,
    chance: random.Random,
    *,
    watched: bool,
    variables: dict[str, str] | None = None,
) -> float:
    after = ibm.cursor()
    with started(ibm, code, folder, variables=variables) as driver, contextlib.ExitStack() as children:
        job, *pids = driver.line()
        for pid in map(int, pids):
            children.callback(os.kill, pid, signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.3))  # at any time after its id is known
        killed = time.monotonic_ns()
        driver.process.kill()
        driver.process.wait()
        arrived, *more = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", after=after)
        assert not more, "cancelled twice"
        ibm.wait_job(job, "Cancelled")
        if watched:
            ibm.wait_for("GET", "/api/v1/jobs", after=after, answered=True)  # its watcher has nothing more
    return (arrived.arrived - killed) / 1e6


def terminate_to_proof(ibm: local.Service, folder: Path, tries: int, chance: random.Random) -> Measure:
    """Milliseconds from a SIGTERM to a raised `Interrupted` whose cancel is confirmed."""
    ibm.hold("queued")
    values = []
    for _ in range(tries):
        with started(ibm, RUNS, folder) as driver:
            driver.line()
            time.sleep(chance.uniform(0, 0.3))
            sent = time.monotonic_ns()
            driver.process.terminate()
            raised, cancel = driver.line()
            assert cancel == "confirmed", cancel
            values.append((int(raised) - sent) / 1e6)
        tick()
    ibm.hold(None)
    made = Measure("SIGTERM → cancel confirmed, Interrupted raised", "ms", {OURS: values}, "≤ 100 ms")
    return made.judge("", is_met=made.median() <= 100)


def watcher_to_watcher(ibm: local.Service, folder: Path, tries: int) -> Measure:
    """Milliseconds from a watcher's death to another one that knows of the run."""
    ibm.hold("queued")
    with started(ibm, RELAUNCHED, folder, tries) as driver:
        values = [float(driver.line()[0]) for _ in range(tries)]
        driver.process.wait()
    ibm.hold(None)
    made = Measure("watcher killed → the next one knows of the run", "ms", {OURS: values}, "≤ 500 ms")
    return made.judge("", is_met=made.median() <= 500)
