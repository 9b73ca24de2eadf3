"""`QX_LOCAL` and `exec --local`: the embedded service takes the place of an account, and programs share it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.client import pickled
from testkit.drivers import Driver
from testkit.processes import wait_for_end
from testkit.watchers import wait_for_watchers, wait_for_watchers_in

from qx_supervisor import ConfigError, local, run
from qx_supervisor import service as services
from qx_supervisor.cli import main
from qx_supervisor.local import registry

BELL = """
import os, sys
from qiskit import QuantumCircuit
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

OURS = """
from qx_supervisor import run
result = run(circuit, "ibm_brisbane", shots=64)
say("counted", result.job_id, sum(result.counts.values()))
"""

QISKITS = """
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import QiskitRuntimeService
try:
    from qiskit_ibm_runtime.executor_sampler import Sampler
except ImportError:  # an older client
    from qiskit_ibm_runtime import SamplerV2 as Sampler
backend = QiskitRuntimeService({account}).backend("ibm_brisbane")
isa = generate_preset_pass_manager(0, backend).run(circuit)
job = Sampler(mode=backend).run([isa], shots=64)
say("counted", job.job_id(), len(job.result()[0].data.meas.get_bitstrings()))
"""


def circuit() -> Any:
    from qiskit import QuantumCircuit

    made = QuantumCircuit(1)
    made.x(0)
    made.measure_all()
    return made


@pytest.fixture
def registered(ibm: local.Service, state: Path, monkeypatch: pytest.MonkeyPatch) -> local.Service:
    """The embedded service of the tests is the one that is found, and `QX_LOCAL` asks for it."""
    monkeypatch.setenv("QX_LOCAL", "1")
    monkeypatch.setattr(services.embedded, "_announced", set())
    registry.claim(ibm.pid, ibm.port)
    return ibm


def test_the_embedded_service_takes_the_accounts_place(
    registered: local.Service, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """And whoever reads of it is told that no QPU has computed this."""
    told = []
    result = run(circuit(), "ibm_brisbane", shots=16, label="vqe step 17", on_status=told.append, panel="plain")
    assert result.counts == {"1": 16}
    assert [job.status for job in registered.jobs()] == ["Completed"]
    assert told[-1].is_embedded
    assert told[-1].backend == "ibm_brisbane"
    assert "ibm_brisbane (embedded service)" in capsys.readouterr().err
    for shown in (result, pickled(result)):  # in a later cell of a notebook, or another process
        assert "ibm_brisbane (embedded service)" in shown._repr_html_()
        assert "vqe step 17" in shown._repr_html_()
        assert "backend='ibm_brisbane', is_embedded=True, label='vqe step 17'" in repr(shown)
    said = f"QX_LOCAL is set: jobs go to the embedded service at {registered.url}, and no QPU runs them"
    assert [record.getMessage() for record in caplog.records if "QX_LOCAL" in record.getMessage()] == [said]


def test_a_programs_own_account_is_not_taken(registered: local.Service) -> None:
    """Whatever the program says of it. A service object for another address is the one that it is."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    services.embedded.redirect()
    before = registered.cursor()
    for arguments in ({}, {"token": "secret", "instance": "crn:v1:bluemix:public:quantum-computing:us-east:a/b:c::"}):
        made = QiskitRuntimeService(**arguments)
        assert [backend.name for backend in made.backends()] == ["ibm_brisbane"]
        assert services.embedded.is_its(services.clients_of(made)[0])
    assert registered.journal(after=before, path="/identity/token")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Properties of fake_nighthawk:UserWarning")  # of all that the client then loads
def test_the_local_testing_mode_is_left_alone(registered: local.Service) -> None:
    from qiskit_ibm_runtime import QiskitRuntimeService

    services.embedded.redirect()
    before = registered.cursor()
    assert QiskitRuntimeService(channel="local").backend("fake_manila").name == "fake_manila"
    assert registered.journal(after=before) == []


@pytest.mark.long
def test_a_service_object_wins(registered: local.Service) -> None:
    with local.start() as other:
        assert run(circuit(), "ibm_brisbane", service=other.service(), shots=16, panel=None).counts == {"1": 16}
        assert [job.status for job in other.jobs()] == ["Completed"]
    assert registered.jobs() == []


@pytest.mark.parametrize("value", ["yes", "2", "http://localhost"])
def test_another_value_is_a_mistake(value: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is needed or not, and before anything is submitted."""
    monkeypatch.setenv("QX_LOCAL", value)
    for given in (None, service):
        with pytest.raises(ConfigError, match=rf"QX_LOCAL is '{value}'; it may be 1"):
            run(circuit(), "ibm_brisbane", service=given, panel=None)


def test_the_embedded_service_has_one_instance(registered: local.Service) -> None:
    with pytest.raises(ConfigError, match="QX_LOCAL is set, and the embedded service has one instance"):
        services.accounts.default_service("crn:v1:other")
    mine = services.accounts.default_service()
    [only] = mine.instances()
    assert services.accounts.default_service(only["crn"]) is services.accounts.default_service(only["name"]) is mine


def test_a_backend_that_it_does_not_offer(registered: local.Service) -> None:
    with pytest.raises(
        ConfigError, match=r"has no backend 'ibm_kyiv'; it has only ibm_brisbane; .* --backend ibm_kyiv$"
    ):
        run(circuit(), "ibm_kyiv", panel=None)
    with pytest.raises(ConfigError) as caught:
        run(circuit(), "ibm_brisbain", panel=None)
    assert caught.value.reason == (
        "the embedded service has no backend 'ibm_brisbain'; did you mean ibm_brisbane? It has only ibm_brisbane; to "
        "have it offer others: qx-supervisor local stop, and then qx-supervisor local start --backend NAME"
    )


def test_without_localqpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "localqpu" else find_spec(name))
    monkeypatch.setenv("QX_LOCAL", "1")
    monkeypatch.delenv("QX_LOCAL_PYTHON", raising=False)  # with another client than its own, it has it there
    with pytest.raises(ConfigError, match=r"QX_LOCAL asks for .*pip install 'qx-supervisor\[local\]'"):
        run(circuit(), "ibm_brisbane", panel=None)
    with pytest.raises(ConfigError, match=r"pip install 'qx-supervisor\[local\]'"):
        main(["exec", "--local", "--", "true"], standalone_mode=False)


