"""Pictures of the panels, as they look in a run that is queued and in one that is done."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from qiskit import QuantumCircuit
from rich.console import Console
from rich.text import Text

from qx_supervisor import Status, local, run
from qx_supervisor.panel.notebook import as_html
from qx_supervisor.panel.terminal import block, summary
from qx_supervisor.panel.view import View

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--window-size=1000,430",
    "--force-device-scale-factor=2",
]

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: flex; font-family: sans-serif }}
div.half {{ width: 50%; padding: 14px; box-sizing: border-box; height: 430px }}
.light {{ background: #fff; color: #222 }} .dark {{ background: #111; color: #eee }}
.dark a {{ color: #8ab4f8 }}
</style><div class="half light">{queued}{done}</div><div class="half dark">{queued}{done}</div>"""


class Clock:
    """Seconds since the epoch: some minutes later, as in a queue."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The seconds."""
        return self.now


def views() -> tuple[View, View]:
    """A run that is queued, and the same one done."""
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
    made = []
    for state in ("queued", "done"):
        clock = Clock()
        view = View("Ctrl-C cancels", clock=clock)
        for status in seen:
            clock.now += 7  # what is new on a real service takes its time
            view.see(status)
            if status.state == state and (status.queue_position or state == "done"):
                break
        clock.now += 754
        made.append(view)
    made[1].end(result)
    return made[0], made[1]


def on_a_terminal(queued: View, done: View) -> str:
    """The picture for terminals, as SVG."""
    console = Console(record=True, width=96, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text("$ python bell.py", style="bold"))
    console.print(block(queued))
    console.print(Text("\n… and when it is done:\n", style="dim italic"))
    console.print(summary(done, with_results=True))
    svg = console.export_svg(title="qx_supervisor")
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)  # nothing is fetched to look at it
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def draw(folder: Path) -> None:
    """Write the pictures."""
    queued, done = views()
    (folder / "panel.svg").write_text(on_a_terminal(queued, done))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("docs/panel.svg is made; notebook.png needs Chromium (on Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch, "page.html")
        html = as_html(queued).replace("Ctrl-C", "interrupting the kernel")
        page.write_text(PAGE.format(queued=html, done=as_html(done)))
        options = [f"--user-data-dir={scratch}/profile", f"--screenshot={folder / 'notebook.png'}"]
        subprocess.run([chromium, *CHROMIUM, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
