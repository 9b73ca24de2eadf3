"""Programs whose threads, sockets and waits are those of gevent or eventlet."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest
from testkit.drivers import RUN, assert_cancelled_once
from testkit.processes import wait_for_end

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}
START = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(params=PATCHES)
def start_patched(request, start):
    """Starts a program that one of them has patched before its first import."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    code = f"{PATCHES[request.param]}\n{START}"
    return lambda program: start(program, wrap=lambda command: [sys.executable, "-c", code, *command[1:]])


def test_a_run_to_its_end_while_others_go_on(ibm, start_patched):
    """A wait gives way to the program's other green threads."""
    driver = start_patched(
        f"""
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                time.sleep(0.01)
        threading.Thread(target=tick, daemon=True).start()
        say("counted", sum({RUN}.counts.values()), len(ticks) > 5)
        """
    )
    assert driver.line("counted ") == ["64", "True"]
    assert driver.end() == 0, driver.errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended(ibm, start_patched, number):
    ibm.hold("queued")
    driver = start_patched(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.send(number)
    driver.end()
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
