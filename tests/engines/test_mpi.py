"""Under `mpiexec`, which ends all ranks when one has died, unless it is told to let them go on."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from testkit.drivers import end
from testkit.processes import Process, wait_for_end
from testkit.watchers import watchers_of

from .host import ENVIRONMENT, WORK, fates

pytest.importorskip("mpi4py")


@pytest.fixture
def ranks(start, monkeypatch):
    """Starts a program under `mpiexec`."""
    mpiexec = shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("no mpiexec: on Debian, apt-get install openmpi-bin")
    is_open_mpi = "Open" in subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=True).stdout
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def begin(code, number, *, go_on=False):
        options = ["--enable-recovery" if is_open_mpi else "-disable-auto-cleanup"] if go_on else []
        return start(WORK + code, wrap=lambda command: [mpiexec, "-n", str(number), *options, *command])

    return begin


def queued(driver):
    """The job, rank, process and watcher of the next job that is queued."""
    job, pid = driver.line("queued ")
    process = Process(pid)
    [watcher] = watchers_of(process)
    return job, process, watcher


def test_a_killed_rank(ibm, ranks):
    """The others are ended too, and every job is cancelled."""
    ibm.hold("queued")
    driver = ranks("from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\nwork()", 2)
    found = [queued(driver), queued(driver)]
    found[0][1].kill()
    assert end(driver) != 0
    for _, _, watcher in found:
        wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1) for job, _, _ in found}


def test_a_killed_rank_that_is_not_missed(ibm, ranks):
    """Where `mpiexec` lets the others go on, their jobs do."""
    ibm.hold("queued")
    code = """
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
show(work)
os._exit(0)  # without MPI's own end, which would wait for the dead rank
"""
    driver = ranks(code, 2, go_on=True)
    (job, rank, watcher), (others, _, second) = queued(driver), queued(driver)
    rank.kill()
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Queued", 0)}
    ibm.hold(None)
    assert driver.line("got ")[0] == others
    driver.end()
    wait_for_end(second)
    assert fates(ibm)[others] == ("Completed", 0)
