"""What a reaper does: claim, check the claim, cancel, record.

Any number of reapers may run, anywhere. Of all that try, one gets a run (`FOR UPDATE SKIP LOCKED`); its claim is a
lease like a driver's, so one that dies in the middle is followed by another. It reads the claim again and the job's
state right before each cancel.

An expired lease says that nobody renewed it, and not why: while the database was unreachable, nobody could. So a reaper
claims a run only after it has itself been connected to the database for the whole length of the run's lease, without
interruption. A living driver has renewed the lease by then, three times over.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..backoff import DATABASE
from ..distribution import please_report
from ..resolve import Resolved, resolve
from ..uncharged import ASKED_FOR, read_charges
from ..uncharged import AT_ONCE as CHARGES_AT_ONCE
from ..watcher import ledger, remote
from .counts import Counts

if TYPE_CHECKING:
    from qx_supervisor.watcher.ledger.postgres import SharedLedger

logger = logging.getLogger("qx_supervisor.reaper")

POLL_SECONDS = 2.0
"""Between two looks, or less where leases are short."""

AT_ONCE = 64
"""The most runs that are claimed and not resolved."""

CENSUS_SECONDS = 5.0
FORGET_SECONDS = 3600.0
CHARGE_SECONDS = 60.0
"""Between two looks for charges that nobody has learned; each is asked for less and less often."""

DRAIN_SECONDS = 8.0
"""How long a reaper that stops waits for requests that are under way."""


class _Stopped(Exception):
    """The reaper is to stop."""


class _Lost(Exception):
    """The run is not this reaper's any more."""


