"""`qx-supervisor exec`: drivers that know nothing of us, unchanged, with every job that they submit guarded.

Unless a test is about `run` and `guard`, its driver does not import `qx_supervisor`: it reaches the embedded service as
it would reach IBM's, with Qiskit's own client.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.client import IS_CURRENT, REACH
from testkit.drivers import PRELUDE, Driver, assert_cancelled_once, end
from testkit.processes import Process, until, wait_for_end
from testkit.watchers import wait_for_watchers, watchers_of

from qx_supervisor import exit_status, local, reap
from qx_supervisor.cli import exec as command
from qx_supervisor.watcher.ledger import Ledger

PLAIN = """
import os, sys
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, QiskitRuntimeService, Session
try:
    from qiskit_ibm_runtime.executor_sampler import Sampler
except ImportError:  # an older client
    from qiskit_ibm_runtime import SamplerV2 as Sampler
{reach}
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait():
    sys.stdin.readline()

def connect(service=QiskitRuntimeService):
    return service(
        channel="ibm_quantum_platform",
        token="local-key",
        instance="crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::localqpu",
        url="http://localqpu.test",
        url_resolver=lambda *_: "http://localqpu.test/api/v1",
        proxies={{"urls": {{"http": "http://127.0.0.1:{port}", "https": "http://127.0.0.1:{port}"}}}},
    )

circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
if __name__ == "__main__":
    backend = connect().backend("ibm_brisbane")
    isa = generate_preset_pass_manager(0, backend).run(circuit)
    sampler = Sampler(mode=backend)
