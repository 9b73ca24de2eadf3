"""`qx-supervisor ps`."""

from __future__ import annotations

import click

from ..ours import ledger
from . import output
from .group import debug_option, json_option

EPILOG = """\b
States:
  live       the driver runs, or its watcher is still at work
  orphan     both are dead: qx-supervisor reap cancels
  elsewhere  a run of another machine or container
  done, cancelled, expired
             over; with --all

\b
--json prints an object for each run:
  state        as above
  host, pid    where the driver runs, or ran
  watcher_pid  its watcher, or null
  jobs         {job id: what became of it, "" while that is open}
  session      the session that is guarded, or null
  tag          the tag of the run's jobs, or null
  detail       why it came to that, or an empty string
  run          the run's id
  endpoint     the service's address
  created, updated
               when it was written down first and last, such as
               2026-01-31T12:00:00Z"""


@click.command("ps", epilog=EPILOG)
@click.option("--all", "everything", is_flag=True, help="Runs that are over too.")
@json_option
@debug_option
def ps_command(everything: bool, as_json: bool) -> None:
    """List the guarded runs of this machine, the newest first.

    It reads the ledger only, and needs no account.
    """
    with ledger.Ledger.open(ledger.state_directory()) as book:
        rows = book.rows(None if everything else ledger.UNFINISHED)
        for row in rows:
            verdict = ledger.judge(row, book.place)
            state = row.state if verdict == "final" else verdict
            if as_json:
                output.record(
                    state=state,
                    host=row.place.host,
                    pid=row.pid,
                    watcher_pid=row.watcher_pid,
                    jobs=dict(row.jobs),
                    session=row.session,
                    tag=row.tag,
                    detail=row.detail,
                    run=row.run,
                    endpoint=row.endpoint,
                    created=output.time_of(row.created_at),
                    updated=output.time_of(row.updated_at),
                )
            else:
                jobs = " ".join(row.jobs) or row.session or "-"
                output.line(f"{state:9}  {row.place.host}:{row.pid}  {jobs}  {row.tag or '-'}  {row.detail}".rstrip())
        if not rows and not as_json:
            output.say("no run is known" if everything else "no run is guarded; --all lists those that are over")