CLIENT_IS_IMPORTED = """
import importlib.util, sys, threading

class Finder:  # is told of the first module that the client imports of its own
    def __init__(self, call):
        self.call = call
    def find_spec(self, name, path=None, target=None):
        if name.startswith("qiskit_ibm_runtime."):
            sys.meta_path.remove(self)
            self.call()

{before}
from qiskit_ibm_runtime import QiskitRuntimeService
from qx_supervisor.service import post
assert post.is_hooked(QiskitRuntimeService.__init__)
"""

ASKED_FOR = """
import qx_supervisor
assert importlib.util.find_spec("qiskit_ibm_runtime")
"""

SERVICE_STARTED = """
from qx_supervisor.local import process
assert process._folders()
"""

INTERRUPTED = """
import qx_supervisor

def interrupt():
    raise KeyboardInterrupt

sys.meta_path.insert(0, Finder(interrupt))
try:
    import qiskit_ibm_runtime
except KeyboardInterrupt:
    pass
assert "qiskit_ibm_runtime" not in sys.modules
"""

IN_ANOTHER_THREAD = """
import os
del os.environ["QX_LOCAL"]  # so that the test can see what is called with it
from qx_supervisor.service import embedded

begun, proceed = threading.Event(), threading.Event()
redirect = embedded.redirect

def seen():
    proceed.set()
    redirect()

def hold():
    begun.set()
    proceed.wait()

embedded.redirect = seen
sys.meta_path.insert(0, Finder(hold))
thread = threading.Thread(target=__import__, args=["qiskit_ibm_runtime"])
thread.start()
begun.wait()
embedded.redirect_when_imported()
proceed.set()
thread.join()
"""


