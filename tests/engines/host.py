"""A program that uses an engine. It lives for all tests of a module, because an engine takes seconds to start."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
from testkit.drivers import PRELUDE, Driver
from testkit.processes import DEADLINE, Process, until, wait_for_end
from testkit.watchers import titles, watchers_of

from qx_supervisor import local

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # no token in the home directory
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # more ranks than cores
}
"""For engines under test: they tell nobody, and leave nothing."""

WORK = """
def circuit():
    made = QuantumCircuit(1)  # one that need not be transpiled: these tests are not about that
    made.x(0)
    made.measure_all()
    return made
def work(backend="ibm_brisbane", **more):
    import faulthandler
    stacks = f"{os.environ['QX_STATE_DIR']}.stacks.{os.getpid()}"
    if not os.path.exists(stacks):  # for a test that fails
        faulthandler.register(signal.SIGUSR2, file=os.open(stacks, os.O_CREAT | os.O_WRONLY))
    def note(status):
        if status.state in ("submitted", "taken up again"):  # it may be over before anybody sees it queued
            say("queued", status.job_id, os.getpid())
    return run(circuit(), backend, service=service(), shots=8, panel=None, on_status=note, **more)
def show(wait):
    try:
        result = wait()
    except BaseException as error:
        say("raised", type(error).__name__, *str(error).split())
    else:
        say("got", result.job_id, result.counts)
"""
"""`work` is what engines are given: it says "queued", its job's id and its process. `show` says how that came out:
"got" and the job's id, or "raised" and the error."""

LOOP = """
if __name__ == "__main__":
    set_up()
    for line in sys.stdin:
        with open(line.strip()) as file:
            exec(compile(file.read(), line.strip(), "exec"))
    tear_down()
"""


class Host:
    """A program that does what it is told.

    Args:
        ibm: The embedded service.
        folder: Where its files go.
        program: Defines `set_up()` and `tear_down()`, and what the tests' orders use.
    """

    def __init__(self, ibm: local.Service, folder: Path, program: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.state = folder / "state"
        script = folder / "host.py"
        script.write_text(PRELUDE.format(pid=ibm.pid, port=ibm.port) + WORK + textwrap.dedent(program) + LOOP)
        environment = os.environ | ENVIRONMENT | {"QX_STATE_DIR": str(self.state), "QX_SWEEP_WINDOW": "2"}
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._driver = Driver(process)
        self.pid = process.pid

    def line(self, start: str, seconds: float | None = None) -> list[str]:
        """As `Driver.line`; if the line does not come, what its workers are at is told."""
        try:
            return self._driver.line(start, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._stacks()}") from None

    def _stacks(self) -> str:
        found = []
        for process in self.family():
            stacks = self.state.with_name(f"{self.state.name}.stacks.{process.pid}")
            if stacks.exists():
                process.send_signal(signal.SIGUSR2)
                with contextlib.suppress(AssertionError):  # one that is stopped tells nothing
                    until(stacks.read_text, lambda text: text.endswith("in <module>\n"))  # the main thread's come last
                found.append(f"-- process {process.pid}\n{stacks.read_text()}")
        return "\n".join(found)

    def begin(self) -> None:
        """A test begins: what was said to the one before is no answer to it."""
        number = next(self._numbers)
        self.do(f"say('begin {number}')")
        self.line(f"begin {number}", 4 * DEADLINE)  # before the first one an engine starts
        self._driver.forget_lines()

    def do(self, code: str) -> None:
        """Have it execute something. It does one thing after the other."""
        order = self._folder / f"order{next(self._numbers)}.py"
        order.write_text(textwrap.dedent(code))
        stdin = self._driver.process.stdin
        assert stdin is not None
        stdin.write(f"{order}\n".encode())
        stdin.flush()

    def queued(self) -> tuple[str, psutil.Process, psutil.Process]:
        """Wait for the next job to be queued; returns its id, the process that runs it, and that one's watcher."""
        job, pid = self.line("queued ")
        process = Process(pid)
        [watcher] = watchers_of(process)
        return job, process, watcher

    def family(self) -> list[psutil.Process]:
        """All processes that it has started, and theirs."""
        return psutil.Process(self.pid).children(recursive=True)

    def watchers(self) -> list[psutil.Process]:
        """Its watchers and its workers'."""
        return [watcher for watcher, title in titles() if title.is_in(self.state)]

    def end(self) -> None:
        """Have it tear down its engine and end; it leaves no process."""
        family = self.family()
        assert self._driver.process.stdin is not None
        self._driver.process.stdin.close()
        self._driver.process.stdin = None
        try:
            assert self._driver.end() == 0, self._driver.errors.decode()
            for process in (*family, *self.watchers()):
                wait_for_end(process)
        finally:
            self._driver.clear()


def fates(ibm: local.Service) -> dict[str, tuple[str, int]]:
    """What became of every job: its status, and how many requests there were to cancel it."""
    return {job.id: (job.status, job.cancel_requests) for job in ibm.jobs()}
