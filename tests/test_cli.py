"""The command `qx-supervisor`: what it prints, and how it ends."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from qiskit import QuantumCircuit, qasm2, qasm3, qpy
from testkit.circuits import BACKEND, bell, ones
from testkit.client import FINDS_THE_LEAST_BUSY, need_iam_url
from testkit.drivers import RUN, Driver, assert_cancelled_once, end, kill_both
from testkit.processes import until, wait_for_end
from testkit.watchers import wait_until_written

from qx_supervisor import ConfigError, local, submit
from qx_supervisor.cli import files
from qx_supervisor.local import shared

JOBS = "/api/v1/jobs"
CANCEL = "/api/v1/jobs/*/cancel"

Start = Callable[..., Driver]


def command(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qx_supervisor", *words], capture_output=True, text=True, check=check, **options
    )


@pytest.fixture
def begin(fork: Any) -> Start:
    """Starts the command in a process that has Qiskit imported already; how it ends is the interpreter's own."""

    def begin(*words: str) -> Driver:
        if words[0] == "run" and "--backend" not in words and not FINDS_THE_LEAST_BUSY:
            words += ("--backend", BACKEND)
        return fork(f"from qx_supervisor.cli import main\nmain({list(words)!r})")

    return begin


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Bell circuit in OpenQASM 2."""
    path = tmp_path / "bell.qasm"
    path.write_text(qasm2.dumps(bell()))
    return path


@pytest.fixture
def account(ibm: local.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> local.Service:
    """An account in the environment. Its hosts are made up, and the embedded service is the proxy to them."""
    need_iam_url()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "sentinel-key")
    monkeypatch.setenv("QISKIT_IBM_URL", "http://qx.test")
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", "crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::localqpu")
    monkeypatch.setenv("IAM_URL", "http://iam.qx.test")
    monkeypatch.delenv("QISKIT_IBM_CHANNEL", raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ibm.port}")
    return ibm


def objects(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


# run


def test_run_prints_counts(here, begin, file):
    driver = begin("run", str(file), "--local", "--backend", BACKEND, "--shots", "64", "--tag", "mine", "--tag", "2nd")
    assert end(driver) == 0, driver.errors
    (job,) = here.jobs()
    assert {"mine", "2nd"} <= set(job.tags)
    head, *table = driver.lines
    assert head == f"job {job.id}  {BACKEND}  64 shots"
    counts = {bits: int(count) for bits, count, *_ in map(str.split, table)}
    assert sum(counts.values()) == 64
    assert set(counts) == {"00", "11"}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert b"submitted" in driver.errors  # the panel


@pytest.mark.long
def test_run_prints_json_for_each_circuit_of_a_qpy_file(here, begin, tmp_path):
    path = tmp_path / "two.qpy"
    circuits = [ones(2), bell(measured=False)]
    circuits[0].name, circuits[1].name = "ones", "a bell"
    with path.open("wb") as stream:
        qpy.dump(circuits, stream)
    here.tell(qpu_seconds=2.5)
    driver = begin("run", str(path), "--local", "--shots=32", "--json", "--measure-all", "--panel", "none")
    assert end(driver) == 0, driver.errors
    (job,) = here.jobs()
    first, second = objects(driver.lines)
    common = {"job_id": job.id, "backend": BACKEND, "state": "done", "shots": 32}
    assert first.items() >= (common | {"index": 0, "name": "ones", "counts": {"11": 32}}).items()
    assert second.items() >= (common | {"index": 1, "name": "a bell"}).items()
    assert sum(second["counts"].values()) == 32
    assert driver.errors == b""


@pytest.mark.long
def test_run_splits_and_tries_again_and_names_the_job_of_each_circuit(here, begin, tmp_path):
    path = tmp_path / "three.qpy"
    with path.open("wb") as stream:
        qpy.dump([ones(2), ones(2), ones(2)], stream)
    words = ["--local", "--shots=32", "--json", "--split=2", "--retries=1", "--initial-layout", "5,6"]
    driver = begin("run", str(path), *words)
    assert end(driver) == 0, driver.errors
    told = objects(driver.lines)
    assert [each["counts"] for each in told] == [{"11": 32}] * 3
    assert told[0]["job_id"] == told[1]["job_id"] != told[2]["job_id"]
    assert {each["job_id"] for each in told} == {job.id for job in here.jobs()}
    assert b"1 of 2 parts done" in driver.errors


def test_a_layout_that_is_no_list_of_qubits(call, file):
    code, lines, said = call("run", str(file), "--local", "--initial-layout", "5;6")
    assert (code, lines) == (2, [])
    assert "'5;6' is not a list of qubits; write their numbers with commas, as in 4,5,6" in said


@pytest.mark.long
def test_run_starts_a_service_where_none_runs(begin, file, state):
    """It is gone when the command is."""
    driver = begin("run", str(file), "--local", "--shots", "8", "--backend", "ibm_torino", "--json", "--panel", "none")
    assert end(driver) == 0, driver.errors
    assert objects(driver.lines)[0]["backend"] == "ibm_torino"
    assert b"one is started for this run" in driver.errors
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any("local/boot.py" in word for word in process.info["cmdline"] or ()) and _state(process) == str(state)
    ]
    assert not left


def _state(process: psutil.Process) -> str:
    try:
        return process.environ().get("QX_STATE_DIR", "")
    except psutil.Error:
        return ""


@pytest.mark.long
def test_a_service_that_lingers_is_there_for_the_watcher_and_then_ends(fork):
    """Its starter is killed, with a job in the queue."""
    driver = fork(
        """
        mine = local.start(linger=3.0)  # time for the watcher, and for the test, to come
        say("mine", mine.pid, mine.port)
        mine.hold("queued")
        run(bell(), "ibm_brisbane", service=mine.service(), on_status=tell)
        """
    )
    mine = local.Service(*map(int, driver.line("mine ")))
    process = psutil.Process(mine.pid)
    job = driver.queued()
    driver.kill()
    assert mine.wait_job(job).cancel_requests == 1
    wait_for_end(process)


# Exit codes of run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.short_only("2", "15")
def test_run_dies_of_the_signal(here, begin, file, number):
    here.hold("queued")
    driver = begin("run", str(file), "--local", "--json")
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    driver.send(number)
    assert end(driver) == -number
    assert_cancelled_once(here, job)
    (told,) = objects(driver.lines)
    assert told["job_id"] == job
    assert told["state"] == "interrupted"
    said = driver.errors.decode()
    assert f"qx-supervisor: interrupted by {number.name}; job {job}: cancelled, and confirmed" in said
    assert "Traceback" not in said


def test_the_real_command_dies_of_sigint(here, start, file):
    here.hold("queued")
    script = Path(sys.executable).with_name("qx-supervisor")
    driver = start(
        "", wrap=lambda _: [str(script), "run", str(file), "--local", "--backend", BACKEND, "--panel", "none"]
    )
    here.wait_for("POST", JOBS, answered=True)
    driver.send(signal.SIGINT)
    assert end(driver) == -signal.SIGINT
    assert driver.lines == []
    assert driver.errors.startswith(b"qx-supervisor: interrupted by SIGINT; job")
    here.wait_idle()


def test_run_is_killed(here, begin, file):
    here.hold("queued")
    driver = begin("run", str(file), "--local")
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    driver.kill()
    here.wait_job(job)
    assert_cancelled_once(here, job)


@pytest.mark.long
def test_the_job_fails(here, begin, file):
    here.scenario({"next_jobs": [{"outcome": "failed", "reason": "The circuit is cursed.", "reason_code": 7001}]})
    driver = begin("run", str(file), "--local", "--json")
    assert end(driver) == 1
    (told,) = objects(driver.lines)
    assert (told["state"], told["stage"]) == ("failed", "job")
    assert "The circuit is cursed." in told["reason"]
    assert f"qx-supervisor: {told['reason']}" in driver.errors.decode()


def test_the_job_is_cancelled_by_another_command(here, begin, file, call):
    here.hold("queued")
    driver = begin("run", str(file), "--local", "--json")
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    assert call("cancel", job, "--local", "--json") == (
        0,
        [json.dumps({"job_id": job, "outcome": "cancelled", "detail": ""})],
        "",
    )
    assert end(driver) == 3
    assert objects(driver.lines)[0]["state"] == "cancelled"
    assert_cancelled_once(here, job)


@pytest.mark.long
def test_the_time_passes_for_which_a_job_may_run(here, begin, file):
    here.hold("running")
    words = ["--local", "--running-timeout", "1.5", "--json", "--panel", "none"]
    driver = begin("run", str(file), *words)
    assert end(driver) == 5
    (told,) = objects(driver.lines)
    (job,) = here.jobs()
    assert (told["state"], told["stage"], told["job_id"]) == ("timeout", "timeout", job.id)
    assert (job.status, job.cancel_requests, job.max_execution_time) == ("Cancelled", 1, 2)


def test_the_timeout_passes(here, begin, file):
    here.hold("queued")
    driver = begin("run", str(file), "--local", "--timeout", "3", "--json", "--panel", "none")
    assert end(driver) == 5
    (told,) = objects(driver.lines)
    assert (told["state"], told["stage"]) == ("timeout", "timeout")
    # Where the machine is so busy that it passes before the submission, there is nothing to cancel.
    assert_cancelled_once(here, *filter(None, [told["job_id"]]))


def test_an_account_in_the_environment(account, begin, file):
    driver = begin("run", str(file), "--shots", "8", "--json", "--panel", "none")
    assert end(driver) == 0, driver.errors
    (told,) = objects(driver.lines)
    assert (told["name"], sum(told["counts"].values())) == ("bell", 8)


def test_an_account_that_is_not_accepted(account, begin, file):
    account.auth(reject_tokens=True)
    driver = begin("run", str(file), "--json")
    code = end(driver)
    account.auth(reject_tokens=False)
    assert code == 4
    (told,) = objects(driver.lines)
    assert (told["job_id"], told["state"], told["stage"]) == (None, "error", "auth")
    assert "sentinel-key" not in driver.errors.decode() + told["reason"]
    assert not account.jobs()


def test_a_service_that_is_out_of_reach(account, begin, monkeypatch):
    """It is not the account's fault."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    driver = begin("status", "d1a2b3c4")
    assert end(driver) == 1
    assert driver.errors == (
        b"qx-supervisor: IBM Quantum can't be reached; check the network and its proxy, and try again\n"
    )


