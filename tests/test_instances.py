"""An account with two instances that have a backend of the same name: a job is at the one that was asked for.

Whoever POSTs is whom we guard, poll and cancel at: each instance knows of its own jobs only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, EstimatorV2, SamplerV2, Session
from testkit.circuits import BACKEND, bell, ones
from testkit.client import REACH, Estimator, Sampler, needs_current_primitives
from testkit.drivers import Driver, kill_both
from testkit.watchers import wait_for_watchers, wait_until_written

from qx_supervisor import ConfigError, RunTimeout, guard, local, reap, run, submit
from qx_supervisor.local.records import crn
from qx_supervisor.service import clients_of, instances, remote_of
from qx_supervisor.watcher import cancel, remote

NAMES = ("one", "two")
CANCEL = "/api/v1/jobs/*/cancel"

Where = Callable[[str], str]


@pytest.fixture(scope="module")
def running() -> Iterator[local.Service]:
    with local.start(instances=NAMES) as service:
        service.health()
        yield service


@pytest.fixture
def account(running: local.Service) -> local.Service:
    """The embedded service, as new."""
    running.reset()
    return running


@pytest.fixture
def service(account: local.Service) -> Any:
    return account.service(instance=None)


@pytest.fixture
def backends(service: Any) -> dict[str, Any]:
    return {name: service.backend(BACKEND, instance=crn(name)) for name in NAMES}


@pytest.fixture
def isa(backends: dict[str, Any]) -> Any:
    return generate_preset_pass_manager(0, backends["one"]).run(ones())


@pytest.fixture
def where(account: local.Service) -> Where:
    return lambda job: account.job(job).instance


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def at_its_instance(account: local.Service) -> bool:
    """Whether each request about a job was made at the instance that has it, and found it."""
    of_job = {job.id: job.instance for job in account.jobs()}
    asked = [entry for entry in account.journal(path="/api/v1/jobs/*") if entry.path.split("/")[4] in of_job]
    return all(entry.instance == of_job[entry.path.split("/")[4]] and entry.status != 404 for entry in asked)


def calls(isa: Any) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """The ways to ask for a run on a backend: arguments of `run`."""
    bare = isa.remove_final_measurements(inplace=False)
    pub = (bare, SparsePauliOp("Z" * bare.num_qubits))
    plain = {"resilience_level": 0}
    return {
        "sampler": lambda backend: {"pubs": isa, "backend": backend},
        "estimator": lambda backend: {"pubs": pub, "backend": backend, "primitive": "estimator", "options": plain},
        "own sampler": lambda backend: {"pubs": isa, "primitive": Sampler(mode=backend)},
        "own estimator": lambda backend: {"pubs": pub, "primitive": Estimator(mode=backend, options=plain)},
        "SamplerV2": lambda backend: {"pubs": isa, "primitive": SamplerV2(mode=backend)},
        "EstimatorV2": lambda backend: {"pubs": pub, "primitive": EstimatorV2(mode=backend)},
    }


KINDS = ("sampler", "estimator", "own sampler", "own estimator", "SamplerV2", "EstimatorV2")


@pytest.mark.long
@pytest.mark.client
def test_each_instance_knows_of_its_own(account: local.Service, backends: dict[str, Any], isa: Any) -> None:
    """Of jobs and sessions; and there are no others."""
    account.hold("queued")
    one, two = (remote_of(account.service(instance=name)._active_api_client) for name in NAMES)
    with Session(backends["one"]) as session:
        job = Sampler(mode=session).run([isa], shots=16).job_id()
    assert (one.unfinished(session=session.session_id), two.unfinished(session=session.session_id)) == ((job,), ())
    assert two.cancel(job) == 404
    for asks in (two.job, two.results, two.metrics):
        with pytest.raises(remote.RemoteError, match="404"):
            asks(job)
    with pytest.raises(remote.RemoteError, match="404"):
        two.close_session(session.session_id)
    two._instance = crn("three")
    with pytest.raises(remote.RemoteError, match="403"):
        two.job(job)
    assert one.cancel(job) == 204
    found = account.job(job)
    assert (found.instance, found.status, found.cancel_requests) == ("one", "Cancelled", 2)


@pytest.mark.long
def test_a_hundred_at_once(account: local.Service, backends: dict[str, Any], isa: Any, where: Where) -> None:
    """Of every kind, by `submit` and by plain primitives in threads; and each is cancelled where it is."""
    account.hold("queued")
    account.scenario({"http_faults": [{"path": "/api/v1/*s/usage", "delay_seconds": 0.05, "times": 300}]})
    ways = calls(isa)
    runs = [(name, submit(**ways[kind](backends[name]))) for kind in KINDS for name in NAMES * 7]

    def plain(name: str) -> tuple[str, str]:
        return name, Sampler(mode=backends[name]).run([isa], shots=16).job_id()

    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(plain, NAMES * 8))
    account.wait_for("POST", "/api/v1/jobs", count=100, answered=True, timeout=120)
    account.wait_for("GET", "/api/v1/jobs*", answered=True)
    for name, each in runs:
        assert each.cancel() == "confirmed"
        jobs.append((name, str(each.job_id)))
    assert [(name, where(job)) for name, job in jobs if where(job) != name] == []
    found = account.jobs()
    assert len(found) == 100
    assert sorted(job.cancel_requests for job in found) == [0] * 16 + [1] * 84
    assert at_its_instance(account)


@pytest.mark.client
def test_killed(account: local.Service, fork: Any) -> None:
    """After `kill -9` each is cancelled where it is, with one request, also in sessions, and with plain primitives."""
    account.hold("queued")
    driver = fork(driver_at(account) + DRIVER)
    jobs = dict(word.split("=") for word in driver.line("jobs "))
    sessions = dict(word.split("=") for word in driver.line("sessions "))
    driver.kill()
    wait_for_watchers(driver)
    found = {job.id: (job.instance, job.status, job.cancel_requests) for job in account.jobs()}
    assert found == {job: (name, "Cancelled", 1) for job, name in jobs.items()}
    closed = {entry.path.split("/")[4]: entry.instance for entry in account.journal(method="DELETE")}
    assert closed == sessions
    assert at_its_instance(account)


def driver_at(account: local.Service) -> str:
    """The first lines of a driver that uses the account."""
    return f"\naccount = connect({account.port}, 'local-key', instance=None)\n"


DRIVER = f"""
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, Session
names = {NAMES!r}
backends = {{name: account.backend({BACKEND!r}, instance=name) for name in names}}
circuit = generate_preset_pass_manager(0, backends["one"]).run(isa())
submitted = threading.Semaphore(0)
def note(status):
    if status.state == "submitted":
        submitted.release()
