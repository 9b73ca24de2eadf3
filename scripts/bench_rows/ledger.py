"""What a long ledger costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from qx_supervisor import local
from qx_supervisor.ours import ledger, place

from .overhead import later
from .programs import environment
from .table import OURS, Measure

EMPTY = f"{OURS}, empty ledger"


def long_ledger(ibm: local.Service, folder: Path, rows: int, tries: int) -> list[Measure]:
    """Milliseconds from a later call until its POST arrives, and seconds of `ps`, beside so many old rows."""
    short = folder / "short"
    long = folder / "long"
    short.mkdir()
    long.mkdir()
    _fill(long / "state", rows)
    calls: dict[str, list[float]] = {EMPTY: [], OURS: []}
    for _ in range(3):  # in turns
        calls[EMPTY] += later(ibm, short, tries // 3)[OURS]
        calls[OURS] += later(ibm, long, tries // 3)[OURS]
    listings: dict[str, list[float]] = {EMPTY: [], OURS: []}
    for _ in range(10):
        listings[EMPTY].append(_list(short / "state"))
        listings[OURS].append(_list(long / "state"))
    arming = Measure(f"later run: call → POST, {rows:,} old rows in the ledger", "ms", calls, "≤ 2 ms more")
    more = arming.median() - arming.median(EMPTY)
    ps = Measure(f"qx-supervisor ps, {rows:,} old rows", "s", listings, "≤ 0.5 s")
    return [
        arming.judge(f"{more:+.2f} ms", is_met=more <= 2),
        ps.judge(f"{ps.median() / ps.median(EMPTY):.2f} ×", is_met=ps.median() <= 0.5),
    ]


def _fill(directory: Path, rows: int) -> None:
    with ledger.Ledger.open(directory) as book, book.batch():
        here = place.here()
        for number in range(rows):
            name = f"old-{number}"
            book.intent(ledger.Row(run=name, place=here, pid=1, start_ticks=1, tag=f"qxs-{name}", endpoint="https://x"))
            book.job(name, f"job-{number}")
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