class Reaper:
    """A reaper of one ledger.

    Args:
        url: The database; it holds a password.
        remotes: The services at hand, by their endpoints and instances.
        lease_seconds: How long a claim lasts without being renewed; as long as the drivers' leases.
        window: The sweep window, in seconds.
        counts: Counts what it does.
    """

    def __init__(
        self,
        url: str,
        remotes: Mapping[tuple[str, str], remote.Remote],
        *,
        lease_seconds: float,
        window: float,
        counts: Counts | None = None,
    ) -> None:
        self.counts = counts or Counts()
        self._url = url
        self._remotes = dict(remotes)
        self._lease_seconds = lease_seconds
        self._window = window
        self._book: SharedLedger | None = None
        self._watching_since = 0.0  # without a break, by the database's clock
        self._asked_at = 0.0  # when the database answered last, by its clock
        self._longest_gap = lease_seconds / 2  # between two answers; after a longer one the watch begins anew
        self._renew_at = self._census_at = self._forget_at = 0.0
        self._pauses = iter(DATABASE)
        self._is_away = False
        self._warned_of: set[tuple[str, str]] = set()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopping = False
        self._stopping = threading.Event()
        self._work: queue.SimpleQueue[tuple[SharedLedger, ledger.Row]] = queue.SimpleQueue()
        self._under_way = 0
        self._unresolved: set[str] = set()
        self._has_more = False  # more may be due than there was room for
        self._charges_due: dict[str, tuple[float, float]] = {}  # run → when, and the pause before that
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return "Reaper()"

    def stop(self) -> None:
        """Tell it to end soon; from any thread, or a signal handler."""
        self._is_stopping = True
        self._wake.put(None)

    def run(self, *, once: bool = False) -> bool:
        """Reap until `stop` is called.

        Args:
            once: End when nothing is left that is due now.

        Returns:
            Whether all that was claimed is resolved.

        Raises:
            LedgerError: Once, and the database can't be used.
        """
        for number in range(remote.CONNECTIONS * len(self._remotes)):
            threading.Thread(target=self._resolve_claims, name=f"qx-reaper-{number}", daemon=True).start()
        threading.Thread(target=self._read_charges_forever, name="qx-reaper-charges", daemon=True).start()
        try:
            while not self._is_stopping:
                try:
                    if self._round() and once:
                        break
                    pause = min(POLL_SECONDS, self._lease_seconds / 3)
                except ledger.LedgerError as error:
                    if once:
                        raise
                    pause = self._note_outage(error)
                self._sleep(pause)
            if once:
                self._read_charges()
        finally:
            self._end()
        return not self._unresolved

    def _sleep(self, seconds: float) -> None:
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            pass

    # A round

    def _round(self) -> bool:
        """Claim what is due; returns whether there is nothing left to do or to wait for."""
        book = self._opened()
        with self._changed:
            room = AT_ONCE - self._under_way
        with self.counts.timing(self.counts.claim):
            before = self._asked_at + self._longest_gap
            found = book.due(list(self._remotes), self._watching_since, before, room) if room else []
        for row in found:
            logger.info("%s claimed: %s", _name(row), _why(row), extra=_about("claimed", row))
            with self._changed:
                self._under_way += 1
            self._unresolved.add(row.run)
            self._work.put((book, row))
        with self.counts.lock:
            self.counts.claimed += len(found)
        now = time.monotonic()
        if now >= self._census_at:
            self._census_at = now + CENSUS_SECONDS
            self._take_census(book)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_SECONDS
            book.forget(ledger.KEPT_FOR)
        is_idle = not found and not self._is_busy()
        # By the time before the claim: what has expired since then was not claimed.
        has_seen_enough = is_idle and self._asked_at - self._watching_since > book.longest_lease()
        if len(found) == room and room:
            with self._changed:
                self._has_more = True
            self._claim_more()
        return has_seen_enough

    def _claim_more(self) -> None:
        """Claim more once half of what was claimed is done: the pause between two claims is for when nothing is due."""
        with self._changed:
            if self._has_more and self._under_way <= AT_ONCE // 2:
                self._has_more = False
                self._wake.put(None)

    def _is_busy(self) -> bool:
        with self._changed:
            return self._under_way > 0

    def _opened(self) -> SharedLedger:
        if self._book is None:
            from ..watcher.ledger.postgres import SharedLedger

            # A new name each time: what was claimed under the last one is left to run out.
            book = SharedLedger.open(self._url, kind="reaper", lease_seconds=self._lease_seconds)
            self._book = book
            self._renew_at = 0.0
            self._watching_since = self._asked_at = book.clock()
            if self._is_away:
                logger.warning("the ledger is back; leases that ran out meanwhile get the time to be renewed")
            self._is_away = False
            self._pauses = iter(DATABASE)
        if time.monotonic() >= self._renew_at:
            with self.counts.timing(self.counts.renew):
                self._book.renew()
            self._renew_at = time.monotonic() + self._lease_seconds / 3
        with self.counts.lock:
            self.counts.is_up = True
        now = self._book.clock()
        if now - self._asked_at > self._longest_gap:  # the answer was slow: the others may have had none at all
            self._watching_since = now
        self._asked_at = now
        return self._book

    def _note_outage(self, error: ledger.LedgerError) -> float:
        """Note that the database is away; returns the pause until the next try."""
        with self.counts.lock:
            self.counts.is_up = False
        if not self._is_away:
            logger.warning("%s It is tried again", error)
            self._is_away = True
        self._shut()
        return min(next(self._pauses), max(self._lease_seconds / 3, 0.1))

    def _shut(self) -> None:
        book, self._book = self._book, None
        if book is not None:
            try:
                book.close()
            except ledger.LedgerError:
                pass  # it is away

    def _take_census(self, book: SharedLedger) -> None:
        census = book.census()
        others = 0
        for each in census:
            account = (each.endpoint, each.instance)
            if account in self._remotes:
                continue
            others += each.held + each.expired + each.reaping + each.pending
            if account not in self._warned_of and each.expired + each.pending:
                self._warned_of.add(account)
                logger.warning(
                    "runs of another account are left alone: %s at %s; start a reaper that has it",
                    each.instance or "no instance",
                    each.endpoint,
                )
        counts = self.counts
        with counts.lock:
            counts.held = sum(each.held for each in census)
            counts.expired = sum(each.expired for each in census)
            counts.reaping = sum(each.reaping for each in census)
            counts.pending = sum(each.pending for each in census)
            counts.other_account = others

    # One run, in a thread

    def _resolve_claims(self) -> None:
        while True:
            book, row = self._work.get()
            try:
                self._resolve(book, row)
            except ledger.LedgerError as error:
                logger.warning("%s given up for now: %s", _name(row), error, extra=_about("given up", row))
                _put_back(book, row)
            except Exception:
                logger.exception(
                    "%s given up for now, by a fault in here; %s",
                    _name(row),
                    please_report(),
                    extra=_about("given up", row),
                )
                _put_back(book, row)
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()
                self._claim_more()

    def _resolve(self, book: SharedLedger, row: ledger.Row) -> None:
        def tell(job: str, outcome: str) -> None:
            logger.info("%s job %s: %s", _name(row), job, outcome, extra=_about(f"job {outcome}", row, job))
            if outcome == "cancelled":
                with self.counts.lock:
                    self.counts.cancelled += 1

        def check_claim() -> None:
            if self._stopping.is_set():
                raise _Stopped
            if not book.may_cancel(row.run):
                raise _Lost

        def wait(seconds: float) -> None:
            if self._stopping.wait(seconds):
                raise _Stopped

        try:
            check_claim()
            found = resolve(
                row,
                self._remotes[row.endpoint, row.instance],
                book,
                by="reaper",
                window=self._window,
                tell=tell,
                before_cancel=check_claim,
                looks_first=True,
                wait=wait,
            )
        except _Stopped:
            book.release(row.run)
            logger.info("%s released: this reaper stops", _name(row), extra=_about("released", row))
            return
        except _Lost:
            self._note_loss(row)
            return
        self._conclude(book, row, found)

    def _conclude(self, book: SharedLedger, row: ledger.Row, found: Resolved) -> None:
        if not found.write(row, book):
            self._note_loss(row)
            return
        with self.counts.lock:
            self.counts.outcomes[found.outcome] += 1
        if found.outcome in ("cancelled", "nothing left"):
            self._unresolved.discard(row.run)
        detail = f": {found.detail}" if found.detail else ""
        logger.info("%s %s%s", _name(row), found.outcome, detail, extra=_about(f"run {found.outcome}", row))

    def _note_loss(self, row: ledger.Row) -> None:
        self._unresolved.discard(row.run)
        with self.counts.lock:
            self.counts.lost += 1
        logger.info("%s left alone: another holder has it", _name(row), extra=_about("left alone", row))

    # Charges

    def _read_charges_forever(self) -> None:
        """Thread body: it waits for the service, which must not keep leases from being renewed."""
        while not self._stopping.wait(CHARGE_SECONDS):
            self._read_charges()

    def _read_charges(self) -> None:
        """Ask for the charges that nobody has learned, of runs on any host."""
        book, now = self._book, time.monotonic()
        if book is None:
            return  # it is away
        try:
            rows = book.uncharged(ASKED_FOR, CHARGES_AT_ONCE)
        except ledger.LedgerError:
            return
        due = [row for row in rows if self._charges_due.get(row.run, (0.0, 0.0))[0] <= now]
        for row in due:
            _, pause = self._charges_due.get(row.run, (0.0, CHARGE_SECONDS / 2))
            self._charges_due[row.run] = now + 2 * pause, 2 * pause
        self._charges_due = {row.run: self._charges_due[row.run] for row in rows}
        read_charges(due, self._remotes, book)

    # The end

    def _end(self) -> None:
        """Release what is not begun, let what is under way come to its next step, and let this lease expire."""
        self._stopping.set()
        end = time.monotonic() + DRAIN_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, end - time.monotonic())
        if self._book is not None:
            try:
                self._book.leave()
            except ledger.LedgerError as error:
                logger.warning("%s What was claimed is free when the claim runs out", error)
        self._shut()


def _put_back(book: SharedLedger, row: ledger.Row) -> None:
    """Else the claim would last for as long as this process renews its lease."""
    with contextlib.suppress(ledger.LedgerError):  # the connection is broken: the claim runs out by itself
        book.finish(row.run, "pending", row.detail, sweep_until=row.sweep_until)


def _name(row: ledger.Row) -> str:
    """What a line of the log begins with."""
    key = f" (key {row.key!r})" if row.key is not None else ""
    return f"run {row.run}{key} of {row.host_identity.host}:{row.pid}:"


def _about(event: str, row: ledger.Row, job: str = "") -> dict[str, str]:
    """What such a line is about, for programs."""
    return {"event": event, "run": row.run, "job": job, "label": row.label}


def _why(row: ledger.Row) -> str:
    if row.state == "pending":
        return "to be swept again"
    grace = f" and its grace of {row.grace:g} s has passed" if row.grace else ""
    return f"its lease ran out{grace}"
