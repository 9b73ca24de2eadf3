"""The watchers on this machine, and what they have written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import psutil

from qx_supervisor.launch import ledger_word
from qx_supervisor.watcher.driver_process import DriverIdentity
from qx_supervisor.watcher.ledger import Ledger, Row

from .processes import Known, until, wait_for_end

ALL_WHO_COME = DriverIdentity(0, 0)
"""Whom a watcher watches that drivers share."""


class Title(NamedTuple):
    """What a watcher's command line says.

    Attributes:
        driver: Whom it watches; `ALL_WHO_COME`.
        ledger: A word for the ledger that it writes to.
    """

    driver: DriverIdentity
    ledger: str

    def is_in(self, *states: Path | str) -> bool:
        """Whether it writes to the ledger of one of these state directories."""
        return self.ledger in {ledger_word(str(state)) for state in states}


def titles() -> Iterator[tuple[psutil.Process, Title]]:
    """Every watcher on this machine, with what it was started for."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            match process.cmdline():
                case [*_, "qx-watcher", "node", ledger]:  # it is the whole line only on Linux
                    yield process, Title(ALL_WHO_COME, ledger)
                case [*_, "qx-watcher", pid, start_ticks, ledger]:
                    yield process, Title(DriverIdentity(int(pid), int(start_ticks)), ledger)


def wait_for_watchers_in(*states: Path | str) -> None:
    """Wait until the watchers of these state directories have ended, but for this process's own.

    A fixture that stops a service does so before: a watcher that finds no service asks for a quarter of an hour.
    """
    for process, title in list(titles()):
        if title.is_in(*states) and title.driver.pid != os.getpid():
            wait_for_end(process)


def watchers_of(whose: Known) -> list[psutil.Process]:
    """The watchers of a process, which may have ended."""
    found = []
    for process, title in titles():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end at this very moment
            if title.driver == whose.identity and process.ppid() != whose.identity.pid:
                found.append(process)
    return found


def wait_for_watchers(whose: Known) -> None:
    """Wait until no request can come any more for a process."""
    for watcher in watchers_of(whose):
        wait_for_end(watcher)


def wait_until_written(whose: Known, *, answered: bool = True, jobs: Collection[str] = ()) -> None:
    """Wait until the watcher of a process has written down its job, and that no other one is unknown.

    A driver says "queued" by itself; its watcher writes in a thread of its own.

    Args:
        whose: The process.
        answered: Whether the service's answer to the submission must be written, too.
        jobs: The jobs, if it has more than one.
    """

    def known(rows: list[Row]) -> set[str]:
        its = [row for row in rows if (row.pid, row.start_ticks) == astuple(whose.identity)]
        # The answers to what was submitted in a session are not awaited: all of it is cancelled with the session.
        return {job for row in its if row.answered >= answered or row.session_owner for job in row.jobs}

    with Ledger.open(os.environ["QX_STATE_DIR"]) as book:
        until(lambda: known(book.rows()), lambda written: written and written >= set(jobs))
