"""What the watcher writes down, when some of it can't be written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from testkit.processes import until

from qx_supervisor.watcher import record as record_module
from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.host_identity import start_ticks
from qx_supervisor.watcher.ledger import Ledger, store
from qx_supervisor.watcher.record import Entry, Record


def test_what_fails_for_one_run_costs_no_other_its_end(state: Path) -> None:
    complaints: list[str] = []
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    record = Record(str(state), me, complaints.append)
    record.guard(Entry(run="known", tag="qxs-1", driver="", endpoint="https://x", instance="crn")).result(60)
    record.job("unknown", "job", "")
    record.finish("unknown", "done", "")
    record.finish("known", "done", "")
    record.close(60)
    assert len(complaints) == 1
    with Ledger.open(state) as book:
        assert [(row.run, row.state) for row in book.rows()] == [("known", "done")]


@pytest.mark.parametrize("then", ["a while later", "at the end"])
def test_what_was_refused_is_written_later(state: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Else a run that was let go would pass for one that was left behind."""
    refused = threading.Event()
    monkeypatch.setattr(store, "BUSY_SECONDS", 0)
    monkeypatch.setattr(record_module, "AGAIN", 0.0 if then == "a while later" else 3600.0)
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    record = Record(str(state), me, lambda _: refused.set())
    entry = Entry(run="let go", tag="qxs-1", driver="", endpoint="https://x", instance="crn")
    record.guard(entry).result(60)
    with contextlib.closing(sqlite3.connect(state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record.job("let go", "job", "kept")
        record.finish("let go", "done", "")
        assert refused.wait(60)
        other.execute("ROLLBACK")
    if then == "a while later":
        with Ledger.open(state) as book:
            until(book.rows, lambda rows: [(row.state, dict(row.jobs)) for row in rows] == [("done", {"job": "kept"})])
    record.close(60)
    with Ledger.open(state) as book:
        assert [(row.state, dict(row.jobs)) for row in book.rows()] == [("done", {"job": "kept"})]
