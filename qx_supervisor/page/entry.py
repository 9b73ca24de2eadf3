"""A run as the page has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..run_fields import state_of, who_ended
from ..watcher import ledger


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has the lease on a run that is not over.

    Attributes:
        kind: "watcher" or "reaper".
        host: Its host's name.
        pid: Its process id there.
        until: When the lease runs out, unless it is renewed.
    """

    kind: str
    host: str
    pid: int
    until: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A run.

    Attributes:
        row: Its row.
        liveness: What can be said of it.
        state: The same in a word, as `ps` has it.
        lease: Its lease; None if it is over, or has none.
        text: What is searched, in small letters.
    """

    row: ledger.Row
    liveness: ledger.Liveness
    state: str
    lease: Lease | None
    text: str

    @classmethod
    def of(cls, row: ledger.Row, liveness: ledger.Liveness, lease: Lease | None = None) -> Entry:
        """A row of a ledger."""
        of_driver = (row.program, row.command, row.host_identity.host, str(row.pid))
        of_run = (row.run, row.key, row.label, row.tag, row.session, row.backend, row.detail, row.reason)
        said = (*of_run, *of_driver, *row.jobs, *row.tags)
        text = "\n".join(each for each in said if each).lower()
        return cls(row, liveness, state_of(row, liveness), lease, text)

    @property
    def is_open(self) -> bool:
        """Whether the run is not over."""
        return self.liveness != "final"

    @property
    def began(self) -> float:
        """When it began, in seconds since the epoch."""
        return self.row.began_at or self.row.created_at

    @property
    def ended(self) -> float | None:
        """When it ended; None while it has not."""
        return None if self.is_open else self.row.ended_at or self.row.updated_at

    def value(self, name: str) -> str:
        """What a filter compares: "host", "label", "backend", "program" or "pid"."""
        return self.row.host_identity.host if name == "host" else str(getattr(self.row, name))

    @property
    def driver(self) -> tuple[str, str, int, int | None]:
        """What tells its driver from all others."""
        of = self.row.host_identity
        return of.host, of.boot, self.row.pid, self.row.start_ticks

    def cells(self) -> dict[str, Any]:
        """A line of the table of runs; times are in seconds since the epoch."""
        row = self.row
        return {
            "run": row.run,
            "state": self.state,
            "by": who_ended(row),
            "jobs": list(row.jobs),
            "session": row.session,
            "backend": row.backend,
            "label": row.label,
            "key": row.key,
            "program": row.program,
            "host": row.host_identity.host,
            "pid": row.pid,
            "began": self.began,
            "ended": self.ended,
            "estimated": row.estimated,
            "charged": row.charged,
            "lease": None if self.lease is None else self.lease.until,
            "detail": row.detail or row.reason,
        }

    @property
    def unfinished_jobs(self) -> list[str]:
        """Its jobs of which nobody knows what became of them, while it is not over."""
        return self.row.open_jobs if self.is_open else []
