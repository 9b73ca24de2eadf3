"""In the workers of Dask, whose nannies start them again. Tasks run in a thread there, so no signal reaches `run`."""

from __future__ import annotations

import os

import pytest
from testkit.processes import wait_for_end

from .host import fates

pytest.importorskip("distributed")

PROGRAM = """
def set_up():
    global dask, distributed
    import dask, distributed
    # A task whose worker has died fails, and is not tried again by another one.
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    start()
def start():
    global client, cluster
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit="1500MB", silence_logs=30
    )
    client = distributed.Client(cluster)
def tear_down():
    client.close()
    cluster.close()
def renew():
    # What a test did to a worker is no matter of the next one's: not every time does a nanny start its worker again.
    tear_down()
    start()
def begin(*functions):
    # Each by a worker of its own.
    workers = list(client.nthreads())
    say("workers", *workers)
    return [client.submit(each, pure=False, workers=worker) for each, worker in zip(functions, workers)]
def show_all(futures):
    for each in distributed.as_completed(futures):
        show(each.result)
def hoard():
    # More than the nanny allows its worker, while a job is in flight.
    def note(status):
        if status.state == "queued":
            say("queued", status.job_id, os.getpid())
            say("hoards", status.job_id)
            open(os.environ["QX_STATE_DIR"] + ".seen").close()  # until the test has seen whose job it is
            hoard.memory = bytes(1) * 2_000_000_000
    return run(circuit(), "ibm_brisbane", service=service(), panel=None, on_status=note)
def leave():
    # A task that is over before its job is.
    queued = threading.Event()
    def note(status):
        if status.state == "queued":
            queued.set()
    begun = submit(circuit(), "ibm_brisbane", service=service(), on_status=note)
    queued.wait()
    say("queued", begun.job_id, os.getpid())
    return begun.job_id
def address_of(pid):
    return next(address for address, found in client.run(os.getpid).items() if found == pid)
def retire(dask_worker):
    # As a worker does at the end of its lifetime; its nanny then starts it again.
    dask_worker.loop.add_callback(dask_worker.close_gracefully, restart=True)
"""


def by_job(host):
    """Two jobs in flight: the worker and the watcher of each."""
    found = [host.queued(), host.queued()]
    return {job: (worker, watcher) for job, worker, watcher in found}


@pytest.fixture
def cluster(host):
    """The program, with two workers that nothing has happened to."""
    host.do("renew()\nsay('renewed')")
    host.line("renewed")
    return host


def test_a_killed_worker(ibm, cluster):
    """The job of the one is cancelled, the result of the other comes."""
    ibm.hold("queued")
    cluster.do("show_all(begin(work, work))")
    found = by_job(cluster)
    job, others = found
    worker, watcher = found[job]
    worker.kill()
    assert cluster.line("raised ")[0] == "KilledWorker"
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Queued", 0)}
    ibm.hold(None)
    assert cluster.line("got ")[0] == others
    assert fates(ibm)[others] == ("Completed", 0)


def test_a_worker_that_takes_too_much_memory(ibm, cluster):
    """Its nanny ends it."""
    ibm.hold("queued")
    seen = cluster.state.with_name(f"{cluster.state.name}.seen")
    os.mkfifo(seen)
    cluster.do("show_all(begin(hoard, work))")
    found = by_job(cluster)
    seen.write_text("")
    assert cluster.line("raised ")[0] == "KilledWorker"
    [job] = cluster.line("hoards ")
    [others] = found.keys() - {job}
    wait_for_end(found[job][1])
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Queued", 0)}
    ibm.hold(None)
    assert cluster.line("got ")[0] == others
    assert fates(ibm)[others] == ("Completed", 0)


def test_a_worker_that_is_restarted(ibm, cluster):
    """As `client.restart()` does with all of them."""
    ibm.hold("queued")
    cluster.do("futures = begin(work, work)")
    found = by_job(cluster)
    job, others = found
    worker, watcher = found[job]
    cluster.do(
        f"""
        # Whether its nanny has started another within that time is not asked.
        client.restart_workers([address_of({worker.pid})], timeout=20, raise_for_error=False)
        show_all(futures)
        """
    )
    assert cluster.line("raised ")[0] == "KilledWorker"
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Queued", 0)}
    ibm.hold(None)
    assert cluster.line("got ")[0] == others
    assert fates(ibm)[others] == ("Completed", 0)


def test_a_task_with_a_key_is_begun_again(ibm, cluster):
    """By another worker, which takes up the job of the one that was killed."""
    ibm.hold("queued")
    cluster.do(
        """
        with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
            renew()
        say("renewed")
        show_all([client.submit(lambda: work(key="again", grace=60), pure=False)])
        """
    )
    cluster.line("renewed")
    job, worker, watcher = cluster.queued()
    worker.kill()
    same, _, another = cluster.queued()
    assert same == job
    wait_for_end(watcher)
    ibm.hold(None)
    assert cluster.line("got ")[0] == job
    assert fates(ibm) == {job: ("Completed", 0)}
    assert another != watcher


def test_errors_come_through(ibm, cluster):
    """Each is pickled, and raised whole where the future is asked."""
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}]})
    cluster.do(
        """
        for arguments in ({"backend": "nowhere"}, {}, {"timeout": 0.001}):
            show(client.submit(work, pure=False, **arguments).result)
        """
    )
    assert cluster.line("raised ")[0] == "ConfigError"
    job, _, _ = cluster.queued()
    assert cluster.line("raised ") == f"JobFailed the job failed at IBM Quantum: luck (job {job})".split()
    assert cluster.line("raised ")[:4] == ["RunTimeout", "no", "result", "within"]


def test_a_worker_at_the_end_of_its_lifetime(ibm, cluster):
    """What is finished stays so; a job that its task did not wait for ends with the worker."""
    cluster.do("show_all(begin(work, work))")
    found = by_job(cluster)
    done, others = found
    worker, watcher = found[done]
    cluster.line("got ")
    cluster.line("got ")
    ibm.hold("queued")
    cluster.do(
        f"""
        address = address_of({worker.pid})
        client.submit(leave, workers=address, pure=False).result()
        """
    )
    left, same, _ = cluster.queued()
    assert same == worker
    cluster.do("client.run(retire, workers=[address])")
    wait_for_end(worker)
    wait_for_end(watcher)
    assert fates(ibm) == {done: ("Completed", 0), others: ("Completed", 0), left: ("Cancelled", 1)}
    assert found[others][1].is_running()
