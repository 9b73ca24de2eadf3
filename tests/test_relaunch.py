"""What becomes of the runs when their watcher is stopped, killed at a bad moment, or can't be started for a while."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.circuits import bell
from testkit.drivers import RUN, TELL_WATCHERS, assert_cancelled_once
from testkit.processes import Process, wait_for_end

from qx_supervisor import Run, Status, WatcherError, detached, local, submit
from qx_supervisor import link as links
from qx_supervisor.link import Link, link
from qx_supervisor.watcher import protocol


class Queued:
    """A run whose job is queued."""

    def __init__(self, ibm: local.Service, service: Any) -> None:
        ibm.hold("queued")
        queued = threading.Event()

        def note(status: Status) -> None:
            if status.state == "queued":
                queued.set()

        self.run: Run = submit(bell(), "ibm_brisbane", service=service, shots=16, on_status=note)
        assert queued.wait(60)

    def is_known(self) -> bool:
        while True:
            try:
                return self.run._flight.core.run_id in link.inspect()["runs"]
            except WatcherError as error:  # the link had not seen yet that the earlier one is gone
                if "died" not in error.reason:
                    raise


@pytest.fixture
def queued(ibm: local.Service, service: Any) -> Iterator[Queued]:
    link._deaths.clear()
    made = Queued(ibm, service)
    yield made
    ibm.hold(None)
    with contextlib.suppress(Exception):
        made.run.result(60)


def watcher() -> psutil.Process:
    assert link.watcher_pid is not None
    return psutil.Process(link.watcher_pid)


def test_a_watcher_that_is_stopped_and_takes_nothing_is_replaced(queued: Queued, monkeypatch: Any) -> None:
    """Every run would wait for it, and the loop of `run` too."""
    monkeypatch.setattr(links, "SEND_SECONDS", 0.1)
    stopped = watcher()
    stopped.suspend()
    while link.watcher_pid == stopped.pid and stopped.is_running():
        link.cancelling(queued.run._flight.core.run_id)
    wait_for_end(stopped)
    assert queued.is_known()


def test_a_watcher_that_is_not_understood_is_not_left_beside_the_next(
    queued: Queued, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It would hear of no `done` any more, and at the end of this process cancel what was let go."""
    first = watcher()
    decode = links.protocol.decode_from_watcher

    def fail(data: bytes) -> Any:
        monkeypatch.setattr(links.protocol, "decode_from_watcher", decode)
        raise links.protocol.ProtocolError("not JSON")

    monkeypatch.setattr(links.protocol, "decode_from_watcher", fail)
    with pytest.raises(WatcherError, match="died"):
        link.inspect()
    wait_for_end(first)
    assert queued.is_known()
    assert f"the watcher (pid {first.pid}) sent a message that is refused: not JSON" in caplog.messages


def test_the_token_service_was_out_of_order_when_the_watcher_died(
    ibm: local.Service, service: Any, queued: Queued, monkeypatch: Any
) -> None:
    """The next run finds the account armed again, though the watcher got no token when it started."""
    account = link._runs[queued.run._flight.core.run_id].account
    source = link._sources[account]

    def without_token(*, fetch: bool = True) -> Any:
        given = source(fetch=fetch)
        return given if fetch else replace(given, token="", token_expires=0.0)

    monkeypatch.setitem(link._sources, account, without_token)
    ibm.scenario({"http_faults": [{"path": "/identity/token", "status": 400, "times": 1}]})
    before = ibm.cursor()
    watcher().kill()
    ibm.wait_for("POST", "/identity/token", after=before, answered=True)
    ibm.hold(None)
    assert sum(submit(bell(), "ibm_brisbane", service=service, shots=16).result(60).counts.values()) == 16


