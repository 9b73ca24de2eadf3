"""A few threads for any amount of work, and timers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from testkit.circuits import bell
from testkit.processes import until

from qx_supervisor import ConfigError, Status, submit, threads
from qx_supervisor.errors import RunError
from qx_supervisor.listeners import StatusListeners, StatusQueue
from qx_supervisor.panel import Silent
from qx_supervisor.threads import ThreadPool, Timers

DEADLINE = 60


def test_never_more_than_its_size_at_a_time():
    pool = ThreadPool("test", 3)
    begun, release = threading.Semaphore(0), threading.Event()
    working = []

    def work() -> str:
        working.append(threading.get_ident())
        begun.release()
        assert release.wait(DEADLINE)
        return "done"

    futures = [pool.begin(work) for _ in range(10)]
    for _ in range(3):
        assert begun.acquire(timeout=DEADLINE)
    assert len(working) == 3
    release.set()
    assert [future.result(DEADLINE) for future in futures] == ["done"] * 10
    assert len(set(working)) == 3


def test_one_after_the_other_by_the_same_thread():
    """Once it is idle again, which may be a moment after what it did is known."""
    pool, used = ThreadPool("test", 3), set()
    for _ in range(20):
        used.add(pool.begin(threading.get_ident).result(DEADLINE))
        until(lambda: pool._idle, bool)
    assert len(used) == 1


def test_what_is_raised_is_in_the_future():
    with pytest.raises(ZeroDivisionError):
        ThreadPool("test", 1).begin(lambda: 1 // 0).result(DEADLINE)


def test_a_fault_costs_no_thread(caplog):
    pool = ThreadPool("test", 1)
    with caplog.at_level(logging.ERROR, "qx_supervisor"):
        pool.do(lambda: 1 // 0)
        assert pool.begin(lambda: "goes on").result(DEADLINE) == "goes on"
    assert "please report it" in caplog.text


def test_a_log_that_fails_costs_no_thread(monkeypatch):
    def fail(record: logging.LogRecord) -> bool:
        raise OSError("the log's server is away")

    monkeypatch.setattr(logging.getLogger("qx_supervisor"), "filters", [fail])
    pool = ThreadPool("test", 1)
    pool.do(lambda: 1 // 0)
    assert pool.begin(lambda: "goes on").result(DEADLINE) == "goes on"


def test_timers_in_their_order():
    clock, done, over = Timers(), [], threading.Event()
    clock.after(1.0, lambda: (done.append("third"), over.set()))
    clock.after(0.0, lambda: done.append("first"))
    clock.after(0.01, lambda: done.append("second"))
    assert over.wait(DEADLINE)
    assert done == ["first", "second", "third"]


def test_a_cancelled_timer_does_nothing_and_is_not_kept():
    clock, done, over = Timers(), [], threading.Event()
    for _ in range(1000):
        clock.after(3600, lambda: done.append("never")).cancel()
    assert len(clock._timers) < 100
    clock.after(0.0, over.set)
    assert over.wait(DEADLINE)
    assert done == []


def test_a_forked_child_has_threads_of_its_own():
    """The parent's are not there, and what they were to do is the parent's."""
    release = threading.Event()
    reader, writer = os.pipe()
    busy = [threads.ending.begin(lambda: release.wait(DEADLINE)) for _ in range(6)]
    child = os.fork()
    if not child:
        try:
            threads.ending.begin(lambda: os.write(writer, b"crew ")).result(DEADLINE)
            over = threading.Event()
            threads.timers.after(0.0, over.set)
            os.write(writer, b"clock" if over.wait(DEADLINE) else b"")
        finally:
            os._exit(0)
    os.close(writer)
    release.set()
    for each in busy:
        assert each.result(DEADLINE)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 100) == b"crew clock"
    os.close(reader)


# Where no thread can be had -------------------------------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets no thread start, until it is undone."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "timers", Timers())
    monkeypatch.setattr(threads, "telling", ThreadPool("test", 1))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        yield patched


def test_what_could_not_be_told_is_told_with_what_comes_next(no_threads):
    told, done = [], Future()
    queue = StatusQueue(StatusListeners(lambda status: told.append(status.state), Silent()))
    queue.status(Status("job", "queued", "j"))
    assert told == []
    no_threads.undo()
    queue.status(Status("job", "running", "j"))
    queue.end(RunError("job", "it failed"), lambda: done.set_result(None))
    done.result(DEADLINE)
    assert told == ["queued", "running"]


def test_the_end_of_a_run_needs_no_thread(no_threads):
    told, done = [], []
    queue = StatusQueue(StatusListeners(lambda status: told.append(status.state), Silent()))
    queue.status(Status("job", "running", "j"))
    queue.end(RunError("job", "it failed"), lambda: done.append("done"))
    assert (told, done) == (["running"], ["done"])


def test_a_run_with_a_panel_that_can_have_no_thread_is_refused_in_a_sentence(no_threads):
    with pytest.raises(ConfigError, match="nothing was submitted, because no thread could be started"):
        submit(bell(), FakeManilaV2(), panel="plain")
    assert threads.runs() == []
