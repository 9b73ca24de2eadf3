"""The kill test of `doctor` and `demo`: a driver is killed on the embedded service, and its job must be cancelled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import settings
from .errors import QxError
from .local import Service
from .watcher.ledger import Ledger, LedgerError, state_directory
from .watcher.process_handle import ProcessHandle

TIMEOUT = 60.0
"""Seconds until the driver's job must be queued, and for each step after the kill."""

LOOK_SECONDS = 0.1
"""How often the ledger is looked at, where the watcher stays."""

DRIVER = """
import sys
from qiskit import QuantumCircuit
from qx_supervisor import local, run

circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
service = local.Service(int(sys.argv[1]), int(sys.argv[2])).service()
def tell(status):
    print(status.state, status.watcher, status.job_id, flush=True)
run(circuit, "ibm_brisbane", service=service, on_status=tell, panel="plain", label="kill -9 drill")
"""


NOT_ITS_OWN = (settings.LEDGER, settings.BUDGET, settings.BUDGET_ID, settings.NOTIFY)
"""What the user has set for runs that are meant."""


class KillTestError(QxError):
    """The kill test failed."""


@dataclass(frozen=True)
class KillTest:
    """What happened to a killed driver's job.

    Attributes:
        job_id: The job.
        status: Its final status at the service: "Cancelled" if all is well.
        cancel_requests: The number of cancel requests.
        milliseconds: From the kill to the arrival of the first cancel request.
    """

    job_id: str
    status: str
    cancel_requests: int
    milliseconds: float


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Have this process, and what it starts, write to a ledger of its own for the time of a block.

    In the user's, a run of the embedded service would reserve what the budgets have left, and be refused where they
    have nothing; and it would be among the user's runs and charges.
    """
    before = {name: os.environ.pop(name, None) for name in (*NOT_ITS_OWN, settings.STATE_DIR)}
    try:
        # A watcher that is shared stays for a while, with its ledger open.
        with tempfile.TemporaryDirectory(prefix="qx-apart-", ignore_cleanup_errors=True) as folder:
            os.environ[settings.STATE_DIR] = folder
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@apart()
def kill_a_driver(
    ibm: Service, *, is_quiet: bool = False, before_kill: Callable[[int], None] = lambda _: None
) -> KillTest:
    """Start a driver apart from the user's, kill it while its job is queued, and wait until its watcher has finished.

    Args:
        ibm: A service without other jobs; all jobs are held in the queue.
        is_quiet: Whether the driver's stderr is hidden.
        before_kill: Called with the driver's pid before it is killed.

    Raises:
        KillTestError: The driver did not start, or its job was not cancelled.
    """
    ibm.hold("queued")
    command = [sys.executable, "-c", DRIVER, str(ibm.pid), str(ibm.port)]
    errors = subprocess.PIPE if is_quiet else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as driver:
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            driver.kill()

        alarm = threading.Timer(TIMEOUT, give_up)
        alarm.daemon = True
        alarm.start()
        watcher, job = _queued(driver, is_late)
        alarm.cancel()
        before_kill(driver.pid)
        killed = time.monotonic_ns()
        driver.kill()
        driver.wait()
    try:
        request = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", timeout=TIMEOUT)[0]
        ended = ibm.wait_job(job, timeout=TIMEOUT)
    except TimeoutError as error:
        raise KillTestError(f"the killed driver's job was not cancelled: {error}") from None
    _wait_until_done(watcher, job)  # it confirms the cancel and looks for duplicates, and needs the service for that
    requests = ibm.job(job).cancel_requests
    return KillTest(job, ended.status, requests, (request.arrived - killed) / 1e6)


def _queued(driver: subprocess.Popen[str], is_late: threading.Event) -> tuple[int, str]:
    """Wait until the driver's job is queued; returns its watcher's pid and the job's id."""
    assert driver.stdout is not None
    for line in driver.stdout:
        state, watcher, job = line.strip().rsplit(" ", 2)
        if state == "queued":
            return int(watcher), job
    lines = driver.stderr.read().strip().splitlines() if driver.stderr is not None else []
    if is_late.is_set():
        raise KillTestError(f"the driver's job was not queued within {TIMEOUT:.0f} s; try again on a less busy machine")
    raise KillTestError(f"the driver ended before its job was queued{f': {lines[-1]}' if lines else ''}")


def _wait_until_done(pid: int, job: str) -> None:
    """Wait until the watcher has ended; one that others share stays, and has written then that the run is over."""
    looks = TIMEOUT if settings.placement() != "node" else LOOK_SECONDS
    deadline = time.monotonic() + TIMEOUT
    with contextlib.suppress(ProcessLookupError), contextlib.closing(ProcessHandle(pid)) as watcher:
        while not watcher.ends_within(looks) and not _is_over(job) and time.monotonic() < deadline:
            pass


def _is_over(job: str) -> bool:
    with contextlib.suppress(LedgerError), Ledger.open(state_directory()) as book:
        return any(job in row.jobs and row.is_over for row in book.rows())
    return False  # there is no ledger