runs = [(submit(circuit, backends[name], shots=64, on_status=note), name) for name in names * 4]
modes = [(kind(backends[name]), name) for kind, name in ((Session, "two"), (Batch, "two"), (Session, "one"))]
guards = [guard(mode).__enter__() for mode, _ in modes]
jobs = [(submit(circuit, mode, shots=64, on_status=note), name) for mode, name in modes]
jobs += [(Sampler(mode=mode).run([circuit]), name) for mode, name in modes]
plain = [(Sampler(mode=backends[name]).run([circuit]), name) for name in names]
guards.append(guard(*(job for job, _ in plain)).__enter__())
for _ in (*runs, *modes):
    submitted.acquire()
ids = [(each.job_id if isinstance(each, Run) else each.job_id(), name) for each, name in (*runs, *jobs, *plain)]
say("jobs", *(f"{{job}}={{name}}" for job, name in ids))
say("sessions", *(f"{{mode.session_id}}={{name}}" for mode, name in modes))
signal.pause()
"""


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_run(account: local.Service, backends: dict[str, Any], isa: Any, kind: str, name: str) -> None:
    """Its result comes from where it was asked for."""
    result = run(**calls(isa)[kind](backends[name]), panel=None, timeout=60)
    assert len(result) == 1
    assert [job.instance for job in account.jobs()] == [name]
    assert at_its_instance(account)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [Session, Batch])
def test_a_session(account: local.Service, backends: dict[str, Any], isa: Any, mode: Any, name: str) -> None:
    other = backends[NAMES[name == "one"]]
    with mode(backends[name]) as session:
        for kind in KINDS:
            run(**calls(isa)[kind](session), panel=None, timeout=60)
        Sampler().run([isa], shots=16).result()
        with pytest.raises(ConfigError, match=f"in the session at its own instance of {BACKEND}"):
            run(isa, other, panel=None)
        assert len(run(isa, BACKEND, panel=None, timeout=60)) == 1
    assert {job.instance for job in account.jobs()} == {name}
    assert len(account.jobs()) == len(KINDS) + 2
    assert at_its_instance(account)


@pytest.mark.long
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_session_by_its_id(
    account: local.Service, service: Any, isa: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Qiskit's `from_id` gives it a backend of the first instance, wherever it is."""
    monkeypatch.setattr(instances, "_known", {})  # it was opened by another program
    opened = Session(account.service(instance=name).backend(BACKEND))
    mine = Session.from_id(opened.session_id, service)
    instances._known.clear()  # and taken up before anything was guarded
    with guard(mine, owner=False) if guarded else contextlib.nullcontext():
        assert len(run(isa, mine, panel=None, timeout=60)) == 1
        assert len(Sampler(mode=mine).run([isa], shots=16).result()) == 1
    assert [(job.instance, job.session_id) for job in account.jobs()] == [(name, opened.session_id)] * 2
    assert at_its_instance(account)


