"""A real Jupyter kernel: interrupted, restarted, killed, ended."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop
from testkit.processes import DEADLINE, Process, wait_for_end
from testkit.watchers import watchers_of

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
        self.shown: list[tuple[str, dict[str, Any]]] = []

    @property
    def kernel(self) -> Process:
        """The kernel's process as it is now: another one after a restart."""
        return Process(self.manager.provisioner.process.pid)

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a message of the kernel's."""
        while True:
            message = self.client.get_iopub_msg(timeout=DEADLINE)
            content = message["content"]
            self.text += content.get("text", "")
            if message["msg_type"] in ("display_data", "update_display_data"):
                self.shown.append((message["msg_type"], content))
                self.text += f"{content['data']['text/plain']}\n"
            if wanted(message):
                return dict(content)

    def job_in(self, state: str) -> str:
        """Wait until the card says so; returns the job's id."""
        line = re.compile(rf"^{state} as of .* · job (\w+)$", re.MULTILINE)
        self.wait(lambda _: line.search(self.text))
        return str(line.search(self.text)[1])

    def outputs(self, code: str) -> list[tuple[str, dict[str, Any]]]:
        """What a cell puts out, to its end."""
        found: list[tuple[str, dict[str, Any]]] = []
        request = self.client.execute(code)

        def is_over(message: dict[str, Any]) -> bool:
            content, kind = message["content"], message["msg_type"]
            if message["parent_header"].get("msg_id") != request:
                return False
            if kind in ("display_data", "update_display_data", "execute_result", "stream", "error"):
                found.append((kind, content))
            return kind == "status" and content["execution_state"] == "idle"

        self.wait(is_over)
        return found

    def restart(self) -> None:
        """Have Jupyter start another kernel, as by its button, and forget what the old one said."""
        self.manager.restart_kernel()
        self.client.wait_for_ready(timeout=DEADLINE)
        self.text = ""

    def idle(self) -> None:
        """Wait until the cell is over."""
        self.wait(lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle")


@pytest.fixture
def notebook(tmp_path, monkeypatch) -> Iterator[Notebook]:
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    # Not over TCP, whose ports others may have taken before the kernel has them.
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(tmp_path / "kernel"))
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
    """There is one output, which is kept up to date and says in the end how it went, also of a cell that ends in it."""
    ibm.tell(queue_position=2, qpu_seconds=1.5)
    ibm.hold("queued")
    patience = "from qx_supervisor import job_cost\njob_cost.WAIT_SECONDS = 60.0  # for the word what it cost\n"
    notebook.client.execute(patience + CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    notebook.wait(lambda _: "position 2" in notebook.shown[-1][1]["data"]["text/html"])
    html = notebook.shown[-1][1]["data"]["text/html"]
    assert re.search(r"queued</strong> <[^>]*>as of \d\d:\d\d:\d\d, \d{4}-\d\d-\d\d<", html)
    assert re.search(r"watched by pid \d+<", html)
    assert "While its kernel lives, it updates this card, and interrupting it cancels the job." in html
    ibm.hold(None)
    shown = notebook.wait(lambda m: m["msg_type"] == "execute_result")
    assert shown["data"]["text/plain"] == "64"
    kinds = [kind for kind, _ in notebook.shown]
    assert kinds[0] == "display_data"
    assert set(kinds[1:]) == {"update_display_data"}
    assert len({content["transient"]["display_id"] for _, content in notebook.shown}) == 1
    last = notebook.shown[-1][1]["data"]
    assert last["text/plain"].startswith(f"done · job {job} · ibm_brisbane · 64 shots · ")
    assert re.search(r" · QPU 1.5 s charged · as of [\d:]+, [\d-]+$", last["text/plain"])
    assert re.search(r"transpiled \S+ s, queued .+ s, ran \S+ s<", last["text/html"])
    assert job in last["text/html"]
    assert ">00<" in last["text/html"]
    assert ">11<" in last["text/html"]
    assert "While its kernel lives" not in last["text/html"]
    notebook.idle()
    notebook.shown.clear()
    once_more = f'run(circuit, "ibm_brisbane", service=connect({ibm.port}, "local-key"), shots=64, label="vqe 17")'
    assert [kind for kind, _ in notebook.outputs(once_more) if kind != "update_display_data"] == ["display_data"]
    [(kind, found)] = notebook.outputs("_")
    assert kind == "execute_result"
    assert "RunResult of 1 PUB</strong>" in found["data"]["text/html"]
    assert "vqe 17" in found["data"]["text/html"]


@pytest.mark.long
def test_a_saved_notebook(ibm, tmp_path, monkeypatch):
    """Executed as papermill and nbconvert do it: an output a cell, objects as HTML, and no secret anywhere."""
    import nbformat  # here: these take seconds, of every worker that collects the tests
    from nbclient import NotebookClient

    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    made = nbformat.v4.new_notebook()
    connect = f"service = connect({ibm.port}, 'a-secret-key')"
    cells = [
        f"{CELL.partition('result =')[0]}\nfrom qx_supervisor import submit, try_run\n{connect}",
        'result = run(circuit, "ibm_brisbane", service=service, shots=64)\nresult',
        'going = submit(circuit, "ibm_brisbane", service=service, shots=64, panel="notebook")\ngoing.result()\ngoing',
        'try_run(circuit, "ibm_nowhere", service=service)',
        'try_run(circuit, "ibm_brisbane", service=service, shots=64)',
        'try_run(circuit, "ibm_brisbane", service=service, shots=64, panel=None)',
        'submit(circuit, "ibm_brisbane", service=service, shots=64, label="vqe step 17")',
        "result = await _\nresult",
        'await submit(circuit, "ibm_brisbane", service=service, shots=64)',
        'runs = [submit(circuit, "ibm_brisbane", service=service, shots=64, label=f"step {n}") for n in range(3)]',
        "import asyncio\nlen(await asyncio.gather(*runs))",
        'run(circuit, "ibm_brisbane", service=service, shots=64, panel="plain").counts.keys() <= {"00", "11"}',
    ]
    made.cells = [nbformat.v4.new_code_cell(code) for code in cells]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(
        made,
        timeout=DEADLINE,
        iopub_timeout=int(DEADLINE),  # after which outputs are dropped
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    saved = nbformat.writes(made)
    del client
    gc.collect()
    for secret in ("a-secret-key", "Bearer", "eyJ"):
        assert secret not in saved.replace(connect, "")
    outputs = [cell.outputs for cell in made.cells[1:]]
    run_cell, submit_cell, error_cell, ok_cell, silent_cell, live_cell, later_cell, await_cell, *others = outputs
    _, many_cell, plain_cell = others
    for outputs in (run_cell, submit_cell, ok_cell, live_cell, await_cell):
        [card] = outputs
        assert card.output_type == "display_data"
        assert re.match(r"done · job \w+ · .* · as of [\d:]+, [\d-]+$", card["data"]["text/plain"])
        assert re.search("done</strong> <[^>]*>as of ", card["data"]["text/html"])
    assert "vqe step 17" in live_cell[0]["data"]["text/html"]
    [card] = error_cell
    assert "ConfigError" in card["data"]["text/html"]
    assert "there is no backend &#x27;ibm_nowhere&#x27;" in card["data"]["text/html"]
    for outputs in (silent_cell, later_cell):
        [card] = outputs
        assert card.output_type == "execute_result"
        assert re.search("RunResult of 1 PUB</strong> <[^>]*>as of ", card["data"]["text/html"])
    card, number = many_cell
    assert number["data"]["text/plain"] == "3"
    assert card["data"]["text/plain"].startswith("3 of 3 done · ")
    assert all(f"step {number}<" in card["data"]["text/html"] for number in range(3))
    assert {output.output_type for output in plain_cell[:-1]} == {"stream"}
    assert plain_cell[-1]["data"]["text/plain"] == "True"
    if os.environ.get("QX_KEEP_NOTEBOOK"):  # to look at it in a browser
        Path(os.environ["QX_KEEP_NOTEBOOK"]).write_text(saved)


@pytest.mark.long
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


@pytest.mark.long
def test_interrupted_while_awaiting(ibm, notebook):
    """Nothing else happens in the kernel that would wake its loop."""
    ibm.hold("queued")
    beginning = CELL.format(port=ibm.port).partition("result =")[0].replace("import run", "import submit")
    where = f'"ibm_brisbane", service=connect({ibm.port}, "local-key"), panel="auto"'
    notebook.client.execute(f"{beginning}await submit(circuit, {where})")
    job = notebook.job_in("queued")
    notebook.manager.interrupt_kernel()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    notebook.idle()


@pytest.mark.parametrize("now", [True, False], ids=["now", "asked first"])
@pytest.mark.long
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
    (watcher,) = watchers_of(notebook.kernel)
    notebook.kernel.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


@pytest.mark.long
def test_killed_and_taken_up_again(ibm, notebook):
    """The cell is executed once more, in the kernel that is started in its place."""
    cell = CELL.format(port=ibm.port).replace("shots=64", 'shots=64, key="step", grace=60')
    ibm.hold("queued")
    notebook.client.execute(cell)
    job = notebook.job_in("queued")
    (watcher,) = watchers_of(notebook.kernel)
    notebook.kernel.kill()
    assert_taken_up(ibm, notebook, cell, job)
    wait_for_end(watcher)


@pytest.mark.long
def test_restarted_and_taken_up_again(ibm, notebook):
    """The interrupt that comes before a restart ends the waiting only."""
    cell = CELL.format(port=ibm.port).replace("import run", "import submit").replace("run(circuit", "submit(circuit")
    cell = cell.replace("shots=64)", 'shots=64, key="step", grace=60, panel="auto").result()')
    ibm.hold("queued")
    notebook.client.execute(cell)
    job = notebook.job_in("queued")
    (watcher,) = watchers_of(notebook.kernel)
    assert_taken_up(ibm, notebook, cell, job)
    wait_for_end(watcher)


def assert_taken_up(ibm, notebook, cell, job):
    """A kernel that is started anew executes the cell once more: the job is the same, and its result comes."""
    notebook.restart()
    notebook.client.execute(cell)
    assert notebook.job_in("taken up again") == job
    ibm.hold(None)
    assert notebook.wait(lambda m: m["msg_type"] == "execute_result")["data"]["text/plain"] == "64"
    assert [(each.id, each.cancel_requests) for each in ibm.jobs()] == [(job, 0)]


@pytest.mark.long
def test_terminated(ibm, notebook):
    """IPython swallows a `SystemExit`; who sends a SIGTERM wants the kernel gone, and so it goes."""
    ibm.hold("queued")
    notebook.client.execute(CELL.format(port=ibm.port))
    job = notebook.job_in("queued")
    kernel = notebook.kernel
    kernel.send_signal(signal.SIGTERM)
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(kernel)
