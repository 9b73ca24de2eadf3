"""Who guards a job or a session: what the ledgers say of it, for those who list or cancel what the service has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import settings, shared_ledger
from .watcher import ledger, remote


@dataclass(frozen=True)
class Guarded:
    """A run of a ledger that is not over.

    Attributes:
        row: The run.
        liveness: What can be said of it.
    """

    row: ledger.Row
    liveness: ledger.Liveness

    @property
    def is_live(self) -> bool:
        """Whether its program runs, as far as that can be known."""
        return self.liveness == "live"

    @property
    def driver(self) -> str:
        """Its program: "vqe.py, node7:4242"."""
        where = f"{self.row.host_identity.host}:{self.row.pid}"
        return f"{self.row.program}, {where}" if self.row.program else where


class Guards:
    """The runs of the ledgers that are not over.

    Args:
        found: The runs. Of several about the same job the first counts.
    """

    def __init__(self, found: Iterable[Guarded]) -> None:
        self._jobs: dict[str, Guarded] = {}
        self._tags: dict[str, Guarded] = {}
        self._sessions: dict[str, Guarded] = {}
        self.runs: list[Guarded] = []
        for each in found:
            self.runs.append(each)
            for job in each.row.jobs:
                self._jobs.setdefault(job, each)
            if each.row.tag:
                self._tags.setdefault(each.row.tag, each)
            if each.row.session:
                self._sessions.setdefault(each.row.session, each)

    def of_state(self, job: str, state: remote.JobState) -> Guarded | None:
        """Who guards a job: by its id, or by what the service says of its tags and its session."""
        tags, session = state.reply.get("tags"), state.reply.get("session_id")
        found = self._jobs.get(job)
        if found is None and isinstance(tags, list):
            found = next((self._tags[tag] for tag in tags if isinstance(tag, str) and tag in self._tags), None)
        return found or (self._sessions.get(session) if isinstance(session, str) else None)

    def of_session(self, session: str) -> Guarded | None:
        """Who guards a session."""
        return self._sessions.get(session)

    @property
    def sessions(self) -> list[str]:
        """The sessions that are guarded."""
        return list(self._sessions)


def read(*, over: bool = False) -> Guards:
    """Read the ledger of this machine and, if one is named, that of all hosts.

    Args:
        over: Also read runs that are over: their programs may have let their jobs go.

    Raises:
        LedgerError: One can't be read.
        RunError: The shared ledger can't be used.
    """
    states = ledger.UNFINISHED | (ledger.FINAL if over else frozenset())
    with ledger.Ledger.open(ledger.state_directory()) as book:
        found = [Guarded(row, ledger.judge(row, book.host_identity)) for row in book.rows(states)]
    if settings.ledger_url():
        here = {each.row.run for each in found if each.liveness != "elsewhere"}
        with shared_ledger.opened() as shared:
            held = shared.held(states)
        found = [each for each in found if each.row.run in here]
        found += [Guarded(each.row, each.judgement) for each in held if each.row.run not in here]
    return Guards(sorted(found, key=lambda each: each.row.state in ledger.FINAL))
