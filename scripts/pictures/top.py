"""The table of `qx-supervisor top`.

Real drivers on the embedded service, one of which has been killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qx_supervisor import local
from qx_supervisor.cli.snapshot import LedgerReader, ServiceReader
from qx_supervisor.cli.top_app import Top

SIZE = (104, 22)

DRIVER = """
import os, sys, threading
from qiskit import QuantumCircuit
from qx_supervisor import local, submit
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
ibm = local.Service(*map(int, os.environ["SERVICE"].split()))
queued = threading.Semaphore(0)
def note(status):
    if status.state in ("queued", "running"):
        queued.release()
backend = ibm.service().backend("ibm_brisbane")
runs = [submit(circuit, backend, shots=4096, label=label, on_status=note) for label in sys.argv[1:]]
for run in runs:
    queued.acquire()
print("queued", flush=True)
threading.Event().wait()
"""

PROGRAMS = {"vqe.py": ["vqe step 17"], "sweep.py": ["angle 0.1", "angle 0.2", "angle 0.3"], "night.py": ["calibration"]}
KILLED = "night.py"


def draw(folder: Path) -> list[Path]:
    """Draw it.

    Args:
        folder: Where the picture is put.

    Returns:
        The pictures' paths.
    """
    made = folder / "top.svg"
    # Watchers may write there still when all else is over.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        _environment(Path(scratch) / "state"),
        local.start() as ibm,
    ):
        ibm.tell(qpu_seconds_estimated=4.25)
        ibm.hold("queued")
        with _drivers(ibm, Path(scratch)) as drivers:
            made.write_text(asyncio.run(_picture(ibm, drivers[KILLED])), encoding="utf-8")
        ibm.wait_idle()  # the watchers have cancelled
    return [made]


@contextlib.contextmanager
def _environment(state: Path) -> Iterator[None]:
    before = os.environ.get("QX_STATE_DIR")
    os.environ["QX_STATE_DIR"] = str(state)
    try:
        yield
    finally:
        if before is None:
            del os.environ["QX_STATE_DIR"]
        else:
            os.environ["QX_STATE_DIR"] = before


@contextlib.contextmanager
def _drivers(ibm: local.Service, folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The programs, once their jobs are queued; at the end they are killed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SERVICE": f"{ibm.pid} {ibm.port}"}
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, labels in PROGRAMS.items():
            (folder / name).write_text(DRIVER)
            command = ["python", name, *labels]  # as one types it: the command line is in the picture
            started[name] = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE)
        for each in started.values():
            assert each.stdout is not None
            if each.stdout.readline() != b"queued\n":
                raise RuntimeError("a driver has not submitted its jobs")
        yield started
    finally:
        for each in started.values():
            each.kill()
            each.communicate()


async def _picture(ibm: local.Service, victim: subprocess.Popen[bytes]) -> str:
    """The screen, once the killed driver's job is cancelled."""
    service = ServiceReader(ibm.service)
    app = Top(LedgerReader(all_hosts=False), service, service, interval=1.0, place=os.uname().nodename)
    async with app.run_test(size=SIZE) as pilot:
        jobs = sum(map(len, PROGRAMS.values()))
        await _until(app, lambda text: text.count(" live ") >= jobs and text.count("queued") >= jobs)
        victim.send_signal(signal.SIGKILL)
        await _until(app, lambda text: " cancelled " in text)
        await pilot.press("d")
        await _until(app, lambda text: "command" in text)
        return app.export_screenshot(title="qx-supervisor top")


async def _until(app: Top, holds: Callable[[str], object]) -> None:
    for _ in range(600):
        words = re.sub(r"<[^>]*>", "", app.export_screenshot()).replace("&#160;", " ")
        if holds(words):
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"that is not shown, but: {words}")