def execute(backend: Any, isa: Any) -> Any:
    """Run a circuit as a program of the executor."""
    from qiskit_ibm_runtime import Executor
    from qiskit_ibm_runtime.quantum_program import QuantumProgram

    program = QuantumProgram(shots=16)
    program.append_circuit_item(isa)
    return Executor(backend).run(program)


@pytest.mark.long
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda backend, isa: Sampler(backend).run([isa]), id="Sampler"),
        pytest.param(lambda backend, isa: SamplerV2(backend).run([isa]), id="SamplerV2"),
        pytest.param(execute, id="Executor", marks=needs_current_primitives),
    ],
)
def test_plain_jobs_in_threads(account: local.Service, backends: dict[str, Any], isa: Any, ask: Any) -> None:
    """Once anything is guarded, plain Qiskit submits to where it was asked to, and its jobs look there."""

    def plain(name: str) -> tuple[str, Any]:
        return name, ask(backends[name], isa)

    with Session(backends["one"]) as session, guard(session):
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(plain, NAMES * 10))
        for name, job in jobs:
            assert (account.job(job.job_id()).instance, job.instance) == (name, crn(name))
            job.result()
            assert job._service is backends[name].service
    assert at_its_instance(account)


@pytest.mark.long
@pytest.mark.parametrize("seen", [True, False])
def test_a_job_whose_own_client_was_misled(
    account: local.Service, service: Any, backends: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, seen: bool
) -> None:
    """A thread moved the service's active instance on while Qiskit made the job's object, here or where none looked."""
    account.hold("queued")
    job = Sampler(mode=backends["two"]).run([generate_preset_pass_manager(0, backends["two"]).run(bell())])
    at = account.job(job.job_id()).instance
    job._api_client = service._api_clients[crn(NAMES[at == "one"])]
    if not seen:
        monkeypatch.setattr(instances, "_known", {})
    with pytest.raises(ZeroDivisionError), guard(job):
        raise ZeroDivisionError
    assert account.job(job.job_id()).status == "Cancelled"
    assert [entry.instance for entry in account.journal(path=CANCEL)] == [at]


@pytest.mark.long
def test_names_and_least_busy(account: local.Service, service: Any, backends: dict[str, Any], isa: Any) -> None:
    """A service that was told its instance stays at it; looking for a backend does not move another's instance."""
    of_two = account.service(instance="two")
    for backend in (BACKEND, None):
        assert account.job(run(isa, backend, service=of_two, panel=None).job_id).instance == "two"
    service.backend(BACKEND, instance="two")
    submit(isa, BACKEND, service=service).result(60)
    assert service.active_instance() == crn("two")
    assert account.jobs()[-1].instance == "one"


@pytest.mark.long
def test_whoever_posts_is_whom_we_ask(account: local.Service, backends: dict[str, Any], isa: Any) -> None:
    """A primitive of the user's own that goes elsewhere."""

    class Elsewhere(Sampler):
        def run(self, pubs: Any, *, shots: int | None = None, **_: Any) -> Any:
            return Sampler(mode=backends["two"]).run(pubs, shots=shots)

    assert len(run(isa, primitive=Elsewhere(mode=backends["one"]), panel=None, timeout=60)) == 1
    assert [job.instance for job in account.jobs()] == ["two"]
    account.hold("queued")
    with pytest.raises(RunTimeout, match="so the job was cancelled"):
        run(isa, primitive=Elsewhere(mode=backends["one"]), panel=None, timeout=3)
    assert account.jobs()[-1].status == "Cancelled"
    assert at_its_instance(account)


@pytest.mark.long
def test_asked_at_the_wrong_place_is_not_cancelled(account: local.Service, service: Any, backends: Any) -> None:
    account.hold("queued")
    circuit = generate_preset_pass_manager(0, backends["two"]).run(bell())
    begun = submit(circuit, backends["two"])
    account.wait_for("POST", "/api/v1/jobs", answered=True)
    [job] = account.jobs()
    [wrong] = [client for client in clients_of(service) if client._instance == crn("one")]
    outcome, trouble = cancel.cancel(job.id, remote_of(wrong), lambda: 0.0, lambda _: True)
    assert (outcome, "wrong instance" in trouble) == ("unconfirmed", True)
    assert account.job(job.id).status == "Queued"
    assert begun.cancel() == "confirmed"


