"""`qx-supervisor local`."""

from __future__ import annotations

import click


@click.group("local")
def local_command() -> None:
    """The embedded IBM Quantum service, for trying things out."""


@local_command.command()
@click.option("--port", default=0, help="Port on 127.0.0.1; 0 takes a free one.")
def start(port: int) -> None:
    """Start it, to run until it is stopped."""
    from .. import local as embedded

    running = embedded.find() or embedded.start(port=port, register=True)
    click.echo(running.url)


@local_command.command()
def stop() -> None:
    """Stop it."""
    from .. import local as embedded

    running = embedded.find()
    if running is None:
        raise click.ClickException("no embedded service is running; start one with: qx-supervisor local start")
    running.stop()


@local_command.command()
def status() -> None:
    """Say where it runs."""
    from .. import local as embedded

    running = embedded.find()
    if running is None:
        raise click.ClickException("no embedded service is running; start one with: qx-supervisor local start")
    click.echo(f"{running.url} pid {running.pid}")
