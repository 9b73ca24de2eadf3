"""In the workers of joblib and of loky, on which it rests. When one dies, the executor kills all of its own."""

from __future__ import annotations

import signal

import pytest
from testkit.processes import wait_for_end

from .host import fates

pytest.importorskip("joblib")
pytest.importorskip("loky")

PROGRAM = """
def set_up():
    global joblib, loky
    import joblib, loky
def tear_down():
    joblib.externals.loky.get_reusable_executor().shutdown(kill_workers=True)
def parallel(*tasks):
    # Joblib's own way: it returns, or raises, when all are over.
    return joblib.Parallel(n_jobs=2)(joblib.delayed(each)() for each in tasks)
"""


def test_a_killed_worker(ibm, host):
    """Its executor is lost, and with it the other worker of that; the job of another executor goes on."""
    ibm.hold("queued")
    host.do("other = loky.ProcessPoolExecutor(1)\nfuture = other.submit(work)")
    others, _, _ = host.queued()
    host.do("show(lambda: parallel(work, work))")
    (job, worker, watcher), (second, _, seconds) = host.queued(), host.queued()
    worker.kill()
    assert host.line("raised ")[0] == "TerminatedWorkerError"
    wait_for_end(watcher)
    wait_for_end(seconds)
    assert fates(ibm) == {others: ("Queued", 0), job: ("Cancelled", 1), second: ("Cancelled", 1)}
    ibm.hold(None)
    host.do("show(future.result)\nother.shutdown()")
    assert host.line("got ")[0] == others
    assert fates(ibm)[others] == ("Completed", 0)


def test_workers_that_idle(ibm, host):
    """After a while without work they leave: nothing is cancelled, and no watcher stays."""
    ibm.hold("queued")
    host.do(
        """
        executor = loky.ProcessPoolExecutor(2, timeout=1)
        for each in [executor.submit(work), executor.submit(work)]:
            show(each.result)
        """
    )
    found = [host.queued(), host.queued()]
    ibm.hold(None)
    for _, worker, watcher in found:
        wait_for_end(worker)
        wait_for_end(watcher)
    assert {host.line("got ")[0] for _ in found} == {job for job, _, _ in found}
    assert list(fates(ibm).values()) == [("Completed", 0)] * 2
    host.do("executor.shutdown()")


def test_errors_come_through(ibm, host):
    """The end by a signal too, after which the worker works on; but SIGTERM ends it."""
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}, {"outcome": "completed"}]})
    host.do("executor = loky.ProcessPoolExecutor(1)\nfor _ in range(2): show(executor.submit(work).result)")
    job, worker, watcher = host.queued()
    assert host.line("raised ") == f"JobFailed the job failed at IBM Quantum: luck (job {job})".split()
    assert host.queued()[1] == worker
    host.line("got ")
    ibm.hold("queued")
    host.do("for _ in range(2): show(executor.submit(work).result)")
    first, same, _ = host.queued()
    assert same == worker
    worker.send_signal(signal.SIGINT)
    assert host.line("raised ") == f"Interrupted interrupted by SIGINT; job {first}: cancelled, and confirmed".split()
    last, same, _ = host.queued()
    assert same == worker
    worker.terminate()
    assert host.line("raised ")[0] == "TerminatedWorkerError"
    wait_for_end(watcher)
    assert [fates(ibm)[each] for each in (first, last)] == [("Cancelled", 1)] * 2
    host.do("executor.shutdown()")
