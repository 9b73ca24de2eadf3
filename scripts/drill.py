"""The drill: kills real drivers in every way and at every stage, and counts what was left behind.

Each row of the table is a fault. Each try of it is a driver, a process of its own with a watcher of its own, on the
embedded service. When all watchers of a row have ended, the service is asked what became of the jobs. Beside all that
another driver, the control, runs job after job: no request to cancel may ever reach one of its jobs.

Random are the instants; `--seed` repeats them, as far as a machine under load repeats anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drill_rows import (
    budgets,
    deaths,
    faults,
    instances,
    keys,
    kills,
    leases,
    node,
    places,
    several,
    slow_ends,
    trouble,
)
from drill_rows.judge import Totals, total
from drill_rows.lane import Lane, Stopped, make_circuit
from drill_rows.round import try_row
from drill_rows.row import Row
from drill_rows.table import table

WINDOW = 2.5
"""The watchers' sweep window here, in seconds."""

CHUNK = 10
"""Tries of a row that a lane makes before it waits for their watchers."""

ROWS: list[Row] = [
    *kills.ROWS,
    *keys.ROWS,
    *several.ROWS,
    *deaths.ROWS,
    *slow_ends.ROWS,
    *node.ROWS,
    *places.ROWS,
    *faults.ROWS,
    *instances.ROWS,
    *trouble.ROWS,
    *leases.ROWS,
    *budgets.ROWS,
]

CONTROL = Row("a live driver throughout", "every job completes and is never asked to stop", lambda _: None)


def shares(rows: Sequence[Row], tries: int) -> dict[str, int]:
    """How many tries each row gets, by weight; rounded up, so one at least."""
    weight = sum(row.weight for row in rows)
    return {row.name: min(math.ceil(tries * row.weight / weight), row.most or tries) for row in rows}


class Drill:
    """A drill under way.

    Args:
        rows: The rows that can be tried here.
        tries: How many tries each gets, by its name.
        lanes: How many tries go on at a time.
        seed: Of what is random.
        folder: An empty directory.
    """

    def __init__(self, rows: Sequence[Row], tries: dict[str, int], lanes: int, seed: int, folder: Path) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._left = tries.copy()
        # In any order, so that rows of waiting and rows of work are done side by side.
        chunks = [(row, part) for row in rows for part in _parts(range(tries[row.name]))]
        random.Random(seed).shuffle(chunks)
        self._chunks = iter(chunks)
        self._began = time.monotonic()
        self.totals = {row.name: Totals() for row in rows}
        self.control = Totals()
        self.lanes: list[Lane] = []
        self.failures: list[BaseException] = []
        circuit = folder / "circuit.qpy"
        try:
            for number in range(lanes):
                (folder / str(number)).mkdir()
                self.lanes.append(Lane(number, folder / str(number), circuit, WINDOW))
            make_circuit(circuit, self.lanes[0].ibm)
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Try all rows."""
        threads = [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in self.lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
                    if self.failures:
                        raise self.failures[0]
        except BaseException:
            for lane in self.lanes:
                lane.stop()
            for thread in threads:
                thread.join(20)
            raise

    def close(self) -> None:
        """Leave nothing behind."""
        for lane in self.lanes:
            lane.close()

    def _work(self, lane: Lane) -> None:
        try:
            lane.begin()
            while (chunk := self._next()) is not None:
                row, numbers = chunk
                self._add(row, try_row(lane, row, [f"{self._seed}/{row.name}/{number}" for number in numbers]))
            seen = lane.stop_control()
            with self._lock:
                self.control.add(seen)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - the main thread ends the drill with it
            self.failures.append(error)

    def _next(self) -> tuple[Row, range] | None:
        with self._lock:
            return next(self._chunks, None)

    def _add(self, row: Row, totals: Totals) -> None:
        with self._lock:
            self.totals[row.name] = sofar = total([self.totals[row.name], totals])
            self._left[row.name] -= totals.tries
            if not self._left[row.name]:
                done = sum(not left for left in self._left.values())
                word = "ok" if sofar.is_good else f"NOT ZERO: {sofar.troubles}"
                head = f"{time.monotonic() - self._began:6.0f} s  {done}/{len(self._left)}"
                print(f"{head}  {row.name}: {sofar.tries} tries, {word}", file=sys.stderr)


def _parts(numbers: range) -> list[range]:
    return [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]


def machine() -> str:
    """What the numbers were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__)
    parser.add_argument("--tries", type=int, default=200, help="how many in all (200; the long form is 2000)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only rows whose name contains this, or this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=3 * (os.cpu_count() or 1), help="how many tries at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    texts = [text.lower() for text in options.only or [""]]
    chosen = [row for row in ROWS if any(text in row.name.lower() for text in texts)]
    if not chosen:
        parser.error(f"no row's name contains that; there are: {'; '.join(row.name for row in ROWS)}")
    obstacles = {row.name: obstacle for row in chosen if (obstacle := row.obstacle())}
    rows = [row for row in chosen if row.name not in obstacles]
    tries = shares(rows, options.tries) if rows else {}
    lanes = max(1, min(options.lanes, sum(tries.values())))
    began = time.monotonic()
    found, control = _drill(rows, tries, lanes, options.seed) if rows else ({}, Totals())
    seconds = time.monotonic() - began
    results = [(row, found.get(row.name, Totals()), obstacles.get(row.name, "")) for row in chosen]
    results.append((CONTROL, control, ""))
    everything = total(totals for _, totals, _ in results[:-1])
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    print(
        f"{today}; {machine()}; {everything.tries} tries in {seconds:.0f} s, {lanes} at a time, seed {options.seed}.\n"
        f"The watchers' sweep window is {WINDOW:g} s here instead of 120; no delay in the drill is longer.\n"
    )
    print(table(results))
    if everything.deaths:
        median = statistics.median(everything.deaths)
        print(f"\nEach time includes what the kernel needs to end a killed driver: {median:.1f} ms in the median.")
    if options.json:
        options.json.write_text(json.dumps(_report(results, today, seconds, options), indent=1))
    return 0 if all(totals.is_good for _, totals, _ in results) else 1


def _drill(rows: Sequence[Row], tries: dict[str, int], lanes: int, seed: int) -> tuple[dict[str, Totals], Totals]:
    """Drill; returns what each row has come to, by its name, and the control."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="qx-drill-") as folder:
            drill = Drill(rows, tries, lanes, seed, Path(folder))
            try:
                drill.run()
            finally:
                drill.close()
            return drill.totals, drill.control
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(results: list[tuple[Row, Totals, str]], today: str, seconds: float, options: Any) -> dict[str, Any]:
    return {
        "date": today,
        "machine": machine(),
        "seconds": seconds,
        "seed": options.seed,
        "sweep_window": WINDOW,
        "rows": [
            {"fault": row.name, "expected": row.expected, "obstacle": obstacle, **asdict(totals)}
            for row, totals, obstacle in results
        ],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
