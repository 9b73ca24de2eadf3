"""Deaths that are no plain SIGKILL, and lives that look like deaths."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil
from testkit.processes import DEADLINE, Process, wait_for_end

from . import code
from .attempt import Try
from .kills import BY_EITHER, CANCELLED
from .row import Attempt, Row, Steps

STOPPED = 16.5
"""Seconds, longer than any answer is waited for (15 s)."""


def _process_group(one: Try) -> None:
    driver = one.start(f"os.setpgrp()\n{code.DRIVE}")
    one.queued()
    one.sleep(0.3)
    one.gives_up()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.end()


def _process_tree(one: Try) -> None:
    driver = one.start(f"if not os.fork():\n    signal.pause()\n{code.DRIVE}")
    one.queued()
    one.sleep(0.3)
    root = Process(driver.pid)
    one.gives_up()
    for process in [*root.children(recursive=True), root]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.end()


def _dies_by(deed: str, returncode: int) -> Attempt:
    def attempt(one: Try) -> None:
        one.start(code.at("queued", f'say("dying", time.monotonic_ns())\n{deed}'))
        one.dies(returncode)

    return attempt


def _ends_with_a_live_run(one: Try) -> None:
    one.start(code.EXIT)
    one.dies(0)


def _exec(one: Try) -> None:
    program = "import os, signal; os.write(1, b'executed\\n'); signal.pause()"
    driver = one.start(code.at("queued", f'os.execv(sys.executable, [sys.executable, "-ISc", {program!r}])'))
    driver.line("executed")
    one.sleep(1.5)
    one.kill()


def _daemonises(one: Try) -> None:
    driver = one.start(code.at("queued", code.DAEMONISE))
    one.seen.gave_up = int(driver.line("dying ")[0])
    daemon = Process(driver.line("daemon ")[0])
    try:
        one.ibm.wait_job(one.made()[0], "Cancelled", timeout=DEADLINE)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon.kill()
    driver.end()


def _fork_pool(one: Try) -> None:
    driver = one.start(code.at("queued", code.FORK_POOL))
    one.queued()
    one.sleep(0.3)
    one.kill_only()
    one.ibm.wait_job(one.made()[0], "Cancelled", timeout=DEADLINE)
    driver.end()  # the pool ends with it, since the drill can't hear the end of its output before


def _closes_descriptors(one: Try) -> None:
    driver = one.start(code.CLOSE_DESCRIPTORS)
    one.queued()
    one.sleep(1.0)
    one.kill()
    for line in driver.lines:
        if line.startswith("gives-up "):  # without its descriptors it can't read its job's state
            one.seen.gave_up = min(int(line.split()[1]), one.seen.gave_up or 0)


def _driver_stopped(one: Try) -> Steps:
    one.start()
    job = one.queued()
    one.signal(signal.SIGSTOP)
    yield STOPPED
    cursor = one.ibm.cursor()
    one.signal(signal.SIGCONT)
    one.ibm.wait_for("GET", f"/api/v1/jobs/{job}", after=cursor, timeout=DEADLINE)
    one.kill()


def _watcher_stopped(one: Try) -> Steps:
    one.start(code.TELL_WATCHERS)
    one.queued()
    watcher = one.watcher()
    watcher.suspend()
    yield STOPPED
    watcher.resume()
    one.sleep(0.2)
    one.kill()


def _dies_while_watcher_is_stopped(one: Try) -> Steps:
    one.start(code.TELL_WATCHERS)
    one.queued()
    watcher = one.watcher()
    watcher.suspend()
    one.kill()
    yield 1.5
    watcher.resume()


def _watcher_then_driver(one: Try) -> None:
    one.start(code.TELL_WATCHERS)
    one.queued()
    _kill_watcher(one)
    one.watcher()
    one.sleep(0.1)
    one.kill()


def _watcher_only(one: Try) -> None:
    driver = one.start(code.TELL_WATCHERS)
    one.queued()
    _kill_watcher(one)
    one.sleep(0.3)
    with one.let_go():
        driver.end()


def _kill_watcher(one: Try) -> None:
    watcher = one.watcher()
    watcher.kill()
    wait_for_end(watcher)


def _watcher_then_driver_at_once(one: Try) -> None:
    one.start(code.TELL_WATCHERS)
    one.queued()
    one.watcher().kill()
    one.sleep(0.4)
    one.kill()
    one.lane.wait_for_watchers()
    one.lane.reap()


def _both(one: Try) -> None:
    one.start(code.TELL_WATCHERS)
    one.queued()
    _kill_both(one)
    one.lane.reap()


def _both_with_the_post_in_flight(one: Try) -> None:
    with one.lane.alone():
        one.faults({"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 0.4})
        one.start(code.TELL_WATCHERS)
        one.post_arrives()
    one.sleep(0.3)
    _kill_both(one)
    one.ibm.wait_for("POST", "/api/v1/jobs", after=one.cursor, timeout=DEADLINE, answered=True)
    one.lane.reap()


def _kill_both(one: Try) -> None:
    """As a cgroup kill or a power cut does: neither lives to see the other's death."""
    watcher = one.watcher()
    one.signal(signal.SIGSTOP)
    watcher.kill()
    wait_for_end(watcher)
    one.kill()


RETURNED = f"not cancelled by the stop; then killed: {CANCELLED}"
BY_REAP = f"{CANCELLED}, by reap()"

ROWS = [
    Row("SIGKILL of the process group", CANCELLED, _process_group, 2),
    Row("SIGKILL of the process tree", CANCELLED, _process_tree, 2),
    Row("SIGSEGV", CANCELLED, _dies_by("ctypes.string_at(0)", -signal.SIGSEGV), 2),
    Row("os._exit", CANCELLED, _dies_by("os._exit(3)", 3), 2),
    Row("interpreter exit with a live Run", CANCELLED, _ends_with_a_live_run, 2),
    Row("exec of another program", f"watched until that ends, then {CANCELLED}", _exec, 2),
    Row("double fork, and exit of the parent", CANCELLED, _daemonises, 2),
    Row("SIGKILL, a fork pool holds the descriptors", CANCELLED, _fork_pool, 2),
    Row(
        "os.closerange(3, 4096) in flight, then SIGKILL",
        f"not cancelled while it lives and polls; {BY_EITHER}",
        _closes_descriptors,
        2,
    ),
    Row(f"SIGSTOP of the driver for {STOPPED:g} s", RETURNED, _driver_stopped, 1, most=24),
    Row(f"SIGSTOP of the watcher for {STOPPED:g} s", RETURNED, _watcher_stopped, 1, most=24),
    Row("SIGKILL while the watcher is stopped for 1.5 s", CANCELLED, _dies_while_watcher_is_stopped, 2),
    Row("SIGKILL of the watcher, later of the driver", f"{CANCELLED}, by a second watcher", _watcher_then_driver, 3),
    Row("SIGKILL of the watcher alone", "never asked to stop; the result comes", _watcher_only, 3, outcome="result"),
    Row(
        "SIGKILL of the watcher, and of the driver while it starts another; reap()",
        f"{CANCELLED}, by the second watcher or by reap()",
        _watcher_then_driver_at_once,
        3,
    ),
    Row("SIGKILL of driver and watcher together; reap()", BY_REAP, _both, 4),
    Row(
        "SIGKILL of driver and watcher, POST in flight; reap()",
        f"found by its tag, and {BY_REAP}",
        _both_with_the_post_in_flight,
        3,
    ),
]
