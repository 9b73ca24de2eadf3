"""Checks the shared ledger, if there is one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .. import settings, shared_ledger
from ..errors import RunError
from ..watcher import ledger
from .finding import Finding

CLOCK = 60.0
"""Seconds by which the database's clock may differ without a warning. Leases depend on the database's clock only."""


def check() -> Iterator[Finding]:
    """Check whether the database answers, and count its leases."""
    try:
        if not settings.ledger_url():
            return
        with shared_ledger.opened() as book:
            version = book.version()
            ahead = time.time() - book.clock()
            census = book.census() if version else []
    except (ledger.LedgerError, RunError) as error:
        reason = error.reason if isinstance(error, RunError) else str(error)
        next_step = f"check {settings.LEDGER} and the way to the database"
        yield Finding("shared ledger", "fault", reason.rstrip("."), next_step)
        return
    if not version:
        yield Finding("shared ledger", "ok", "the database answers; the first driver or reaper makes the tables")
        return
    live, left = sum(each.held for each in census), sum(each.expired for each in census)
    text = f"the database answers, its tables have version {version}: {live} leases renewed, {left} run out"
    if abs(ahead) > CLOCK:
        text += f"; this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database's"
        yield Finding("shared ledger", "warning", f"{text}, by which leases go", "timedatectl set-ntp true")
        return
    yield Finding("shared ledger", "ok", text)
