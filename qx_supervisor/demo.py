"""The demonstration: a run with its result, then a killed driver whose job is cancelled."""

from __future__ import annotations

import click

from . import local
from .kill_test import KillTestError, apart, kill_a_driver
from .run import run


@apart()
def show() -> None:
    """Run the demonstration.

    Raises:
        KillTestError: The killed driver's job was not cancelled.
    """
    from qiskit import QuantumCircuit

    click.echo("Starting an IBM Quantum service on this machine …")
    with local.start(linger=local.LINGER) as ibm:
        circuit = QuantumCircuit(2)
        circuit.h(0)
        circuit.cx(0, 1)
        circuit.measure_all()
        click.echo("\n1. A Bell circuit to its result.")
        result = run(circuit, "ibm_brisbane", service=ibm.service(), shots=4096)
        click.echo(f"   counts {result.counts}")

        click.echo("\n2. A driver, a script of its own, with its job in the queue.")
        tested = kill_a_driver(ibm, before_kill=lambda pid: click.echo(f"   kill -9 {pid}"))
    if tested.status != "Cancelled":
        raise KillTestError(f"job {tested.job_id} is {tested.status}")
    click.echo(
        f"   job {tested.job_id} is {tested.status.lower()}, by {tested.cancel_requests} request of the watcher's, "
        f"{tested.milliseconds:.0f} ms after the kill."
    )
