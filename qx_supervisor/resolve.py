"""What is done about one run that was left behind: cancel the jobs that are known, sweep for others, and conclude.

For `reap`, which goes by the machine's own ledger, and for the reaper, which goes by the one of many hosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .watcher import cancel, ledger, remote

WINDOW = 120.0
"""Seconds after a death in which a POST that was on its way may still make a job."""

PATIENCE = 60.0
"""Seconds to try for one run; what takes longer is left for the next time."""

UNKNOWN = 3
"""So many answers in a row that there is no job of an id are enough for this time."""

SWEPT_FOR = 86400.0
"""For a day what could not be resolved is swept again."""

Fate = Literal["cancelled", "nothing left", "pending", "expired"]
"""What became of a run.

- cancelled: its jobs are cancelled, and that is confirmed
- nothing left: none of its jobs was unfinished
- pending: not resolved yet
- expired: it could not be resolved for a day
"""

_STATES: dict[Fate, ledger.State] = {
    "cancelled": "cancelled",
    "nothing left": "done",
    "pending": "pending",
    "expired": "expired",
}


@dataclass(frozen=True)
class Resolved:
    """How a run was resolved.

    Attributes:
        fate: What became of it.
        jobs: The jobs that were cancelled, or are known.
        detail: More words, or "".
        sweep_until: If it is pending: until when it is to be swept again, by the ledger's clock.
        age: For how long that has been known, in seconds.
    """

    fate: Fate
    jobs: tuple[str, ...]
    detail: str
    sweep_until: float | None
    age: float

    @property
    def state(self) -> ledger.State:
        """The state that the ledger is told."""
        return _STATES[self.fate]


def resolve(
    row: Any,
    there: remote.Remote,
    *,
    now: float,
    note: Callable[[str, str], object],
    window: float = WINDOW,
    before_cancel: Callable[[], object] = lambda: None,
    looks_first: bool = False,
    wait: Callable[[float], object] = time.sleep,
) -> Resolved:
    """Cancel what a row names and what a sweep finds.

    Args:
        row: The run, a `ledger.Row` that is claimed.
        there: The service.
        now: The ledger's clock.
        note: Called with each job and what became of it.
        window: See `WINDOW`.
        before_cancel: Called right before each cancel; what it raises ends it all.
        looks_first: Whether a job's state is read right before its cancel, and none is asked for if it is final.
        wait: Waits for so many seconds; what it raises ends it all.
    """
    end = time.monotonic() + PATIENCE
    outcomes = dict(row.jobs)
    tried: set[str] = set()
    troubles: list[str] = []

    def patiently(seconds: float) -> bool:
        left = end - time.monotonic()
        wait(max(0.0, min(seconds, left)))
        return left <= seconds

    def cancel_one(job: str) -> None:
        before_cancel()
        tried.add(job)
        outcome, trouble = "", ""
        if looks_first:
            outcome = _final(job, there)
        if not outcome:
            outcome, trouble = cancel.cancel(job, there, time.monotonic, patiently, is_patient=True, unknown=UNKNOWN)
        outcomes[job] = outcome
        note(job, outcome)
        if outcome == "unconfirmed":
            troubles.append(trouble)

    for job, outcome in row.jobs.items():
        if outcome in ("", "unconfirmed"):
            cancel_one(job)
    session = row.session if row.session_owner else ""
    if session:
        before_cancel()
        try:
            there.close_session(session)
        except remote.RemoteError as error:
            troubles.append(str(error))
    try:
        for _ in range(2 if session else 1):
            for job in there.unfinished(tag="" if session else row.tag or "", session=session or ""):
                if outcomes.get(job) != "kept" and job not in tried:
                    cancel_one(job)
    except remote.RemoteError as error:
        troubles.append(str(error))
    return _conclude(row, outcomes, troubles, now, window)


def _final(job: str, there: remote.Remote) -> str:
    """How a job has ended, or "" where it has not, or where that can't be read now: then a cancel tells."""
    try:
        state = there.job(job)
    except remote.RemoteError:
        return ""
    if not state.is_final:
        return ""
    return "cancelled" if state.is_cancelled else "finished"


def _conclude(row: Any, outcomes: dict[str, str], troubles: list[str], now: float, window: float) -> Resolved:
    was_cancelled = tuple(job for job, outcome in outcomes.items() if outcome == "cancelled")
    # When the driver died is not known; that it had died when this row was first judged, is.
    first_seen = now if row.sweep_until is None else row.sweep_until - SWEPT_FOR
    fate: Fate = "cancelled" if was_cancelled else "nothing left"
    if troubles or (now < first_seen + window and not row.answered and not row.session_owner):
        fate = "pending"
    if fate == "pending" and row.sweep_until is not None and now >= row.sweep_until:
        fate = "expired"
    detail = troubles[0] if troubles else ""
    if fate == "pending":
        detail = detail or "a job that was being submitted at the death may still turn up; reap again in two minutes"
    until = first_seen + SWEPT_FOR if fate == "pending" else None
    return Resolved(fate, was_cancelled or tuple(outcomes), detail, until, now - first_seen)