"""

Exec = Callable[..., Driver]
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def run(ibm: local.Service, tmp_path: Path) -> Iterator[Exec]:
    """Runs a driver under `exec`; `how` makes the command of the script's path."""
    started: list[Driver] = []
    numbers = itertools.count()

    def begin(
        code: str,
        *options: str,
        prelude: str = PLAIN,
        how: Callable[[str], Sequence[str]] = lambda script: [sys.executable, script],
        **variables: str,
    ) -> Driver:
        script = tmp_path / f"driver{next(numbers)}.py"
        script.write_text(prelude.format(port=ibm.port, pid=ibm.pid, reach=REACH) + textwrap.dedent(code))
        process = subprocess.Popen(
            [sys.executable, "-m", "qx_supervisor", "exec", *options, "--", *how(str(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "IAM_URL": "http://iam.localqpu.test", "no_proxy": "localqpu.test", **variables},
            process_group=0,
        )
        started.append(Driver(process))
        return started[-1]

    yield begin
    for driver in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)  # what it started too, should the test have failed
        driver.clear()


@pytest.mark.long
def test_a_refusal_that_the_driver_catches_cancels_nothing(ibm: local.Service, run: Exec) -> None:
    """Qiskit raises as ever; the driver asks again and has its result."""
    ibm.hold("queued")
    driver = run(
        """
        job = sampler.run([isa], shots=16)
        say("queued", job.job_id())
        while True:
            try:
                say("result", len(job.result()))
                break
            except Exception as error:
                say("caught", type(error).__name__)
                wait()
        """
    )
    job = driver.queued()
    ibm.scenario({"http_faults": [{"path": f"/api/v1/jobs/{job}", "method": "GET", "status": 403}]})
    driver.line("caught ")
    ibm.hold(None)
    go_on(driver)
    assert driver.line("result ") == ["1"]
    assert end(driver) == 0
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Completed", 0)]


def go_on(driver: Driver) -> None:
    """End a driver's `wait()`."""
    assert driver.process.stdin is not None
    driver.process.stdin.write(b"\n")
    driver.process.stdin.flush()


def said(driver: Driver) -> list[str]:
    """What was said on stderr by us, once the driver has ended."""
    lines = driver.errors.decode().splitlines()
    return [line.removeprefix("qx-supervisor: ") for line in lines if line.startswith("qx-supervisor: ")]


# Deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.client
def test_killed(ibm: local.Service, run: Exec) -> None:
    """Every kind of job is cancelled, once; those that are over are left alone; sessions are closed."""
    driver = run(
        """
        from qiskit.quantum_info import SparsePauliOp
        from qiskit_ibm_runtime import EstimatorV2, SamplerV2

        bare = isa.remove_final_measurements(inplace=False)
        pub = (bare, SparsePauliOp("Z" * bare.num_qubits))
        def current():
            if Sampler is SamplerV2:  # an older client
                return []
            from qiskit_ibm_runtime import Executor
            from qiskit_ibm_runtime.executor_estimator import Estimator
            from qiskit_ibm_runtime.quantum_program import QuantumProgram

            program = QuantumProgram(shots=16)
            program.append_circuit_item(isa)
            return [Estimator(backend).run([pub]), Executor(backend).run(program)]
        sampler.run([isa]).result()
        listed = sampler.run([isa])
        while listed.job_id() not in [job.job_id() for job in backend.service.jobs(limit=5, pending=False)]:
            pass
        closed = Session(backend)
        Sampler(mode=closed).run([isa]).result()
        closed.close()
        say("over", os.getpid(), closed.session_id)
        wait()
        session, batch = Session(backend), Batch(backend)
        jobs = [
            sampler.run([isa]),
            SamplerV2(backend).run([isa]),
            EstimatorV2(backend).run([pub]),
            *current(),
            Sampler(mode=session).run([isa]),
            Sampler(mode=batch).run([isa]),
        ]
        say("jobs", *(job.job_id() for job in jobs))
        say("sessions", session.session_id, batch.session_id)
        jobs[0].result()
        """
    )
    pid, own_closed = driver.line("over ")
    assert int(pid) == driver.pid
    over = {job.id for job in ibm.jobs()}
    ibm.hold("queued")
    go_on(driver)
    jobs, sessions = driver.line("jobs "), driver.line("sessions ")
    assert len(watchers_of(driver)) == 1
    assert driver.kill() == -signal.SIGKILL
    wait_for_watchers(driver)
    left = {job.id: (job.status, job.cancel_requests) for job in ibm.jobs() if job.id not in over}
    assert left == dict.fromkeys(jobs, ("Cancelled", 1))
    assert [job.cancel_requests for job in ibm.jobs() if job.id in over] == [0, 0, 0]
    current = {"executor"} if IS_CURRENT else set()
    assert {job.program_id for job in ibm.jobs()} == {"sampler", "estimator"} | current
    closed = Counter(entry.path for entry in ibm.journal(method="PATCH"))
    assert closed == Counter(f"/api/v1/sessions/{session}" for session in [own_closed, *sessions])
    assert not ibm.journal(method="DELETE")


@pytest.mark.client
def test_a_job_whose_id_the_driver_never_learned(ibm: local.Service, run: Exec) -> None:
    """SIGTERM, with its default: the POST is on its way."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "phase": "after", "delay_seconds": 60}]})
    driver = run("sampler.run([isa])")
    ibm.wait_for("POST", "/api/v1/jobs")
    while not ibm.jobs():  # its body may come a moment later
        pass
    driver.send(signal.SIGTERM)
    assert end(driver) == -signal.SIGTERM
    [job] = ibm.jobs()
    assert_cancelled_once(ibm, job.id)
    assert not said(driver)


@pytest.mark.long
@pytest.mark.parametrize("shell", ["{python} {script}; true", "nohup {python} {script} & wait"])
def test_below_a_shell(ibm: local.Service, run: Exec, shell: str) -> None:
    ibm.hold("queued")
    driver = run(
        'say("job", sampler.run([isa]).job_id(), os.getpid())\nwait()',
        how=lambda script: ["bash", "-c", shell.format(python=sys.executable, script=f"{script} <&0")],
    )
    job, pid = driver.line("job ")
    inner = Process(pid)
    assert inner != psutil.Process(driver.pid)
    inner.kill()
    assert driver.end() == 0
    wait_for_watchers(inner)
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_children_have_watchers_of_their_own(ibm: local.Service, run: Exec) -> None:
    """Each is killed alone; then their parent is, and no job of a child that lives is touched by that."""
    ibm.hold("queued")
    driver = run(
        """
        import multiprocessing, subprocess
        from concurrent.futures import ProcessPoolExecutor

        def submit(kind, service=None):
            service = service or connect()
            backend = service.backend("ibm_brisbane")
            isa = generate_preset_pass_manager(0, backend).run(circuit)
            mode = backend if "SHARED" not in os.environ else Session.from_id(os.environ["SHARED"], service)
            say("job", Sampler(mode=mode).run([isa]).job_id(), kind, os.getpid())

        def submit_and_wait(kind, service=None):
            submit(kind, service)
            __import__("threading").Event().wait()

        if len(sys.argv) > 1:
            submit_and_wait("subprocess")
        if __name__ == "__main__":
            os.environ["SHARED"] = Session(backend).session_id
            submit("parent")
            subprocess.Popen([sys.executable, __file__, "child"])
            for kind, given in (("fork", [backend.service]), ("spawn", []), ("forkserver", [])):
                context = multiprocessing.get_context(kind)
                context.Process(target=submit_and_wait, args=(kind, *given)).start()
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
            pool.submit(submit_and_wait, "pool")
            wait()
        """
    )
    jobs = {}
    for _ in range(6):
        job, kind, pid = driver.line("job ")
        jobs[kind] = (job, Process(pid))
    assert set(jobs) == {"parent", "subprocess", "fork", "spawn", "forkserver", "pool"}
    assert len({watcher.pid for _, process in jobs.values() for watcher in watchers_of(process)}) == 6
    living = dict(jobs)
    for kind in ("pool", "parent", "fork", "forkserver", "subprocess", "spawn"):
        job, process = living.pop(kind)
        process.kill()
        wait_for_watchers(process)
        assert ibm.job(job).status == "Cancelled", kind
        assert [ibm.job(other).cancel_requests for other, _ in living.values()] == [0] * len(living), kind
    driver.end()
    assert_cancelled_once(ibm, *(job for job, _ in jobs.values()))
    assert len(ibm.journal(method="PATCH", path="/api/v1/sessions/*")) == 1


# Ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_an_end_names_what_is_left(ibm: local.Service, run: Exec) -> None:
    """Callbacks of the program's own come first, also those from before it imported Qiskit."""
    ibm.hold("queued")
    driver = run(
        """
        cancelled, own, *jobs = [sampler.run([isa]) for _ in range(4)]
        cancelled.cancel()
        session, dropped = Session(backend), Session(backend)
        Sampler(mode=dropped).run([isa])
        dropped.cancel()
        say("jobs", *(job.job_id() for job in jobs), session.session_id)
        wait()
        raise ValueError("the driver's own")
        """,
        prelude="""
import atexit
def last():
    say("last", own.status())
    own.cancel()
atexit.register(last)
"""
        + PLAIN,
    )
    *jobs, session = driver.line("jobs ")
    go_on(driver)
    assert end(driver) == 1
    assert driver.lines[-1].startswith("last ")
    assert driver.lines[-1] != "last CANCELLED"
    assert "ValueError: the driver's own" in driver.errors.decode()
    assert said(driver) == [
        f"cancelling 2 unfinished jobs: {', '.join(jobs)}",
        f"closing 1 open session: {session}",
    ]
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1)] * 4 + [("Cancelled", 0)]


