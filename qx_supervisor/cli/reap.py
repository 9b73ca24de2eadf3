"""`qx-supervisor reap`."""

from __future__ import annotations

import click


@click.command("reap")
def reap_command() -> None:
    """Cancel what dead drivers left behind on this machine, with the saved account."""
    from ..errors import QxError
    from ..reap import reap

    try:
        found = reap()
    except QxError as error:
        raise click.ClickException(str(error)) from None
    for reaped in found:
        jobs = " ".join(reaped.jobs) or "-"
        click.echo(f"{reaped.fate:13}  {reaped.host}:{reaped.pid}  {jobs}  {reaped.detail}".rstrip())
    if not found:
        click.echo("Nothing is left behind.", err=True)
