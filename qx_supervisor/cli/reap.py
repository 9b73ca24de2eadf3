"""`qx-supervisor reap`."""

from __future__ import annotations

import click

from ..text_width import one_line
from . import account, exits, hosts, output, reap_timer
from .durations import Duration
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

NOTHING = "nothing is left behind"


@click.command("reap", epilog=EPILOG)
@account.account_options
@click.option(
    "--wait",
    type=Duration(),
    default=0.0,
    metavar="TIME",
    help="Wait so long for watchers of dead drivers that are at work: before a container or machine ends.",
)
@click.option("--install-timer", is_flag=True, help="Have this done every few minutes from now on, by a timer.")
@click.option(
    "--every", callback=reap_timer.minutes, metavar="PAUSE", help="How often the timer does it: 5min (the default), 2h."
)
@click.option("--remove-timer", is_flag=True, help="Remove the timer.")
@hosts.ledger_option
@json_option
@debug_option
def reap_command(
    *,
    local: bool,
    instance: str | None,
    wait: float,
    install_timer: bool,
    every: int | None,
    remove_timer: bool,
    ledger_url: str | None,
    as_json: bool,
) -> int:
    """Cancel what dead drivers left behind on this machine.

    Whose driver or watcher lives is never touched. The exit code is 6 if something could not be resolved: "pending", as
    where a watcher is still at work after --wait, or "expired".

    The timer is one of the user's systemd, with the --local, --instance and --ledger that are given; it uses the saved
    account. Without a user manager of systemd, a line for crontab is printed, and nothing is installed.
    """
    account.check(local, instance)
    hosts.use(ledger_url)
    if install_timer and remove_timer:
        raise click.UsageError("give one of --install-timer and --remove-timer", click.get_current_context())
    if every is not None and not install_timer:
        raise click.UsageError("--every is for --install-timer", click.get_current_context())
    if install_timer or remove_timer:
        if wait or as_json:
            raise click.UsageError("--wait and --json are not for a timer", click.get_current_context())
        reap_timer.change(install=install_timer, every=every, local=local, instance=instance, ledger_url=ledger_url)
        return exits.DONE
    from ..reap import reap_with, watchers_at_work

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
            output.line(f"{reaped.fate:13}  {reaped.host}:{reaped.pid}  {jobs}  {one_line(reaped.detail)}".rstrip())
    if any(reaped.fate == "other account" for reaped in found):
        output.say("for the jobs of another account, instance or service, reap again with --instance or --local")
    if not found:
        count = watchers_at_work()
        output.say(f"{count} left to watchers that are at work; --wait waits for them" if count else NOTHING)
    return exits.UNCONFIRMED if unresolved else exits.DONE
