"""From the death of a driver to the cancel of its job, from a SIGTERM to its proof, from watcher to watcher."""

from __future__ import annotations

import os
import random
import select
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


def kill_to_cancel(ibm: local.Service, folder: Path, tries: int, chance: random.Random) -> list[Measure]:
    """Milliseconds from the kill to the arrival of the cancel request, by the service's journal.

    And from the moment at which anybody can know of it: first the kernel takes the driver's memory apart.
    """
    ibm.hold("queued")
    programs = {"bare": (BARE, tries // 4), "textbook": (TEXTBOOK, tries // 16), OURS: (RUNS, tries)}
    values: dict[str, list[float]] = {whose: [] for whose in programs}
    since_seen: dict[str, list[float]] = {whose: [] for whose in programs}
    # In turns: what else the machine does meets all of them.
    turns = [whose for whose, (_, count) in programs.items() for _ in range(max(1, count))]
    chance.shuffle(turns)
    for whose in turns:
        whole, part = _kill(ibm, folder, programs[whose][0], chance, watched=whose == OURS)
        values[whose].append(whole)
        since_seen[whose].append(part)
        tick()
    ibm.hold(None)
    made = Measure("kill -9 → cancel request", "ms", values, "≤ 2.5 × bare, 99 % ≤ 10 ×; ≥ 100 × faster than textbook")
    median, tail = made.median() / made.median("bare"), made.tail() / made.tail("bare")
    faster = made.median("textbook") / made.median()
    within = sum(value <= 100 for value in values[OURS])
    made.notes.append(f"within 100 ms: {within} of {len(values[OURS])}; the worst {max(values[OURS]):.0f} ms")
    made.judge(
        f"{median:.2f} × bare, 99 %: {tail:.2f} ×; {faster:.0f} × faster than textbook",
        is_met=median <= 2.5 and tail <= 10 and faster >= 100,
    )
    part_of_it = Measure("of these, since the kernel told of the death", "ms", since_seen)
    part_of_it.verdict = (
        f"{part_of_it.median('textbook') / part_of_it.median():.0f} × faster than textbook, "
        f"{part_of_it.median() - part_of_it.median('bare'):+.1f} ms beside bare"
    )
    return [made, part_of_it]


def _kill(ibm: local.Service, folder: Path, code: str, chance: random.Random, *, watched: bool) -> tuple[float, float]:
    after = ibm.cursor()
    with started(ibm, code, folder) as driver:
        [job] = driver.line()
        pidfd = os.pidfd_open(driver.process.pid)
        time.sleep(chance.uniform(0, 0.3))  # at any time after its id is known
        killed = time.monotonic_ns()
        driver.process.kill()
        select.select([pidfd], [], [])
        seen = time.monotonic_ns()
        os.close(pidfd)
        driver.process.wait()
        arrived, *more = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", after=after)
        assert not more, "cancelled twice"
        ibm.wait_job(job, "Cancelled")
        if watched:
            ibm.wait_for("GET", "/api/v1/jobs", after=after, answered=True)  # its watcher has nothing more
    return (arrived.arrived - killed) / 1e6, (arrived.arrived - seen) / 1e6


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
