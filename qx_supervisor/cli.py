"""The command `qx-supervisor`. Results go to stdout, talk to stderr."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="qx-supervisor")
def main() -> None:
    """Jobs on IBM Quantum that do not outlive the program that submitted them."""


@main.command()
def demo() -> None:
    """Run a circuit, then kill a driver and see its job cancelled; on this machine alone."""
    from .demo import show

    show()


@main.group()
def local() -> None:
    """The embedded IBM Quantum service, for trying things out."""


@local.command()
@click.option("--port", default=0, help="Port on 127.0.0.1; 0 takes a free one.")
def start(port: int) -> None:
    """Start it, to run until it is stopped."""
    from . import local as embedded

    running = embedded.find() or embedded.start(port=port, register=True)
    click.echo(running.url)


@local.command()
def stop() -> None:
    """Stop it."""
    from . import local as embedded

    running = embedded.find()
    if running is None:
        raise click.ClickException("no embedded service is running; start one with: qx-supervisor local start")
    running.stop()


@local.command()
def status() -> None:
    """Say where it runs."""
    from . import local as embedded

    running = embedded.find()
    if running is None:
        raise click.ClickException("no embedded service is running; start one with: qx-supervisor local start")
    click.echo(f"{running.url} pid {running.pid}")
