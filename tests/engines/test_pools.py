"""In the workers of `concurrent.futures`, by every start method. When one dies, the pool ends all of its own."""

from __future__ import annotations

import signal

import pytest
from testkit.processes import wait_for_end

from .host import fates

PROGRAM = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
def set_up(): ...
def tear_down(): ...
def pool_of(size, method, **more):
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context(method), **more)
def show_all(futures):
    for each in as_completed(futures):
        show(each.result)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_killed_worker(ibm, host, method):
    """Its pool is lost; the jobs of another pool, and of the program itself, go on."""
    ibm.hold("queued")
    host.do(
        f"""
        pool, other = pool_of(2, "{method}"), pool_of(1, "{method}")
        futures = [pool.submit(work), pool.submit(work)]
        """
    )
    (job, worker, watcher), (second, _, seconds) = host.queued(), host.queued()
    host.do("futures.append(other.submit(work))")
    others, _, _ = host.queued()
    host.do(
        """
        mine = submit(circuit(), 'ibm_brisbane', service=service(), on_status=tell)
        futures.append(pool.submit(os.getpid))  # a pool may not know of its latest worker until something else happens
        show_all(futures)
        """
    )
    own = host.line("queued ")[0]
    worker.kill()
    for _ in range(3):
        assert host.line("raised ")[0] == "BrokenProcessPool"
    wait_for_end(watcher)
    wait_for_end(seconds)
    left = {others: ("Queued", 0), own: ("Queued", 0)}
    assert fates(ibm) == {job: ("Cancelled", 1), second: ("Cancelled", 1), **left}
    ibm.hold(None)
    assert host.line("got ")[0] == others
    host.do("show(mine.result)\npool.shutdown()\nother.shutdown()")
    assert host.line("got ")[0] == own
    assert fates(ibm) == {job: ("Cancelled", 1), second: ("Cancelled", 1)} | dict.fromkeys(left, ("Completed", 0))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_of_one_task_each(ibm, host, method):
    """They end when their jobs are over: nothing is cancelled, and no watcher stays."""
    ibm.hold("queued")
    host.do(
        f"""
        with pool_of(1, "{method}", max_tasks_per_child=1) as pool:
            show_all([pool.submit(work), pool.submit(work)])
            say("over")
            sys.stdin.readline()
        """
    )
    for _ in range(2):
        job, worker, watcher = host.queued()
        ibm.hold(None)
        ibm.wait_job(job)
        ibm.hold("queued")  # the next one's worker has yet to be started
        host.line("got ")
        wait_for_end(worker)
        wait_for_end(watcher)
    host.line("over")
    host.do("")
    assert list(fates(ibm).values()) == [("Completed", 0)] * 2


def test_errors_come_through(ibm, host):
    """Also the end by a signal, after which the worker works on. Other start methods: `test_processes.py`."""
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}, {"outcome": "completed"}]})
    host.do('pool = pool_of(1, "forkserver")\nshow(pool.submit(work).result)\nshow(pool.submit(work).result)')
    job, worker, watcher = host.queued()
    assert host.line("raised ") == f"JobFailed the job failed at IBM Quantum: luck (job {job})".split()
    assert host.queued()[1] == worker
    host.line("got ")
    ibm.hold("queued")
    host.do("show(pool.submit(work).result)")
    job, same, _ = host.queued()
    assert same == worker
    worker.send_signal(signal.SIGINT)
    assert host.line("raised ") == f"Interrupted interrupted by SIGINT; job {job}: cancelled, and confirmed".split()
    assert fates(ibm)[job] == ("Cancelled", 1)
    host.do("pool.shutdown()")
    wait_for_end(watcher)