def test_no_account(begin, file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    driver = begin("status", "d1a2b3c4")
    assert end(driver) == 4
    said = driver.errors.decode()
    assert said.startswith("qx-supervisor: no IBM Quantum account is saved; save one with qx-supervisor login, or use")
    assert said.count("\n") == 1


def test_no_account_for_a_reaper(call, tmp_path, monkeypatch):
    from qx_supervisor.service import accounts

    def none():
        raise ConfigError("config", "pass service=...")

    monkeypatch.setattr(accounts, "every_service", none)
    monkeypatch.setenv("QX_LEDGER", "postgresql://127.0.0.1:9/nowhere")
    code, _, said = call("reaper", "--once")
    assert code == 4
    assert said.startswith("qx-supervisor: no IBM Quantum account is saved; save one with qx-supervisor login, or use")


def test_a_service_that_answers_with_an_error(here, call):
    here.scenario({"http_faults": [{"path": "/api/v1/jobs/*", "status": 503, "times": 100}]})
    code, _, said = call("status", "d1a2b3c4", "--local")
    assert code == 1
    what = "GET /jobs/d1a2b3c4: the service answered 503: Injected by the scenario."
    assert said == f"qx-supervisor: the service could not be asked ({what}); try again in a while\n"


def test_there_is_no_such_backend(here, begin, file):
    driver = begin("run", str(file), "--local", "--backend", "ibm_brisban", "--panel", "none")
    assert end(driver) == 2
    assert b"did you mean ibm_brisbane?" in driver.errors


# Files


@pytest.mark.parametrize(
    ("dump", "before"), [(qasm2.dumps, "// by hand\n\n"), (qasm3.dumps, "// by hand\n/* in\n two lines */\n")]
)
def test_openqasm(dump, before, tmp_path):
    path = tmp_path / "a circuit.txt"  # its suffix says nothing
    path.write_text(f"{before}{dump(bell())}")
    (circuit,) = files.read(str(path), measure_all=False)
    assert circuit.name == "a circuit"
    assert circuit.count_ops()["cx"] == 1
    assert circuit.num_clbits == 2


def test_openqasm_2_with_an_include_beside_it(tmp_path):
    (tmp_path / "mine.inc").write_text("gate twice a { x a; x a; }")
    path = tmp_path / "main.qasm"
    path.write_text(
        'OPENQASM 2.0;\ninclude "qelib1.inc";\ninclude "mine.inc";\nqreg q[1];\ncreg c[1];\ntwice q[0];\n'
        "measure q[0] -> c[0];\n"
    )
    (circuit,) = files.read(str(path), measure_all=False)
    assert circuit.count_ops()["twice"] == 1


def test_only_what_measures_nothing_is_measured(tmp_path):
    branch = QuantumCircuit(1, 1)
    with branch.if_test((branch.clbits[0], 0)):
        branch.measure(0, 0)
    path = tmp_path / "some.qpy"
    with path.open("wb") as stream:
        qpy.dump([bell(measured=False), branch], stream)
    with pytest.raises(ConfigError, match=r"measures nothing \(number 0\); add measurements, or --measure-all"):
        files.read(str(path), measure_all=False)
    first, second = files.read(str(path), measure_all=True)
    assert first.count_ops()["measure"] == 2
    assert "measure" not in second.count_ops()


def test_measurements_go_into_the_bits_that_are_there(tmp_path):
    path = tmp_path / "bits.qasm"
    path.write_text('OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nx q[0];')
    [circuit] = files.read(str(path), measure_all=True)
    assert [register.name for register in circuit.cregs] == ["c"]
    assert circuit.count_ops()["measure"] == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file can't be read: No such file or directory"),
        (b"", 'the file does not begin with "OPENQASM 2.0;"'),
        (b"\xff\xfe\x00", "neither OpenQASM nor QPY"),
        (b"QISKIT\x00\x00", "the QPY file can't be read"),
        (b"OPENQASM 4.0;", "OpenQASM 4 is not known"),
        (b"OPENQASM 2.0;\nqreg q[1];\nnonsense q[0];", "the OpenQASM 2 can't be read"),
        (b"OPENQASM 3.0;\nqubit q;\nnonsense q;", "the OpenQASM 3 can't be read"),
        (b"OPENQASM 3.0;\nqubit q", "the OpenQASM 3 can't be read"),
        (b"OPENQASM 2.0;\nqreg q[1];", "the circuit measures nothing"),
        (b"OPENQASM 3.0;\ninput float theta;\nqubit q;\nU(theta, 0, 0) q;", "a circuit has parameters without values"),
    ],
)
def test_a_bad_file(call, tmp_path, content, reason):
    path = tmp_path / "bad.qasm"
    if content is not None:
        path.write_bytes(content)
    code, lines, said = call("run", str(path))
    assert (code, lines) == (2, [])
    assert said.startswith(f"qx-supervisor: {path}: {reason}")
    assert said.count("\n") == 1
    code, lines, _ = call("run", str(path), "--json")
    assert code == 2
    assert objects(lines)[0]["stage"] == "config"