@pytest.mark.long
@pytest.mark.parametrize(("ending", "code"), [("", 0), ("sys.exit(3)", 3)])
def test_keep_on_exit(ibm: local.Service, run: Exec, ending: str, code: int) -> None:
    ibm.hold("queued")
    driver = run(
        f"""
        session = Session(backend)
        say("jobs", sampler.run([isa]).job_id(), Sampler(mode=session).run([isa]).job_id(), session.session_id)
        {ending}
        """,
        "--keep-on-exit",
    )
    *jobs, session = driver.line("jobs ")
    assert end(driver) == code
    named = ", ".join(jobs)
    if code == 0:
        assert said(driver) == [f"left 2 unfinished jobs to go on: {named}"]
        assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Queued", 0)] * 2
        assert not ibm.journal(method="PATCH")
    else:
        assert said(driver) == [
            f"cancelling 2 unfinished jobs (exit status 3): {named}",
            f"closing 1 open session (exit status 3): {session}",
        ]
        assert_cancelled_once(ibm, *jobs)


@pytest.mark.long
def test_keep_on_exit_at_the_end_of_a_container(ibm: local.Service, run: Exec, state: Path) -> None:
    """That kills the watcher, which is stopped here, before it has written down what it was told."""
    ibm.hold("queued")
    driver = run(
        """
        say("jobs", *(sampler.run([isa]).job_id() for _ in range(2)))
        wait()
        """,
        "--keep-on-exit",
    )
    jobs = driver.line("jobs ")
    watcher = driver.watcher()
    with Ledger.open(state) as book:
        until(book.rows, lambda rows: [row.answered for row in rows] == [True, True])
        with book.batch():  # so that it does not have the ledger's lock
            watcher.suspend()
    assert driver.end() == 0
    watcher.kill()
    wait_for_end(watcher)
    assert said(driver) == [f"left 2 unfinished jobs to go on: {', '.join(jobs)}"]
    with Ledger.open(state) as book:
        assert [(row.state, row.outcome) for row in book.rows()] == [("done", "detached")] * 2
    assert reap(ibm.service()) == []
    assert [job.cancel_requests for job in ibm.jobs()] == [0, 0]


