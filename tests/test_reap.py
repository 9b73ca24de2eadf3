"""Driver and watcher die together: what they guarded is found in the ledger, and cancelled by whoever comes next."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from testkit.circuits import bell
from testkit.drivers import LETS_GO, RUN, Driver, end, kill_both
from testkit.processes import until, wait_for_end
from testkit.watchers import titles, wait_until_written

import qx_supervisor.service as services
from qx_supervisor import reap, run
from qx_supervisor.cli import main
from qx_supervisor.watcher.host_identity import this_host
from qx_supervisor.watcher.ledger import SWEPT_FOR, Ledger, Row

CANCEL = "/api/v1/jobs/*/cancel"
REAP = """
for reaped in reap(service()):
    say("reaped", reaped.fate, *reaped.jobs)
"""


def test_reap_cancels_once(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    wait_until_written(driver)
    kill_both(driver)
    assert ibm.job(job).cancel_requests == 0
    found = reap(ibm.service())
    assert [(reaped.fate, reaped.jobs, reaped.pid) for reaped in found] == [("cancelled", (job,), driver.pid)]
    assert ibm.job(job).status == "Cancelled"
    assert reap(ibm.service()) == []
    assert ibm.job(job).cancel_requests == 1


def test_the_next_run_reaps_in_the_background(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    wait_until_written(driver)
    kill_both(driver)
    following = fork(f"held = {RUN.replace('run', 'submit')}\nibm.wait_job('{job}', 'Cancelled')")
    assert following.end() == 0, following.errors
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_two_reapers_never_cancel_twice(ibm, fork):
    ibm.hold("queued")
    drivers = [fork(RUN) for _ in range(4)]
    jobs = [driver.queued() for driver in drivers]
    for driver in drivers:
        wait_until_written(driver)
        kill_both(driver)
    reapers = [fork(REAP) for _ in range(3)]
    for reaper in reapers:
        assert reaper.end() == 0, reaper.errors
    assert [ibm.job(job).cancel_requests for job in jobs] == [1] * 4


def test_it_can_wait_for_a_watcher_that_is_at_work(ibm, fork):
    """Whoever is about to end the container would end it in the middle of its cancel."""
    ibm.hold("queued", cancel_lag=1.0)
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    assert reap(ibm.service(), wait=60) == []
    assert ibm.job(job).status == "Cancelled"
    wait_for_end(watcher)
    assert ibm.job(job).cancel_requests == 1


def test_a_watcher_that_is_not_done_in_time_is_not_passed_over(here, fork, call):
    """Whoever reads that nothing is left ends the container, and the watcher with it."""
    here.hold("queued")
    here.scenario({"http_faults": [{"path": CANCEL, "method": "POST", "status": 503, "times": 1000}]})
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    here.wait_for("POST", CANCEL)
    (pending,) = reap(here.service(), wait=0.1)
    assert (pending.fate, pending.jobs, pending.pid) == ("pending", (job,), driver.pid)
    code, (line,), _ = call("reap", "--local", "--wait", "0.1")
    assert (code, line.split()[0]) == (6, "pending")
    code, lines, said = call("reap", "--local")
    assert (code, lines, said) == (0, [], "qx-supervisor: 1 left to watchers that are at work; --wait waits for them\n")
    here.scenario({})
    wait_for_end(watcher)
    assert call("reap", "--local", "--wait", "0.1") == (0, [], "qx-supervisor: nothing is left behind\n")


@pytest.mark.long
def test_it_does_not_wait_for_those_that_live_nor_for_a_grace(ibm, fork):
    ibm.hold("queued")
    living, waiting = fork(RUN), fork(RUN.replace("shots=64", 'shots=64, key="step", grace=3600'))
    living.queued()
    job = waiting.queued()
    watcher = waiting.watcher()
    waiting.kill()
    assert reap(ibm.service(), wait=600) == []
    assert [each.cancel_requests for each in ibm.jobs()] == [0, 0]
    living.kill()
    watcher.kill()  # it would wait for an hour
    wait_for_end(watcher)
    assert ibm.job(job).status == "Queued"


def test_what_lives_is_not_touched(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    assert reap(ibm.service()) == []
    # Its watcher is gone for the moment: it lives still, and will start another.
    driver.send(signal.SIGSTOP)
    watcher = driver.watcher()
    watcher.kill()
    wait_for_end(watcher)
    assert reap(ibm.service()) == []
    driver.send(signal.SIGCONT)
    assert ibm.job(job).cancel_requests == 0
    ibm.hold(None)
    assert driver.end() == 0


@pytest.mark.long
def test_a_live_watcher_of_a_dead_driver_is_left_to_it(ibm, fork):
    """The service does not answer its cancel: the watcher goes on trying, and a reaper stays away."""
    ibm.scenario({"http_faults": [{"path": CANCEL, "method": "POST", "status": 503, "times": 1000}]})
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    ibm.wait_for("POST", "*/cancel")
    assert reap(ibm.service()) == []
    ibm.scenario({})
    ibm.wait_job(job, "Cancelled")
    wait_for_end(watcher)


def test_the_id_was_not_known(ibm, fork):
    """Both die while the POST is in flight: the job is found by its tag."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 3}]})
    driver = fork(RUN)
    ibm.wait_for("POST", "/api/v1/jobs")
    kill_both(driver)
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    (job,) = ibm.jobs()
    assert [reaped.fate for reaped in reap(ibm.service())] == ["pending"]
    assert ibm.job(job.id).status == "Cancelled"