def test_standard_input():
    done = command("run", "-", check=False, input="OPENQASM 2.0;\nqreg q[1];")
    assert done.returncode == 2
    assert done.stderr.startswith("qx-supervisor: standard input: the circuit measures nothing")


# status, wait, cancel


def test_status(here, service, call):
    here.tell(queue_position=3, starts_in=60, qpu_seconds_estimated=4.5)
    here.hold("queued")
    run = submit(bell(), BACKEND, service=service, tags=["mine"])
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    code, lines, said = call("status", job, "--local", "--json")
    assert (code, said) == (0, "")
    (told,) = objects(lines)
    assert told["job_id"] == job
    assert (told["state"], told["backend"], told["reason"]) == ("queued", BACKEND, None)
    assert (told["queue_position"], told["qpu_seconds_estimated"], told["qpu_seconds"]) == (3, 4.5, None)
    assert "mine" in told["tags"]
    assert told["estimated_start"].endswith("Z")
    assert told["url"] is None  # it is not IBM's
    here.hold(None)
    run.result()
    code, lines, _ = call("status", job, job, "--local")
    assert code == 0
    assert lines.count("state            completed") == 2
    assert lines.count("QPU s, charged   0.0") == 2


STRANGE = "it \x1b]0;failed\x07\nat \x9b31mtwo"
"""What a terminal would obey, and a second line."""


