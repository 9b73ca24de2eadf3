"""`qx-supervisor doctor`."""

from __future__ import annotations

import click

from . import exits, hosts, output
from .group import debug_option, json_option

EPILOG = """\b
--json prints an object for each check:
  check      versions, pidfd, state directory, guarded runs, place,
             exec, settings, shared ledger, account, service, clock,
             kill -9 drill; not all everywhere
  verdict    "ok", "warning" or "fault"
  text       what was found
  next_step  what to do, or an empty string"""


@click.command("doctor", epilog=EPILOG)
@click.option("--no-drill", is_flag=True, help="Kill no driver.")
@hosts.ledger_option
@json_option
@debug_option
def doctor_command(no_drill: bool, ledger_url: str | None, as_json: bool) -> int:
    """Check whether all is as it must be on this machine, and say what to do.

    The last check starts a driver on an embedded service of its own, kills it with SIGKILL, and measures how long it
    takes until its job is cancelled. Nothing is submitted to IBM Quantum, and no key is shown.

    The exit code is 1 if something is at fault; a warning is no fault.
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
