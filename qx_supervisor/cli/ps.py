"""`qx-supervisor ps`."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import QxError
from ..watcher import ledger
from . import hosts, output, rows, table
from .group import debug_option, json_option

if TYPE_CHECKING:
    from qx_supervisor.watcher.ledger.postgres.store import Held

EPILOG = """\b
States:
  live       the driver runs
  ending     the driver is dead, and its watcher cancels its jobs
  waiting    the driver is gone, and may come back for its key
  orphan     both are dead: qx-supervisor reap cancels
  elsewhere  a run of another machine or container
  finished, failed, cancelled, detached, expired
             over; with --all. detached: the program let its job go on;
             done: of an earlier release, which did not say how it ended

\b
With --all-hosts, by the leases in the shared ledger:
  live       its lease is renewed
  ending     its driver is gone, and its watcher cancels its jobs
  waiting    its driver is gone, and may come back for it within its grace
  orphan     its lease has run out: a reaper's
  reaping    a reaper cancels its jobs
  pending    they could not all be resolved, and are looked for again

COST is the QPU time charged, or ~ and what is expected of it.

\b
--json prints an object for each run; what is not known is null:
  state        as above
  by           who ended it, if it did not finish: "program", "signal",
               "watcher", "reap", "reaper", "someone else", "IBM"
  signal, signal_name
               by which signal, such as 2 and SIGINT
  reason       why it ended so, or an empty string
  host, pid    where the driver runs, or ran
  watcher_pid  its watcher
  jobs         {job id: what became of it, "" while that is open}
  session      the session that is guarded
  backend, primitive, pubs, shots, label, tags
               what was submitted; tags are the user's
  program, command
               the program and its command line, without what looks like
               a secret
  tag          the tag of the run's jobs
  key          the name under which it may be taken up again
  detail       why it came to its state, or an empty string
  run          the run's id
  endpoint     the service's address
  qpu_seconds_estimated, qpu_seconds
               QPU time expected and charged
  uncharged    the jobs whose charge is not known
  began        when the run began, such as 2026-01-31T12:00:00Z
  queued, ran  when its job was accepted and began to run, by IBM's clock
  ended        when it ended, by the clock that ended_clock names:
               "service" (IBM's) or "host"
  created, updated
               when it was written down first and last
and with --all-hosts:
  holder       who holds it: its kind ("watcher" or "reaper"), host and pid
  lease_left   seconds that the lease lasts; below 0 since it has run out
  grace_left   if waiting: seconds of the grace that are left"""

SHOWN = ("AGE", "STATE", "JOB", "BACKEND", "LABEL", "COST", "HOST")
WIDE = (
    "AGE", "STATE", "BY", "JOB", "BACKEND", "PRIMITIVE", "PUBS", "SHOTS", "LABEL", "TAGS", "KEY", "COST", "HOST",
    "LEASE", "TAG", "COMMAND", "DETAIL",
)  # fmt: skip
GIVES = ("BACKEND", "HOST", "LABEL")
"""What is cut short where a terminal is too narrow; never what one copies."""

DROPS = ("BACKEND", "COST", "HOST", "AGE")
"""What is left out where it is narrower still; `--wide` and `--json` have it."""

WATCH_SECONDS = 2.0


class Listed(NamedTuple):
    """A run of the list.

    Attributes:
        cells: Its cells.
        fields: Its JSON.
    """

    cells: dict[str, str]
    fields: dict[str, Any]


@click.command("ps", epilog=EPILOG)
@click.option("--all", "everything", is_flag=True, help="Runs that are over too.")
@click.option("--all-hosts", is_flag=True, help="Those of all hosts that write to one ledger.")
@click.option("--wide", is_flag=True, help="All that is known, however long the lines.")
@click.option("--watch", is_flag=True, help="Show the list anew every two seconds, until Ctrl-C.")
@hosts.ledger_option
@json_option
@debug_option
def ps_command(  # noqa: PLR0917 - click passes by name
    everything: bool, all_hosts: bool, wide: bool, watch: bool, ledger_url: str | None, as_json: bool
) -> None:
    """List the guarded runs of this machine, the newest first.

    It reads the ledger only, and needs no account.
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch is for a terminal; in a script, call ps --json again and again")
    hosts.use(ledger_url)
    states = None if everything else ledger.UNFINISHED

    def listed() -> list[Listed]:
        return _all_hosts(states) if all_hosts else _this_machine(states)

    def lines(found: list[Listed]) -> list[str]:
        columns = [name for name in WIDE if all_hosts or name != "LEASE"] if wide else SHOWN
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() and not wide else 0
        return list(table.lines(columns, [each.cells for each in found], width, GIVES, DROPS))

    if watch:
        _watch(lambda: lines(listed()))
        return
    found = listed()
    if as_json:
        for each in found:
            output.record(**each.fields)
    elif found:
        for line in lines(found):
            output.line(line)
    else:
        output.say("no run is known" if everything else "no run is guarded; --all lists those that are over")


def _this_machine(states: Any) -> list[Listed]:
    now = time.time()
    with ledger.Ledger.open(ledger.state_directory()) as book:
        found = [(row, rows.state_of(row, ledger.judge(row, book.host_identity))) for row in book.rows(states)]
    return [Listed(rows.cells(row, state, now), rows.fields(row, state)) for row, state in found]


def _all_hosts(states: Any) -> list[Listed]:
    from ..shared_ledger import opened

    try:
        with opened() as book:
            return [_held(each) for each in book.held(states)]
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


def _held(held: Held) -> Listed:
    row, who = held.row, held.holder
    state = rows.state_of(row, held.judgement)
    lease = ""
    if held.judgement != "final":
        left = f"{held.seconds_left:.0f} s left" if held.seconds_left > 0 else f"for {-held.seconds_left:.0f} s"
        lease = f"{who.kind} {who.host}:{who.pid}, {left}"
    return Listed(
        rows.cells(row, state, held.now) | {"LEASE": lease},
        rows.fields(row, state)
        | {
            "holder": {"kind": who.kind, "host": who.host, "pid": who.pid},
            "lease_left": round(held.seconds_left, 1),
            "grace_left": round(held.grace_left, 1) if state == "waiting" else None,
        },
    )


def _watch(lines: Callable[[], list[str]]) -> None:
    """Show the list until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def shown() -> Text:
        return Text("\n".join(lines()), no_wrap=True)

    try:
        with Live(shown(), console=Console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(shown(), refresh=True)
    except KeyboardInterrupt:
        pass  # that is how it ends