def test_what_the_service_says_is_printed_and_not_obeyed(call, monkeypatch):
    from qx_supervisor.cli import account
    from qx_supervisor.cli import status as command

    known = dict.fromkeys(
        ("backend", "created", "queue_position", "estimated_start", "qpu_seconds_estimated", "qpu_seconds", "url")
    )
    found = {**known, "job_id": "d1a2", "state": "failed", "reason": STRANGE, "tags": [STRANGE]}
    monkeypatch.setattr(account, "connect", lambda *_: None)
    monkeypatch.setattr(command, "_read", lambda *_: found)
    code, lines, _ = call("status", "d1a2")
    assert (code, len(lines)) == (0, 11)
    assert all(line.isprintable() for line in lines)
    assert "reason           it ]0;failed at 31mtwo" in lines


def test_what_reap_says_of_a_run_is_one_line(call, monkeypatch):
    reap = importlib.import_module("qx_supervisor.reap")  # the package has a function of that name
    found = reap.Reaped("r1", "pending", ("d1a2",), STRANGE, 42, "node7")
    monkeypatch.setattr(reap, "reap_with", lambda *_: [found])
    code, lines, _ = call("reap")
    assert (code, lines) == (6, ["pending        node7:42  d1a2  it ]0;failed at 31mtwo"])


