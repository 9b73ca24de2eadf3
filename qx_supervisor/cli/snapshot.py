"""What `top` shows: the runs of the ledger, by driver, and what the service says of their jobs.

The ledger is read again and again over one connection, by one thread, and a driver's process is looked at once per
reading, however many runs it has. The service is asked for one list per instance and interval, whatever the number of
jobs.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import QxError
from ..poller import ask
from ..watcher import host_identity, ledger, remote
from . import rows

if TYPE_CHECKING:
    from qx_supervisor.watcher.ledger.postgres import SharedLedger

LEDGER_SECONDS = 1.0
"""Seconds between two readings of the ledger."""

SERVICE_SECONDS = 15.0
"""Seconds between two lists of the service's, unless the user says otherwise."""

KEPT_SECONDS = 300.0
"""Seconds for which a run that has ended while it was shown is still shown."""


@dataclass(frozen=True)
class Shown:
    """A run.

    Attributes:
        row: It, as the ledger has it.
        state: Its state, in the words of `ps`.
    """

    row: ledger.Row
    state: str

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.row.state in ledger.FINAL

    @property
    def driver(self) -> tuple[str, int]:
        """Its driver's host and pid."""
        return self.row.host_identity.host, self.row.pid

    @property
    def jobs(self) -> list[str]:
        """Its jobs that are not known to be over."""
        return [] if self.is_over else self.row.open_jobs


@dataclass(frozen=True)
class Snapshot:
    """What is shown at one moment.

    Attributes:
        runs: The runs, those of a driver beside each other, the newest driver first.
        trouble: Why the ledger can't be read, or "".
        now: When it was read, by the ledger's clock.
    """

    runs: list[Shown] = field(default_factory=list)
    trouble: str = ""
    now: float = 0.0


@dataclass(frozen=True)
class Listing:
    """What the service says of the unfinished jobs of the account.

    Attributes:
        states: Their states, in small letters.
        words: What is to be said of the listing itself: why there is none, or "".
    """

    states: Mapping[str, str] = field(default_factory=dict)
    words: str = ""


class LedgerReader:
    """Reads the ledger.

    Args:
        all_hosts: Whether the shared one, of all hosts.
    """

    def __init__(self, *, all_hosts: bool) -> None:
        self._all_hosts = all_hosts
        self._seen: dict[str, Shown] = {}
        self._ended: dict[str, float] = {}
        self._book: ledger.Store | None = None

    def read(self) -> Snapshot:
        """Read it once more. A ledger that can't be read is opened again the next time."""
        try:
            if self._book is None:
                self._book = _shared() if self._all_hosts else ledger.Ledger.open(ledger.state_directory())
            found = {each.row.run: each for each in self._unfinished(self._book)}
            now = self._book.clock()
            found |= self._over(self._book, found, now)
        except (ledger.LedgerError, QxError) as error:
            self.close()
            return Snapshot(list(self._seen.values()), str(error), time.time())
        self._seen = found
        return Snapshot(_by_driver(found.values()), "", now)

    def close(self) -> None:
        """Close the ledger."""
        book, self._book = self._book, None
        if book is not None:
            with contextlib.suppress(ledger.LedgerError):
                book.close()

    def _unfinished(self, book: ledger.Store) -> Iterator[Shown]:
        if self._all_hosts:
            held: Any = book
            yield from (
                Shown(each.row, rows.state_of(each.row, each.judgement)) for each in held.held(ledger.UNFINISHED)
            )
            return
        # A process that has a thousand runs is looked at once.
        is_running = functools.cache(host_identity.is_running)
        for row in book.rows(ledger.UNFINISHED):
            yield Shown(row, rows.state_of(row, ledger.judge(row, book.host_identity, is_running)))

    def _over(self, book: ledger.Store, unfinished: Mapping[str, Shown], now: float) -> dict[str, Shown]:
        """The runs that were shown and have ended since, for a while."""
        found: dict[str, Shown] = {}
        for run, before in self._seen.items():
            if run in unfinished:
                continue
            if before.is_over:
                found[run] = before
            elif (row := book.row(run)) is not None and row.state in ledger.FINAL:
                self._ended[run] = now
                found[run] = Shown(row, rows.state_of(row, "final"))
        found = {run: shown for run, shown in found.items() if now - self._ended.get(run, now) < KEPT_SECONDS}
        self._ended = {run: at for run, at in self._ended.items() if run in found}
        return found


def _shared() -> SharedLedger:
    from ..shared_ledger import opened

    return opened()


def _by_driver(found: Any) -> list[Shown]:
    """The runs of each driver, newest first, below those of the newest driver."""
    runs = sorted(found, key=lambda each: each.row.began_at or each.row.created_at, reverse=True)
    order = {driver: index for index, driver in enumerate(dict.fromkeys(each.driver for each in runs))}
    return sorted(runs, key=lambda each: order[each.driver])


class ServiceReader:
    """Asks the service for the unfinished jobs of the account, and cancels one that the user chooses.

    Args:
        connect: Makes the service object; called once, by a thread.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._remotes: list[remote.Remote] | None = None

    def remotes(self) -> list[remote.Remote]:
        """The instances of the account.

        Raises:
            QxError: There is no account, or it can't be used.
        """
        from .. import service as qiskit_service

        with self._lock:
            if self._remotes is None:
                clients = qiskit_service.clients_of(self._connect())
                self._remotes = [qiskit_service.remote_of(client) for client in clients]
            return self._remotes

    def read(self) -> Listing:
        """List the unfinished jobs, with one request per instance and 200 jobs."""
        try:
            listed = [ask(there, there.unfinished_jobs) for there in self.remotes()]
        except (QxError, remote.RemoteError) as error:
            return Listing(words=str(error))
        return Listing({job: state.status.lower() for each in listed for job, state in each.items()})
