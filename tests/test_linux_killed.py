"""A driver that was killed, and that the kernel has not ended yet, or never will: its job is cancelled, once."""

from __future__ import annotations

import select
import signal
import time

import pytest
from testkit import cgroups, stuck
from testkit.drivers import RUN, Driver, assert_cancelled_once, end

from qx_supervisor import local

CANCEL = "/api/v1/jobs/*/cancel"

BIG = f"""
import mmap
memory = mmap.mmap(-1, 768 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)  # so that the kernel takes its time to free it
for page in range(0, len(memory), mmap.PAGESIZE):
    memory[page] = 1
{RUN}
"""


def test_before_the_memory_of_a_big_driver_is_freed(ibm, fork):
    ibm.hold("queued")
    driver = fork(BIG)
    job = driver.queued()
    driver.send(signal.SIGKILL)
    assert select.select([driver.pidfd], [], [], 60)[0]
    told = time.monotonic_ns()
    [request] = ibm.wait_for("POST", CANCEL)
    assert request.arrived < told
    end(driver)
    assert_cancelled_once(ibm, job)


def assert_cancelled_though_not_ended(ibm: local.Service, driver: Driver, job: str) -> None:
    ibm.wait_job(job, "Cancelled")
    assert not select.select([driver.pidfd], [], [], 0)[0]


STUCK = """
def look(status):
    tell(status)
    if status.state == "queued":
        threading.Thread(target=os.stat, args=({file!r},), daemon=True).start()
run(isa(), backend(), on_status=look)
"""


@pytest.mark.skipif(bool(stuck.no_dead_mount()), reason=stuck.no_dead_mount())
def test_while_a_thread_waits_for_a_dead_file_server(ibm, fork, tmp_path):
    ibm.hold("queued")
    folder = tmp_path / "dead"
    folder.mkdir()
    with stuck.dead_mount(folder) as mount:
        driver = fork(STUCK.format(file=str(mount.file)))
        job = driver.queued()
        assert mount.has_visitor.wait(60)
        driver.send(signal.SIGKILL)
        assert_cancelled_though_not_ended(ibm, driver, job)
    end(driver)
    assert_cancelled_once(ibm, job)


@pytest.mark.skipif(bool(stuck.no_tracer()), reason=stuck.no_tracer())
@pytest.mark.long
def test_while_a_tracer_holds_it(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    with stuck.traced(driver.pid, stuck.AT_EXIT):
        driver.send(signal.SIGKILL)
        assert_cancelled_though_not_ended(ibm, driver, job)
    end(driver)
    assert_cancelled_once(ibm, job)


@pytest.mark.long
@pytest.mark.skipif(cgroups.freezer() is None, reason="there is no freezer of control groups, version 1")
def test_while_its_control_group_is_frozen(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    with cgroups.frozen(driver.pid):
        driver.send(signal.SIGKILL)
        assert_cancelled_though_not_ended(ibm, driver, job)
    end(driver)
    assert_cancelled_once(ibm, job)


@pytest.mark.parametrize("tries", [pytest.param(1), pytest.param(20, marks=pytest.mark.long)])
def test_what_it_let_go_just_before_is_left_alone(ibm, fork, tries):
    """A `done` that was sent is read before the death is acted upon, though the death is known so soon."""
    ibm.hold("queued")
    for _ in range(tries):
        driver = fork(
            """
            queued = threading.Event()
            held = submit(isa(), backend(), on_status=lambda status: status.state == "queued" and queued.set())
            queued.wait()
            held.detach()
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        assert end(driver) == -signal.SIGKILL
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Queued", 0)] * tries


def test_the_next_watcher_has_a_lock_of_its_own(ibm, fork):
    """And the link's thread holds it."""
    ibm.hold("queued")
    driver = fork(
        """
        from qx_supervisor.link import link
        def relaunch(status):
            tell(status)
            if status.state == "queued":
                first = link.watcher_pid
                os.kill(first, signal.SIGKILL)
                with link._changed:
                    link._changed.wait_for(lambda: link.watcher_pid not in (None, first))
                word = link._process.lock._holder
                threads = {each.name: each.native_id for each in threading.enumerate()}
                say("held", word == (os.getpid(), threads["qx-watcher-link"]))
        run(isa(), backend(), on_status=relaunch)
        """
    )
    job = driver.queued()
    assert driver.line("held ") == ["True"]
    driver.send(signal.SIGKILL)
    end(driver)
    assert_cancelled_once(ibm, job)
