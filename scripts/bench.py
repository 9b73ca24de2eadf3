"""Measures this package beside what people would do instead, in one run, and prints a table.

Times between processes are taken by the machine's monotonic clock: when a request arrived, the embedded service's
journal says. The baselines are written for this alone:

bare             a process that holds a pidfd of the driver and an open connection, and sends a prepared request
textbook         a forked child that polls `psutil.pid_exists` once a second and cancels with the official client
official client  qiskit-ibm-runtime by itself, with no watcher
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench_rows import distance, idle, kills, ledger, many, node, overhead, shared, slow_ends, start
from bench_rows.table import Measure, NotHere, lines
from testkit.postgres import Missing
from testkit.processes import wait_for_end
from testkit.watchers import titles

from qx_supervisor import local

Work = Callable[[local.Service, Path], list[Measure]]


def plan(tries: int, chance: random.Random) -> dict[str, Work]:
    """What is measured, by name; so many tries of what is quick enough, and fewer of what is not."""
    few, some, half = max(1, tries // 60), max(2, tries // 16), max(2, tries // 2)
    is_long = tries >= 20
    return {
        "kill": lambda ibm, folder: [kills.kill_to_cancel(ibm, folder, tries, chance)],
        "portable": lambda ibm, folder: [kills.portable(ibm, folder, some, chance)],
        "memory": lambda ibm, folder: slow_ends.big_drivers(
            ibm, folder, (0, 1, 8) if is_long else (0, 1), half // 5 if is_long else 2, chance
        ),
        "core": lambda ibm, folder: [slow_ends.core_dump(ibm, folder, 2 if is_long else 1, few, chance)],
        "stuck": lambda ibm, folder: [slow_ends.stuck_driver(ibm, folder, some, chance)],
        "terminate": lambda ibm, folder: [kills.terminate_to_proof(ibm, folder, some, chance)],
        "distance": lambda ibm, folder: [distance.kill_to_cancel(ibm, folder, some)],
        "relaunch": lambda ibm, folder: [kills.watcher_to_watcher(ibm, folder, few)],
        "run": lambda ibm, folder: [overhead.whole_run(ibm, folder, some)],
        "vqe": lambda ibm, folder: [overhead.iteration(ibm, folder, half)],
        "first": lambda ibm, folder: [
            overhead.first_run(ibm, folder, some, transpiles=transpiles) for transpiles in (True, False)
        ],
        "later": lambda ibm, folder: [overhead.later_runs(ibm, folder, half)],
        "start": lambda ibm, folder: start.together(ibm, folder, *((100, 2) if is_long else (2, 1))),
        "import": lambda _ibm, _folder: overhead.imports(some),
        "idle": lambda ibm, folder: idle.idle_watcher(ibm, folder, 60.0 if is_long else 2.0),
        "flight": lambda ibm, folder: many.in_flight(ibm, folder, (1, 10, 100, 1000) if is_long else (1, 20)),
        "death": lambda ibm, folder: [
            many.death(ibm, folder, 1000 if is_long else 20, limited=limited) for limited in (False, True)
        ],
        "ledger": lambda ibm, folder: ledger.long_ledger(ibm, folder, 100_000 if is_long else 100, max(3, tries // 3)),
        "node": lambda ibm, folder: node.full_node(ibm, folder, *((100, 60.0) if is_long else (4, 1.0))),
        "arming": lambda ibm, folder: shared.arming(ibm, folder, max(3, tries)),
        "renewals": lambda _ibm, _folder: shared.renewals(*((1000, 10, 10.0) if is_long else (16, 2, 0.5))),
        "reapers": lambda ibm, folder: shared.reaped(ibm, folder, *((10_000, (1, 2, 4)) if is_long else (20, (1, 2)))),
    }


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=200, help="kills of our own; what takes longer gets fewer")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all values to this file too")
    asked = parser.parse_args()
    planned = plan(asked.tries, random.Random(asked.seed))
    unknown = set(asked.only or ()) - planned.keys()
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(planned)}")
    measured: list[Measure] = []
    for name, work in planned.items():
        if asked.only and name not in asked.only:
            continue
        print(f"\n{name} ", end="", file=sys.stderr, flush=True)
        with local.start() as ibm, tempfile.TemporaryDirectory() as folder:
            ibm.health()
            try:
                measured += work(ibm, Path(folder))
            except (Missing, NotHere) as missing:
                print(f"not measured: {missing}", end="", file=sys.stderr)
            # The service stays for those who are still to look whether a cancel has worked.
            for watcher, title in list(titles()):
                if title.is_in(f"{folder}/state"):
                    wait_for_end(watcher)
    print(file=sys.stderr)
    python = platform.python_version()
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {python}\n")
    print("\n".join(lines(measured)))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(measure) for measure in measured], indent=1))


if __name__ == "__main__":
    main()
