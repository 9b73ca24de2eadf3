"""The panel in a terminal.

One run has a block that says all there is to know, and a summary that stays. Several runs share a table: how many are
done, how long the others will take, and the runs themselves by label and key, each of which leaves one line when it has
ended. The narrow one is 40 columns wide.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import re
import sys
from pathlib import Path

from qiskit import QuantumCircuit
from rich.console import Console
from rich.text import Text

from qx_supervisor import RunResult, Status, Timeline, local, run
from qx_supervisor.job_cost import JobCost
from qx_supervisor.panel.batch import Batch
from qx_supervisor.panel.terminal import block, ended, summary, table
from qx_supervisor.panel.view import View
from qx_supervisor.watcher.facts import Figures

RUNS = 20

TIMELINE = Timeline(transpiled=2.0, queued=762.0, ran=8.0)
"""What is new on a real service takes its time."""


class Clock:
    """Seconds since the epoch: some minutes later, as in a queue."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The seconds."""
        return self.now


@functools.cache
def recorded() -> tuple[list[Status], RunResult]:
    """What a real run on the embedded service told, and its result, as if it had taken as long as on hardware."""
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    seen: list[Status] = []
    with local.start() as ibm:
        service = ibm.service()
        ibm.tell(queue_position=3, starts_in=1500, qpu_seconds_estimated=4.1, qpu_seconds=3.2)
        ibm.hold("queued")

        def tell(status: Status) -> None:
            seen.append(status)
            if status.queue_position is not None:
                ibm.hold(None)

        # A panel, so that the place in the queue and the cost are asked for; it writes to nowhere.
        errors, sys.stderr = sys.stderr, io.StringIO()
        try:
            result = run(circuit, "ibm_brisbane", service=service, shots=4096, on_status=tell, panel="plain")
        finally:
            sys.stderr = errors
    cost = JobCost(Figures(result.qpu_seconds_estimated, result.qpu_seconds))
    return seen, RunResult(result.primitive_result, result.job_id, result.backend, cost, seen=TIMELINE)


def views(hint: str = "Ctrl-C cancels") -> tuple[View, View]:
    """A run that is queued, and the same one done.

    Args:
        hint: How it is cancelled.
    """
    seen, result = recorded()
    made = []
    for state in ("queued", "done"):
        clock = Clock()
        view = View(hint, clock=clock)
        took = {"transpiling": TIMELINE.transpiled, "queued": TIMELINE.queued, "fetching results": TIMELINE.ran}
        for status in seen:  # a state may be told of again, and a short one not at all
            view.see(status)
            clock.now += took.pop(status.state, None) or 0.0
            if status.state == state and (status.queue_position or state == "done"):
                break
        made.append(view)
    made[1].end(result)
    return made[0], made[1]


def batch() -> tuple[Batch, list[View], list[View]]:
    """Twenty runs like that one: their batch, those that are done, and those that are not."""
    seen, result = recorded()
    [queued] = [status for status in seen if status.state == "queued" and status.queue_position][:1]
    clock = Clock()
    together = Batch(clock, wall=clock)
    made = []
    for number in range(1, RUNS + 1):
        view = View("Ctrl-C cancels", clock=clock)
        job = hashlib.sha256(str(number).encode()).hexdigest()[:20]
        told = dataclasses.replace(queued, job_id=job, label=f"vqe step {number}", key=f"step-{number}", pubs=40)
        view.see(dataclasses.replace(told, queue_position=number, estimated_start=None))
        together.begin(view)
        made.append(view)
    clock.now = 300.0
    for view in made[:7]:
        clock.now += 21
        assert view.status is not None
        view.see(dataclasses.replace(view.status, state="done", qpu_seconds=3.2))
        view.end(result)
        together.end(view)
    running = made[7]
    assert running.status is not None
    running.see(dataclasses.replace(running.status, state="running", queue_position=None))
    clock.now += 6
    return together, made[:7], made[7:]


def one_run() -> str:
    """One run, as SVG."""
    queued, done = views()
    console = _console(96)
    console.print(Text("$ python bell.py", style="bold"))
    console.print(block(queued))
    console.print(Text("\n… and when it is done:\n", style="dim italic"))
    console.print(summary(done, with_results=True))
    return _svg(console)


def many_runs(columns: int, lines: int) -> str:
    """Twenty runs, as SVG.

    Args:
        columns: The terminal's width.
        lines: The room that the table has.
    """
    together, done, others = batch()
    console = _console(columns)
    console.print(Text("$ python vqe.py", style="bold"))
    for view in done:
        console.print(ended(view))
    console.print(table(others, lines, together))
    return _svg(console)


def _console(columns: int) -> Console:
    return Console(record=True, width=columns, file=io.StringIO(), color_system="truecolor", force_terminal=True)


def _svg(console: Console) -> str:
    svg = console.export_svg(title="qx_supervisor")
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)  # nothing is fetched to look at it
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def draw(folder: Path) -> list[Path]:
    """Draw the panels."""
    made = {"panel": one_run(), "panel-many": many_runs(96, 16), "panel-narrow": many_runs(40, 10)}
    for name, svg in made.items():
        (folder / f"{name}.svg").write_text(svg)
    return [folder / f"{name}.svg" for name in made]
