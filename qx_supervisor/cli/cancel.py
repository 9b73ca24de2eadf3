"""`qx-supervisor cancel`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import click

from . import account, chosen, exits, hosts, jobs, output, questions, table
from .durations import Duration
from .group import debug_option, json_option

WORDS = {
    "cancelled": "cancelled, and confirmed",
    "finished": "it was final already, or finished all the same",
    "gone": "there is no such job in this account; check the id, or give its --instance",
    "unconfirmed": "the cancel could not be confirmed; try again, or look at the job's page",
}

GIVES = ("TAGS", "BACKEND", "LABEL", "GUARDED BY")
"""What is cut short where the terminal is too narrow."""

EPILOG = """\b
  qx-supervisor cancel d1a2b3c4e5f6g7h8i9j0
  qx-supervisor cancel --all
  qx-supervisor cancel --label "vqe step 17" --yes
  qx-supervisor cancel --session d9a8b7c6d5e4f3g2h1i0 --tag night

\b
--all, --label, --tag and --session list the unfinished jobs that they
choose, with the programs that guard them, and ask. Exactly those that are
listed are cancelled. With several of --label, --tag and --session, the jobs
that match all. Labels are known from the ledger of this machine, or from
the shared one (--ledger); all else is the service's.

\b
--json prints an object for each job:
  job_id   the job's id
  outcome  "cancelled", "finished" (it was final already, or finished
           all the same), "gone" (there is no such job), "unconfirmed"
  detail   what went wrong, or an empty string"""

AT_ONCE = 4
"""Jobs that are cancelled at the same time, each on a connection."""


@click.command("cancel", epilog=EPILOG)
@click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=jobs.completions)
@click.option("--all", "everything", is_flag=True, help="All unfinished jobs of the account.")
@click.option("--label", metavar="TEXT", help="Those of runs with this label.")
@click.option("--tag", metavar="TAG", help="Those with this tag.")
@click.option("--session", metavar="ID", help="Those in this session or batch, which stays open.")
@questions.yes_option
@account.account_options
@click.option(
    "--timeout",
    type=Duration(),
    metavar="TIME",
    default=60.0,
    show_default="60",
    help="Give up on a job after this time.",
)
@hosts.ledger_option
@json_option
@debug_option
def cancel_command(
    *,
    ids: tuple[str, ...],
    everything: bool,
    label: str | None,
    tag: str | None,
    session: str | None,
    yes: bool,
    local: bool,
    instance: str | None,
    timeout: float,
    ledger_url: str | None,
    as_json: bool,
) -> int:
    """Cancel jobs, and wait for confirmation.

    The exit code is 6 if a cancel could not be confirmed, 2 if there is no such job, and 1 if the answer to the
    question was no.
    """
    choice = chosen.Choice(everything, label, tag, session)
    choice.check(ids)
    for job_id in ids:
        jobs.check(job_id)
    if session is not None:
        jobs.check(session, "session")
    if choice.is_made:
        questions.check(yes, "cancelling jobs that are not named by their ids")
    account.check(local, instance)
    hosts.use(ledger_url)
    service = account.connect(local, instance)
    if choice.is_made:
        found = _ask(service, choice, yes=yes)
        if found is None:
            return exits.FAILED
        wanted = [(job.id, [job.client]) for job in found]
    else:
        from .. import service as qiskit_service

        wanted = [(job_id, qiskit_service.clients_of(service)) for job_id in dict.fromkeys(ids)]
    outcomes = set()
    for job_id, outcome, trouble in _cancel_all(wanted, timeout):
        outcomes.add(outcome)
        if as_json:
            output.record(job_id=job_id, outcome=outcome, detail=trouble)
        else:
            output.line(f"{outcome:11}  {job_id}")
        if outcome in ("gone", "unconfirmed") or trouble or (outcome == "finished" and not as_json):
            output.say(f"job {job_id}: {WORDS[outcome]}{f' ({trouble})' if trouble else ''}")
    if "unconfirmed" in outcomes:
        return exits.UNCONFIRMED
    return exits.USAGE if "gone" in outcomes else exits.DONE


def _ask(service: Any, choice: chosen.Choice, *, yes: bool) -> list[chosen.Job] | None:
    """Find the jobs that are chosen, and ask; None if the answer is no."""
    found = chosen.find(service, choice)
    if not found:
        output.say(f"there is no unfinished job {choice.words}")
        return []
    live = sum(job.guarded is not None and job.guarded.is_live for job in found)
    whose = _whose(live, len(found))
    what = f"these {len(found)} unfinished jobs" if len(found) > 1 else "this unfinished job"
    width = shutil.get_terminal_size().columns if questions.on_terminal() else 0
    if yes:  # each has a line of its own
        return found
    shown = list(table.lines(chosen.SHOWN, [job.cells() for job in found], width, GIVES))
    return found if questions.ask(f"Cancel {what} {choice.words}{whose}?", shown, yes=yes) else None


def _whose(live: int, of: int) -> str:
    """The words for how many of the jobs have a program that runs."""
    if not live:
        return ""
    if of == 1:
        return ", of a program that runs"
    return ", all of programs that run" if live == of else f", {live} of them of programs that run"


def _cancel_all(wanted: Sequence[tuple[str, list[Any]]], seconds: float) -> Iterator[tuple[str, str, str]]:
    """Cancel jobs, several at a time; yields the id, the outcome and the trouble of each, in the order given."""
    if len(wanted) < 2:
        yield from ((job_id, *_cancel(clients, job_id, seconds)) for job_id, clients in wanted)
        return
    pool = ThreadPoolExecutor(min(AT_ONCE, len(wanted)), thread_name_prefix="qx-cancel")
    try:
        running = {pool.submit(_cancel, clients, job_id, seconds): job_id for job_id, clients in wanted}
        known: dict[str, tuple[str, str]] = {}
        order = [job_id for job_id, _ in wanted]
        for each in as_completed(running):
            known[running[each]] = each.result()
            while order and order[0] in known:
                job_id = order.pop(0)
                yield (job_id, *known[job_id])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cancel_job(services: Iterable[Any], job_id: str, seconds: float) -> tuple[str, str]:
    """Cancel a job of some accounts, and wait for confirmation, for the page.

    Args:
        services: The accounts' services.
        job_id: The job.
        seconds: When to give up.

    Returns:
        What became of it: a word of `WORDS`; and a sentence.
    """
    from .. import service as qiskit_service

    jobs.check(job_id)
    clients = [client for service in services for client in qiskit_service.clients_of(service)]
    outcome, trouble = _cancel(clients, job_id, seconds)
    return outcome, f"{WORDS[outcome]}{f' ({trouble})' if trouble else ''}"


def _cancel(clients: list[Any], job_id: str, seconds: float) -> tuple[str, str]:
    """Cancel a job in whichever instance has it."""
    from .. import service as qiskit_service
    from ..watcher import cancel

    end = time.monotonic() + seconds

    def wait(pause: float) -> bool:
        left = end - time.monotonic()
        time.sleep(max(0.0, min(pause, left)))
        return left <= pause

    outcome, trouble = "gone", ""
    for client in clients:
        there = qiskit_service.remote_of(client)
        outcome, trouble = cancel.cancel(job_id, there, time.monotonic, wait, is_patient=True, given=False)
        if outcome != "gone":
            break
    return outcome, trouble
