"""The demonstration: a run to its result, then a driver that is killed and its job that is cancelled."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import click

from . import local
from .run import run

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
run(circuit, "ibm_brisbane", service=service, on_status=tell)
"""


def show() -> None:
    """Show it.

    Raises:
        click.ClickException: If the killed driver's job was not cancelled.
    """
    from qiskit import QuantumCircuit

    click.echo("Starting an IBM Quantum service on this machine …")
    with local.start() as ibm:
        circuit = QuantumCircuit(2)
        circuit.h(0)
        circuit.cx(0, 1)
        circuit.measure_all()
        click.echo("\n1. A Bell circuit to its result.")
        result = run(circuit, "ibm_brisbane", service=ibm.service(), shots=4096)
        click.echo(f"   counts {result.counts}")

        click.echo("\n2. A driver, a script of its own, with its job in the queue.")
        ibm.hold("queued")
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(ibm.pid), str(ibm.port)], stdout=subprocess.PIPE, text=True
        ) as driver:
            watcher, job = _queued(driver)
            click.echo(f"   kill -9 {driver.pid}")
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        ended = ibm.wait_job(job)
        _wait_for_end(watcher)  # it confirms the cancel and looks for duplicates; the service stays for that
    if ended.status != "Cancelled":
        raise click.ClickException(f"job {job} is {ended.status}")
    click.echo(f"   job {job} is {ended.status.lower()}, by {ended.cancel_requests} request of the watcher's.")


def _queued(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until the driver's job is queued; returns its watcher's pid and the job's id."""
    assert driver.stdout is not None
    for line in driver.stdout:
        state, watcher, job = line.strip().rsplit(" ", 2)
        if state == "queued":
            return int(watcher), job
    raise click.ClickException("the driver ended before its job was queued")


def _wait_for_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], 30)
    os.close(pidfd)
