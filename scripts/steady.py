"""Runs the tests again and again, and prints what came of each run, as a table: a test that fails now and then lies.

A busy run has a process beside it for every core that does nothing but count, at the same priority. In a delayed run
the threads of this project pause at random, in every process that the tests start: see delayed_process.py.
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

from every_process import hooked

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


@contextlib.contextmanager
def delayed() -> Iterator[dict[str, str]]:
    """Have threads delayed for the time of a block; yields the environment for the tests."""
    with tempfile.TemporaryDirectory(prefix="qx-delayed-") as folder:
        Path(folder).chmod(0o755)  # drivers of other users are delayed too
        with hooked(folder, "delayed_process.delay()") as environment:
            yield environment


def run(arguments: list[str], output: Path, environment: dict[str, str] | None = None) -> str:
    """Run the tests once; returns the rest of a line of the table."""
    with output.open("w") as file:
        done = subprocess.run(
            [COMMAND, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
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
    parser.add_argument("--delayed", type=int, default=0, metavar="N", help="so many with threads that pause")
    parser.add_argument("arguments", nargs="*", help="for scripts/test, after a --")
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    folder = Path(tempfile.mkdtemp(prefix="qx-steady-"))
    words = " ".join(["scripts/test", *asked.arguments])
    print(f"{datetime.date.today()}, `{words}`, {cores} cores, Python {sys.version.split()[0]}; output in {folder}\n")
    print("| run | beside it | passed | failed | skipped | wall time | CPU time |\n|---|---|---|---|---|---|---|")
    kinds = ["nothing"] * asked.quiet + ["busy cores"] * asked.busy + ["delays"] * asked.delayed
    for number, kind in enumerate(kinds, 1):
        with contextlib.ExitStack() as stack:
            environment = stack.enter_context(delayed()) if kind == "delays" else None
            stack.enter_context(busy(cores if kind == "busy cores" else 0))
            rest = run(asked.arguments, folder / f"run{number}.txt", environment)
        print(f"| {number} | {kind} | {rest}", flush=True)


if __name__ == "__main__":
    main()