@pytest.mark.parametrize(
    "before",
    [
        ASKED_FOR,
        pytest.param(SERVICE_STARTED, marks=pytest.mark.long),
        pytest.param(INTERRUPTED, marks=pytest.mark.long),
        pytest.param(IN_ANOTHER_THREAD, marks=pytest.mark.long),
    ],
    ids=["asked_for", "service_started", "interrupted", "in_another_thread"],
)
def test_whatever_comes_before_the_clients_import(before: str) -> None:
    """The program's own account is not taken then either."""
    program = [sys.executable, "-c", CLIENT_IS_IMPORTED.format(before=before)]
    done = subprocess.run(program, env={**os.environ, "QX_LOCAL": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# As programs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(state: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a user's programs have in their environment; at the end the service that they share is stopped."""
    yield {**os.environ, "QX_LOCAL": "1", "HOME": str(tmp_path)}
    wait_for_watchers_in(state)
    if (running := local.find()) is not None:
        running.stop()


Begin = Callable[..., Driver]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts a program: `begin(code, environment, *starter)`."""
    begun: list[Driver] = []

    def begin(code: str, environment: dict[str, str], *starter: str) -> Driver:
        script = tmp_path / f"program{len(begun)}.py"
        script.write_text(BELL + textwrap.dedent(code))
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(Driver(subprocess.Popen([*starter, sys.executable, str(script)], env=environment, **streams)))
        return begun[-1]

    yield begin
    for driver in begun:
        driver.clear()


def ended(driver: Driver) -> str:
    """Wait for its end, and return what it wrote to stderr."""
    wait_for_end(psutil.Process(driver.pid)) if driver.process.poll() is None else None
    assert driver.process.wait() == 0, driver.errors.decode()
    return driver.errors.decode()


@pytest.mark.long
def test_programs_share_a_service_that_none_of_them_stops(machine: dict[str, str], begin: Begin) -> None:
    """Two start at once, and one service runs; it is no child of theirs, and outlives both."""
    drivers = [begin(OURS, machine) for _ in range(2)]
    jobs = {driver.line("counted ")[0] for driver in drivers}
    assert all("no QPU runs them" in ended(driver) for driver in drivers)
    running = local.find()
    assert running is not None
    assert {job.id for job in running.jobs()} == jobs
    assert psutil.Process(running.pid).ppid() not in {driver.pid for driver in drivers}
    with running:  # as an example may have it
        pass
    assert local.find() is not None


EXEC = [sys.executable, "-m", "qx_supervisor", "exec"]


@pytest.mark.long
@pytest.mark.parametrize("account", ["", "token='secret'", "name='work'", "instance='crn:v1:of-the-user'"])
def test_a_program_that_does_not_know_us(machine: dict[str, str], begin: Begin, account: str) -> None:
    """Under `exec --local` Qiskit's own client reaches the service, whatever account the program names."""
    del machine["QX_LOCAL"]
    driver = begin(QISKITS.format(account=account), machine, *EXEC, "--local", "--")
    [job, counted] = driver.line("counted ")
    assert counted == "64"
    assert "no QPU runs them" in ended(driver)
    running = local.find()
    assert running is not None
    assert [(each.id, each.status) for each in running.jobs()] == [(job, "Completed")]


@pytest.mark.long
def test_the_service_is_not_the_programs_child(machine: dict[str, str], begin: Begin) -> None:
    """A program that waits for all its children waits for its own."""
    code = """
    import subprocess
    child = subprocess.Popen(["true"])
    os.wait()
    try:
        os.wait()
    except ChildProcessError:
        say("alone")
    """
    driver = begin(code, machine, *EXEC, "--local", "--")
    assert driver.line("alone") == []
    ended(driver)


@pytest.mark.long
def test_jobs_outlive_their_driver(machine: dict[str, str], begin: Begin) -> None:
    """A driver is killed: its watcher cancels its job at the shared service, once."""
    shared = local.find_or_start()
    shared.hold("queued")
    driver = begin(
        """
        from qx_supervisor import run
        run(circuit, "ibm_brisbane", on_status=lambda status: say(status.state, status.job_id))
        """,
        machine,
    )
    [job] = driver.line("queued ")
    assert driver.kill() == -signal.SIGKILL
    assert shared.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_python_without_this_library_submits_nothing(machine: dict[str, str], begin: Begin) -> None:
    """It would take the account; `--on-unprotected warn` does not change that."""
    code = """
    sys.modules["qx_supervisor"] = None
    from qiskit_ibm_runtime.api.client import RuntimeClient
    try:
        RuntimeClient.program_run(None)
    except RuntimeError as error:
        say("refused", error)
    """
    driver = begin(code, machine, *EXEC, "--on-unprotected", "warn", "--local", "--")
    assert "nothing was submitted" in " ".join(driver.line("refused "))
    ended(driver)


@pytest.mark.long
def test_it_ends_when_nobody_uses_it(machine: dict[str, str], begin: Begin) -> None:
    """It is used while somebody is connected, or a job is unfinished."""
    shared = local.start(register=True, idle=0.2)
    process = psutil.Process(shared.pid)
    with socket.create_connection(("127.0.0.1", shared.port)):
        shared.hold("queued")
        driver = begin(
            """
            import threading
            from qx_supervisor import submit
            known = threading.Event()
            job = submit(circuit, "ibm_brisbane", shots=64, on_status=lambda status: status.job_id and known.set())
            known.wait()
            job.detach()
            say("detached", job.job_id)
            """,
            machine,
        )
        [job] = driver.line("detached ")
        ended(driver)
        wait_for_watchers(driver)
    with local.start() as other:
        other.health()  # this takes longer than a moment without a connection
    assert shared.job(job).status == "Queued"
    shared.hold(None)
    wait_for_end(process)
    assert local.find() is None
