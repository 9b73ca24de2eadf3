"""The charges of jobs whose driver and watcher did not learn them: who has an account at hand asks for them later.

IBM Quantum may settle a charge minutes after the job's end, and a machine may lose power at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from . import service, settings, shared_ledger
from .errors import RunError
from .poller import ask
from .watcher import ledger, remote
from .watcher.facts import Figures

ASKED_FOR = 7 * 86400.0
"""Seconds since a run's end in which its charges are asked for."""

AT_ONCE = 50
"""The most runs whose charges one `reap` asks for, the latest ones."""


LOOK_AT = 20
"""The most runs whose charges are asked for by a run that waits for them."""


def look_for_charges(client: Any) -> None:
    """Ask for the charges that keep QPU time reserved, with the account of the run that waits for it.

    Whoever would have learned them may be dead, or a program that does not ask for what its jobs cost.

    Args:
        client: The official REST client.
    """
    remotes = {service.address(client): service.remote_of(client)}
    with contextlib.suppress(ledger.LedgerError, RunError), _opened() as book:
        read_charges(book.uncharged(ASKED_FOR, LOOK_AT), remotes, book)


def _opened() -> ledger.Store:
    return shared_ledger.opened() if settings.ledger_url() else ledger.Ledger.open(ledger.state_directory())


def read_charges(
    rows: Iterable[ledger.Row], remotes: Mapping[tuple[str, str], remote.Remote], book: ledger.Store
) -> None:
    """Ask for the charges that are not known, and write them down; no failure of that matters.

    Args:
        rows: Runs that are over.
        remotes: The services at hand, by their endpoints and instances.
        book: The ledger that has the runs.
    """
    for row in rows:
        there = remotes.get((row.endpoint, row.instance))
        if there is not None:
            for job in {*row.uncharged, *_unknown_jobs(there, row, book)}:
                read_charge(there, row.run, job, book)


def _unknown_jobs(there: remote.Remote, row: ledger.Row, book: ledger.Store) -> list[str]:
    """The jobs that a run has made beside those that are known; from then on these are known too.

    Of a submission that was not answered, there may be one that was over before anybody looked for it.
    """
    if row.answered or row.tag is None:
        return []
    try:
        found = ask(there, lambda: there.tagged(str(row.tag)))
        book.found_all(row.run, found)
    except (remote.RemoteError, ledger.LedgerError):
        return []
    return [job for job in found if job not in row.jobs]


def read_charge(there: remote.Remote, run: str, job: str, book: ledger.Store) -> bool:
    """Ask what a job cost, and write it down; returns whether it was charged by now."""
    figures = Figures()
    with contextlib.suppress(remote.RemoteError, ledger.LedgerError):
        figures = Figures.read({}, ask(there, lambda: there.metrics(job)))
        book.job_figures(run, job, figures)
    return figures.charged is not None