@pytest.mark.parametrize(("window", "outcome"), [("2", "nothing left"), ("60", "pending")])
def test_a_late_job_is_looked_for_until_the_sweep_window_is_over(ibm, state, monkeypatch, window, outcome):
    """The window that was set, as it is for the watcher and the reaper."""
    monkeypatch.setenv("QX_SWEEP_WINDOW", window)
    service = ibm.service()
    [client] = services.clients_of(service)
    endpoint, instance = services.address(client)
    first_seen = time.time() - 5
    with Ledger.open(state) as book:
        book.write(
            Row(
                run="r1",
                host_identity=this_host(),
                pid=2**22 + 1,  # no process has it
                start_ticks=1,
                tag="qxs-r1",
                endpoint=endpoint,
                instance=instance,
                state="pending",
                sweep_until=first_seen + SWEPT_FOR,
            )
        )
    assert [reaped.fate for reaped in reap(service)] == [outcome]


def test_a_session_is_closed(ibm, fork):
    ibm.hold("running")
    driver = fork(
        """
        from qiskit.transpiler import generate_preset_pass_manager
        from qiskit_ibm_runtime import Session
        backend, isa = backend(), isa()
        session = Session(backend)
        with guard(session):
            say("jobs", *(Sampler(mode=session).run([isa]).job_id() for _ in range(2)))
            signal.pause()
        """
    )
    jobs = driver.line("jobs ")
    kill_both(driver)
    assert [reaped.fate for reaped in reap(ibm.service())] == ["cancelled"]
    assert [ibm.job(job).status for job in jobs] == ["Cancelled"] * 2
    assert ibm.journal(method="DELETE", path="/api/v1/sessions/*/close")


@pytest.mark.skipif(os.getuid() != 0, reason="unshare --pid needs root")
@pytest.mark.long
def test_another_pid_namespace_is_never_judged(ibm, start, state):
    """The same machine and state directory, seen from two PID namespaces: a pid means nothing in the other."""
    ibm.hold("queued")
    inside = start(RUN, wrap=lambda command: ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command])
    job = inside.queued()
    [watcher] = [process for process, title in titles() if title.is_in(state)]
    watcher.suspend()  # it would learn of the death, and cancel, before it is killed
    inside.kill()  # and with its first process the whole namespace, its watcher too
    (reaped,) = reap(ibm.service())
    assert reaped.fate == "elsewhere"
    assert ibm.job(job).cancel_requests == 0


def test_another_account_is_not_touched(ibm, fork, state):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    wait_until_written(driver)
    kill_both(driver)
    with sqlite3.connect(state / "ledger.db") as book:
        book.execute("UPDATE runs SET instance = 'crn:v1:someone:else'")
    book.close()
    assert [reaped.fate for reaped in reap(ibm.service())] == ["other account"]
    assert ibm.job(job).cancel_requests == 0


def test_ps_and_reap_commands(ibm, fork, capsys):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()

    def shown() -> list[str]:
        main(["ps"], standalone_mode=False)
        return capsys.readouterr().out.split()

    words = until(shown, lambda words: job in words)  # the watcher writes it down a moment later
    assert words[:7] == ["AGE", "STATE", "JOB", "BACKEND", "LABEL", "COST", "HOST"]
    assert words[8:] == ["live", job, "ibm_brisbane", "-", "-", f"{os.uname().nodename}:{driver.pid}"]
    driver.kill()
    ibm.wait_job(job, "Cancelled")


def _spoil(kind: str, state: Path) -> None:
    if kind == "a file in its place":
        state.write_text("")
    else:
        state.mkdir(mode=0o700)
    if kind == "corrupt":
        (state / "ledger.db").write_bytes(b"\0 this is no database \0" * 400)
        (state / "ledger.db").chmod(0o600)
    if kind == "newer":
        with sqlite3.connect(state / "ledger.db") as book:
            book.execute("PRAGMA user_version = 9999")
        book.close()
        (state / "ledger.db").chmod(0o600)


