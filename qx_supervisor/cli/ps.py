"""`qx-supervisor ps`."""

from __future__ import annotations

import click


@click.command("ps")
@click.option("--all", "everything", is_flag=True, help="Runs that are over too.")
def ps_command(everything: bool) -> None:
    """List the guarded runs of this machine, the newest first."""
    from ..ours import ledger

    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            for row in book.rows(None if everything else ledger.UNFINISHED):
                verdict = ledger.judge(row, book.place)
                state = row.state if verdict == "final" else verdict
                jobs = " ".join(row.jobs) or row.session or "-"
                click.echo(f"{state:9}  {row.place.host}:{row.pid}  {jobs}  {row.tag}  {row.detail}".rstrip())
    except ledger.LedgerError as error:
        raise click.ClickException(str(error)) from None
