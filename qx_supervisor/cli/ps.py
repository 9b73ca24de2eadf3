"""`qx-supervisor ps`."""

from __future__ import annotations

from typing import Any

import click

from ..errors import QxError
from ..watcher import ledger
from . import hosts, output
from .group import debug_option, json_option

EPILOG = """\b
States:
  live       the driver runs, or its watcher is still at work
  waiting    the driver is gone, and may come back for its key
  orphan     both are dead: qx-supervisor reap cancels
  elsewhere  a run of another machine or container
  done, cancelled, expired
             over; with --all

\b
With --all-hosts, by the leases in the shared ledger:
  live       its lease is renewed
  waiting    its driver is gone, and may come back for it within its grace
  orphan     its lease has run out: a reaper's
  reaping    its jobs are being cancelled
  pending    they could not all be resolved, and are looked for again

\b
--json prints an object for each run:
  state        as above
  host, pid    where the driver runs, or ran
  watcher_pid  its watcher, or null
  jobs         {job id: what became of it, "" while that is open}
  session      the session that is guarded, or null
  tag          the tag of the run's jobs, or null
  key          the name under which it may be taken up again, or null
  detail       why it came to that, or an empty string
  run          the run's id
  endpoint     the service's address
  created, updated
               when it was written down first and last, such as
               2026-01-31T12:00:00Z
and with --all-hosts:
  holder       who holds it: its kind ("watcher" or "reaper"), host and pid
  lease_left   seconds that the lease lasts; below 0 since it has run out
  grace_left   if waiting: seconds of the grace that are left; else null"""


@click.command("ps", epilog=EPILOG)
@click.option("--all", "everything", is_flag=True, help="Runs that are over too.")
@click.option("--all-hosts", is_flag=True, help="Those of all hosts that write to one ledger.")
@hosts.ledger_option
@json_option
@debug_option
def ps_command(everything: bool, all_hosts: bool, ledger_url: str | None, as_json: bool) -> None:
    """List the guarded runs of this machine, the newest first.

    It reads the ledger only, and needs no account.
    """
    hosts.use(ledger_url)
    count = _all_hosts(everything, as_json) if all_hosts else _this_machine(everything, as_json)
    if not count and not as_json:
        output.say("no run is known" if everything else "no run is guarded; --all lists those that are over")


def _this_machine(everything: bool, as_json: bool) -> int:
    with ledger.Ledger.open(ledger.state_directory()) as book:
        rows = book.rows(None if everything else ledger.UNFINISHED)
        for row in rows:
            liveness = ledger.judge(row, book.place)
            state: str = row.state if liveness == "final" else liveness
            if liveness == "live" and row.state == "guarded" and row.let_go_at is not None:
                state = "waiting"
            if as_json:
                output.record(**_fields(state, row))
            else:
                output.line(f"{_line(state, row)}  {row.detail}".rstrip())
    return len(rows)


def _all_hosts(everything: bool, as_json: bool) -> int:
    from ..shared_ledger import opened

    try:
        with opened() as book:
            found = book.held(None if everything else ledger.UNFINISHED)
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None
    for held in found:
        row, who = held.row, held.holder
        state = row.state if held.judgement == "final" else held.judgement
        if as_json:
            output.record(
                **_fields(state, row),
                holder={"kind": who.kind, "host": who.host, "pid": who.pid},
                lease_left=round(held.seconds_left, 1),
                grace_left=round(held.grace_left, 1) if state == "waiting" else None,
            )
            continue
        lease = "-"
        if held.judgement != "final":
            left = f"{held.seconds_left:.0f} s left" if held.seconds_left > 0 else f"for {-held.seconds_left:.0f} s"
            lease = f"{who.kind} {who.host}:{who.pid}, {left}"
        output.line(f"{_line(state, row)}  {lease}  {row.detail}".rstrip())
    return len(found)


def _line(state: str, row: ledger.Row) -> str:
    jobs = " ".join(row.jobs) or row.session or "-"
    return f"{state:9}  {row.place.host}:{row.pid}  {jobs}  {row.tag or '-'}"


def _fields(state: str, row: ledger.Row) -> dict[str, Any]:
    return {
        "state": state,
        "host": row.place.host,
        "pid": row.pid,
        "watcher_pid": row.watcher_pid,
        "jobs": dict(row.jobs),
        "session": row.session,
        "tag": row.tag,
        "key": row.key,
        "detail": row.detail,
        "run": row.run,
        "endpoint": row.endpoint,
        "created": output.time_of(row.created_at),
        "updated": output.time_of(row.updated_at),
    }
