"""Runs the tests again and again, and prints what came of each run, as a table: a test that fails now and then lies.

A busy run has a process beside it for every core that does nothing but count, at the same priority.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMMAND = Path(__file__).resolve().with_name("test")

COUNT = "import itertools\nfor _ in itertools.count(): pass"

OUTCOMES = re.compile(r"(\d+) (passed|failed|errors?|skipped)")
COST = re.compile(r"^took (\d+) s, and (\d+) s of CPU", re.MULTILINE)


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many cores busy for the time of a block."""
    running = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(number)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def run(arguments: list[str], output: Path) -> str:
    """Run the tests once; returns the rest of a line of the table."""
    with output.open("w") as file:
        done = subprocess.run([COMMAND, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False)
    text = output.read_text()
    closing = next((line for line in reversed(text.splitlines()) if OUTCOMES.search(line)), "")
    found = {kind.rstrip("s"): int(count) for count, kind in OUTCOMES.findall(closing)}
    bad = found.get("failed", 0) + found.get("error", 0)
    cost = COST.search(text)
    wall, cpu = (f"{int(each):,} s" for each in cost.groups()) if cost else ("–", "–")
    verdict = "" if done.returncode == 0 else f" (exit status {done.returncode}: {output})"
    return f"{found.get('passed', 0):,} | {bad}{verdict} | {found.get('skipped', 0)} | {wall} | {cpu} |"


def main() -> None:
    """Run, and print a line after each run."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/steady", description=__doc__.splitlines()[0])
    parser.add_argument("--quiet", type=int, default=5, metavar="N", help="so many runs with nothing beside them")
    parser.add_argument("--busy", type=int, default=5, metavar="N", help="so many with all cores busy")
    parser.add_argument("arguments", nargs="*", help="for scripts/test, after a --")
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    folder = Path(tempfile.mkdtemp(prefix="qx-steady-"))
    words = " ".join(["scripts/test", *asked.arguments])
    print(f"{datetime.date.today()}, `{words}`, {cores} cores, Python {sys.version.split()[0]}; output in {folder}\n")
    print("| run | beside it | passed | failed | skipped | wall time | CPU time |\n|---|---|---|---|---|---|---|")
    kinds = [0] * asked.quiet + [cores] * asked.busy
    for number, others in enumerate(kinds, 1):
        with busy(others):
            rest = run(asked.arguments, folder / f"run{number}.txt")
        print(f"| {number} | {f'{others} busy processes' if others else 'nothing'} | {rest}", flush=True)


if __name__ == "__main__":
    main()
