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

    Use it with the --local option of other commands, and with qx_supervisor.local.find().service() in programs. No
    request leaves this machine.
    """


@local_command.command(epilog=FIELDS)
@click.option("--port", default=0, help="Port on 127.0.0.1; 0 selects a free one.")
@click.option("--backend", "backends", metavar="NAME", multiple=True, help="A backend to offer; can be repeated.")
@json_option
@debug_option
def start(port: int, backends: tuple[str, ...], as_json: bool) -> None:
    """Start the service and print its address. It runs until it is stopped.

    If one is running already, nothing changes.
    """
    running = account.find()
    if running is None:
        offered: dict[str, Any] = {"backends": backends} if backends else {}
        running = account.start(port=port, register=True, **offered)
    elif port not in (0, running.port) or backends:
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
