"""`qx-supervisor reap`."""

from __future__ import annotations

import click

from . import account, exits, hosts, output
from .group import debug_option, json_option

EPILOG = """\b
--json prints an object for each run that was left behind:
  run        the run's id
  fate       "cancelled", "nothing left", "in grace" (a driver may come
             back with its key), "pending" (look again in some
             minutes), "expired" (not resolved for a day), "other
             account" or "elsewhere" (another machine or container)
  jobs       the jobs that were cancelled, or are known
  detail     more words, or an empty string
  host, pid  where the driver ran"""


@click.command("reap", epilog=EPILOG)
@account.account_options
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for watchers of dead drivers that are at work: before a container or machine ends.",
)
@hosts.ledger_option
@json_option
@debug_option
def reap_command(local: bool, instance: str | None, wait: float, ledger_url: str | None, as_json: bool) -> int:
    """Cancel what dead drivers left behind on this machine.

    Whose driver or watcher lives is never touched. The exit code is 6 if something could not be resolved: "pending", or
    "expired".
    """
    from ..reap import reap_with

    account.check(local, instance)
    hosts.use(ledger_url)
    unresolved = False
    found = reap_with(lambda: account.connect(local, instance), wait)
    for reaped in found:
        unresolved |= reaped.fate in ("pending", "expired")
        if as_json:
            output.record(
                run=reaped.run,
                fate=reaped.fate,
                jobs=list(reaped.jobs),
                detail=reaped.detail,
                host=reaped.host,
                pid=reaped.pid,
            )
        else:
            jobs = " ".join(reaped.jobs) or "-"
            output.line(f"{reaped.fate:13}  {reaped.host}:{reaped.pid}  {jobs}  {reaped.detail}".rstrip())
    if any(reaped.fate == "other account" for reaped in found):
        output.say("for the jobs of another account, instance or service, reap again with --instance or --local")
    if not found:
        output.say("nothing is left behind")
    return exits.UNCONFIRMED if unresolved else exits.DONE