ENDINGS = {
    "falls off the end": ("pass", 0),
    "sys.exit()": ("sys.exit()", 0),
    "sys.exit(0)": ("sys.exit(0)", 0),
    "sys.exit(3)": ("sys.exit(3)", 3),
    "sys.exit(text)": ("sys.exit('text')", 1),
    "sys.exit(tuple)": ("sys.exit((0, 0))", 1),
    "sys.exit(256)": ("sys.exit(256)", 0),
    "imported by name": ("from sys import exit\nexit(0)", 0),
    "raise 0": ("raise SystemExit(0)", None),
    "raise 3": ("raise SystemExit(3)", None),
    "quit": ("quit(0)", None),
    "exception": ("1 / 0", 1),
    "interrupt": ("raise KeyboardInterrupt", 1),
    "in a function, through a with": ("def f():\n    sys.exit(0)\nwith open(os.devnull):\n    f()", 0),
    "finally": ("try:\n    sys.exit(4)\nfinally:\n    sys.stdout.flush()", 4),
    "caught": ("try:\n    sys.exit(4)\nexcept SystemExit as error:\n    assert error.code == 4", 0),
    "caught, then another": ("try:\n    sys.exit(0)\nexcept SystemExit:\n    pass\nraise SystemExit(3)", None),
    "caught, then an exception": ("try:\n    sys.exit(0)\nexcept SystemExit:\n    pass\n1 / 0", 1),
    "in a thread": ("thread = threading.Thread(target=sys.exit, args=(3,))\nthread.start()\nthread.join()", 0),
    "exception in a thread": ("thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()", 0),
    "stdout is full": ("sys.stdout = open('/dev/full', 'w')\nsys.stdout.write('x')", 120),
    "stdout is closed": ("sys.stdout.close()", 0),
    "argparse": ("import argparse\nargparse.ArgumentParser().parse_args(['--what'])", 2),
    "interactive": ("sys.ps1 = '>>> '", None),
    "its own excepthook": ("sys.excepthook = lambda *_: None\n1 / 0", 1),
}


