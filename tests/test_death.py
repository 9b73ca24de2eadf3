"""A driver dies, in one way or another, with the id of its job known: the job is cancelled, once."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from testkit.drivers import RUN, Driver
from testkit.processes import Process, wait_for_end, wait_for_state

from qx_supervisor import local


def assert_cancelled_once(ibm: local.Service, job: str) -> None:
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_kill_nine_ten_times(ibm, fork):
    ibm.hold("queued")
    for _ in range(10):
        driver = fork(RUN)
        job = driver.queued()
        watcher = driver.watcher()
        assert driver.kill() == -signal.SIGKILL
        ibm.wait_job(job, "Cancelled")
        wait_for_end(watcher)
    assert [job.cancel_requests for job in ibm.jobs()] == [1] * 10


@pytest.mark.client
def test_killed_while_running(ibm, fork):
    ibm.hold("running")
    driver = fork(RUN)
    job = driver.line("running ")[0]
    driver.kill()
    assert_cancelled_once(ibm, job)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(3)", 3),
        ("signal.raise_signal(signal.SIGSEGV)", -signal.SIGSEGV),
        ("signal.raise_signal(signal.SIGABRT)", -signal.SIGABRT),
    ],
)
def test_dies_by_itself(ibm, fork, end, code):
    ibm.hold("queued")
    driver = fork(
        f"""
        def tell_and_die(status):
            tell(status)
            if status.state == "queued":
                {end}
        run(isa(), backend(), on_status=tell_and_die)
        """
    )
    job = driver.queued()
    assert driver.end() == code
    assert_cancelled_once(ibm, job)


def test_interpreter_exit_with_a_live_run(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        """
        queued = threading.Event()
        def note(status):
            tell(status)
            if status.state == "queued":
                queued.set()
        held = submit(isa(), backend(), on_status=note)
        queued.wait()
        """
    )
    job = driver.queued()
    assert driver.end() == 0
    assert_cancelled_once(ibm, job)


def test_unreaped_zombie(ibm, start):
    """Its parent never waits for it: the pid exists, and psutil finds it; it is dead all the same."""
    ibm.hold("queued")
    driver = start(RUN)
    job = driver.queued()
    signal.pidfd_send_signal(driver.pidfd, signal.SIGKILL)
    assert_cancelled_once(ibm, job)
    # The watcher may know of its death before the kernel is done with it.
    wait_for_state(psutil.Process(driver.pid), psutil.STATUS_ZOMBIE)
    driver.end()


@pytest.mark.long
def test_killed_with_its_process_tree(ibm, start):
    ibm.hold("queued")
    driver = start(RUN)
    job = driver.queued()
    root = psutil.Process(driver.pid)
    for process in [*root.children(recursive=True), root]:
        process.kill()
    driver.end()
    assert_cancelled_once(ibm, job)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_killed_with_its_process_group(ibm, start, number):
    ibm.hold("queued")
    driver = start(RUN, process_group=0)
    job = driver.queued()
    os.killpg(driver.pid, number)
    assert driver.end() == -number
    assert_cancelled_once(ibm, job)


def test_fork_children_hold_its_descriptors(ibm, fork):
    """No EOF comes, because a child has the pipe's other end open still; death is the pidfd's word, not an EOF's."""
    ibm.hold("queued")
    driver = fork(
        f"""
        reader, writer = os.pipe()
        def fork_at_queued(status):
            if status.state == "queued" and not os.fork():
                os.close(writer)
                say("child", os.getpid())
                os.read(reader, 1)
                os._exit(0)
            tell(status)
        {RUN.replace("tell", "fork_at_queued")}
        """
    )
    child = psutil.Process(int(driver.line("child ")[0]))
    job = driver.queued()
    signal.pidfd_send_signal(driver.pidfd, signal.SIGKILL)
    assert_cancelled_once(ibm, job)
    wait_for_end(child)  # it saw the end of the pipe when its parent died
    driver.end()


def test_driver_pipe_tee_ends_with_the_driver(ibm, start, tmp_path):
    """A watcher that kept the driver's stdout would keep `tee` waiting."""
    ibm.hold("queued")
    log = tmp_path / "log"

    def piped(command: list[str]) -> list[str]:
        return ["bash", "-c", f"{' '.join(command)} | tee {log}"]

    driver: Driver = start(f'say("pid", os.getpid())\n{RUN}', wrap=piped)
    inner = Process(driver.line("pid ")[0])
    job = driver.queued()
    inner.kill()
    assert driver.end() == 0  # tee's
    assert "queued" in log.read_text()
    assert_cancelled_once(ibm, job)


def test_normal_end_and_remote_failure_send_no_cancel(ibm, fork):
    driver = fork(RUN)
    assert driver.end() == 0, driver.errors
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "calibration", "reason_code": 7}]})
    failing = fork(
        f"""
        try:
            {RUN}
        except JobFailed as error:
            say("ended", error.job_id, error)
        """
    )
    assert "calibration" in " ".join(failing.line("ended "))
    assert failing.end() == 0
    assert not ibm.journal(path="*/cancel")
