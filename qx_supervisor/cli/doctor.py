"""`qx-supervisor doctor`."""

from __future__ import annotations

import click

from . import exits, hosts, output
from .group import debug_option, json_option

EPILOG = """\b
--json prints an object for each check:
  check      versions, pidfd, kqueue or deaths, state directory, guarded
             runs, place, exec, settings, shared ledger, account,
             service, sessions, quota, clock, kill -9 drill; some only
             where they apply
  verdict    "ok", "warning" or "fault"
  text       what was found
  next_step  what to do, or an empty string"""


@click.command("doctor", epilog=EPILOG)
@click.option("--no-drill", is_flag=True, help="Skip the kill test.")
@hosts.ledger_option
@json_option
@debug_option
def doctor_command(no_drill: bool, ledger_url: str | None, as_json: bool) -> int:
    """Check the installation, this machine and the account.

    Each line says what was found, and what to do about it. The last check starts a driver on an embedded service of its
    own, kills it with SIGKILL, and measures how long it takes until its job is cancelled. Nothing is submitted to IBM
    Quantum, and no API key is shown.

    The exit code is 1 if there is a fault; warnings do not count.
    """
    hosts.use(ledger_url)
    from ..doctor import examine

    has_fault = False
    for found in examine(with_drill=not no_drill, say=output.say):
        has_fault |= found.verdict == "fault"
        if as_json:
            output.record(check=found.check, verdict=found.verdict, text=found.text, next_step=found.next_step)
        else:
            then = f". Next: {found.next_step}" if found.next_step else ""
            output.line(f"{found.verdict:8} {found.check:16} {found.text}{then}")
    return exits.FAILED if has_fault else exits.DONE
