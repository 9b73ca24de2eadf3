"""Jobs that the user describes instead of naming them: all, or those with a label, a tag or a session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from .. import service as qiskit_service
from ..errors import QxError
from ..guarded import Guarded, Guards, read
from ..poller import ask
from ..watcher import ledger, remote
from ..watcher.facts import moment
from . import output, rows

SHOWN = ("JOB", "STATE", "AGE", "BACKEND", "LABEL", "TAGS", "GUARDED BY")


@dataclass(frozen=True)
class Choice:
    """Which unfinished jobs are meant; those that match all that is given.

    Attributes:
        everything: All.
        label: Those of runs with this label, by the ledger.
        tag: Those with this tag.
        session: Those in this session or batch.
    """

    everything: bool = False
    label: str | None = None
    tag: str | None = None
    session: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether anything is chosen."""
        return self.everything or self._parts != []

    @property
    def words(self) -> str:
        """What is chosen, in words."""
        return " and ".join(self._parts) or "of this account"

    @property
    def _parts(self) -> list[str]:
        named = (("label", self.label), ("tag", self.tag), ("session", self.session))
        return [f"{'in' if name == 'session' else 'with'} {name} {value}" for name, value in named if value is not None]

    def check(self, ids: Sequence[str]) -> None:
        """Refuse what makes no sense.

        Raises:
            click.UsageError: It makes none.
        """
        context = click.get_current_context()
        if ids and self.is_made:
            raise click.UsageError("give job ids, or one of --all, --label, --tag and --session, not both", context)
        if not ids and not self.is_made:
            raise click.UsageError("name jobs by their ids, or give --all, --label, --tag or --session", context)
        if self.everything and self._parts:
            raise click.UsageError("--all are all jobs of the account; leave it away to choose among them", context)
        for name, value in (("--label", self.label), ("--tag", self.tag), ("--session", self.session)):
            if value is not None and not value.strip():
                raise click.UsageError(f"{name} is empty, and that would not choose any job; say which", context)


@dataclass(frozen=True)
class Job:
    """An unfinished job.

    Attributes:
        id: Its id.
        client: The REST client of its instance.
        state: Its state.
        guarded: Who guards it, or None.
        label: The label of the run that it is of; "" if none is known.
    """

    id: str
    client: Any
    state: remote.JobState
    guarded: Guarded | None
    label: str

    @property
    def tags(self) -> list[str]:
        """Its tags."""
        found = self.state.reply.get("tags")
        return [str(tag) for tag in found] if isinstance(found, list) else []

    def cells(self) -> dict[str, str]:
        """It as the cells of a table."""
        created = moment(self.state.reply.get("created"))
        guard = self.guarded
        tags = [tag for tag in self.tags if not tag.startswith(("qxs-", "qxd-", "qxk-"))]
        return {
            "JOB": self.id,
            "STATE": self.state.status.lower(),
            "AGE": "" if created is None else rows.age(time.time() - created),
            "BACKEND": str(self.state.reply.get("backend") or ""),
            "LABEL": self.label,
            "TAGS": ",".join(tags),
            "GUARDED BY": "" if guard is None else f"{guard.driver} ({rows.state_of(guard.row, guard.liveness)})",
        }


def guards(*, required: bool, over: bool = False) -> Guards:
    """Read who guards what.

    Args:
        required: Whether there is no going on without it.
        over: Also read runs that are over, which guard nothing any more.

    Raises:
        QxError: The ledger can't be read, and is required.
    """
    try:
        return read(over=over)
    except (ledger.LedgerError, QxError) as error:
        if required:
            raise QxError(str(error)) from None
        output.say(f"which jobs are guarded is not known: {error}")
        return Guards(())


def find(service: Any, choice: Choice) -> list[Job]:
    """Find the unfinished jobs that are chosen, in all instances of an account.

    Raises:
        QxError: The ledger is needed, and can't be read.
        RemoteError: The service could not be asked.
    """
    # A program may have let the jobs of a label go: their runs are over.
    known = guards(required=choice.label is not None, over=choice.label is not None)
    found: list[Job] = []
    for client in qiskit_service.clients_of(service):
        there = qiskit_service.remote_of(client)

        def listed(there: remote.Remote = there) -> dict[str, remote.JobState]:
            return there.unfinished_jobs(tag=choice.tag or "", session=choice.session or "")

        for id_, state in ask(there, listed).items():
            run = known.of_state(id_, state)
            is_guarded = run is not None and run.row.state in ledger.UNFINISHED
            job = Job(id_, client, state, run if is_guarded else None, run.row.label if run else "")
            if _is_meant(job, choice):
                found.append(job)
    return found


def _is_meant(job: Job, choice: Choice) -> bool:
    """Whether it is one that is chosen, by what the service says of it, whatever filter it has heeded."""
    return (
        (choice.tag is None or choice.tag in job.tags)
        and (choice.session is None or job.state.reply.get("session_id") == choice.session)
        and (choice.label is None or job.label == choice.label)
    )