@pytest.mark.parametrize("form", ["file", "-c", "-m", "-"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.short_only("*-file")
def test_the_exit_status_is_known_or_said_to_be_unknown(tmp_path: Path, ending: str, form: str) -> None:
    """What the last of all callbacks finds is what the process then ends with; zero is never claimed wrongly."""
    body, expected = ENDINGS[ending]
    code = f"""
import atexit, importlib.util, os, sys, threading
spec = importlib.util.spec_from_file_location("exit_status", {exit_status.__file__!r})  # quicker than the package
exit_status = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exit_status)
exit_status.watch()
atexit.register(lambda: os.write(2, f"status {{exit_status.status()[0]}}\\n".encode()))
{body}
"""
    (tmp_path / "driver.py").write_text(code)
    arguments = {"file": ["driver.py"], "-c": ["-c", code], "-m": ["-m", "driver"], "-": ["-"]}[form]
    environment = command.environment(dict(os.environ), keep_on_exit=True, on_unprotected="raise")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        input=code if form == "-" else "",
        capture_output=True,
        text=True,
        check=False,
    )
    [found] = [line.removeprefix("status ") for line in done.stderr.splitlines() if line.startswith("status ")]
    if expected is None and sys.version_info >= (3, 12) and ending != "interactive":
        assert found == str(done.returncode)
    else:
        assert found == str(expected), done.stderr
        if expected is not None and ending != "interrupt":
            assert done.returncode == expected


# Beside Qiskit, and beside ourselves ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.client
def test_what_qiskit_raises_is_raised_unchanged(ibm: local.Service, run: Exec) -> None:
    """A refused job leaves nothing to guard, a duplicate is cancelled, a lost answer is looked into at the end."""
    fault = {"path": "/api/v1/jobs", "method": "POST", "times": 1}
    ibm.scenario(
        {
            "http_faults": [
                {**fault, "status": 400, "message": "no such thing"},
                {**fault, "status": 429},
                {**fault, "phase": "after", "status": 501},
                {**fault, "phase": "after", "drop_connection": True},
            ]
        }
    )
    ibm.hold("queued")
    driver = run(
        """
        import importlib, threading
        import qiskit_ibm_runtime
        client = sys.modules[type(backend.service._active_api_client).__module__]
        for _ in range(3):
            try:
                sampler.run([isa])
            except Exception as error:
                say("raised", type(error).__module__, type(error).__name__)
        say("retried", sampler.run([isa]).job_id())
        importlib.reload(client)
        fresh = connect(importlib.reload(qiskit_ibm_runtime.qiskit_runtime_service).QiskitRuntimeService)
        thread = threading.Thread(target=lambda: say("job", Sampler(fresh.backend("ibm_brisbane")).run([isa]).job_id()))
        thread.start()
        thread.join()
        wait()
        """,
        QX_SWEEP_WINDOW="0.1",  # long over when what follows has been submitted
    )
    for _ in range(3):
        assert driver.line("raised ") == ["qiskit_ibm_runtime.exceptions", "IBMRuntimeError"]
    [retried] = driver.line("retried ")
    [job] = driver.line("job ")
    lost, duplicate = (made.id for made in ibm.jobs() if made.id not in (retried, job))
    assert ibm.wait_job(duplicate, "Cancelled").cancel_requests == 1
    assert [ibm.job(each).cancel_requests for each in (retried, job)] == [0, 0]
    assert ibm.job(lost).cancel_requests == 0  # its driver may have found it, and wait for it
    go_on(driver)
    assert end(driver) == 0
    assert said(driver) == [
        f"cancelling 2 unfinished jobs: {retried}, {job}",
        "a submission got no answer; a job that it may have made is looked for, and cancelled",
    ]
    assert_cancelled_once(ibm, lost, duplicate, retried, job)


@pytest.mark.long
@pytest.mark.client
def test_run_and_guard_in_it_are_not_guarded_twice(ibm: local.Service, run: Exec) -> None:
    ibm.hold("queued")
    driver = run(
        """
        from qiskit.transpiler import generate_preset_pass_manager
        from qiskit_ibm_runtime import Session
        from qx_supervisor.link import link
        backend = service().backend("ibm_brisbane")
        isa = generate_preset_pass_manager(0, backend).run(bell())
        submitted = threading.Semaphore(0)
        def note(status):
            tell(status)
            if status.state == "submitted":
                submitted.release()
        ours = submit(isa, backend, on_status=note)
        let_go = submit(isa, backend, on_status=note)
        submitted.acquire()
        submitted.acquire()
        say("guarded", len(link.all_guarded()))
        let_go.detach()
        session = Session(backend)
        with guard(session):
            inside = Sampler(mode=session).run([isa])
        session.close()
        say("jobs", ours.job_id, inside.job_id(), let_go.job_id)
        """,
        prelude=PRELUDE,
    )
    assert driver.line("guarded ") == ["2"]
    ours, inside, let_go = driver.line("jobs ")
    assert end(driver) == 0
    assert said(driver) == [f"cancelling 2 unfinished jobs: {ours}, {inside}"]
    assert [ibm.job(job).cancel_requests for job in (ours, inside, let_go)] == [1, 1, 0]
    assert ibm.job(let_go).status == "Queued"


@pytest.mark.long
def test_tags_stay_within_what_is_allowed(ibm: local.Service, run: Exec) -> None:
    ibm.hold("queued")
    driver = run(
        """
        for mine in (1, 7, 8):
            sampler.options.environment.job_tags = [f"t{i}" for i in range(mine)]
            sampler.run([isa])
        say("tags", sampler.options.environment.job_tags)
        wait()
        """
    )
    driver.line("tags ")
    driver.kill()
    wait_for_watchers(driver)
    assert [len(job.tags) for job in ibm.jobs()] == [3, 8, 8]
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1)] * 3