@pytest.mark.parametrize("words", [["status", "{}"], ["wait", "{}"], ["cancel", "{}"]])
@pytest.mark.short_only("words0")
def test_ids_that_are_none(here, call, words):
    verb = words[0]
    code, lines, said = call(verb, "d1a2b3c4d5e6f7", "--local")
    assert code == 2
    assert "there is no" in said
    if verb == "wait":
        (told,) = objects(call(verb, "d1a2b3c4d5e6f7", "--local", "--json")[1])
        assert (told["job_id"], told["state"], told["stage"]) == ("d1a2b3c4d5e6f7", "error", None)
        assert "there is no" in told["reason"]
    for wrong in ("../backends", "a job", "ab", "qxs-0123456789"):
        before = here.cursor()
        code, lines, said = call(verb, wrong, "--local")
        assert (code, lines) == (2, [])
        assert "qx-supervisor ps" in said
        assert here.cursor() == before  # nobody was asked


def test_wait_prints_counts_and_expectation_values(here, service, call):
    run = submit([ones(2), ones(2)], BACKEND, service=service, shots=16)
    run.result()
    code, lines, _ = call("wait", run.job_id, "--local")
    assert code == 0
    table = [f"job {run.job_id}  {BACKEND}  16 shots", "11  16  100.00 %"]
    assert lines == [*table, "", *table]
    code, lines, _ = call("wait", run.job_id, "--local", "--json")
    assert [told["counts"] for told in objects(lines)] == [{"11": 16}] * 2
    assert [told["name"] for told in objects(lines)] == [None] * 2

    circuit = QuantumCircuit(1)
    circuit.x(0)
    run = submit((circuit, ["Z", "I"]), BACKEND, service=service, primitive="estimator")
    run.result()
    code, lines, _ = call("wait", run.job_id, "--local", "--json")
    (told,) = objects(lines)
    assert (code, told["expectation_values"]) == (0, pytest.approx([-1.0, 1.0]))
    assert len(told["standard_errors"]) == 2
    code, lines, _ = call("wait", run.job_id, "--local")
    assert [line.split()[0] for line in lines] == ["job", "-1.000000", "+1.000000"]


