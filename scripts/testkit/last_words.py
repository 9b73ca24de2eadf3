"""What is needed to understand a test that failed: the words of its drivers and watchers, and the service's journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qx_supervisor import local
from qx_supervisor.watcher.ledger import Ledger, LedgerError

from .watchers import watchers_of

if TYPE_CHECKING:
    from .drivers import Driver

ENTRIES = 60
"""How many of the latest requests are shown."""


def of_drivers(drivers: Iterable[Driver]) -> Iterator[tuple[str, str]]:
    """A heading and a text for each driver."""
    for driver in drivers:
        driver.read_what_there_is()
        code = driver.process.returncode
        watchers = [f"watched by {process}" for process in watchers_of(driver)]
        errors = driver.errors.decode(errors="replace")
        lines = [f"returncode {code}", *watchers, "stdout:", *driver.lines, "stderr:", errors]
        yield f"driver {driver.pid}", "\n".join(lines)


def of_watchers(state: Path) -> Iterator[tuple[str, str]]:
    """What watchers have written into the ledger: each run, what it has come to, and why."""
    if not state.is_dir():
        return
    try:
        with Ledger.open(state) as ledger:
            rows = [
                f"{row.run}: driver {row.pid}, watcher {row.watcher_pid}, {row.state} {row.jobs} {row.detail}"
                for row in ledger.rows()
            ]
    except (LedgerError, OSError) as error:
        rows = [f"can't be read: {error}"]
    if rows:
        yield "ledger", "\n".join(rows)


def of_service(ibm: local.Service) -> Iterator[tuple[str, str]]:
    """The requests that reached the embedded service, and its jobs."""
    try:
        entries, jobs = ibm.journal(), ibm.jobs()
    except (local.ServiceError, OSError) as error:
        yield "service", f"does not answer: {error}"
        return
    first = entries[0].arrived if entries else 0
    shown = [
        f"{(entry.arrived - first) / 1e9:8.3f} s  {entry.method} {entry.path} → {entry.status}"
        for entry in entries[-ENTRIES:]
    ]
    yield f"journal, {len(shown)} of {len(entries)} requests", "\n".join(shown)
    yield "jobs", "\n".join(f"{job.id} {job.status}, asked {job.cancel_requests} times to stop" for job in jobs)