@pytest.mark.long
@pytest.mark.parametrize("choice", ["raise", "warn"])
def test_without_a_watcher(ibm: local.Service, run: Exec, choice: str) -> None:
    driver = run(
        """
        sys.frozen = True
        try:
            Session(backend)
            sampler.run([isa])
            say("submitted")
        except Exception as error:
            say(type(error).__name__, str(error))
        """,
        "--on-unprotected",
        choice,
    )
    assert driver.end() == 0
    if choice == "raise":
        assert driver.lines[-1].startswith("WatcherError no session was opened")
        assert "--on-unprotected warn" in driver.lines[-1]
        assert not ibm.journal(method="POST", path="/api/v1/sessions")
        assert not ibm.jobs()
    else:
        assert driver.lines[-1] == "submitted"
        assert "what follows is not guarded: the watcher needs a Python interpreter" in "\n".join(said(driver))
        assert ibm.wait_idle()[0].status == "Completed"


# Other Pythons ----------------------------------------------------------------------------------------------------

FAKE = """
class RuntimeClient:
    def program_run(self, **kwargs):
        print("submitted")
"""


def start(*words: str, options: Sequence[str] = (), cwd: Path | None = None, **variables: str) -> Done:
    """Run a command under `exec` to its end."""
    line = [sys.executable, "-m", "qx_supervisor", "exec", *options, "--", *words]
    return subprocess.run(line, env={**os.environ, **variables}, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("client", ["api/client.py", "api/clients/runtime.py", "rest/somewhere.py"])
@pytest.mark.short_only("api/client.py")
def test_a_python_without_qx_supervisor(tmp_path: Path, foreign: str, client: str) -> None:
    """It submits nothing, or says that what it submits is not guarded; where it never would, it is left alone."""
    package = tmp_path / "qiskit_ibm_runtime"
    (package / client).parent.mkdir(parents=True)
    (package / client).write_text(FAKE)
    module = f"qiskit_ibm_runtime.{client.removesuffix('.py').replace('/', '.')}"
    (package / "__init__.py").write_text(f"import {module}")
    submitting = f"import qiskit_ibm_runtime; from {module} import RuntimeClient; RuntimeClient().program_run()"
    quiet = start(foreign, "-c", "print('ran')", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "ran\n", "")
    refused = start(foreign, "-c", submitting, cwd=tmp_path)
    assert refused.returncode == 1
    assert "submitted" not in refused.stdout
    assert "RuntimeError: nothing was submitted: jobs of" in refused.stderr
    assert refused.stderr.count("None is submitted") == 1
    if client.startswith("api/"):
        assert f"{foreign} -m pip install qx-supervisor" in refused.stderr
    warned = start(foreign, "-c", submitting, options=["--on-unprotected", "warn"], cwd=tmp_path)
    assert (warned.returncode, warned.stdout) == (0, "submitted\n")
    assert warned.stderr.count("They are submitted all the same") == 1


LOOK = "import json, os, sys; print(json.dumps([sys.path, os.environ['PYTHONPATH'], list(sys.modules)]))"


def test_the_users_own_sitecustomize_runs_and_nothing_else_is_changed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.users_own = __name__")
    done = start(
        sys.executable, "-c", f"import sitecustomize, sys; assert sys.users_own == sitecustomize.__name__; {LOOK}",
        PYTHONPATH=f"{tmp_path}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    path, inherited, modules = json.loads(done.stdout)
    assert str(command.INJECTED) not in path
    assert str(tmp_path) in path
    assert inherited == f"{command.INJECTED}{os.pathsep}{tmp_path}"
    assert "qx_import_hook" in modules
    # Not what this Python imports at any start, as it does while its coverage is measured.
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    added = {name.split(".")[0] for name in set(modules) - set(bare.stdout.split())}
    assert not added & {"qx_supervisor", "qiskit", "typing", "threading"}


def test_a_sitecustomize_that_fails_is_told_as_python_tells_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import not_there")
    plain, ours = (
        subprocess.run(
            [sys.executable, "-c", "print('ran')"],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        for path in (str(tmp_path), f"{command.INJECTED}{os.pathsep}{tmp_path}")
    )
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, 0)
    assert "not_there" in ours.stderr


# The command ------------------------------------------------------------------------------------------------------


def test_it_is_replaced() -> None:
    """Pid and exit code are the program's, its signals are as a shell gives them, and words that look like options."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qx_supervisor",
            "exec",
            "sh",
            "-c",
            "echo $$ $*; cat /proc/self/status; exit 7",
            "--",
            "-x",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate()
    assert process.returncode == 7
    assert out.splitlines()[0] == f"{process.pid} -x"
    [ignored] = [line for line in out.splitlines() if line.startswith("SigIgn")]
    assert not int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("python -I driver.py", "-I"),
        ("python -I", "-I"),
        ("/usr/bin/python3.12 -uE driver.py", "-E"),
        ("python3 -OSm driver", "-S"),
        ("python -W ignore -X dev -I driver.py", "-I"),
        ("python --check-hash-based-pycs never -I driver.py", "-I"),
        ("env A=b python -S driver.py", "-S"),
        ("nohup nice -n 5 python -I driver.py", "-I"),
        ("python driver.py -I", ""),
        ("python -m driver -E", ""),
        ("python -um driver -E", ""),
        ("python -c -I", ""),
        ("python -X importtime -W error::ImportWarning driver.py", ""),
        ("python -XI -WE driver.py", ""),
        ("python - -I", ""),
        ("python -- -I", ""),
        ("driver python -I", ""),
        ("env", ""),
    ],
)
def test_what_python_can_not_be_guarded(words: str, option: str) -> None:
    assert command.unguardable(words.split()) == option


@pytest.mark.long
def test_what_can_not_be_started(tmp_path: Path) -> None:
    """One sentence with the next step, and a shell's exit code."""
    script, text, isolated = tmp_path / "driver.py", tmp_path / "text", tmp_path / "isolated"
    script.write_text("print(1)")
    for file, content in ((text, "print(1)"), (isolated, f"#!{sys.executable} -I\nprint(1)")):
        file.write_text(content)
        file.chmod(stat.S_IRWXU)
    bad = start("true", options=["--keep-on-exti"])
    assert bad.returncode == 2
    assert "--keep-on-exti" in bad.stderr
    for words, code, told in (
        ([sys.executable, "-I", "-c", "print(1)"], 2, "python -I keeps out what guards the jobs; leave -I away"),
        ([str(isolated)], 2, "python -I keeps out"),
        (["no-such-command"], 127, "no-such-command is not found"),
        ([str(script)], 126, f"try: qx-supervisor exec -- python {script}"),
        ([str(tmp_path / "driver")], 127, "is not found"),
        ([str(tmp_path)], 126, "is not executable"),
        ([str(text)], 126, f"name what runs it: qx-supervisor exec -- python {text}"),
    ):
        done = start(*words)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_environment() -> None:
    made = command.environment({"A": "b"}, keep_on_exit=True, on_unprotected="warn")
    assert made["PYTHONPATH"] == str(command.INJECTED)
    assert (made["A"], made["QX_KEEP_ON_EXIT"], made["QX_ON_UNPROTECTED"]) == ("b", "1", "warn")
    within = command.environment({**made, "QX_LOG_LEVEL": "ERROR"}, keep_on_exit=False, on_unprotected="raise")
    assert within["PYTHONPATH"] == str(command.INJECTED)
    assert "QX_KEEP_ON_EXIT" not in within
    assert (within["QX_ON_UNPROTECTED"], within["QX_LOG_LEVEL"]) == ("raise", "ERROR")
    others: dict[str, Any] = {"PYTHONPATH": f"/a{os.pathsep}{os.pathsep}/b"}
    made = command.environment(others, keep_on_exit=False, on_unprotected="raise")
    assert made["PYTHONPATH"] == os.pathsep.join([str(command.INJECTED), "/a", "", "/b"])
