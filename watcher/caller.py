"""One driver, as its watcher knows it: its connection and its death, and what the policy decides for it.

A watcher has one caller, or many (`node`). Each has a policy, accounts and runs of its own, and takes turns with the
others: what a driver sends is handled a little at a time, and nothing that one does can hold up another's cancel.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import notify, protocol, system
from . import policy as p
from .accounts import Account, Accounts
from .book import LEDGER_SECONDS, Book, Entry, Ledgers
from .cancel import GIVE_UP, Again, Cancellation, Done, Operation, SessionClosing, StateReader
from .driver_process import DriverProcess
from .events import Event
from .facts import Figures
from .frames import Frames
from .log import Log
from .loop import Loop
from .protocol import Credentials, Outcome
from .remote import Refused, RemoteError
from .seen_process import program_of, wait_status_of
from .witness import CHARGE_SECONDS, DEATH_SECONDS, Notice, Witness
from .workers import Workers

if TYPE_CHECKING:
    from .ledger import ReservationWish, Reserved, Ruling

HEAD_START = 0.05
"""Seconds by which the cancel of a job that is known is ahead of the sweep for those that are not."""

MESSAGES_A_TURN = 32
"""How many messages of one driver are handled before others have their turn."""

LAST_BYTES = 4 * 1024 * 1024
"""How much of what a dead driver had sent is read at most: more than a socket holds. A forked child of it may have the
connection, and send for ever."""


BUDGET_SECONDS = 8.0
"""How long who has a budget, or may have one, waits for the ledger: without its word nothing is submitted."""

TOO_SLOW = "it takes too long"

OVER = "this run is over: its host was taken for lost, and what it had reserved is free for others"

_SAID_ANEW = (protocol.Intent, protocol.GuardSession, protocol.OpenedSession, protocol.TakeLease, protocol.Bye)
"""Messages by which a driver has begun to tell its runs on a new connection, or has none."""


@dataclass(frozen=True)
class Means:
    """What the callers of a watcher share."""

    loop: Loop
    workers: Workers
    accounts: Accounts
    ledgers: Ledgers
    log: Log
    notices: notify.Threads


class Caller:
    """One driver.

    Args:
        connection: The connection to the driver.
        driver: The driver.
        means: What it shares with others.
        version: The version of the protocol to speak.
        sweep_window: The sweep window, in seconds.
        ended: Called, once, when nothing is left to do for it.
        earlier: The same driver on a connection that broke. It is forgotten when the driver tells its runs again here.

    Attributes:
        earlier: See above.
        is_over: Whether nothing is left to do for it.
    """

    def __init__(
        self,
        connection: Frames,
        driver: DriverProcess,
        means: Means,
        *,
        version: int,
        sweep_window: float,
        ended: Callable[[Caller], object],
        earlier: Caller | None = None,
    ) -> None:
        self.earlier = earlier
        self._policy = p.Policy(sweep_window)
        self._connection: Frames | None = connection
        self._driver = driver
        self._loop = means.loop
        self._means = means
        self._version = version
        self._ended = ended
        self._accounts: dict[str, Account] = {}
        self._readers: dict[tuple[str, str], StateReader] = {}  # by account and driver's tag
        self._to_sweep: defaultdict[tuple[str, str], deque[tuple[str, str]]] = defaultdict(deque)
        self._book = Book(means.ledgers, driver.identity, self._report_ledger_lost)
        self._witness = Witness(driver.identity.pid, means.ledgers.watcher.host_identity.host)
        self._notify: protocol.Notify | None = None
        self._sender = notify.Sender(self._log_lost_notice)
        self._waits_for_charges = False
        self._pidfd: int | None = None  # of the dead driver: it tells how that ended
        self._is_watched = True  # else the driver is dead, or forgotten
        self._signs: list[int] = []  # descriptors by which the driver's death is noticed
        self._written: Future[None] | None = None
        self._prepared: Future[None] | None = None  # the last account
        self._wants_room = False  # the loop is to say when more can be sent
        self._is_receiving = False  # what it has sent takes more than one turn
        self._last_bytes: int | None = None  # how much more is read of a driver that is dead
        self.is_over = False

    def begin(self) -> None:
        """Watch the driver from now on."""
        assert self._connection is not None
        self._loop.watch(self._connection.fileno(), self._connection_is_ready)
        self._signs = self._driver.descriptors()
        for sign in self._signs:
            self._loop.watch(sign, self._death_may_have_come, first=True)
        if self._driver.is_dead():
            self._driver_died()

    @property
    def has_runs(self) -> bool:
        """Whether anything is guarded for it."""
        return bool(self._policy.runs)

    def poll(self) -> None:
        """See whether the driver lives; the caller of this calls it once a second."""
        if self._is_watched and self._driver.poll_finds_dead():
            self._driver_died()

    def terminate(self) -> None:
        """A SIGTERM came."""
        if self._receive():  # a run may have been stood down by now
            self._post(self.terminate)
            return
        self._handle(p.Terminated())

    def tell_fault(self, error: Exception) -> None:
        """Tell the driver of a fault in here."""
        self._report("fault", f"{type(error).__name__}: {error}")

    def forget(self) -> None:
        """Forget the driver and all of its runs: it tells them again on another connection."""
        self._forget_earlier()
        self._end()

    def _forget_earlier(self) -> None:
        earlier, self.earlier = self.earlier, None
        if earlier is not None:
            earlier.forget()

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._learn_how_it_ended()
        self._close_pidfd()
        self._hang_up()
        self._forget_driver()
        for account in set(self._accounts.values()):
            self._means.accounts.leave(self, account)
        self._book.leave()
        self._ended(self)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.unwatch(connection.fileno())
            connection.close()

    def _forget_driver(self) -> None:
        if self._is_watched:
            self._is_watched = False
            for sign in self._signs:
                self._loop.unwatch(sign)
            self._driver.close()

    def _keep_pidfd(self) -> None:
        if self._driver.pidfd is not None:
            with contextlib.suppress(OSError):  # no descriptor is left
                self._pidfd = os.dup(self._driver.pidfd)

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)

    def _post(self, event: p.Event | Callable[[], object]) -> None:
        """Hand an event, or a call, to the loop; from any thread."""

        def happen() -> None:
            if self.is_over:
                return
            if callable(event):
                event()
            else:
                self._handle(event)

        self._loop.post(happen)

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._loop.after(seconds, lambda: None if self.is_over else call())

    def token_refused(self, trouble: str) -> None:
        """See `accounts.User`."""
        self._report("token refused", trouble)

    def _report_ledger_lost(self, trouble: str) -> None:
        """The ledger fails: that costs the ledger only, and the driver hears of it once."""
        self._post(lambda: self._report("ledger lost", trouble))

    def _report(self, event: protocol.Event, detail: str) -> None:
        """Tell the driver, and the log, of the watcher's own state."""
        self._send(protocol.Report(event, detail=detail))
        self._means.log.write([self._witness.of_watcher(event, detail)])

    def _share(self, url: str) -> None:
        """Write to the shared ledger too."""

        def tell(event: str, detail: str) -> None:
            self._post(lambda: self._report("shared ledger away" if event == "away" else "shared ledger back", detail))

        def lost(run: str, holder: str, detail: str) -> None:
            # Without a key it stays guarded by this watcher all the same: whoever has it now can only cancel it, too.
            report = protocol.Report("lost", run, detail=detail)
            self._post(p.LeaseLost(run, holder, detail) if holder else lambda: self._send(report))

        self._book.share(url, tell, lost)

    # What wakes it

    def _connection_is_ready(self) -> None:
        if self._connection is not None and self._connection.has_unsent:
            self._flush()
        if not self._is_receiving:
            self._receive_more()

    def _receive_more(self) -> None:
        self._is_receiving = self._receive()
        if self._is_receiving:  # what is left may have been read from the socket already
            self._post(self._receive_more)

    def _receive(self) -> bool:
        """Handle some of what the driver has sent; returns whether there may be more."""
        for _ in range(MESSAGES_A_TURN):
            connection = self._connection
            if connection is None or self.is_over:
                return False
            try:
                data = connection.next()
                if data is None and not connection.read():
                    return False
            except (EOFError, OSError):
                # No death: a daemonizing driver may close it, and a forked child may keep it open after one.
                self._hang_up()
                if self._is_watched:
                    self._driver.hung_up()
                self._handle(p.HungUp())
                return False
            if data is not None:
                try:
                    self._receive_message(data)
                except Exception as error:  # noqa: BLE001 - what comes next may be a `StandDown`
                    self.tell_fault(error)
        return True

    def _receive_message(self, data: bytes) -> None:
        try:
            seq, message = protocol.decode_from_driver(data)
        except protocol.ProtocolError as error:
            self._handle(p.Malformed(str(error), error.seq))
            return
        if isinstance(message, protocol.UseLedger):
            self._share(message.url)
            return
        if isinstance(message, protocol.Reserve):  # what it is told decides nothing here
            self._reserve(seq, message)
            return
        if isinstance(message, protocol.Notify):
            self._notify, self._witness.notice_after = message, message.after
            self._means.notices.do(notify.load)
            return
        if isinstance(message, _SAID_ANEW):
            self._forget_earlier()
        if isinstance(message, protocol.Arm):
            self._take_credentials(message.account, message.credentials)
        self._handle(p.Received(seq, message))

    def _death_may_have_come(self) -> None:
        if self._driver.is_dead():
            self._driver_died()
            return
        for closed in set(self._signs).difference(self._driver.descriptors()):
            self._loop.unwatch(closed)
            self._signs.remove(closed)

    def _driver_died(self) -> None:
        """First receive all that the driver had sent, so that a `StandDown` from before its death wins."""
        if self._last_bytes is None:
            self._keep_pidfd()
            self._forget_driver()
            self._last_bytes = (self._connection.bytes_read if self._connection else 0) + LAST_BYTES
            self._receive_the_last()

    def _receive_the_last(self) -> None:
        is_more = self._receive()
        if is_more and self._connection is not None and self._connection.bytes_read < (self._last_bytes or 0):
            self._post(self._receive_the_last)
        elif self._connection is None and self._policy.runs:
            self._ask_what_is_over()
        else:
            self._die()

    def _ask_what_is_over(self) -> None:
        """Learn from the ledger what the driver could not say here: without a connection it writes that down itself.

        Most deaths are noticed before the kernel closes the connection, and need not wait for this.
        """
        asked = self._book.stood_down([run.id for run in self._policy.runs.values() if not run.stood_down])
        waiting = [asked]

        def answered() -> None:
            if waiting:
                waiting.clear()
                if asked.done() and asked.exception() is None:
                    for run, end in asked.result().items():
                        self._handle(p.Received(0, protocol.StandDown(run, end)))
                self._die()

        asked.add_done_callback(lambda _: self._post(answered))
        self._after(LEDGER_SECONDS, answered)

    def _die(self) -> None:
        self._book.driver_died()
        self._handle(p.DriverDied())

    # What the policy decides

    def _handle(self, event: p.Event) -> None:
        if self.is_over:
            return
        actions = self._policy.handle(event)
        for action in actions:
            try:
                self._do(action)
            except Exception as error:  # noqa: BLE001 - one fault must not end the watch over everything else
                self.tell_fault(error)
        try:
            self._tell(event, actions)  # when all is under way
        except Exception as error:  # noqa: BLE001 - nor must one in what is told of it
            self.tell_fault(error)

    def _do(self, action: p.Action) -> None:
        match action:
            case p.Ack(seq):
                self._acknowledge(seq)
            case p.Answer(seq, answer):
                self._send(protocol.Ack(answer), seq)
            case p.Nack(seq, reason):
                self._send(protocol.Nack(reason), seq)
            case protocol.Report():
                self._send(action)
            case p.Inspect(seq):
                self._send(protocol.Ack(self._inspection()), seq)
            case p.Prepare(account):
                self._prepare(account)
            case p.StartCancel():
                self._start_cancel(action)
            case p.StartSweep():
                self._start_sweep(action)
            case p.StartClose():
                self._start_close(action)
            case p.TakeLease(seq, wanted):
                self._take_lease(seq, wanted)
            case p.RetakeLease(run, holder):
                self._retake_lease(run, holder)
            case p.RecordRun(state="guarded"):
                self._written = self._book.guard(self._entry(action))
            case p.RecordRun(run, state, detail=detail, lease=lease, end=end):
                self._book.finish(run, state, detail, lease.holder if lease else "", end)
            case p.RecordResubmit(run, outcomes, holder):
                self._book.job_outcomes(run, outcomes, holder)
            case p.RecordLetGo(run, holder):
                self._book.let_go(run, holder)
            case p.RecordJob(run, job, outcome):
                self._book.job(run, job, outcome)
            case p.ReadFigures():
                self._read_figures(action)
            case p.RecordFigures(run, job, figures):
                self._book.job_figures(run, job, figures)
            case p.RecordAnswered(run, holder):
                self._book.answered(run, holder)
            case p.SetTimer(timer, seconds):
                self._after(seconds, lambda: self._handle(p.Fired(timer)))
            case p.Exit():
                self._end()

    # What is told to others than the driver

    def _tell(self, event: p.Event, actions: list[p.Action]) -> None:
        if isinstance(event, p.DriverDied):
            self._learn_how_it_ended()
        told = self._witness.saw(event, actions, time.monotonic())
        if self._witness.has_runs and not self._witness.program:
            self._witness.program = program_of(self._driver.identity.pid)
        self._pass_on(told)
        if self._witness.has_ended_runs and not self._waits_for_charges:
            self._waits_for_charges = True
            self._after(CHARGE_SECONDS, self._tell_of_ends)
        if isinstance(event, p.DriverDied) and not self.is_over:
            self._after(DEATH_SECONDS, self._tell_of_death)

    def _tell_of_ends(self) -> None:
        self._waits_for_charges = False
        self._pass_on([*self._witness.tell_of_ends(is_late=True)])

    def _tell_of_death(self) -> None:
        self._learn_how_it_ended()
        self._pass_on(self._witness.tell_of_death(time.monotonic()))

    def _learn_how_it_ended(self) -> None:
        if not self._policy.driver_alive and (self._witness.has_runs or self._witness.is_after_death):
            who = self._driver.identity
            self._witness.learn_wait_status(wait_status_of(who.pid, who.start_ticks, self._pidfd))

    def _pass_on(self, told: list[Event | Notice]) -> None:
        self._means.log.write([each for each in told if isinstance(each, Event)])
        notices = [each for each in told if isinstance(each, Notice)]
        if self._notify is not None and notices:
            self._sender.send(self._notify, notices, self._means.notices)

    def _log_lost_notice(self, trouble: str) -> None:
        self._means.log.write([self._witness.of_watcher("notice lost", trouble)])

    def _entry(self, run: p.RecordRun) -> Entry:
        how = self._accounts[run.account].credentials
        return Entry(
            run=run.run,
            tag=run.tag,
            driver=run.driver_tag,
            endpoint=how.endpoint,
            instance=how.instance,
            session=run.session,
            owner=run.owner,
            lease=run.lease,
            about=run.about,
        )

    def _take_lease(self, seq: int, wanted: protocol.TakeLease) -> None:
        """Ask the ledger for a lease, and tell the policy what it says."""
        run, account, tag, driver, lease, _, about = wanted
        record = p.RecordRun(run, "guarded", account, tag, driver, lease=lease, about=about)

        def answered(said: Future[Ruling]) -> None:
            trouble = said.exception()
            if trouble is not None:
                self._post(p.LeaseTaken(seq, None, f"a key needs the ledger: {trouble}"))
            else:
                self._post(p.LeaseTaken(seq, _lease_answer(said.result())))

        self._book.take(self._entry(record), wanted.instances).add_done_callback(answered)

    def _reserve(self, seq: int, wanted: protocol.Reserve) -> None:
        """Ask the ledger for QPU time, and tell the driver, or that the ledger takes too long."""
        from .ledger import LedgerBusy

        account = self._accounts.get(wanted.account)
        if account is None:
            self._send(protocol.Nack("this account is not armed"), seq)
            return
        wish = _reservation_wish(wanted, account.credentials.instance)
        waiting = [seq]

        def answer(reserved: Reserved | None, trouble: str = "") -> None:
            if waiting:
                if reserved is None and not wanted.budgets and self._book.is_limited is False:
                    trouble = ""  # there was none when it was read last
                content = _reserve_answer(reserved, trouble, is_limited=bool(self._book.is_limited))
                self._send(protocol.Ack(content), waiting.pop())

        def answered(said: Future[tuple[Reserved, bool]]) -> None:
            trouble = said.exception()
            if trouble is None:
                reserved = said.result()[0]
                answer(reserved, OVER if reserved.is_over else "")
            elif isinstance(trouble, LedgerBusy) and waiting:  # it has waited for a second
                ask()
            else:
                answer(None, str(trouble))

        def ask() -> None:
            said = self._book.reserve(wish)
            said.add_done_callback(lambda _: self._post(lambda: answered(said)))

        def give_up_early() -> None:
            if not wanted.budgets and self._book.is_limited is False:
                answer(None, TOO_SLOW)

        ask()
        self._after(LEDGER_SECONDS, give_up_early)
        self._after(BUDGET_SECONDS, lambda: answer(None, TOO_SLOW))

    def _retake_lease(self, run: str, holder: str) -> None:
        """Ask the ledger whether a run is still its dead driver's, and tell the policy."""

        def answered(said: Future[bool]) -> None:
            self._post(p.LeaseRetaken(run, holder, None if said.exception() else said.result()))

        self._book.contest(run, holder).add_done_callback(answered)

    def leases_to_renew(self) -> list[str]:
        """The holders of the leases of this driver's runs; and see which that wait were taken up by another driver."""
        leased = [run for run in self._policy.runs.values() if run.lease is not None]
        for run in leased:
            if run.waiting:
                self._look_whether_taken(run.id, run.holder)
        return [run.holder for run in leased if not run.waiting] if self._policy.driver_alive else []

    def _look_whether_taken(self, run: str, holder: str) -> None:
        def answered(said: Future[bool]) -> None:
            if said.exception() is None and not said.result():
                self._post(p.LeaseLost(run, holder))

        self._book.holds(run, holder).add_done_callback(answered)

    def _acknowledge(self, seq: int) -> None:
        """Answer when the last row that was handed to the ledger is on disk, or the ledger takes too long.

        And when all is loaded that a cancel of that run can need.
        """
        written, self._written = self._written, None
        pending = [each for each in (written, self._prepared) if written and each and not each.done()]
        if not pending:
            self._send(protocol.Ack({}), seq)
            return
        waiting = [seq]

        def answer() -> None:
            if waiting:
                self._send(protocol.Ack({}), waiting.pop())

        def answer_if_all() -> None:
            if all(each.done() for each in pending):
                answer()

        for each in pending:
            each.add_done_callback(lambda _: self._post(answer_if_all))
        self._after(LEDGER_SECONDS, answer)

    def _send(self, message: protocol.FromWatcher, seq: int = 0) -> None:
        """Send a message; a driver that does not read is not waited for."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it hung up, which the next read will notice
                self._connection.send(protocol.encode(message, seq, self._version))
            self._watch_for_room()

    def _flush(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.flush()
            self._watch_for_room()

    def _watch_for_room(self) -> None:
        """Be woken when there is room, as long as something could not be sent."""
        if self._connection is not None and self._connection.has_unsent is not self._wants_room:
            self._wants_room = self._connection.has_unsent
            self._loop.watch_for_room(self._connection.fileno(), wanted=self._wants_room)

    # Requests, made by threads

    def _take_credentials(self, name: str, credentials: Credentials) -> None:
        account = self._means.accounts.join(self, credentials)
        known, self._accounts[name] = self._accounts.get(name), account
        if known is not None and known not in self._accounts.values():
            self._means.accounts.leave(self, known)

    def _prepare(self, name: str) -> None:
        account = self._accounts[name]
        prepared: Future[None] = Future()
        self._prepared = prepared

        def prepare() -> None:
            try:
                self._post(p.Prepared(name, account.prepare()))
                account.keep_warm()
                _load_psutil()
            finally:
                prepared.set_result(None)

        account.lane.submit(self, prepare)

    def _start_cancel(self, order: p.StartCancel) -> None:
        account = self._accounts[order.account]
        reader = None
        if tag := order.driver_tag:
            reader = self._readers.setdefault((order.account, tag), StateReader(account.remote, tag, time.monotonic))
            reader.jobs.add(order.job)
        cancellation = Cancellation(order.job, account.remote, time.monotonic, asked=order.asked, reader=reader)

        def ended(outcome: Outcome) -> p.Event:
            if reader is not None:
                reader.jobs.discard(order.job)
            trouble = cancellation.trouble if outcome == "unconfirmed" else ""
            return p.CancelEnded(order.run, order.job, outcome, trouble, cancellation.own_end)

        self._carry(cancellation, account, ended)

    def _read_figures(self, order: p.ReadFigures) -> None:
        """Read what a job cost; no failure of that matters."""
        account = self._accounts[order.account]

        def read() -> None:
            figures = None
            with contextlib.suppress(Exception):
                figures = Figures.read({}, account.remote.metrics(order.job))
            self._post(p.FiguresRead(order.run, order.job, figures))

        self._submit(account, read)

    def _start_close(self, order: p.StartClose) -> None:
        account = self._accounts[order.account]
        closing = SessionClosing(order.session, account.remote, spares=order.spares)

        def ended(outcome: Outcome) -> p.Event:
            return p.CloseEnded(order.run, closing.trouble if outcome == "unconfirmed" else "")

        self._carry(closing, account, ended)

    def _carry(self, operation: Operation, account: Account, ended: Callable[[Outcome], p.Event]) -> None:
        """Take an operation to its end, a step at a time."""
        deadline = time.monotonic() + GIVE_UP

        def advance() -> None:
            closed = account.remote.seconds_closed()
            step = operation.step() if not closed or time.monotonic() >= deadline else Again(closed)
            left = deadline - time.monotonic()
            match step:
                case Done(outcome):
                    self._post(ended(outcome))
                case Again() if left <= 0:
                    self._post(ended("unconfirmed"))
                case Again(after):
                    # One last try at the end, whatever `Retry-After` says.
                    self._later(account, min(after, left), advance)

        self._submit(account, advance)

    def _submit(self, account: Account, work: Callable[[], object]) -> None:
        """Have a thread do something, unless this driver is forgotten by then; from any thread."""
        account.lane.submit(self, lambda: None if self.is_over else work())

    def _later(self, account: Account, seconds: float, work: Callable[[], object]) -> None:
        """Have a thread do something after some seconds; from any thread."""
        self._post(lambda: self._after(seconds, lambda: self._submit(account, work)))

    def _start_sweep(self, order: p.StartSweep) -> None:
        account, tag, session = self._accounts[order.account], order.tag, order.session
        remote = account.remote
        if session or not order.driver_tag:

            def alone() -> None:
                self._sweep({order.run: tag}, account, lambda: {tag: remote.unfinished(tag=tag, session=session)})

            self._submit_sweep(order, account, alone)
            return
        # The first of these to run does all that wait: after a death there is one for each run.
        waiting = self._to_sweep[order.account, order.driver_tag]
        waiting.append((order.run, tag))

        def together() -> None:
            if closed := remote.seconds_closed():
                self._later(account, closed, together)
                return
            tags = dict(_taken_from(waiting))
            if len(tags) > 1:
                self._sweep(tags, account, lambda: remote.unfinished_by_tag(order.driver_tag))
            elif tags:
                [only] = tags.values()
                self._sweep(tags, account, lambda: {only: remote.unfinished(tag=only)})

        self._submit_sweep(order, account, together)

    def _submit_sweep(self, order: p.StartSweep, account: Account, sweep: Callable[[], object]) -> None:
        """Have a thread sweep, but not before a cancel that is known: the open connection is for that."""
        run = self._policy.runs.get(order.run)
        if run is not None and None in run.cancels.values():
            self._after(HEAD_START, lambda: self._submit(account, sweep))
        else:
            self._submit(account, sweep)

    def _sweep(self, tags: dict[str, str], account: Account, ask: Callable[[], dict[str, tuple[str, ...]]]) -> None:
        """List what is unfinished under the tags of some runs, and tell the policy."""
        found: dict[str, tuple[str, ...]] | None = None
        detail, known = "", account.remote.renewals
        try:
            found = ask()
        except RemoteError as error:
            detail = str(error)
            if isinstance(error, Refused):
                try:
                    account.remote.renew(known)
                except RemoteError as refusal:
                    detail = str(refusal)
        except Exception as error:  # noqa: BLE001 - the policy waits for an answer, and asks again
            detail = f"the service's answer could not be understood ({type(error).__name__})"
        for run, tag in tags.items():
            self._post(p.SweepEnded(run, None if found is None else found.get(tag, ()), detail))

    def _inspection(self) -> protocol.Inspection:
        return {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "sid": os.getsid(0),
            "cwd": str(Path.cwd()),
            "descriptors": {item.name: _target(item) for item in Path("/dev/fd").iterdir()},
            "modules": sorted(sys.modules),
            "environment": sorted(os.environ),
            "pss_kb": _pss_kb(),
            "dumpable": _dumpable(),
            "runs": {run.id: sorted({*run.held, *run.cancels}) for run in self._policy.runs.values()},
        }


def _lease_answer(ruling: Ruling) -> protocol.LeaseAnswer:
    row = ruling.row
    return {
        "answer": ruling.answer,
        "run": row.run,
        "tag": row.tag or "",
        "driver": row.driver_tag or "",
        "instance": row.instance,
        "jobs": dict(row.jobs),
        "answered": row.answered,
        "is_new": ruling.is_new,
        "is_seen": ruling.is_seen,
        "seconds_left": ruling.seconds_left,
        "lease_until": row.lease_until,
        "since": None if ruling.let_go_at is None else max(0.0, time.time() - ruling.let_go_at),
        "pid": row.pid,
        "host": row.host_identity.host,
    }


def _reservation_wish(wanted: protocol.Reserve, instance: str) -> ReservationWish:
    from .ledger import Budget, ReservationWish

    return ReservationWish(
        run=wanted.run,
        post=wanted.post,
        instance=instance,
        label=wanted.label,
        most=wanted.most,
        least=wanted.least,
        own=[Budget(name=name, seconds=seconds) for name, seconds in wanted.budgets.items()],
    )


def _reserve_answer(reserved: Reserved | None, trouble: str, *, is_limited: bool) -> protocol.ReserveAnswer:
    balance = reserved.tightest if reserved is not None else None
    is_over = reserved is not None and reserved.is_over
    now = time.time()
    return {
        "seconds": reserved.seconds if reserved is not None else None,
        "trouble": trouble,
        "is_limited": is_limited or is_over,  # so that earlier releases, too, take the trouble for a refusal
        "is_refused": reserved is not None and reserved.seconds is None and (balance is not None or is_over),
        "words": balance.budget.words if balance else "",
        "limit": balance.budget.seconds if balance else 0.0,
        "spent": balance.spent if balance else 0.0,
        "reserved": balance.reserved if balance else 0.0,
        "pending": balance.pending if balance else 0.0,
        "ends_in": max(0.0, balance.ends - now) if balance and balance.ends is not None else None,
        "largest": dict(balance.largest) if balance else {},
    }


def _taken_from(waiting: deque[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The items of a queue, each for one thread only."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def _load_psutil() -> None:
    import psutil  # noqa: F401 - before the first poll, and after the driver has what it waits for


def _pss_kb() -> int:
    if not system.HAS_LINUX:
        import psutil

        found = psutil.Process().memory_full_info()
        return int(getattr(found, "pss", found.uss)) // 1024
    rollup = Path("/proc/self/smaps_rollup")
    lines = rollup.read_text().splitlines() if rollup.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _dumpable() -> int | None:
    if not system.HAS_LINUX:
        return None
    import ctypes

    flag: int = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE: prctl(2)
    return flag


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # the descriptor that the listing itself had open
