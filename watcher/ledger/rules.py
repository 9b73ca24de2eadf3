"""Who may take a run, contest it, claim it, and what can be said of it: the rules, without any database.

A run with a key is a lease. A driver has it, the driver's watcher renews it, and it ends when the run is stood down,
when a driver that was started again takes it, or when its jobs are cancelled. Two drivers must never have it at once,
and a driver that is alive must never lose it to one that merely can't see it. So the order of the questions matters:

- is it for the same submission? A key that stands for something else is the user's mistake;
- is somebody cancelling its jobs at this moment? Then wait: what is being cancelled can't be taken any more;
- has its holder let go of it, or ended, as far as this can be seen from here? Then it is free;
- if it can't be seen, because it is on another machine or in another container: has its lease run out?

The watcher of a dead driver waits for the grace period, and then must win the lease once more before it cancels
(`may_contest`): the one database decides, in one transaction, between it and a driver that was started again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import host_identity
from ..host_identity import HostIdentity, IsRunning, Process
from .row import FINAL, UNFINISHED, Row

LEASE_SECONDS = 30.0
"""How long a lease lasts without being renewed. It is renewed at a third of that."""

CLAIM_LEASE_SECONDS = 120.0
"""How long a driver waits for a reaper on another host that has claimed the run: a reaper tries that long."""

CLAIM_SECONDS = 3600.0
"""How long a claim keeps other reapers away if its process can't be seen from here. A cancel gives up after minutes."""

SWEPT_FOR = 86400.0
"""How long a run that could not be resolved is swept again by every reaper."""

KEPT_FOR = 30 * 86400.0
"""Seconds after which a run that is over is forgotten."""

Liveness = Literal["live", "ending", "waiting", "orphan", "reaping", "pending", "elsewhere", "final"]
"""What can be said of a run, by its processes (`judge`) or by its lease (`judge_by_lease`).

- live: its driver runs; or its lease is renewed
- ending: its driver is gone, and its watcher works on it
- waiting: its driver is gone, and its grace period has not passed
- orphan: its driver and watcher are dead; or its lease has run out, and its grace period has passed
- reaping: a reaper cancels its jobs
- pending: its jobs could not be resolved yet, and are looked for again
- elsewhere: this can't be known from here, and the row is none of our business
- final: nothing is left to do
"""

Answer = Literal["granted", "held", "busy", "differs", "other instance"]
"""What a driver that asks for a key is told.

- granted: it has the lease now
- held: another driver has it, and is alive, or may be
- busy: its jobs are being cancelled; ask again
- differs: the key stands for another submission
- other instance: it was submitted with another instance of the account; ask there
"""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a driver asks for.

    Attributes:
        row: The row as it is to be if the key is new: with its key, fingerprint, grace period and holder.
        instances: The CRNs of all instances that the driver can use, for it may have been given another one before.
    """

    row: Row
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What it is told.

    Attributes:
        answer: See `Answer`.
        row: The row under the key: this driver's if the lease is granted, else the one that prevents it.
        is_new: Granted, and nothing is known under the key.
        let_go_at: Granted: when its last holder let go of it, or was seen to be dead; None if that is not known.
        is_seen: Held: the holder is seen to be alive. Else only its lease says so, which may run out.
        seconds_left: Held, and not seen: the seconds until the lease runs out.
    """

    answer: Answer
    row: Row
    is_new: bool = False
    let_go_at: float | None = None
    is_seen: bool = False
    seconds_left: float = 0.0


def judge(row: Row, here: HostIdentity, is_running: IsRunning = host_identity.is_running) -> Liveness:
    """What can be said of a run by its processes, as seen from a host.

    Args:
        row: The row.
        here: Where the judge is: the ledger's `host_identity`.
        is_running: Whether a process of that host runs, by its pid and start.
    """
    if row.state in FINAL:
        return "final"
    driver = _is_alive(Process(row.host_identity, row.pid, row.start_ticks), here, is_running)
    if driver is None:
        return "elsewhere"
    if driver:
        return "live"
    if row.watcher_pid is None or row.is_over:  # its watcher has given up, and may live on for other drivers
        return "orphan"
    watcher = Process(row.host_identity, row.watcher_pid, row.watcher_start_ticks)
    return "ending" if _is_alive(watcher, here, is_running) else "orphan"


