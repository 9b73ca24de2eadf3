"""What is done about one run that was left behind: cancel the jobs that are known, sweep for others, write that down.

For `reap`, which goes by the local ledger, and for the reaper, which goes by the shared one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .watcher import cancel, ledger, remote
from .watcher.facts import By, End

PATIENCE = 60.0
"""Seconds to try for one run; what takes longer is left for the next time."""

UNKNOWN = 3
"""After that many answers in a row that there is no job of an id, it is given up for this time."""

FIRST_RETRY, LAST_RETRY = 2.0, 600.0
"""Seconds until a reaper looks again at what is pending: as long as it has been known, within these."""

Outcome = Literal["cancelled", "nothing left", "pending", "expired"]
"""What became of a run that was left behind.

- cancelled: its jobs are cancelled, and that is confirmed
- nothing left: none of its jobs was unfinished
- pending: not resolved yet
- expired: it could not be resolved for a day
"""

_STATES: dict[Outcome, ledger.RunState] = {
    "cancelled": "cancelled",
    "nothing left": "done",
    "pending": "pending",
    "expired": "expired",
}


@dataclass(frozen=True)
class Resolved:
    """How a run was resolved.

    Attributes:
        outcome: What became of it.
        jobs: The jobs that were cancelled, or are known.
        detail: More words, or "".
        sweep_until: If it is pending: until when it is to be swept again, by the ledger's clock.
        age: For how long that has been known, in seconds.
        end: How the run ended, where that is known.
    """

    outcome: Outcome
    jobs: tuple[str, ...]
    detail: str
    sweep_until: float | None
    age: float
    end: End | None = None

    def write(self, row: ledger.Row, book: ledger.Store) -> bool:
        """Write what a run has come to; returns whether it is still this process's."""
        retry = max(FIRST_RETRY, min(LAST_RETRY, self.age))
        state, until = _STATES[self.outcome], self.sweep_until
        return book.finish(
            row.run, state, self.detail, sweep_until=until, retry_seconds=retry, holder=row.holder, end=self.end
        )


def resolve(
    row: ledger.Row,
    there: remote.Remote,
    book: ledger.Store,
    *,
    by: By,
    window: float,
    before_cancel: Callable[[], object] = lambda: None,
    tell: Callable[[str, str], object] = lambda _job, _outcome: None,
    looks_first: bool = False,
    wait: Callable[[float], object] = time.sleep,
) -> Resolved:
    """Cancel what a row names and what a sweep finds.

    Args:
        row: The run, which is claimed.
        there: The service.
        book: The ledger, in which each job's outcome is written.
        by: Who cancels.
        window: The sweep window, in seconds.
        before_cancel: Called right before each cancel; what it raises ends it all.
        tell: Called with each job and what became of it.
        looks_first: Whether a job's state is read right before its cancel, and no cancel is sent if it is final.
        wait: Waits for some seconds; what it raises ends it all.
    """
    now = book.clock()
    end = time.monotonic() + PATIENCE
    outcomes = dict(row.jobs)
    tried: set[str] = set()
    troubles: list[str] = []
    ends: list[End] = []  # of jobs that had ended by themselves

    def patiently(seconds: float) -> bool:
        left = end - time.monotonic()
        wait(max(0.0, min(seconds, left)))
        return left <= seconds

    def cancel_one(job: str) -> None:
        before_cancel()
        tried.add(job)
        outcome, trouble = "", ""
        final: list[remote.JobState] = []
        if looks_first:
            outcome = _final(job, there, final)
        if not outcome:
            outcome, trouble = cancel.cancel(
                job, there, time.monotonic, patiently, is_patient=True, unknown=UNKNOWN, ended=final.append
            )
        ends.extend(state.end for state in final if not state.is_cancelled or state.ran_too_long)
        outcomes[job] = outcome
        book.job_outcome(row.run, job, outcome)
        tell(job, outcome)
        if outcome == "unconfirmed":
            troubles.append(trouble)

    for job in row.open_jobs:
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
    found = _conclude(row, outcomes, troubles, now, window)
    return replace(found, end=_end(found.outcome, outcomes, ends, by))


def _final(job: str, there: remote.Remote, final: list[remote.JobState]) -> str:
    """How a job has ended (its state is added), or "" if it has not, or if that can't be read now: a cancel tells."""
    try:
        state = there.job(job)
    except remote.RemoteError:
        return ""
    if not state.is_final:
        return ""
    final.append(state)
    return "cancelled" if state.is_cancelled else "finished"


def _end(outcome: Outcome, outcomes: dict[str, str], ends: list[End], by: By) -> End | None:
    """How a run has ended."""
    if outcome in ("pending", "expired"):
        return None
    if ends and (outcome == "nothing left" or ends[-1].outcome == "cancelled"):
        return ends[-1]
    if outcome == "cancelled" or not outcomes:  # of none it is known that it made no job
        return End("cancelled", by)
    return None


def _conclude(row: ledger.Row, outcomes: dict[str, str], troubles: list[str], now: float, window: float) -> Resolved:
    was_cancelled = tuple(job for job, outcome in outcomes.items() if outcome == "cancelled")
    # When the driver died is not known; that it had died when this row was first judged, is.
    first_seen = now if row.sweep_until is None else row.sweep_until - ledger.SWEPT_FOR
    outcome: Outcome = "cancelled" if was_cancelled else "nothing left"
    if troubles or (now < first_seen + window and not row.answered and not row.session_owner):
        outcome = "pending"
    if outcome == "pending" and row.sweep_until is not None and now >= row.sweep_until:
        outcome = "expired"
    detail = troubles[0] if troubles else ""
    if outcome == "pending":
        detail = detail or "a job that was being submitted at the death may still turn up; reap again in two minutes"
    until = first_seen + ledger.SWEPT_FOR if outcome == "pending" else None
    return Resolved(outcome, was_cancelled or tuple(outcomes), detail, until, now - first_seen)
