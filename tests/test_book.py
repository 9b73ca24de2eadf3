"""What the watcher writes down, when some of it can't be written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from testkit.processes import until

from qx_supervisor.watcher import writers
from qx_supervisor.watcher.book import Book, Entry
from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.host_identity import start_ticks
from qx_supervisor.watcher.ledger import Ledger, sqlite


def test_what_is_said_of_no_run_costs_no_other_its_end(state: Path) -> None:
    complaints: list[str] = []
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    book = Book(str(state), me, complaints.append)
    book.guard(Entry(run="known", tag="qxs-1", driver="", endpoint="https://x", instance="crn")).result(60)
    book.job("unknown", "job", "")
    book.finish("unknown", "done", "")
    book.finish("known", "done", "")
    book.close(60)
    assert complaints == []
    with Ledger.open(state) as ledger:
        assert [(row.run, row.state) for row in ledger.rows()] == [("known", "done")]


@pytest.mark.parametrize("then", ["a while later", "at the end"])
def test_what_was_refused_is_written_later(state: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """Else a run that was let go would pass for one that was left behind."""
    refused = threading.Event()
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0)
    monkeypatch.setattr(writers, "LOCAL_RETRY", 0.0 if then == "a while later" else 3600.0)
    me = DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0)
    book = Book(str(state), me, lambda _: refused.set())
    entry = Entry(run="let go", tag="qxs-1", driver="", endpoint="https://x", instance="crn")
    book.guard(entry).result(60)
    with contextlib.closing(sqlite3.connect(state / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        book.job("let go", "job", "kept")
        book.finish("let go", "done", "")
        assert refused.wait(60)
        other.execute("ROLLBACK")
    written = [("done", {"job": "kept"})]
    if then == "a while later":
        with Ledger.open(state) as ledger:
            until(ledger.rows, lambda found: [(row.state, dict(row.jobs)) for row in found] == written)
    book.close(60)
    with Ledger.open(state) as ledger:
        assert [(row.state, dict(row.jobs)) for row in ledger.rows()] == written