@pytest.mark.long
def test_wait_says_how_a_job_ended(here, service, call):
    here.scenario({"next_jobs": [{"outcome": "failed", "reason": "No luck."}]})
    submit(bell(), BACKEND, service=service)
    failed = here.wait_for("POST", JOBS, answered=True)[0].job_id  # this process may not have read the answer yet
    here.wait_job(failed, "Failed")
    code, lines, said = call("wait", failed, "--local", "--json")
    assert (code, objects(lines)[0]["state"]) == (1, "failed")
    assert "No luck." in said
    here.hold("queued")
    held = submit(bell(), BACKEND, service=service)
    here.wait_for("POST", JOBS, count=2, answered=True)
    job = here.jobs()[1].id
    code, lines, said = call("wait", job, "--local", "--timeout", "0.7", "--json")
    assert (code, objects(lines)[0]["state"]) == (5, "timeout")
    assert f"job {job} is not over after 0.7 s; it goes on" in said
    assert here.job(job).status == "Queued"
    assert held.cancel() == "confirmed"
    code, lines, _ = call("wait", job, "--local", "--json")
    assert (code, objects(lines)[0]["state"]) == (3, "cancelled")


@pytest.mark.long
def test_wait_is_not_put_off_by_faults(here, service, call):
    run = submit(ones(), BACKEND, service=service, shots=4)
    run.result()
    job = f"{JOBS}/{run.job_id}"
    here.scenario({"http_faults": [{"path": path, "status": 503, "times": 1} for path in (job, f"{job}/results")]})
    code, lines, said = call("wait", run.job_id, "--local")
    assert (code, lines[1:]) == (0, ["1  4  100.00 %"])
    assert said.count("connection lost, retrying") == 2
    assert said.count("connection back") == 2


def test_wait_is_interrupted_and_the_job_goes_on(here, service, begin):
    here.hold("queued")
    held = submit(bell(), BACKEND, service=service)
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    after = here.cursor()
    driver = begin("wait", job, "--local", "--json")
    here.wait_for("GET", f"{JOBS}/{job}", count=3, after=after)  # the poller of this process asks too
    while b"queued" not in driver.errors:
        driver._read(60.0, "queued")
    driver.send(signal.SIGINT)
    assert driver.end() == -signal.SIGINT
    assert f"the job {job} goes on" in driver.errors.decode()
    (told,) = objects(driver.lines)
    assert (told["job_id"], told["state"]) == (job, "interrupted")
    assert (here.job(job).status, here.job(job).cancel_requests) == ("Queued", 0)
    assert held.cancel() == "confirmed"


