"""Who may take up a run that has a key: the judgement, without any database.

A run with a key is a lease. A driver holds it, the driver's watcher renews it, and it ends when the run is stood down,
when a driver that came back takes it up, or when its jobs are cancelled. Two must never hold it at once, and a holder
that lives must never lose it to one who only could not see it. So the order of the questions matters:

- is it for the same submission? A key that names something else is the user's mistake;
- is somebody cancelling its jobs at this moment? Then wait: what is being cancelled can't be had any more;
- has its holder let go of it, or ended, as far as this can be seen from here? Then it is free;
- where it can't be seen, on another machine, or in another container: has its lease run out?

The watcher of a dead driver waits for the grace to pass, and then must win the lease once more before it cancels
(`Ledger.contest`): the one database decides, in one transaction, between it and the driver that came back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..host_identity import HostIdentity, IsRunning
from .row import FINAL, Row

LEASE_SECONDS = 30.0
"""How long a lease is held without being renewed. It is renewed at a third of that."""

CLAIM_LEASE_SECONDS = 120.0
"""How long the claim of one who cancels counts where it can't be seen whether it still works: as long as it tries."""

Answer = Literal["granted", "held", "busy", "differs", "other instance"]
"""What a driver that asks for a key is told.

- granted: it holds the lease now
- held: a driver lives that holds it, or may live
- busy: its jobs are being cancelled; ask again
- differs: the key stands for another submission
- other instance: it was submitted with another instance of the account; ask there
"""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a driver asks for.

    Attributes:
        row: The row as it is to be if the key is new: with its key, fingerprint, grace and holder.
        instances: The CRNs of all instances that the driver can use, for it may have been given another one before.
    """

    row: Row
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What it is told.

    Attributes:
        answer: See `Answer`.
        row: The row under the key: as it is now, if granted, else as it stands in the way.
        is_new: Granted, and nothing is known under the key.
        let_go_at: Granted: when its last holder let it go, or was seen to be dead; None where that is not known.
        is_seen: Held: the holder is seen to live. Else only its lease says so, which may run out.
        seconds_left: Held, and not seen: the seconds until the lease runs out.
    """

    answer: Answer
    row: Row
    is_new: bool = False
    let_go_at: float | None = None
    is_seen: bool = False
    seconds_left: float = 0.0


def contend(row: Row, wish: Wish, place: HostIdentity, is_running: IsRunning, now: float) -> Ruling | None:
    """Whether a wish for a key is in vain; None if the lease can be had.

    Args:
        row: What the ledger has under the key.
        wish: What is wished.
        place: Where the judge is.
        is_running: Whether a process of that place runs, by its pid and start.
        now: The ledger's clock.
    """
    if row.holder == wish.row.holder:
        return None
    if row.fingerprint != wish.row.fingerprint and not is_untouched(row):
        return Ruling(answer="differs", row=row)
    if row.state in FINAL:
        return None

    def lives(where: HostIdentity, pid: int, start_ticks: int | None) -> bool | None:
        match place.view_of(where):
            case "same":
                return is_running(pid, start_ticks)
            case "rebooted":
                return False
        return None

    left = (row.lease_until or 0.0) - now
    if row.claimed_by is not None:
        works = lives(row.claimed_by.place, row.claimed_by.pid, row.claimed_by.start_ticks)
        if works or (works is None and left > 0):
            return Ruling(answer="busy", row=row)
    if row.let_go_at is not None:
        return None
    alive = lives(row.place, row.pid, row.start_ticks)
    if alive or (alive is None and left > 0):
        return Ruling(answer="held", row=row, is_seen=bool(alive), seconds_left=max(0.0, left))
    return None


def is_untouched(row: Row) -> bool:
    """Whether nothing was ever submitted under the key."""
    return not row.jobs and row.answered