@pytest.mark.parametrize("kind", ["a file in its place", "corrupt", "newer"])
def test_a_ledger_that_fails_costs_the_ledger_only(ibm, fork, state, kind):
    """One warning; the run goes on, and so does its watcher."""
    _spoil(kind, state)
    driver = fork(
        f"""
        import logging
        logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
        logging.getLogger("qiskit_ibm_runtime").disabled = True
        {RUN.replace(", on_status=tell", "")}
        say("first")
        ibm.hold("queued")
        {RUN}
        """
    )
    driver.line("first")  # it may be over before anybody sees it queued
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    assert driver.errors.decode().count("the ledger can't be kept") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk(ibm, fork, state, caplog):
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", state], check=True)
    try:
        (state / "filler").write_bytes(b"")
        with pytest.raises(OSError, match="No space"), (state / "filler").open("wb") as filler:
            filler.write(b"x" * (1 << 20))
        ibm.hold("queued")
        driver = fork(RUN)
        job = driver.queued()
        watcher = driver.watcher()
        driver.kill()
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
        wait_for_end(watcher)
    finally:
        subprocess.run(["umount", state], check=True)


@pytest.mark.long
def test_a_locked_ledger(ibm, fork, state):
    state.mkdir(mode=0o700)
    first = fork(RUN)
    assert first.end() == 0
    book = sqlite3.connect(state / "ledger.db", isolation_level=None)
    try:
        book.execute("BEGIN EXCLUSIVE")
        ibm.hold("queued")
        driver = fork(RUN)
        job = driver.queued()
        driver.kill()
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    finally:
        book.close()


def test_no_secret_is_in_the_ledger(ibm, state, caplog):
    key = "sentinel-" + "k" * 40
    with caplog.at_level(logging.DEBUG, logger="qx_supervisor"):
        run(bell(), "ibm_brisbane", service=ibm.service(key), shots=16, panel=None)
    for file in state.glob("*"):
        assert key.encode() not in file.read_bytes()
    assert key not in caplog.text


def test_rows_have_the_mode_of_a_private_file(ibm, fork, state):
    driver = fork(RUN)
    assert end(driver) == 0  # its watcher has written that it is over
    assert (state.stat().st_mode & 0o777, (state / "ledger.db").stat().st_mode & 0o777) == (0o700, 0o600)
    listed = subprocess.run(
        [sys.executable, "-m", "qx_supervisor", "ps", "--all"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.splitlines()[1].split()[1] == "finished"


def kill_its_watcher(driver: Driver) -> None:
    """And leave the driver stopped: it has not noticed yet."""
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.send_signal(signal.SIGKILL)
    wait_for_end(watcher)


def test_a_job_that_was_let_go_while_there_was_no_watcher(ibm, fork):
    """Nobody could be told, so the driver itself has to write it down."""
    ibm.hold("queued")
    driver = fork(LETS_GO + "os._exit(0)")
    job = driver.queued()
    kill_its_watcher(driver)
    driver.send(signal.SIGUSR1)
    driver.send(signal.SIGCONT)
    assert driver.end() == 0
    assert reap(ibm.service()) == []
    assert ibm.job(job).cancel_requests == 0


def test_a_job_that_was_let_go_just_before_both_died(ibm, fork, state):
    """As at the end of a container. The watcher, which is stopped here, could not write it down."""
    ibm.hold("queued")
    driver = fork(LETS_GO + 'say("detached")\nsignal.pause()')
    job = driver.queued()
    wait_until_written(driver)
    with Ledger.open(state) as book, book.batch():  # so that it does not have the ledger's lock
        driver.watcher().suspend()
    driver.send(signal.SIGUSR1)
    driver.line("detached")
    kill_both(driver)
    assert reap(ibm.service()) == []
    assert ibm.job(job).cancel_requests == 0
    with Ledger.open(state) as book:
        assert [(row.state, row.outcome, dict(row.jobs)) for row in book.rows()] == [
            ("done", "detached", {job: "kept"})
        ]


@pytest.mark.long
def test_a_run_that_was_over_while_there_was_no_watcher(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    kill_its_watcher(driver)
    ibm.hold(None)
    ibm.wait_job(job, "Completed")
    driver.send(signal.SIGCONT)
    assert driver.end() == 0, driver.errors
    assert reap(ibm.service()) == []
    assert ibm.job(job).cancel_requests == 0