@pytest.mark.long
def test_cancel_that_is_not_confirmed(here, service, call):
    here.hold("queued")
    held = submit(bell(), BACKEND, service=service)
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    here.scenario({"http_faults": [{"path": CANCEL, "method": "POST", "status": 503, "times": 1000}]})
    code, lines, said = call("cancel", job, "--local", "--timeout", "0.2", "--json")
    assert code == 6
    (told,) = objects(lines)
    assert (told["outcome"], "503" in told["detail"]) == ("unconfirmed", True)
    assert "could not be confirmed" in said
    here.scenario({})
    code, lines, said = call("cancel", job, "d1a2b3c4d5e6f7", "--local")
    assert code == 2
    assert lines == [f"cancelled    {job}", "gone         d1a2b3c4d5e6f7"]
    code, lines, said = call("cancel", job, "--local")
    assert (code, lines) == (0, [f"cancelled    {job}"])
    here.wait_idle()
    held.cancel()


# ps, reap


def test_ps_and_reap(here, fork, call, tmp_path, monkeypatch):
    here.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    # The watcher writes it down a moment later.
    (told,) = until(lambda: objects(call("ps", "--json")[1]), lambda found: found[0]["jobs"])
    assert (told["state"], told["pid"], told["jobs"]) == ("live", driver.pid, {job: ""})
    assert told["watcher_pid"] == driver.watcher().pid
    assert told["host"] == os.uname().nodename
    assert told["created"] <= told["updated"]
    wait_until_written(driver)
    kill_both(driver)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    assert call("reap")[0] == 4  # now it is needed
    header, row = call("ps")[1]
    assert header.split() == ["AGE", "STATE", "JOB", "BACKEND", "LABEL", "COST", "HOST"]
    assert row.split()[1:] == ["orphan", job, "ibm_brisbane", "-", "-", f"{os.uname().nodename}:{driver.pid}"]
    code, lines, said = call("reap", "--local", "--json")
    assert (code, said) == (0, "")
    (told,) = objects(lines)
    assert (told["fate"], told["jobs"], told["pid"]) == ("cancelled", [job], driver.pid)
    assert_cancelled_once(here, job)
    assert call("reap", "--local") == (0, [], "qx-supervisor: nothing is left behind\n")
    assert call("ps") == (0, [], "qx-supervisor: no run is guarded; --all lists those that are over\n")
    assert [told["state"] for told in objects(call("ps", "--all", "--json")[1])] == ["cancelled"]


@pytest.mark.long
def test_reap_says_what_is_not_resolved(here, fork, call):
    here.hold("queued")
    here.scenario({"http_faults": [{"path": JOBS, "method": "POST", "delay_seconds": 3}]})
    driver = fork(RUN)
    here.wait_for("POST", JOBS)
    kill_both(driver)
    here.wait_for("POST", JOBS, answered=True)
    code, lines, _ = call("reap", "--local", "--json")
    assert (code, objects(lines)[0]["fate"]) == (6, "pending")
    here.wait_idle()


def test_reap_with_nothing_to_do_needs_no_account(tmp_path, monkeypatch, call):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("reap") == (0, [], "qx-supervisor: nothing is left behind\n")


# local, demo


def test_local_start_status_stop():
    started = command("local", "start").stdout.strip()
    try:
        assert started.startswith("http://127.0.0.1:")
        again = command("local", "start", "--json", "--backend", "ibm_torino")  # it runs already
        assert json.loads(again.stdout)["url"] == started
        assert "goes on as it is" in again.stderr
        assert command("local", "status").stdout.startswith(started)
        offered = {backend.name for backend in local.find().service().backends()}
        assert offered == set(shared.BACKENDS)  # as with QX_LOCAL
    finally:
        command("local", "stop")
    gone = command("local", "status", check=False)
    assert gone.returncode == 1
    assert gone.stderr == "qx-supervisor: no embedded service is running; start one with: qx-supervisor local start\n"


def test_local_start_with_an_unknown_backend(call):
    code, lines, said = call("local", "start", "--backend", "ibm_nowhere")
    assert (code, lines) == (2, [])
    assert "no such backend: ibm_nowhere" in said


