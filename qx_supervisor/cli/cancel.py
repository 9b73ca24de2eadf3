"""`qx-supervisor cancel`."""

from __future__ import annotations

import time
from typing import Any

import click

from . import account, exits, jobs, output
from .group import debug_option, json_option

WORDS = {
    "cancelled": "cancelled, and confirmed",
    "finished": "it was final already, or finished all the same",
    "gone": "there is no such job in this account; check the id, or give its --instance",
    "unconfirmed": "the cancel could not be confirmed; try again, or look at the job's page",
}

EPILOG = """\b
--json prints an object for each job:
  job_id   the job's id
  outcome  "cancelled", "finished" (it was final already, or finished
           all the same), "gone" (there is no such job), "unconfirmed"
  detail   what stood in the way, or an empty string"""


@click.command("cancel", epilog=EPILOG)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=jobs.completions)
@account.account_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=60.0,
    show_default="60",
    help="How long to try, for each job.",
)
@json_option
@debug_option
def cancel_command(ids: tuple[str, ...], local: bool, instance: str | None, timeout: float, as_json: bool) -> int:
    """Cancel jobs, and wait until that is confirmed.

    The exit code is 6 if a cancel could not be confirmed, and 2 if there is no such job.
    """
    for job_id in ids:
        jobs.check(job_id)
    service = account.connect(local, instance)
    outcomes = set()
    for job_id in ids:
        outcome, trouble = _cancel(service, job_id, timeout)
        outcomes.add(outcome)
        if as_json:
            output.record(job_id=job_id, outcome=outcome, detail=trouble)
        else:
            output.line(f"{outcome:11}  {job_id}")
        if outcome in ("gone", "unconfirmed") or not as_json:
            output.say(f"job {job_id}: {WORDS[outcome]}{f' ({trouble})' if trouble else ''}")
    if "unconfirmed" in outcomes:
        return exits.UNCONFIRMED
    return exits.USAGE if "gone" in outcomes else exits.DONE


def _cancel(service: Any, job_id: str, seconds: float) -> tuple[str, str]:
    """Cancel a job in whichever instance has it."""
    from .. import service as qiskit_service
    from ..watcher import cancel

    end = time.monotonic() + seconds

    def wait(pause: float) -> bool:
        left = end - time.monotonic()
        time.sleep(max(0.0, min(pause, left)))
        return left <= pause

    outcome, trouble = "gone", ""
    for client in qiskit_service.clients_of(service):
        there = qiskit_service.remote_of(client)
        outcome, trouble = cancel.cancel(job_id, there, time.monotonic, wait, given=False)
        if outcome != "gone":
            break
    return outcome, trouble
