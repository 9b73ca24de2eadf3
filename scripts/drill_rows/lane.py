"""A lane: an embedded service of its own, and all that is tried on it, one try after the other.

Faults and holds are the service's, for all its clients; so tries that run at the same time have a service each, with a
state directory, a source of drivers and a control of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from testkit.drivers import PRELUDE, Driver
from testkit.postgres import Server
from testkit.processes import DEADLINE, ends, open_pidfd
from testkit.spenders import UNLIMITED
from testkit.watchers import titles
from testkit.zygote import Zygote

from qx_supervisor import local

from . import code
from .clocks import WrongClock
from .judge import JobSeen, TrySeen

CONTROL_TAG = "drill-control"

INSTANCES = ("localqpu", "second")
"""Those of the service. What does not ask for one is at the first."""


class Stopped(Exception):
    """The drill is to end."""


class Lane:
    """One lane.

    Args:
        number: Which.
        folder: An empty directory of its own.
        circuit: A file with the circuit that the drivers run, transpiled.
        window: The watchers' sweep window in seconds.

    Attributes:
        before_look: What is to be ended after some tries of a row, before it is looked at what has come of them.
        at_row_end: What is to be ended after that.
        row_troubles: What went wrong that is no single try's.
        judged: How many requests there were to cancel a job when its try was judged, by the job's id.
    """

    def __init__(self, number: int, folder: Path, circuit: Path, window: float) -> None:
        self.number = number
        self.folder = folder
        self.circuit = circuit
        self.window = window
        self.stopping = threading.Event()
        self.state = folder / "state"
        self.lock = folder / "lock"
        self.lock.touch()
        self._log = folder / "control.log"
        self._log.touch()
        self._numbers = 0
        self.judged: dict[str, int] = {}
        self._drivers: list[Driver] = []
        self._states: set[Path] = set()
        self._control: Driver | None = None
        self.at_row_end = contextlib.ExitStack()
        self.before_look = contextlib.ExitStack()
        self.row_troubles: list[str] = []
        self._server: Server | None = None
        self._wrong: tuple[WrongClock, Zygote] | None = None
        self.ibm = local.start(instances=INSTANCES)
        self._zygote = Zygote(self.ibm.port)

    def begin(self) -> None:
        """Wait for the service, and start the control."""
        self.ibm.health()
        control = code.CONTROL.format(log=str(self._log), lock=str(self.lock))
        self._control = self._fork(control, CONTROL_TAG, self.state, self._zygote)
        self.ibm.wait_for("POST", "/api/v1/jobs", timeout=DEADLINE)

    # Drivers

    def forget_drivers(self) -> None:
        """Be done with the drivers of a row."""
        for script in self.folder.glob("driver*.py"):
            script.unlink()
        for driver in [driver for driver in self._drivers if driver is not self._control]:
            self._forget(driver)

    def _forget(self, driver: Driver) -> None:
        self._drivers.remove(driver)  # first: `stop` is another thread's
        driver.clear()

    def fork(self, program: str, tag: str, state: Path | None = None, *, wrong_clock: bool = False) -> Driver:
        """Start a driver, by a clock that is an hour off if that is asked for."""
        zygote = self._zygote
        if wrong_clock:
            clock, zygote = self._by_wrong_clock()
            program = clock.prelude() + program
        return self._fork(program, tag, state or self.state, zygote)

    def _fork(self, program: str, tag: str, state: Path, zygote: Zygote) -> Driver:
        if self.stopping.is_set():
            raise Stopped
        self._states.add(state)
        script = self.folder / f"driver{self.next_number()}.py"
        head = code.HEAD.format(state=str(state), window=str(self.window), tag=tag, circuit=str(self.circuit))
        script.write_text(PRELUDE.format(pid=self.ibm.pid, port=self.ibm.port) + head + program)
        driver = Driver(zygote.fork(script))
        self._drivers.append(driver)
        return driver

    def _by_wrong_clock(self) -> tuple[WrongClock, Zygote]:
        if self._wrong is None:
            clock = WrongClock(1 if self.number % 2 else -1, self.folder)
            self._wrong = clock, Zygote(environment=clock.environment)
        return self._wrong

    def shows_wrong_clock(self, process: psutil.Process) -> bool:
        """Whether a process goes by the lane's wrong clock."""
        return self._by_wrong_clock()[0].is_shown_to(process.pid)

    def server(self) -> Server:
        """A PostgreSQL of the lane's own, which any try may kill and start again."""
        if self._server is None:
            self._server = Server()
        return self._server

    def next_number(self) -> int:
        """A number that nothing else here has."""
        self._numbers += 1
        return self._numbers

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the control from submitting: a fault in a submission is not for it."""
        with self.lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reap(self) -> list[str]:
        """Reap in a process of its own; returns the fates that it tells of."""
        reaper = self.fork(code.REAP, "drill-reaper")
        assert reaper.end() == 0, f"reap failed: {reaper.errors.decode()}"
        return [line.split(" ")[1] for line in reaper.lines if line.startswith("reaped ")]

    # Watchers

    def watchers(self) -> list[psutil.Process]:
        """The watchers of what was tried here."""
        found = []
        for process, title in titles():
            is_controls = self._control is not None and title.driver == self._control.identity
            if title.is_in(*self._states) and not is_controls:
                found.append(process)
        return found

    def wait_for_watchers(self) -> str:
        """Wait until no watcher is left but the control's; returns what is wrong if one stays."""
        end = time.monotonic() + DEADLINE
        while left := self.watchers():
            for process in left:
                with open_pidfd(process) as pidfd:
                    if pidfd is None:
                        continue
                    if not ends(pidfd, end - time.monotonic(), self.stopping):
                        command = " ".join(process.cmdline())
                        process.kill()
                        return f"watcher {process.pid} did not end: {command}"
        return ""

    # The end

    def stop_control(self) -> TrySeen:
        """End the control with the job that it has in flight, and see what became of all its jobs."""
        assert self._control is not None
        seen = TrySeen()
        self.ibm.scenario(UNLIMITED)  # its last job must not wait for what the tries have used up
        self.ibm.hold(None)
        self._control.send(signal.SIGUSR1)
        returncode = self._control.end()
        if returncode != 0:
            seen.troubles.append(f"the control ended by itself ({returncode}): {self._control.errors.decode()}")
        for line in self._log.read_text().splitlines():
            word, name, *more = line.split(" ", 2)
            if word == "result":
                seen.kept.add(name)
            else:
                seen.troubles.append(f"a run of the control failed: {name} {' '.join(more)}")
        for job in self.ibm.jobs():
            if job.cancel_requests > self.judged.get(job.id, job.cancel_requests):
                seen.troubles.append(f"job {job.id} of an earlier try was asked to stop once more, long after it")
            if CONTROL_TAG in job.tags:
                seen.jobs.append(job_seen(job, ()))
                if job.id not in seen.kept:
                    seen.troubles.append(f"the control has no result of job {job.id}")
        return seen

    def stop(self) -> None:
        """End what a try may be waiting for. May be called from another thread."""
        self.stopping.set()
        for driver in list(self._drivers):
            with contextlib.suppress(OSError):  # it has been forgotten meanwhile
                driver.send(signal.SIGKILL)
        self.ibm.stop()

    def close(self) -> None:
        """Leave nothing behind."""
        for driver in self._drivers:
            driver.send(signal.SIGKILL)
        for process, title in titles():
            if title.is_in(*self._states):
                with open_pidfd(process) as pidfd, contextlib.suppress(psutil.Error):
                    # Without a service they would go on trying for a quarter of an hour.
                    if pidfd is not None and (self.stopping.is_set() or not ends(pidfd, 5.0)):
                        process.kill()
        for driver in list(self._drivers):
            self._forget(driver)
        self._zygote.close()
        if self._wrong is not None:
            self._wrong[1].close()
        if self._server is not None:
            self._server.close()
        self.ibm.stop()


def job_seen(job: local.Job, cancels: tuple[int, ...]) -> JobSeen:
    """A job, with the moments at which requests to cancel it arrived."""
    # All jobs of a key are one run's, whoever submitted them.
    run = next((tag for start in ("qxk-", "qxs-") for tag in job.tags if tag.startswith(start)), job.id)
    return JobSeen(job.id, run, job.status, job.ended, job.cancel_requests, cancels)


def make_circuit(file: Path, ibm: local.Service) -> None:
    """Write a circuit that needs no transpiling; in a process of its own, since transpiling makes one big."""
    program = f"""
import json, sys
from qiskit import QuantumCircuit, qpy
from qiskit.transpiler import generate_preset_pass_manager
from qx_supervisor.local.client import connect
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
backend = connect({ibm.port}, "local-key").backend("ibm_brisbane")
with open({json.dumps(str(file))}, "wb") as out:
    qpy.dump(generate_preset_pass_manager(1, backend).run(circuit), out)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
