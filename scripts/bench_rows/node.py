"""What a node full of drivers costs: a watcher for each, or one for all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testkit.drivers import PRELUDE, Driver
from testkit.postgres import Missing, Server
from testkit.processes import wait_for_end
from testkit.watchers import titles
from testkit.zygote import Zygote

from qx_supervisor import local

from .programs import tick
from .table import OURS, Measure

BESIDE = f"{OURS}, a watcher each"

HELD = """
from qx_supervisor.link import link
def tell_size(*_):
    seen = link.inspect()
    say("size", seen["pid"], seen["pss_kb"])
signal.signal(signal.SIGUSR1, tell_size)
held = submit(isa(), backend(), shots=64, poll_interval=3600, on_status=tell)
while True:
    signal.pause()
"""

SETTLED_SECONDS = 5.0
"""After which a watcher has loaded what it loads in the background."""


@dataclass
class Seen:
    """What was measured of a node full of drivers."""

    watchers: int
    megabytes: float
    busy: float
    connections: int | None
    last_cancel: float
    cancels: int


def full_node(ibm: local.Service, folder: Path, number: int, seconds: float) -> list[Measure]:
    """So many drivers with one job each: their watchers' memory and CPU time, and the death of all at one moment."""
    with contextlib.ExitStack() as stack:
        server: Server | None = None
        with contextlib.suppress(Missing):
            server = Server()
            stack.callback(server.close)
        zygote = Zygote(ibm.port)
        stack.callback(zygote.close)
        seen = {}
        for whose, placement in ((BESIDE, "beside"), (OURS, "node")):
            with _environment(folder, placement, server) as state:
                seen[whose] = _measured(ibm, zygote, state, number, seconds, server)
            tick()
    ours = seen[OURS]
    each = f"{number} drivers on a node"
    memory = Measure(f"{each}: memory (PSS) of the watchers", "MB", {who: [s.megabytes] for who, s in seen.items()})
    memory.bar = "≤ 80 MB"
    share = {who: [100 * s.busy / seconds] for who, s in seen.items()}
    work = Measure(f"{each}: CPU of the idle watchers", "% of a core", share, "≤ 1 %")
    last = Measure(
        f"{each}, all killed at one moment → last cancel", "s", {who: [s.last_cancel] for who, s in seen.items()}
    )
    last.bar = "≤ 2 s, one cancel each"
    made = [
        memory.judge(f"{ours.watchers} watcher", is_met=ours.megabytes <= 80),
        work.judge("", is_met=share[OURS][0] <= 1),
        last.judge(
            f"{ours.cancels / number:.2f} cancels a job", is_met=ours.last_cancel <= 2 and ours.cancels == number
        ),
    ]
    if ours.connections is not None:
        open_ones = {who: [float(s.connections or 0)] for who, s in seen.items()}
        connections = Measure(f"{each}: connections to the shared ledger", "", open_ones, "≤ 2")
        made.append(connections.judge("", is_met=ours.connections <= 2))
    return made


@contextlib.contextmanager
def _environment(folder: Path, placement: str, server: Server | None) -> Iterator[Path]:
    """Have what is forked now use a ledger, and a runtime directory, of its own."""
    before = dict(os.environ)
    runtime = tempfile.mkdtemp(prefix="qx-node-")
    state = folder / "state"
    os.environ |= {"QX_STATE_DIR": str(state), "QX_WATCHER_PLACEMENT": placement, "XDG_RUNTIME_DIR": runtime}
    if server is not None:
        os.environ["QX_LEDGER"] = server.database()
    try:
        yield state
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(runtime)


def _measured(
    ibm: local.Service, zygote: Zygote, state: Path, number: int, seconds: float, server: Server | None
) -> Seen:
    ibm.reset()
    ibm.hold("queued")
    script = state.parent / "held.py"
    linger = "from qx_supervisor import node_launch\nnode_launch.LINGER_SECONDS = 0.5\n"
    script.write_text(PRELUDE.format(pid=ibm.pid, port=ibm.port) + linger + HELD)
    drivers = [Driver(zygote.fork(script)) for _ in range(number)]
    try:
        for driver in drivers:
            driver.queued()
        watchers = [process for process, title in titles() if title.is_in(state)]
        time.sleep(SETTLED_SECONDS)
        before = sum(_spent(process.pid) for process in watchers)
        time.sleep(seconds)
        busy = sum(_spent(process.pid) for process in watchers) - before
        sizes = {}
        for driver in drivers[: None if len(watchers) > 1 else 1]:
            driver.send(signal.SIGUSR1)
            pid, size = driver.line("size ")
            sizes[pid] = int(size) / 1024
        connections = None if server is None else _connections(os.environ["QX_LEDGER"])
        after = ibm.cursor()
        killed = time.monotonic_ns()
        for driver in drivers:
            driver.send(signal.SIGKILL)
        ibm.wait_idle(timeout=120)
        for process in watchers:
            wait_for_end(process)
        cancels = ibm.journal(path="/api/v1/jobs/*/cancel", after=after)
        last = (max(entry.arrived for entry in cancels) - killed) / 1e9
        return Seen(len(watchers), sum(sizes.values()), busy, connections, last, len(cancels))
    finally:
        for driver in drivers:
            driver.clear()
        ibm.hold(None)


def _spent(pid: int) -> float:
    """The CPU time of a process so far, in seconds: proc(5), schedstat."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e9


def _connections(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'qx-supervisor'"
        [(count,)] = connection.execute(asked).fetchall()
    return int(count)
