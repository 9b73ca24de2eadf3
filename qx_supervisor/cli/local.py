"""`qx-supervisor local`."""

from __future__ import annotations

from typing import Any

import click

from ..errors import QxError
from . import account, output
from .group import debug_option, json_option

FIELDS = """\b
--json prints one object:
  url  its address
  pid  its process"""


@click.group("local")
def local_command() -> None:
    """Start and stop the embedded IBM Quantum service.

    Use it with the --local option of other commands, and with QX_LOCAL=1 or qx_supervisor.local.find().service() in
    programs. No request leaves this machine.

    One that is started here runs until it is stopped. One that QX_LOCAL=1 or exec --local has started, because none was
    running, ends by itself when nobody has used it for ten minutes.
    """


@local_command.command(epilog=FIELDS)
@click.option("--port", default=0, help="Port on 127.0.0.1; 0 selects a free one.")
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    help="A backend to offer; can be repeated.  [default: ibm_brisbane, ibm_torino, ibm_fez]",
)
@click.option("--python", metavar="PYTHON", help="Run it with this Python, of an environment that has localqpu.")
@click.option("--max-shots", type=click.IntRange(1), help="How many shots a job may have.  [default: 1000000]")
@click.option("--max-qubits", type=click.IntRange(1), help="How many entangled qubits a job may have.  [default: 24]")
@click.option(
    "--max-memory",
    type=click.FloatRange(0.1),
    metavar="GIB",
    callback=lambda _context, _option, gibibytes: None if gibibytes is None else int(gibibytes * 2**30),
    help="How much memory a job may take.  [default: 2]",
)
@json_option
@debug_option
def start(port: int, backends: tuple[str, ...], as_json: bool, **asked_for: Any) -> None:
    """Start the service and print its address.

    It runs until `qx-supervisor local stop`, also while nobody uses it. If one is running already, nothing changes: if
    QX_LOCAL=1 has started that, it still ends when nobody has used it for ten minutes. What would take more of this
    machine than a job may is refused.
    """
    from ..local import shared

    running = account.find()
    asked = {name: value for name, value in {"backends": backends or None, **asked_for}.items() if value is not None}
    if running is None:
        running = account.start(port=port, register=True, **{"backends": shared.BACKENDS, **asked})
    elif port not in (0, running.port) or asked:
        output.say("it runs already, and goes on as it is; for another, first: qx-supervisor local stop")
    if as_json:
        output.record(url=running.url, pid=running.pid)
    else:
        output.line(running.url)


@local_command.command()
@debug_option
def stop() -> None:
    """Stop the service. Its jobs are lost."""
    running = account.find()
    if running is None:
        raise QxError(account.NO_SERVICE)
    running.stop()


@local_command.command(epilog=FIELDS)
@json_option
@debug_option
def status(as_json: bool) -> None:
    """Print the address and the pid of the running service."""
    running = account.find()
    if running is None:
        raise QxError(account.NO_SERVICE)
    if as_json:
        output.record(url=running.url, pid=running.pid)
    else:
        output.line(f"{running.url} pid {running.pid}")
