"""`qx-supervisor status`."""

from __future__ import annotations

import datetime
from typing import Any

import click

from ..text_width import one_line
from . import account, jobs, output
from .group import debug_option, json_option

EPILOG = """\b
--json prints an object for each job; unknown values are null:
  job_id           the job's id
  state            "queued", "running", "completed", "failed",
                   "cancelled" or "cancelled - ran too long"
  reason           why it failed or was cancelled
  backend          where it runs
  created          when it was submitted, such as 2026-01-31T12:00:00Z
  queue_position   its place in the queue, 1 for the next
  estimated_start  when it is expected to start
  qpu_seconds_estimated
                   expected QPU time
  qpu_seconds      QPU time charged, null while that is pending
  tags             its tags
  url              its page"""


@click.command("status", epilog=EPILOG)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=jobs.completions)
@account.account_options
@json_option
@debug_option
def status_command(ids: tuple[str, ...], local: bool, instance: str | None, as_json: bool) -> None:
    """Show the state, queue position and cost of jobs."""
    for job_id in ids:
        jobs.check(job_id)
    service = account.connect(local, instance)
    for i, job_id in enumerate(ids):
        known = _read(service, job_id)
        if as_json:
            output.record(**known)
            continue
        if i:
            output.line()
        for label, value in (
            ("job", known["job_id"]),
            ("state", known["state"]),
            ("reason", known["reason"]),
            ("backend", known["backend"]),
            ("created", known["created"]),
            ("queue position", known["queue_position"]),
            ("expected start", known["estimated_start"]),
            ("QPU s, expected", known["qpu_seconds_estimated"]),
            ("QPU s, charged", "pending" if known["qpu_seconds"] is None else known["qpu_seconds"]),
            ("tags", " ".join(known["tags"]) or None),
            ("page", known["url"]),
        ):
            output.line(f"{label:16} {'-' if value is None else one_line(str(value))}")


def _utc(written: object) -> str | None:
    """Convert a time from the service's format to that of all results."""
    try:
        found = datetime.datetime.fromisoformat(str(written))
    except ValueError:
        return None
    return output.time_of((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp())


def _read(service: Any, job_id: str) -> dict[str, Any]:
    from .. import queue_info
    from .. import service as qiskit_service
    from ..watcher import remote

    client, state = jobs.find(service, job_id)
    try:
        metrics = qiskit_service.remote_of(client).metrics(job_id)
    except remote.RemoteError as error:
        output.say(f"job {job_id}: its place in the queue and its cost can't be read: {error}")
        metrics = {}
    known = queue_info.read(state.reply, metrics)
    return {
        "job_id": job_id,
        "state": state.status.lower(),
        "reason": state.reason or None,
        "backend": state.reply.get("backend"),
        "created": _utc(state.reply.get("created")),
        "queue_position": known.queue_position,
        "estimated_start": output.time_of(known.estimated_start),
        "qpu_seconds_estimated": known.qpu_seconds_estimated,
        "qpu_seconds": known.qpu_seconds,
        "tags": list(state.reply.get("tags") or []),
        "url": qiskit_service.job_url(client, job_id) or None,
    }