@pytest.mark.long
def test_both_die(account: local.Service, service: Any, fork: Any) -> None:
    """What is left to the ledger is cancelled where it is, too."""
    account.hold("queued")
    driver = fork(driver_at(account) + DRIVER)
    jobs = dict(word.split("=") for word in driver.line("jobs "))
    wait_until_written(driver, jobs=jobs)
    kill_both(driver)
    assert {reaped.fate for reaped in reap(service)} == {"cancelled"}
    assert {job.id: (job.instance, job.status, job.cancel_requests) for job in account.jobs()} == {
        job: (name, "Cancelled", 1) for job, name in jobs.items()
    }
    assert at_its_instance(account)


@pytest.mark.long
def test_a_key(account: local.Service, fork: Any) -> None:
    """A run that is started again finds its job at its instance."""
    code = f"""
backend = account.backend({BACKEND!r}, instance="two")
say("result", run(isa(), backend, shots=16, key="step", grace=60, on_status=tell).job_id)
"""
    account.hold("queued")
    driver = fork(driver_at(account) + code)
    job = driver.queued()
    driver.kill()
    account.hold(None)
    again = fork(driver_at(account) + code)
    assert again.line("result ") == [job]
    assert again.end() == 0
    assert [each.instance for each in account.jobs()] == ["two"]
    assert at_its_instance(account)


# `qx-supervisor exec` -----------------------------------------------------------------------------------------------

PLAIN = f"""
import os, signal, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import QiskitRuntimeService, SamplerV2, Session
try:
    from qiskit_ibm_runtime.executor_sampler import Sampler
except ImportError:  # an older client
    from qiskit_ibm_runtime import SamplerV2 as Sampler
{REACH}warnings.simplefilter("ignore")
proxy = "http://127.0.0.1:{{port}}"
account = QiskitRuntimeService(
    channel="ibm_quantum_platform",
    token="local-key",
    url="http://localqpu.test",
    url_resolver=lambda *_: "http://localqpu.test/api/v1",
    proxies={{{{"urls": {{{{"http": proxy, "https": proxy}}}}}}}},
)
names = {NAMES!r}
backends = {{{{name: account.backend({BACKEND!r}, instance=name) for name in names}}}}
circuit = QuantumCircuit(1)
circuit.x(0)
circuit.measure_all()
circuit = generate_preset_pass_manager(0, backends["one"]).run(circuit)
mine = Session(backends["two"])
same = Session.from_id(mine.session_id, account)
def ask(what):
    make, mode, name = what
    return make(mode=mode).run([circuit], shots=16).job_id(), name
ways = [(make, backends[name], name) for make in (Sampler, SamplerV2) for name in names] * 5
with ThreadPoolExecutor(8) as pool:
    jobs = list(pool.map(ask, [*ways, (Sampler, mine, "two"), (SamplerV2, same, "two")]))
os.write(1, ("jobs " + " ".join(f"{{{{job}}}}={{{{name}}}}" for job, name in jobs) + "\\n").encode())
signal.pause()
"""


@pytest.fixture
def begin(account: local.Service, tmp_path: Path) -> Iterator[Callable[[str], Driver]]:
    """Starts a driver under `exec`."""
    started: list[Driver] = []

    def begin(code: str) -> Driver:
        script = tmp_path / "driver.py"
        script.write_text(textwrap.dedent(code.format(port=account.port)))
        process = subprocess.Popen(
            [sys.executable, "-m", "qx_supervisor", "exec", "--", sys.executable, str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "IAM_URL": "http://iam.localqpu.test", "no_proxy": "localqpu.test"},
            process_group=0,
        )
        started.append(Driver(process))
        return started[-1]

    yield begin
    for driver in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.clear()


@pytest.mark.long
def test_a_driver_that_knows_nothing_of_us(account: local.Service, begin: Callable[[str], Driver]) -> None:
    account.hold("queued")
    driver = begin(PLAIN)
    jobs = dict(word.split("=") for word in driver.line("jobs "))
    driver.kill()
    wait_for_watchers(driver)
    found = {job.id: (job.instance, job.status, job.cancel_requests) for job in account.jobs()}
    assert found == {job: (name, "Cancelled", 1) for job, name in jobs.items()}
    assert at_its_instance(account)
