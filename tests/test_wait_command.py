"""`qx-supervisor wait`: the panel on a terminal, several jobs, and `--exit-status`."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from testkit.circuits import BACKEND, ones
from testkit.drivers import RUN
from testkit.processes import until
from testkit.terminals import Terminal

from qx_supervisor import guarded, submit

JOBS = "/api/v1/jobs"
WAIT = [sys.executable, "-m", "qx_supervisor", "wait", "--local"]


@pytest.fixture
def show():
    """Starts the command on a terminal of its own."""
    shown = []

    def start(*words, command=None, **options):
        shown.append(Terminal(command or [*WAIT, *words], **options))
        return shown[-1]

    yield start
    for each in shown:
        each.close()


@pytest.fixture
def ended(here, service):
    """Jobs that are over: one that is done, and one that failed."""
    here.scenario({"next_jobs": [{"outcome": "failed", "reason": "No luck."}]})
    submit(ones(), BACKEND, service=service, shots=4)
    failed = here.wait_for("POST", JOBS, answered=True)[0].job_id
    here.wait_job(failed, "Failed")
    run = submit(ones(), BACKEND, service=service, shots=4)
    run.result()
    return run.job_id, failed


@pytest.mark.long
def test_the_panel_of_a_job(here, fork, show):
    """It shows the place in the queue, and the program that guards the job; results go to stdout below it."""
    here.tell(queue_position=3, qpu_seconds_estimated=4.25)
    here.hold("queued")
    driver = fork(RUN.replace("shots=64", "shots=64, label='vqe step 17'"))
    job = driver.queued()
    until(lambda: guarded.read().runs, lambda runs: any(job in run.row.jobs for run in runs))
    shown = show(job, columns=120)
    wanted = ("position 3", "4.25 s estimated", f":{driver.pid}, watched by pid", "Ctrl-C leaves it running")
    text = shown.until(lambda text: all(each in text for each in wanted))
    assert "vqe step 17" in text
    assert BACKEND in text
    here.hold(None)
    assert shown.end() == 0
    lines = shown.text.splitlines()
    assert lines[0].startswith(f"✔ done · job {job} · vqe step 17 · {BACKEND}")
    assert f"job {job}  {BACKEND}  64 shots" in lines
    assert "watched by" not in shown.text
    assert here.job(job).cancel_requests == 0
    assert driver.end() == 0


@pytest.mark.long
def test_exit_status_fetches_no_result(here, ended, call):
    done, failed = ended
    after = here.cursor()
    assert call("wait", "--exit-status", done, "--local")[:2] == (0, [])
    code, lines, said = call("wait", "--exit-status", failed, "--local")
    assert (code, lines, "No luck." in said) == (1, [], True)
    assert f"{JOBS}/{done}/results" not in [entry.path for entry in here.journal(after)]


@pytest.mark.long
def test_several_jobs(here, ended, call):
    """Each is told of, in the order given; the code is that of the first that did not go well."""
    done, failed = ended
    code, lines, _ = call("wait", "--exit-status", done, "--local", "--json")
    assert (code, json.loads(lines[0])) == (0, {"job_id": done, "backend": BACKEND, "state": "done"})
    code, lines, said = call("wait", done, failed, done, "--local")
    assert (code, lines) == (1, [f"job {done}  {BACKEND}  4 shots", "1  4  100.00 %"])
    assert "No luck." in said
    code, lines, _ = call("wait", failed, done, "--local", "--json")
    assert code == 1
    assert [(told["job_id"], told["state"]) for told in map(json.loads, lines)] == [(failed, "failed"), (done, "done")]
    code, lines, said = call("wait", done, "d1a2b3c4d5e6f7", "--local", "--exit-status")
    assert (code, lines) == (2, [])
    assert "there is no job d1a2b3c4d5e6f7" in said
    before = here.cursor()
    assert call("wait", done, "../backends", "--local")[0] == 2  # before anybody is asked
    assert here.cursor() == before


@pytest.mark.long
def test_several_jobs_on_a_terminal(here, service, show):
    here.hold("queued")
    runs = [submit(ones(), BACKEND, service=service, shots=4) for _ in range(2)]
    jobs = [entry.job_id for entry in here.wait_for("POST", JOBS, count=2, answered=True)]
    shown = show(*jobs, columns=120)
    text = shown.until(lambda text: "0 of 2 done · 2 queued" in text and all(job in text for job in jobs))
    assert "NOT WATCHED" not in text
    here.hold(None)
    assert shown.end() == 0
    assert sum(line.startswith("✔ done") for line in shown.text.splitlines()) == 2
    assert sum("100.00 %" in line for line in shown.text.splitlines()) == 2
    for run in runs:
        run.result()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_on_a_terminal_the_job_goes_on(here, service, show, number):
    here.hold("queued")
    held = submit(ones(), BACKEND, service=service, shots=4)
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    shown = show(job, columns=120)
    shown.until(lambda text: "queued" in text and "Ctrl-C leaves it running" in text)
    if number == signal.SIGINT:
        shown.type("\x03")
    else:
        shown.process.send_signal(number)
    assert shown.end() == -number
    if number == signal.SIGINT:
        assert f"… goes on · job {job}" in shown.text
        assert shown.text.count("goes on") == 1
        assert "╭" not in shown.text
    assert here.job(job).cancel_requests == 0
    assert held.cancel() == "confirmed"


@pytest.mark.long
def test_its_program_dies_meanwhile(here, fork, show):
    here.hold("queued", cancel_lag=3.0)
    driver = fork(RUN)
    job = driver.queued()
    until(lambda: guarded.read().runs, lambda runs: any(job in run.row.jobs for run in runs))
    shown = show(job, columns=120)
    shown.until(f"{os.uname().nodename}:{driver.pid}, watched by pid")
    driver.kill()
    assert shown.end() == 3
    assert "JobCancelled" in shown.text
    assert shown.text.count("the job was cancelled") == 1  # by the command, below the panel
    assert here.job(job).cancel_requests == 1


@pytest.mark.long
def test_a_timeout_on_a_terminal(here, service, show):
    here.hold("queued")
    held = submit(ones(), BACKEND, service=service, shots=4)
    job = here.wait_for("POST", JOBS, answered=True)[0].job_id
    shown = show(job, "--timeout", "1", columns=120)
    assert shown.end() == 5
    assert f"… goes on · job {job}" in shown.text
    assert f"job {job} is not over after 1 s; it goes on" in shown.text
    assert held.cancel() == "confirmed"


@pytest.mark.long
def test_interrupted_the_line_of_several_says_that_they_go_on(here, service, show):
    here.hold("queued")
    runs = [submit(ones(), BACKEND, service=service, shots=4) for _ in range(2)]
    jobs = [entry.job_id for entry in here.wait_for("POST", JOBS, count=2, answered=True)]
    shown = show(*jobs, columns=120)
    shown.until("0 of 2 done · 2 queued")
    shown.type("\x03")
    assert shown.end() == -signal.SIGINT
    assert [f"… goes on · job {job}" in shown.text for job in jobs] == [True, True]
    assert b"failed" not in shown.raw
    for run in runs:
        assert run.cancel() == "confirmed"


AT_ONCE = """
import sys
from qx_supervisor.cli import main, waiting
method = getattr(waiting.OnPanel, sys.argv[1])
seen = []
def interrupted(self, *arguments):
    seen.append(self)
    if len(seen) == 2:
        raise KeyboardInterrupt
    method(self, *arguments)
setattr(waiting.OnPanel, sys.argv[1], interrupted)
main(["wait", "--local", *sys.argv[2:]])
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["__init__", "begin"])
def test_interrupted_before_all_are_shown(here, show, method):
    """Nothing of a panel is left, and of each job it is said once that it goes on."""
    jobs = ["d1a2b3c4d5e6f7", "d1a2b3c4d5e6f8"]
    shown = show(command=[sys.executable, "-c", AT_ONCE, method, *jobs], columns=120)
    assert shown.end() == -signal.SIGINT
    drawn = jobs[:1] if method == "begin" else []
    said = [f"… goes on · job {job}" if job in drawn else f"qx-supervisor: the job {job} goes on" for job in jobs]
    lines = shown.text.splitlines()
    assert [line[: len(each)] for line, each in zip(lines, said, strict=True)] == said
    assert shown.raw.rfind(b"\x1b[?25l") <= shown.raw.rfind(b"\x1b[?25h")
