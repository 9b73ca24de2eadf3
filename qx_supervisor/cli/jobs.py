"""Jobs that the user names by their ids."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

from .. import service as qiskit_service
from ..poller import ask
from ..watcher import ledger, remote
from .exits import UnknownJob

UNKNOWN = (400, 404)
"""HTTP statuses that mean that there is no such job."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{3,127}")


def check(job_id: str, kind: str = "job") -> None:
    """Refuse what can't be an id, before it becomes part of a URL.

    Args:
        job_id: What was given.
        kind: What it is to be the id of: "job" or "session".

    Raises:
        UnknownJob: If it can't be one.
    """
    listed = "ps lists the ids of this machine's jobs" if kind == "job" else "sessions lists the ids of those open"
    if job_id.startswith(("qxs-", "qxd-")):
        raise UnknownJob(f"{job_id} is a tag and not a {kind}'s id; qx-supervisor ps lists ids beside tags")
    if not _ID.fullmatch(job_id):
        raise UnknownJob(f"{job_id!r} can't be a {kind}'s id; qx-supervisor {listed}")


def unknown(job_id: str) -> UnknownJob:
    """The error for an id that the service does not know."""
    return UnknownJob(f"there is no job {job_id} in this account; check the id, or give its --instance")


def find(service: Any, job_id: str, ask: Callable[..., Any] = ask) -> tuple[Any, remote.JobState]:
    """Find a job in the instances of an account.

    Args:
        service: The account's service.
        job_id: The job's id.
        ask: Sends a request to an instance, as `poller.ask` does.

    Returns:
        The REST client of its instance, and its state.

    Raises:
        UnknownJob: If there is no job with this id.
        RemoteError: If the request fails.
    """
    for client in qiskit_service.clients_of(service):
        there = qiskit_service.remote_of(client)
        try:
            return client, ask(there, functools.partial(there.job, job_id))
        except remote.RemoteError as error:
            if error.status not in UNKNOWN:
                raise
    raise unknown(job_id)


def completions(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids in the ledger, for shell completion."""
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            known = [job for row in book.rows(None) for job in row.jobs]
    except ledger.LedgerError:
        return []
    return [job for job in known if job.startswith(incomplete)]
