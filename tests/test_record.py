"""What the watcher writes down, when some of it can't be written."""

from __future__ import annotations

import os
from pathlib import Path

from watcher.ledger import Ledger
from watcher.parent import Identity
from watcher.place import start_ticks
from watcher.record import Entry, Record


def test_what_fails_for_one_run_costs_no_other_its_end(state: Path) -> None:
    complaints: list[str] = []
    me = Identity(os.getpid(), start_ticks(os.getpid()) or 0)
    record = Record(str(state), me, complaints.append)
    record.guard(Entry(run="known", tag="qxs-1", driver="", endpoint="https://x", instance="crn")).result(60)
    record.job("unknown", "job", "")
    record.finish("unknown", "done", "")
    record.finish("known", "done", "")
    record.close(60)
    assert len(complaints) == 1
    with Ledger.open(state) as book:
        assert [(row.run, row.state) for row in book.rows()] == [("known", "done")]
