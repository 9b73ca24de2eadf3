"""The watchers on this machine, and what they have written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import psutil

from qx_supervisor.launch import BOOT as BOOT_FILE
from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.ledger import Ledger, Row

from .processes import Known, until, wait_for_end

BOOT = str(BOOT_FILE)


def orders() -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """Every watcher on this machine, with what it was started for."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[-2:-1] == [BOOT]:
                yield process, json.loads(command[-1])


def is_for(order: dict[str, Any], whose: Known) -> bool:
    """Whether a watcher was started for a process."""
    return DriverIdentity(order["pid"], order["start_ticks"]) == whose.identity


def watchers_of(whose: Known) -> list[psutil.Process]:
    """The watchers of a process, which may have ended."""
    found = []
    for process, order in orders():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end at this very moment
            if is_for(order, whose) and process.ppid() != whose.identity.pid:
                found.append(process)
    return found


def wait_for_watchers(whose: Known) -> None:
    """Wait until no request can come any more for a process."""
    for watcher in watchers_of(whose):
        wait_for_end(watcher)


def wait_until_written(whose: Known, *, answered: bool = True) -> None:
    """Wait until the watcher of a process has written down its job, and that no other one is unknown.

    A driver says "queued" by itself; its watcher writes in a thread of its own.
    """

    def is_written(row: Row) -> bool:
        return (row.pid, row.start_ticks) == astuple(whose.identity) and bool(row.jobs) and row.answered >= answered

    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        until(book.rows, lambda rows: any(map(is_written, rows)))
