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


@main.command()
def reap() -> None:
    """Cancel what dead drivers left behind on this machine, with the saved account."""
    from .errors import QxError
    from .reap import reap as reap_all

    try:
        found = reap_all()
    except QxError as error:
        raise click.ClickException(str(error)) from None
    for reaped in found:
        jobs = " ".join(reaped.jobs) or "-"
        click.echo(f"{reaped.fate:13}  {reaped.host}:{reaped.pid}  {jobs}  {reaped.detail}".rstrip())
    if not found:
        click.echo("Nothing is left behind.", err=True)


@main.command()
@click.option("--all", "everything", is_flag=True, help="Runs that are over too.")
def ps(everything: bool) -> None:
    """List the guarded runs of this machine, the newest first."""
    from .ours import ledger

    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            for row in book.rows(None if everything else ledger.UNFINISHED):
                verdict = ledger.judge(row, book.place)
                state = row.state if verdict == "final" else verdict
                jobs = " ".join(row.jobs) or row.session or "-"
                click.echo(f"{state:9}  {row.place.host}:{row.pid}  {jobs}  {row.tag}  {row.detail}".rstrip())
    except ledger.LedgerError as error:
        raise click.ClickException(str(error)) from None


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