def test_another_start_is_tried_where_there_are_runs_to_guard(queued: Queued, monkeypatch: Any) -> None:
    tried = threading.Event()
    launch = links.launch

    def refuse(_begun: Any = None) -> Any:
        monkeypatch.setattr(links, "launch", launch)
        tried.set()
        raise WatcherError("config", "not now")

    monkeypatch.setattr(links, "TRY_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(links, "launch", refuse)
    watcher().send_signal(signal.SIGKILL)
    assert tried.wait(60)
    with link._changed:
        assert link._changed.wait_for(lambda: link._process is not None, 60)
    assert queued.is_known()


def test_another_start_is_tried_as_often_as_it_takes(queued: Queued, monkeypatch: Any) -> None:
    spawn, tried = detached.spawn, []

    def refuse(*given: Any, **more: Any) -> Any:
        tried.append(1)
        if len(tried) <= 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return spawn(*given, **more)

    monkeypatch.setattr(links, "TRY_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(detached, "spawn", refuse)
    first = watcher()
    first.kill()
    with link._changed:
        assert link._changed.wait_for(lambda: link.watcher_pid not in (None, first.pid), 60)
    assert len(tried) == 3
    assert queued.is_known()


def test_an_account_is_not_armed_at_a_watcher_that_has_not_heard_of_it(monkeypatch: Any) -> None:
    """The one that was asked has died since it answered, and another one is there."""
    credentials = protocol.Credentials("http://there", "crn", "http://iam", "key")
    made, first, another = Link(), object(), object()

    def answered(*_: Any) -> protocol.Ack:
        made._process = another  # type: ignore[assignment]
        made._armed.clear()
        return protocol.Ack({})

    monkeypatch.setattr(made, "_question", lambda *_, **__: links._Question(first))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_await", answered)
    with pytest.raises(links._Died):
        made._arm("a", lambda *_, **__: credentials, credentials)
    assert made._armed == set()


ENDED_BY_A_CLOSED_PIPE = """
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs have it whose output goes to `head`
import socket
from qx_supervisor.descriptors import is_readable
from qx_supervisor.link import link
from qx_supervisor.watcher import sockets
from qx_supervisor.watcher.protocol import LetGo
link.prepare()
with link._lock:
    process = link._running(60)
    os.kill(process.pid, signal.SIGKILL)
    assert is_readable(process.connection.fileno(), 60)
    link._tell(LetGo("run"))
ours, theirs = socket.socketpair()
theirs.close()
for passed in [[], [ours.fileno()]]:
    try:
        sockets.send_with_descriptors(ours, b"data", passed)
    except BrokenPipeError:
        say("lives")
ours.close()
"""


def test_a_driver_survives_that_sends_to_a_dead_watcher_on_linux(fork: Any) -> None:
    driver = fork(ENDED_BY_A_CLOSED_PIPE)
    assert driver.end() == 0
    assert driver.lines.count("lives") == 2


def test_a_watcher_waits_for_its_order_where_sockets_do_not_block(ibm: local.Service, fork: Any) -> None:
    """As those of gevent and eventlet, which may run something else before the order is sent."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import os, socket
        from qx_supervisor import detached
        make, spawn = socket.socketpair, detached.spawn
        def pair():
            made = make()
            for each in made:
                os.set_blocking(each.fileno(), False)
            return made
        def look_and_spawn(command, env, *, passed):
            say("waits", os.get_blocking(passed[0]))
            return spawn(command, env, passed=passed)
        socket.socketpair, detached.spawn = pair, look_and_spawn
        {RUN}
        """
    )
    assert driver.line("waits ") == ["True"]
    job = driver.queued()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)


def test_a_handler_of_the_log_that_raises_leaves_no_run_without_a_watcher(ibm: local.Service, fork: Any) -> None:
    """The death of the first one is logged, by the thread that is to start another one."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import logging
        class Broken(logging.Handler):
            def emit(self, record):
                raise ValueError("the webhook is away")
        logging.getLogger().addHandler(Broken())
        {TELL_WATCHERS.replace(chr(10), chr(10) + 8 * " ")}
        {RUN}
        """
    )
    job = driver.queued()
    [first] = driver.line("watcher ")
    Process(first).kill()
    driver.line("watcher ")
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)


def test_a_fault_of_the_links_thread_leaves_no_run_without_a_watcher(queued: Queued, monkeypatch: Any) -> None:
    """Whatever it is: here the next watcher can't be told the runs at first."""
    replay, tried = link._replay, []

    def fail() -> None:
        tried.append(1)
        if len(tried) == 1:
            raise RuntimeError("a fault of ours")
        replay()

    monkeypatch.setattr(links, "TRY_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(link, "_replay", fail)
    first = watcher()
    first.kill()
    with link._changed:
        assert link._changed.wait_for(lambda: len(tried) == 2 and link.watcher_pid not in (None, first.pid), 60)
    assert queued.is_known()


def test_another_watcher_where_the_current_folder_is_gone(fork: Any, tmp_path: Path) -> None:
    """As on a scratch disk that was tidied up; Python itself passes over the relative entries of its path."""
    driver = fork(
        f"""
        from qx_supervisor.link import link
        sys.path[:0] = ["", "lib"]
        os.mkdir({str(tmp_path / "gone")!r})
        os.chdir({str(tmp_path / "gone")!r})
        os.rmdir({str(tmp_path / "gone")!r})
        link.prepare()
        say("watcher", link.inspect()["pid"])
        """
    )
    driver.line("watcher ")
    assert driver.end() == 0, driver.errors


@pytest.mark.long
@pytest.mark.parametrize("mode", ["0", "1"])
def test_a_watcher_reads_the_names_of_files_as_its_program_does(child: Any, mode: str) -> None:
    """With PYTHONUTF8 in a locale that is not UTF-8 it would look for other files, its own among them."""
    program = """
import json, os, sys
if sys.flags.utf8_mode != int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, "-X", "utf8=" + sys.argv[1], "-c", sys.argv[2], *sys.argv[1:]])
from qx_supervisor import detached, launch
def show(command, *given, **more):
    print(json.dumps(command), flush=True)
    raise OSError("not started")
detached.spawn = show
try:
    launch.start("beside")
except launch.WatcherError:
    pass
"""
    started = child(program, mode, program)
    assert started.stdout is not None
    command = json.loads(started.stdout.readline())
    assert command[command.index("-X") + 1] == f"utf8={mode}"