@pytest.mark.long
def test_demo(running_service):
    """Its output is what the README promises; it needs no account."""
    shown = command("demo").stdout
    assert "counts {'" in shown
    assert "is cancelled, by 1 request of the watcher's" in shown


def test_demo_without_the_embedded_service(call, monkeypatch):
    monkeypatch.delenv("QX_LOCAL_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, said = call("demo")
    assert code == 2
    assert said.startswith("qx-supervisor: The embedded service needs localqpu: ")


# The command line


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["run"], ["run", "f", "--shots", "many"], ["ps", "--nonsense"], ["cancel"], ["completion", "csh"]],
)
def test_usage(call, words):
    code, lines, said = call(*words)
    assert (code, lines) == (2, [])
    assert said.startswith("qx-supervisor: ")
    assert said.endswith(" --help\n")
    assert said.count("\n") == 1


def test_options_that_contradict_each_other(call, file):
    code, _, said = call("run", str(file), "--local", "--instance", "crn:x")
    assert code == 2
    assert "leave --instance away" in said


@pytest.mark.parametrize("words", [["--debug", "run", "nowhere"], ["run", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(call, words):
    code, _, said = call(*words)
    assert code == 2
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith("qx-supervisor: nowhere: the file can't be read: No such file or directory\n")
    assert "Traceback" not in call("run", "nowhere")[2]


def test_an_error_that_nobody_foresaw(call, monkeypatch):
    monkeypatch.setattr("qx_supervisor.cli.files.read", lambda *_, **__: 1 // 0)
    code, lines, said = call("run", "f")
    assert (code, lines) == (1, [])
    assert said == "qx-supervisor: ZeroDivisionError: integer division or modulo by zero; --debug shows where\n"


@pytest.mark.long
def test_a_reader_who_has_had_enough(here, fork, state):
    """As `| head` is: its end of the pipe is closed. The exit code is as ever, and nothing is said."""
    here.hold("queued")
    driver = fork(RUN)
    driver.queued()
    for words in (["ps"], ["ps", "--json"], ["--help"], ["run", "--help"], ["--version"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "qx_supervisor", *words], stdout=write, stderr=subprocess.PIPE, check=False
        )
        os.close(write)
        assert (words, done.returncode, done.stderr) == (words, 0, b"")
    driver.kill()
    here.wait_idle()


def test_no_stdout_at_all():
    shell = f"exec {sys.executable} -m qx_supervisor ps --json >&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["ps"], ["ps", "--all"], ["run", "--help"], ["completion", "zsh"]]
)
@pytest.mark.short_only("words0", "words2")
def test_works_without_an_account_and_without_qiskit(words):
    """Qiskit takes two seconds to import."""
    code = f"""
import sys
from qx_supervisor.cli import main
try:
    main({words!r})
finally:
    slow = {{"qiskit", "qiskit_ibm_runtime", "numpy", "requests"}} & set(sys.modules)
    assert not slow, slow
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # Qiskit alone takes two


@pytest.mark.long
def test_completion(here, fork):
    here.hold("queued")
    driver = fork(RUN)
    job = driver.queued()

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        environment = {
            **os.environ,
            "_QX_SUPERVISOR_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        return command(env=environment).stdout.split()

    assert complete("qx-supervisor st") == ["plain,status"]
    assert complete("qx-supervisor run --sh") == ["plain,--shots"]
    assert complete("qx-supervisor cancel ") == [f"plain,{job}"]
    driver.kill()
    here.wait_idle()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell(shell, call):
    code, lines, _ = call("completion", shell)
    assert code == 0
    text = "\n".join(lines)
    assert f"_QX_SUPERVISOR_COMPLETE={shell}_complete" in text
    assert text.count("qx-supervisor") > 0


def test_bash_takes_the_completion():
    path = f"PATH={Path(sys.executable).parent}:$PATH"
    shell = f'{path}; eval "$(qx-supervisor completion bash)"; complete -p qx-supervisor'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert "_qx_supervisor_completion" in done.stdout
