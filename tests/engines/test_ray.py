"""In the workers of Ray, where tasks run in the main thread, and signals reach `run`."""

from __future__ import annotations

import pytest
from testkit.processes import wait_for_end

from .host import fates

pytest.importorskip("ray")

PROGRAM = """
HOST = os.getpid()
def say(*words, host=HOST):
    # Ray writes its workers' streams to files.
    with open(f"/proc/{host}/fd/1", "wb", buffering=0) as out:
        out.write((" ".join(map(str, words)) + "\\n").encode())
def set_up():
    global ray, task, temporary
    import tempfile
    import ray
    temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # its sockets' paths must be short
    from ray._private import services
    ask = services.get_node
    def get_node(*arguments):
        # Ray gives its own processes half a minute, which a busy machine may not have: so this asks for longer.
        for _ in range(1500):
            try:
                return ask(*arguments)
            except RuntimeError:
                time.sleep(0.1)
        return ask(*arguments)
    services.get_node = get_node
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=100 * 2**20, _temp_dir=temporary.name,
    )
    services.get_node = ask
    task = ray.remote(work).options(max_retries=0)
def tear_down():
    ray.shutdown()
    temporary.cleanup()
class Bench:
    # An actor: a worker that keeps what it has.
    def work(self, **more):
        return work(**more)
    def leave(self):
        queued = threading.Event()
        def note(status):
            if status.state == "queued":
                queued.set()
        begun = submit(circuit(), "ibm_brisbane", service=service(), on_status=note)
        queued.wait()
        say("queued", begun.job_id, os.getpid())
        return begun.job_id
def show_all(references):
    while references:
        ready, others = ray.wait(references, timeout=45)
        if ready:
            show(lambda: ray.get(ready[0]))
            references = others
        else:
            say("raised", "GetTimeoutError")
            if len(references) == 1:
                return
"""

ENDED = ("WorkerCrashedError", "GetTimeoutError")
"""What Ray tells of a worker that was ended: on a busy machine 2.60 may never tell, whatever the task was."""


def test_a_killed_worker(ibm, host):
    """The job of the one is cancelled, the result of the other comes."""
    ibm.hold("queued")
    host.do("show_all([task.remote(), task.remote()])")
    (job, worker, watcher), (others, _, _) = host.queued(), host.queued()
    worker.kill()
    assert host.line("raised ")[0] in ENDED
    ibm.wait_job(job, "Cancelled")
    assert fates(ibm)[others] == ("Queued", 0)
    ibm.hold(None)  # before the watcher's end: it may stay for a charge, and Ray is not waited for as long
    assert host.line("got ")[0] == others
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Completed", 0)}


@pytest.mark.parametrize("force, error", [(False, "RayTaskError(TaskCancelledError)"), (True, "TaskCancelledError")])
def test_a_cancelled_task(ibm, host, force, error):
    """Ray interrupts the task as Ctrl-C would, and `run` cancels; by force it ends the worker, and the watcher does."""
    ibm.hold("queued")
    host.do("first = task.remote()")
    job, worker, watcher = host.queued()
    host.do("second = task.remote()")
    others, _, _ = host.queued()
    host.do(f"ray.cancel(first, force={force})\nshow_all([first, second])")
    assert host.line("raised ")[0] == error
    ibm.wait_job(job, "Cancelled")
    assert fates(ibm)[others] == ("Queued", 0)
    ibm.hold(None)
    assert host.line("got ")[0] == others
    if force:
        wait_for_end(worker)
        wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Completed", 0)}


def test_a_worker_that_is_asked_to_end(ibm, host):
    """By SIGTERM: `run` cancels, and then Ray's own handler ends the worker."""
    ibm.hold("queued")
    host.do("show_all([task.remote(), task.remote()])")
    (job, worker, watcher), (others, _, _) = host.queued(), host.queued()
    worker.terminate()
    assert host.line("raised ")[0] in ENDED
    ibm.wait_job(job, "Cancelled")
    assert fates(ibm)[others] == ("Queued", 0)
    ibm.hold(None)
    assert host.line("got ")[0] == others
    wait_for_end(watcher)
    assert fates(ibm) == {job: ("Cancelled", 1), others: ("Completed", 0)}


def test_a_killed_actor(ibm, host):
    """A job that its task did not wait for is guarded as long as the actor lives."""
    host.do("bench = ray.remote(Bench).remote()\nshow(lambda: ray.get(bench.work.remote()))")
    done, worker, watcher = host.queued()
    assert host.line("got ")[0] == done
    ibm.hold("queued")
    host.do("ray.get(bench.leave.remote())\nother = task.remote()")
    left, same, _ = host.queued()
    others, _, _ = host.queued()
    assert same == worker
    assert fates(ibm) == {done: ("Completed", 0), left: ("Queued", 0), others: ("Queued", 0)}
    host.do("ray.kill(bench)\nshow_all([other])")
    wait_for_end(worker)
    ibm.wait_job(left, "Cancelled")
    assert fates(ibm)[others] == ("Queued", 0)
    ibm.hold(None)
    assert host.line("got ")[0] == others
    wait_for_end(watcher)
    assert fates(ibm) == {done: ("Completed", 0), left: ("Cancelled", 1), others: ("Completed", 0)}


def test_workers_of_one_task_each(ibm, host):
    """They end when their jobs are over: nothing is cancelled, and no watcher stays."""
    ibm.hold("queued")
    host.do("once = ray.remote(max_calls=1)(work)\nshow_all([once.remote(), once.remote()])")
    found = [host.queued(), host.queued()]
    ibm.hold(None)
    for _, worker, watcher in found:
        host.line("got ")
        wait_for_end(worker)
        wait_for_end(watcher)
    assert list(fates(ibm).values()) == [("Completed", 0)] * 2


def test_errors_come_through(ibm, host):
    """Each is pickled, and raised where the reference is asked: as Ray's error, and as ours."""
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "luck"}]})
    host.do(
        """
        for more, kind in (({"backend": "nowhere"}, ConfigError), ({}, JobFailed), ({"timeout": 0.001}, RunTimeout)):
            try:
                ray.get(task.remote(**more))
            except kind as error:
                say("raised", kind.__name__, error.stage, error.job_id, error.reason)
        """
    )
    assert host.line("raised ")[:3] == ["ConfigError", "backend", "None"]
    job, _, _ = host.queued()
    assert host.line("raised ") == f"JobFailed job {job} the job failed at IBM Quantum: luck".split()
    assert host.line("raised ")[:2] == ["RunTimeout", "timeout"]