def judge_by_lease(row: Row, now: float) -> Liveness:
    """What can be said of a run by the shared ledger alone.

    Args:
        row: The row, with the end of its lease.
        now: The database's clock.
    """
    is_leased = (row.lease_until or 0.0) > now
    if row.state in FINAL:
        return "final"
    if row.retry_at is not None:
        return "pending" if row.state == "pending" else "orphan"
    if row.claimed_by is not None:
        of, watcher = row.claimed_by, (row.host_identity.boot, row.watcher_pid, row.watcher_start_ticks)
        is_own = (of.host_identity.boot, of.pid, of.start_ticks) == watcher
        return "orphan" if not is_leased else "ending" if is_own else "reaping"
    if row.let_go_at is None and is_leased:
        return "live"
    if grace_end(row) > now:
        return "waiting"
    return "ending" if is_leased else "orphan"


def grace_end(row: Row) -> float:
    """When the grace period of a run ends, once nobody waits for it, or its lease has run out."""
    return (row.let_go_at or row.lease_until or 0.0) + row.grace


def may_take(
    row: Row, wish: Wish, here: HostIdentity, is_running: IsRunning, now: float, *, is_mine: bool = True
) -> Ruling | None:
    """Why a driver may not have the lease that it asks for; None if it may.

    Args:
        row: What the ledger has under the key.
        wish: What the driver asks for.
        here: Where the judge is.
        is_running: Whether a process of that host runs, by its pid and start.
        now: The ledger's clock.
        is_mine: Whether this watcher still has the row, which a reaper may have claimed.
    """
    left = (row.lease_until or 0.0) - now
    if row.holder == wish.row.holder:
        return Ruling(answer="busy", row=row) if row.claimed_by is not None and left > 0 and not is_mine else None
    if row.fingerprint != wish.row.fingerprint and not is_untouched(row):
        return Ruling(answer="differs", row=row)
    if row.state in FINAL:
        return None
    if row.claimed_by is not None:
        is_cancelling = _is_alive(row.claimed_by, here, is_running)
        if is_cancelling or (is_cancelling is None and left > 0):
            return Ruling(answer="busy", row=row)
    if row.let_go_at is not None:
        return None
    is_alive = _is_alive(Process(row.host_identity, row.pid, row.start_ticks), here, is_running)
    if is_alive or (is_alive is None and left > 0):
        return Ruling(answer="held", row=row, is_seen=bool(is_alive), seconds_left=max(0.0, left))
    return None


def may_contest(row: Row) -> bool:
    """Whether a watcher whose driver has the lease on a run wins it once more, in order to cancel its jobs."""
    return row.state in UNFINISHED


def may_claim(row: Row | None, here: HostIdentity, is_running: IsRunning, now: float) -> bool:
    """Whether a reaper may claim a run that it has judged to be an orphan.

    The claim of a process that is dead is taken over. That of a process that can't be seen from here counts for
    `CLAIM_SECONDS`: cancelling an orphan twice does little harm, and never cancelling it would.
    """
    if row is None or row.state in FINAL:
        return False
    if row.claimed_by is None:
        return True
    match here.view_of(row.claimed_by.host_identity):
        case "same":
            return not is_running(row.claimed_by.pid, row.claimed_by.start_ticks)
        case "elsewhere":
            return abs(now - (row.claimed_at or 0.0)) >= CLAIM_SECONDS
        case "rebooted":
            return True


def may_seize(row: Row | None, holder: str, now: float) -> bool:
    """Whether a reaper may claim a run in the shared ledger whose driver and watcher it has seen dead.

    Their lease may last still. Somebody else's, who cancels its jobs, is waited for.

    Args:
        row: The run.
        holder: Who had the lease, as the local ledger has it.
        now: The database's clock.
    """
    if row is None or row.state in FINAL or row.holder != holder:
        return False
    return row.claimed_by is None or (row.lease_until or 0.0) <= now


def is_untouched(row: Row) -> bool:
    """Whether nothing was ever submitted under the key."""
    return not row.jobs and row.answered


def _is_alive(process: Process, here: HostIdentity, is_running: IsRunning) -> bool | None:
    """Whether a process is alive, as seen from a host; None if that can't be seen."""
    match here.view_of(process.host_identity):
        case "same":
            return is_running(process.pid, process.start_ticks)
        case "rebooted":
            return False
        case "elsewhere":
            return None
