"""What a long ledger costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from qx_supervisor import local
from qx_supervisor.watcher import host_identity, ledger

from .programs import environment, started
from .table import OURS, Measure

EMPTY = f"{OURS}, empty ledger"

ARMS = """
import uuid
from qx_supervisor import submit
from qx_supervisor.link import Guarded, link
held = submit(make_isa(), "ibm_brisbane", service=service, poll_interval=3600)
while held.status().state != "queued":
    time.sleep(0.01)
time.sleep(3)  # what is loaded in the background is loaded
[account] = link._armed
for _ in range(int(sys.argv[3])):
    run = uuid.uuid4().hex
    began = time.perf_counter()
    link.announce_early(Guarded(run, account, f"qxs-{run}", lambda report: None), None)()
    print(1e3 * (time.perf_counter() - began), flush=True)
    link.stand_down(run)
    time.sleep(0.02)
held.cancel()
"""


def long_ledger(ibm: local.Service, folder: Path, rows: int, tries: int) -> list[Measure]:
    """Milliseconds from an intent to its acknowledgement, and seconds of `ps`, beside so many old rows."""
    short = folder / "short"
    long = folder / "long"
    short.mkdir()
    long.mkdir()
    _fill(long / "state", rows)
    calls: dict[str, list[float]] = {EMPTY: [], OURS: []}
    for _ in range(3):  # in turns
        calls[EMPTY] += arm(ibm, short, tries // 3)
        calls[OURS] += arm(ibm, long, tries // 3)
    listings: dict[str, list[float]] = {EMPTY: [], OURS: []}
    for _ in range(10):
        listings[EMPTY].append(_list(short / "state"))
        listings[OURS].append(_list(long / "state"))
    arming = Measure(f"announcing a run, {rows:,} old rows in the ledger", "ms", calls, "≤ 2 ms more")
    more = arming.median() - arming.median(EMPTY)
    ps = Measure(f"qx-supervisor ps, {rows:,} old rows", "s", listings, "≤ 0.5 s")
    return [
        arming.judge(f"{more:+.2f} ms", is_met=more <= 2),
        ps.judge(f"{ps.median() / ps.median(EMPTY):.2f} ×", is_met=ps.median() <= 0.5),
    ]


def arm(ibm: local.Service, folder: Path, tries: int, variables: dict[str, str] | None = None) -> list[float]:
    """Milliseconds from an intent to its acknowledgement.

    Args:
        ibm: The service.
        folder: Where the ledger is kept.
        tries: How often.
        variables: More of the driver's environment.
    """
    ibm.hold("queued")
    with started(ibm, ARMS, folder, tries, variables=variables) as driver:
        values = [float(driver.line()[0]) for _ in range(tries)]
        driver.process.wait()
    ibm.hold(None)
    return values


def _fill(directory: Path, rows: int) -> None:
    with ledger.Ledger.open(directory) as book, book.batch():
        here = host_identity.this_host()
        for number in range(rows):
            name = f"old-{number}"
            book.write(
                ledger.Row(run=name, host_identity=here, pid=1, start_ticks=1, tag=f"qxs-{name}", endpoint="https://x")
            )
            book.job_outcome(name, f"job-{number}", "")
            book.finish(name, "done")


def _list(directory: Path) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "qx_supervisor", "ps"],
        env=environment(directory),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began
