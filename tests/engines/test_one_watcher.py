"""Workers of engines that share the watcher of their node: a process pool's, Dask's, and the ranks of MPI."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from testkit.processes import Process, wait_for_end
from testkit.watchers import titles

from .host import Host, fates
from .test_mpi import ranks  # noqa: F401 - a fixture

LINGER = "from qx_supervisor import node_launch\nnode_launch.LINGER_SECONDS = 0.5\n"

POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def set_up():
    global pools
    pools = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) for _ in range(3)]
def begin():
    return [each.submit(work) for each in pools]
def tear_down():
    for each in pools:
        each.shutdown()
"""

DASK = """
def set_up():
    global client, cluster
    import dask, distributed
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    cluster = distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None, silence_logs=30)
    client = distributed.Client(cluster)
def begin():
    return [client.submit(work, pure=False, workers=each) for each in client.nthreads()]
def tear_down():
    client.close()
    cluster.close()
"""


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    base = Path(tempfile.mkdtemp(prefix="qx-node-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("QX_WATCHER_PLACEMENT", "node")
    yield
    shutil.rmtree(base)


@pytest.fixture
def begun(ibm, tmp_path) -> Iterator[Callable[[str], Host]]:
    hosts: list[Host] = []

    def begin(program: str) -> Host:
        hosts.append(Host(ibm, tmp_path, LINGER + program))
        return hosts[-1]

    yield begin
    for each in hosts:
        each.end()


def the_watcher(state: Path) -> psutil.Process:
    [only] = [watcher for watcher, title in titles() if title.is_in(state)]
    return only


@pytest.mark.parametrize("engine", ["pools", "dask"])
def test_a_killed_worker(ibm, begun, engine):
    if engine == "dask":
        pytest.importorskip("distributed")
    program = {"pools": POOL, "dask": DASK}[engine]
    ibm.hold("queued")
    host = begun(program)
    host.do("futures = begin()")
    found = [host.line("queued ") for _ in range(3)]
    watcher = the_watcher(host.state)
    job, pid = found[0]
    Process(pid).kill()
    ibm.wait_job(job, "Cancelled")
    assert watcher.is_running()
    assert fates(ibm) == {job: ("Cancelled", 1), found[1][0]: ("Queued", 0), found[2][0]: ("Queued", 0)}
    ibm.hold(None)
    host.do("for each in futures:\n    show(each.result)")
    got = [host.line("got ")[0] for _ in range(2)]
    assert sorted(got) == sorted(each for each, _ in found[1:])


def test_killed_ranks(ibm, ranks, state):  # noqa: F811
    ibm.hold("queued")
    driver = ranks(LINGER + "from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\nwork()", 3)
    found = [driver.line("queued ") for _ in range(3)]
    watcher = the_watcher(state)
    Process(found[0][1]).kill()
    assert driver.end() != 0
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1) for job, _ in found}
