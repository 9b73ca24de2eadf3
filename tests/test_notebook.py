"""A real Jupyter kernel: interrupted, restarted, killed, ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from conftest import DEADLINE, watchers_of
from drivers import wait_for_end
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop

CELL = """
from qiskit import QuantumCircuit
from qx_supervisor import run
from qx_supervisor.local.client import connect
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
result = run(circuit, "ibm_brisbane", service=connect({port}, "local-key"), shots=64)
sum(result.counts.values())
"""


@pytest.fixture(scope="module", autouse=True)
def event_loop() -> Iterator[None]:
    """The loop that the blocking client runs on; it would keep it open for the next call."""
    loop = ensure_event_loop()
    yield
    loop.close()


class Notebook:
    """A kernel, and what its cells said."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client
        self.text = ""

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.process.pid)

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a message of the kernel's."""
        while True:
            message = self.client.get_iopub_msg(timeout=DEADLINE)
            content = message["content"]
            self.text += content.get("text", "")
            if wanted(message):
                return dict(content)

    def job_in(self, state: str) -> str:
        """Wait for the line of the panel that says so; returns the job's id."""
        mark = f"qx: {state} · job "
        self.wait(lambda _: mark in self.text)
        return self.text.split(mark)[1].split()[0]

    def idle(self) -> None:
        """Wait until the cell is over."""
        self.wait(lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle")


@pytest.fixture
def notebook(tmp_path, monkeypatch) -> Iterator[Notebook]:
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    manager = KernelManager(kernel_name="python3")
    # This interpreter, and not one that happens to be registered on the machine.
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=DEADLINE)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy()


def test_a_cell_to_its_result(ibm, notebook):
    notebook.client.execute(CELL.format(port=ibm.port))
    shown = notebook.wait(lambda m: m["msg_type"] == "execute_result")
    assert shown["data"]["text/plain"] == "64"
    assert "watched by pid" in notebook.text


def test_interrupted(ibm, notebook):
    """The job is cancelled once, the cell ends as by any interrupt, and the kernel is as good as before."""
    ibm.hold("queued")
    notebook.client.execute(CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    notebook.manager.interrupt_kernel()
    error = notebook.wait(lambda m: m["msg_type"] == "error")
    assert error["ename"] == "Interrupted"
    assert job in error["evalue"]
    assert ibm.job(job).status == "Cancelled"
    assert ibm.job(job).cancel_requests == 1
    notebook.idle()
    ibm.hold(None)
    notebook.client.execute("6 * 7")
    assert notebook.wait(lambda m: m["msg_type"] == "execute_result")["data"]["text/plain"] == "42"


@pytest.mark.parametrize("now", [True, False], ids=["now", "asked first"])
def test_restarted(ibm, notebook, now):
    ibm.hold("queued")
    notebook.client.execute(CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    notebook.manager.restart_kernel(now=now)
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_killed(ibm, notebook):
    ibm.hold("queued")
    notebook.client.execute(CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    (watcher,) = watchers_of(notebook.pid)
    psutil.Process(notebook.pid).kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


def test_terminated(ibm, notebook):
    """IPython swallows a `SystemExit`; who sends a SIGTERM wants the kernel gone, and so it goes."""
    ibm.hold("queued")
    notebook.client.execute(CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    kernel = psutil.Process(notebook.pid)
    kernel.send_signal(signal.SIGTERM)
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(kernel)
