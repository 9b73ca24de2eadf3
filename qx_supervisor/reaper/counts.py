"""What a reaper has done, and what it saw of the ledger."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Took:
    """How often something was done, and how long that took in all, in seconds."""

    times: int = 0
    seconds: float = 0.0


@dataclass
class Counts:
    """Numbers since the reaper's start, and the latest look at the ledger.

    Attributes:
        is_up: Whether the database answers.
        held: Leases that are renewed.
        expired: Leases that have run out, with runs in their grace.
        reaping: Runs that are being cancelled, by this reaper or another.
        pending: Runs that are to be swept again.
        other_account: Runs of accounts that this reaper does not have.
        claimed: Runs that it has claimed.
        cancelled: Jobs whose cancel it has confirmed.
        outcomes: What became of the runs.
        lost: Claims that another took over, or that its driver came back for.
        renew: Renewals of its own lease.
        claim: Looks for what is due.
    """

    is_up: bool = False
    held: int = 0
    expired: int = 0
    reaping: int = 0
    pending: int = 0
    other_account: int = 0
    claimed: int = 0
    cancelled: int = 0
    lost: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    renew: Took = field(default_factory=Took)
    claim: Took = field(default_factory=Took)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def timing(self, took: Took) -> Iterator[None]:
        """Count what is done in the block, and how long it takes."""
        began = time.monotonic()
        yield
        with self.lock:
            took.times += 1
            took.seconds += time.monotonic() - began
