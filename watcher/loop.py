"""The watcher's process: one event loop, which does what the policy decides.

Three things wake it: a message of the driver's, the driver's pidfd, and a result from one of its own threads. Timers
and the psutil poll bound the wait. Requests to the service are made by a few threads, a step at a time, so that a slow
service delays nothing else; everything else happens here, in order.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import queue
import select
import signal
import socket
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multiprocess.connection import Connection

from . import policy as p
from . import protocol
from .book import Book, Entry
from .cancel import GIVE_UP, Again, Cancellation, Done, Operation, SessionClosing, StateReader
from .driver_process import DriverIdentity, DriverProcess
from .host_identity import start_ticks
from .protocol import Credentials, Outcome
from .remote import CONNECTIONS, Refused, Remote, RemoteError, Token, watcher_remote

if TYPE_CHECKING:
    from .ledger import Ruling

POLL_SECONDS = 1.0
TOKEN_MARGIN = 720.0
"""A token with less than this left, a fifth of its hour, is renewed: so a refusal is noticed while the driver lives."""

TOKEN_RETRY = 60.0

LEDGER_SECONDS = 1.0
"""How long an answer, or the end, waits for the ledger: a disk that hangs must not keep a run from being submitted."""

LOAD_PSUTIL_AFTER = 0.5
"""Seconds after the start: before the first poll, and after the driver has what it waits for."""

LOAD_TOKENS_AFTER = 2.0
"""Seconds after the start. IBM's token library takes 0.2 s to load: not at the start, when a driver waits, and not when
it is first needed, hours later, when an upgrade may have removed its files."""


@dataclass
class Account:
    """A service that jobs are guarded on."""

    credentials: Credentials
    remote: Remote
    token: Token
    refusal_reported: bool = False  # the driver knows that the token service refuses
    is_renewed: bool = False  # its token is being renewed in good time


class Watcher:
    """The watcher of one driver.

    Args:
        connection: The connection to the driver.
        driver: The driver.
        version: The version of the protocol to speak.
        sweep_window: The sweep window, in seconds.
        state: The directory of the ledger.
        lease_seconds: How long a lease lasts unless it is renewed.
    """

    def __init__(
        self,
        connection: Connection,
        driver: DriverProcess,
        *,
        version: int,
        sweep_window: float,
        state: str,
        lease_seconds: float,
    ) -> None:
        self._policy = p.Policy(sweep_window)
        self._connection: Connection | None = connection
        self._driver = driver
        self._version = version
        self._accounts: dict[str, Account] = {}
        self._readers: dict[tuple[str, str], StateReader] = {}  # by account and driver's tag
        self._to_sweep: defaultdict[tuple[str, str], deque[tuple[str, str]]] = defaultdict(deque)
        self._events: queue.SimpleQueue[p.Event | Callable[[], object]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._lease_seconds = lease_seconds
        self._book = Book(state, driver.identity, self._report_ledger_lost, lease_seconds)
        self._written: Future[None] | None = None
        self._over = False
        self._is_dismissed = False  # a SIGTERM came when nothing was guarded

    def run(self) -> None:
        """Watch until nothing is left to do."""
        self._pool.submit(_load_http)
        self._after(LOAD_PSUTIL_AFTER, lambda: self._pool.submit(_load_psutil))
        self._after(LOAD_TOKENS_AFTER, lambda: self._pool.submit(_load_tokens))
        self._after(self._lease_seconds / 3, self._renew_leases)
        next_poll = time.monotonic() + POLL_SECONDS
        if self._driver.is_dead():
            self._driver_died()
        while not self._over:
            now = time.monotonic()
            if now >= next_poll:
                next_poll = now + POLL_SECONDS
                if self._policy.driver_alive and self._driver.poll_finds_dead():
                    self._driver_died()
                    continue
            until = min(next_poll, self._timers[0][0] if self._timers else next_poll)
            watched = [self._wake_reader.fileno()]
            if self._connection is not None:
                watched.append(self._connection.fileno())
            if self._policy.driver_alive:
                if self._driver.pidfd is not None:
                    watched.append(self._driver.pidfd)
            else:
                next_poll = float("inf")
                until = self._timers[0][0] if self._timers else now + 3600
            ready = _ready(watched, max(0.0, min(until - now, 3600.0)))  # poll(2) has a limit
            if self._policy.driver_alive and self._driver.pidfd in ready and self._driver.is_dead():
                self._driver_died()
            if self._connection is not None and self._connection.fileno() in ready:
                self._receive()
            if self._wake_reader.fileno() in ready:
                self._drain_wake()
            self._handle_events()
            self._fire_timers()

    def leave(self) -> None:
        """Let the ledgers write what is pending, which may take a while if the database is away.

        A SIGTERM ends that, also one that came when the loop had ended already.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while not self._events.empty():
            self._is_dismissed |= isinstance(self._events.get_nowait(), p.Terminated)
        self._book.close(LEDGER_SECONDS)
        if not self._is_dismissed:
            self._book.wait_for_shared()

    def _report_ledger_lost(self, trouble: str) -> None:
        """The ledger fails: that costs the ledger only, and the driver hears of it once."""
        self.post(lambda: self._send(protocol.Report("ledger lost", detail=trouble)))

    def _share(self, url: str) -> None:
        """Write to the shared ledger too."""

        def tell(event: str, detail: str) -> None:
            report = protocol.Report("shared ledger away" if event == "away" else "shared ledger back", detail=detail)
            self.post(lambda: self._send(report))

        def lost(run: str, holder: str, detail: str) -> None:
            # Without a key it stays guarded by this watcher all the same: whoever has it now can only cancel it, too.
            report = protocol.Report("lost", run, detail=detail)
            self.post(p.LeaseLost(run, holder, detail) if holder else lambda: self._send(report))

        self._book.share(url, tell, lost)

    # What wakes it

    def _receive(self) -> None:
        """Handle every message that the driver has sent."""
        while self._connection is not None and not self._over:
            try:
                if not self._connection.poll(0):
                    return
                data = self._connection.recv_bytes()
            except (EOFError, OSError):
                # No death: a daemonizing driver may close it, and a forked child may keep it open after one.
                self._connection.close()
                self._connection = None
                self._handle(p.HungUp())
                return
            try:
                seq, message = protocol.decode_from_driver(data)
            except protocol.ProtocolError as error:
                self._handle(p.Malformed(str(error), error.seq))
                continue
            if isinstance(message, protocol.UseLedger):
                self._share(message.url)
                continue
            if isinstance(message, protocol.Arm):
                self._take_credentials(message.account, message.credentials)
            self._handle(p.Received(seq, message))

    def _driver_died(self) -> None:
        """First receive all that the driver had sent, so that a `StandDown` from before its death wins."""
        if self._policy.driver_alive:
            self._receive()
            self._book.driver_died()
            self._handle(p.DriverDied())

    def _handle_events(self) -> None:
        while not self._over:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if callable(event):
                event()
                continue
            if isinstance(event, p.Terminated):
                self._receive()  # a run may have been stood down by now
                self._is_dismissed |= not self._policy.runs
            self._handle(event)

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic() and not self._over:
            heapq.heappop(self._timers)[2]()

    def _drain_wake(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def post(self, event: p.Event | Callable[[], object]) -> None:
        """Hand an event, or a call, to the loop; from any thread, or from a signal handler."""
        self._events.put(event)
        try:
            self._wake_writer.send(b"\0")
        except BlockingIOError:
            pass  # it is awake already

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    # What the policy decides

    def _handle(self, event: p.Event) -> None:
        for action in self._policy.handle(event):
            try:
                self._do(action)
            except Exception as error:  # noqa: BLE001 - one fault must not end the watch over everything else
                self._send(protocol.Report("fault", detail=f"{type(error).__name__}: {error}"))

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
                self._pool.submit(lambda: self._prepare(account))
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
            case p.RecordRun(run, state, detail=detail, lease=lease):
                self._book.finish(run, state, detail, lease.holder if lease else "")
            case p.RecordResubmit(run, outcomes, holder):
                self._book.job_outcomes(run, outcomes, holder)
            case p.RecordLetGo(run, holder):
                self._book.let_go(run, holder)
            case p.RecordJob(run, job, outcome):
                self._book.job(run, job, outcome)
            case p.RecordAnswered(run, holder):
                self._book.answered(run, holder)
            case p.SetTimer(timer, seconds):
                self._after(seconds, lambda: self._handle(p.Fired(timer)))
            case p.Exit():
                self._over = True

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
        )

    def _take_lease(self, seq: int, wanted: protocol.TakeLease) -> None:
        """Ask the ledger for a lease, and tell the policy what it says."""
        record = p.RecordRun(wanted.run, "guarded", wanted.account, wanted.tag, wanted.driver, lease=wanted.lease)

        def answered(said: Future[Ruling]) -> None:
            trouble = said.exception()
            if trouble is not None:
                self.post(p.LeaseTaken(seq, None, f"a key needs the ledger: {trouble}"))
            else:
                self.post(p.LeaseTaken(seq, _lease_answer(said.result())))

        self._book.take(self._entry(record), wanted.instances).add_done_callback(answered)

    def _retake_lease(self, run: str, holder: str) -> None:
        """Ask the ledger whether a run is still its dead driver's, and tell the policy."""

        def answered(said: Future[bool]) -> None:
            self.post(p.LeaseRetaken(run, holder, None if said.exception() else said.result()))

        self._book.contest(run, holder).add_done_callback(answered)

    def _renew_leases(self) -> None:
        """Renew the leases of this driver's runs, and see which of those that wait were taken up by another driver."""
        leased = [run for run in self._policy.runs.values() if run.lease is not None]
        holders = [run.holder for run in leased if not run.waiting]
        if holders and self._policy.driver_alive:
            self._book.renew(holders)
        for run in leased:
            if run.waiting:
                self._look_whether_taken(run.id, run.holder)
        self._after(self._lease_seconds / 3, self._renew_leases)

    def _look_whether_taken(self, run: str, holder: str) -> None:
        def answered(said: Future[bool]) -> None:
            if said.exception() is None and not said.result():
                self.post(p.LeaseLost(run, holder))

        self._book.holds(run, holder).add_done_callback(answered)

    def _acknowledge(self, seq: int) -> None:
        """Answer when the last row that was handed to the ledger is on disk, or the ledger takes too long."""
        written, self._written = self._written, None
        if written is None or written.done():
            self._send(protocol.Ack({}), seq)
            return
        waiting = [seq]

        def answer() -> None:
            if waiting:
                self._send(protocol.Ack({}), waiting.pop())

        written.add_done_callback(lambda _: self.post(answer))
        self._after(LEDGER_SECONDS, answer)

    def _send(self, message: protocol.FromWatcher, seq: int = 0) -> None:
        """Send a message, unless the driver does not read: a stopped driver must not stop its watcher."""
        if self._connection is None:
            return
        try:
            if _is_writable(self._connection):
                self._connection.send_bytes(protocol.encode(message, seq, self._version))
        except OSError:
            pass  # it hung up, which the next read will notice

    # Requests, made by threads

    def _take_credentials(self, account: str, credentials: Credentials) -> None:
        known = self._accounts.get(account)
        remote, token = watcher_remote(credentials)
        if known is not None:
            known.credentials, known.remote, known.token, known.refusal_reported = credentials, remote, token, False
        else:
            self._accounts[account] = Account(credentials, remote, token)

    def _prepare(self, name: str) -> None:
        account = self._accounts[name]
        problem = ""
        try:
            # The acknowledgement waits for this, so that no cancel has to.
            account.remote.open()
            account.token.header()
        except RemoteError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - the driver waits for an answer
            problem = f"no token could be obtained ({type(error).__name__})"
        self.post(p.Prepared(name, problem))
        if account.is_renewed:
            return
        account.is_renewed = True
        self._later(self._renewal(account), lambda: self._renew(name))

    @staticmethod
    def _renewal(account: Account) -> float:
        return max(TOKEN_RETRY, account.token.seconds_left() - TOKEN_MARGIN)

    def _renew(self, name: str) -> None:
        """Renew a token in good time, so that a key that was revoked is noticed while the driver lives."""
        account = self._accounts[name]
        if self._policy.runs and account.token.seconds_left() <= TOKEN_MARGIN:
            try:
                account.token.renew()
                account.refusal_reported = False
            except Refused as error:
                if not account.refusal_reported:
                    account.refusal_reported = True
                    report = protocol.Report("token refused", detail=str(error))
                    self.post(lambda: self._send(report))
            except RemoteError:
                pass  # tried again in a minute, and by a cancel itself
        self._later(self._renewal(account), lambda: self._renew(name))

    def _start_cancel(self, order: p.StartCancel) -> None:
        remote = self._accounts[order.account].remote
        reader = None
        if tag := order.driver_tag:
            reader = self._readers.setdefault((order.account, tag), StateReader(remote, tag, time.monotonic))
            reader.jobs.add(order.job)
        cancellation = Cancellation(order.job, remote, time.monotonic, asked=order.asked, reader=reader)

        def ended(outcome: Outcome) -> p.Event:
            if reader is not None:
                reader.jobs.discard(order.job)
            trouble = cancellation.trouble if outcome == "unconfirmed" else ""
            return p.CancelEnded(order.run, order.job, outcome, trouble)

        self._carry(cancellation, remote, ended)

    def _start_close(self, order: p.StartClose) -> None:
        remote = self._accounts[order.account].remote
        closing = SessionClosing(order.session, remote, spares=order.spares)

        def ended(outcome: Outcome) -> p.Event:
            return p.CloseEnded(order.run, closing.trouble if outcome == "unconfirmed" else "")

        self._carry(closing, remote, ended)

    def _carry(self, operation: Operation, remote: Remote, ended: Callable[[Outcome], p.Event]) -> None:
        """Take an operation to its end, a step at a time."""
        deadline = time.monotonic() + GIVE_UP

        def advance() -> None:
            closed = remote.seconds_closed()
            step = operation.step() if not closed or time.monotonic() >= deadline else Again(closed)
            left = deadline - time.monotonic()
            match step:
                case Done(outcome):
                    self.post(ended(outcome))
                case Again() if left <= 0:
                    self.post(ended("unconfirmed"))
                case Again(after):
                    self._later(min(after, left), advance)  # one last try at the end, whatever `Retry-After` says

        self._pool.submit(advance)

    def _later(self, seconds: float, work: Callable[[], object]) -> None:
        """Have a thread do something after some seconds; from any thread."""
        self.post(lambda: self._after(seconds, lambda: self._pool.submit(work)))

    def _start_sweep(self, order: p.StartSweep) -> None:
        remote, tag, session = self._accounts[order.account].remote, order.tag, order.session
        if session or not order.driver_tag:

            def alone() -> None:
                self._sweep({order.run: tag}, remote, lambda: {tag: remote.unfinished(tag=tag, session=session)})

            self._pool.submit(alone)
            return
        # The first of these to run does all that wait: after a death there is one for each run.
        waiting = self._to_sweep[order.account, order.driver_tag]
        waiting.append((order.run, tag))

        def together() -> None:
            if closed := remote.seconds_closed():
                self._later(closed, together)
                return
            tags = dict(_taken_from(waiting))
            if len(tags) > 1:
                self._sweep(tags, remote, lambda: remote.unfinished_by_tag(order.driver_tag))
            elif tags:
                [only] = tags.values()
                self._sweep(tags, remote, lambda: {only: remote.unfinished(tag=only)})

        self._pool.submit(together)

    def _sweep(self, tags: dict[str, str], remote: Remote, ask: Callable[[], dict[str, tuple[str, ...]]]) -> None:
        """List what is unfinished under the tags of some runs, and tell the policy."""
        found: dict[str, tuple[str, ...]] | None = None
        detail, known = "", remote.renewals
        try:
            found = ask()
        except RemoteError as error:
            detail = str(error)
            if isinstance(error, Refused):
                try:
                    remote.renew(known)
                except RemoteError as refusal:
                    detail = str(refusal)
        except Exception as error:  # noqa: BLE001 - the policy waits for an answer, and asks again
            detail = f"the service's answer could not be understood ({type(error).__name__})"
        for run, tag in tags.items():
            self.post(p.SweepEnded(run, None if found is None else found.get(tag, ()), detail))

    def _inspection(self) -> protocol.Inspection:
        import ctypes

        me = Path("/proc/self")
        rollup = (me / "smaps_rollup").read_text() if (me / "smaps_rollup").exists() else ""
        pss = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        return {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "sid": os.getsid(0),
            "cwd": str(Path.cwd()),
            "descriptors": {item.name: _target(item) for item in (me / "fd").iterdir()},
            "modules": sorted(sys.modules),
            "environment": sorted(os.environ),
            "pss_kb": pss,
            "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),  # PR_GET_DUMPABLE: prctl(2)
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
        "host": row.place.host,
    }


def _taken_from(waiting: deque[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The items of a queue, each for one thread only."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def _ready(descriptors: list[int], seconds: float) -> set[int]:
    """Which descriptors have something to read, or are closed, within some seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(math.ceil(seconds * 1000))}


def _load_http() -> None:
    import requests  # noqa: F401 - while the driver transpiles


def _load_psutil() -> None:
    import psutil  # noqa: F401


def _load_tokens() -> None:
    import ibm_cloud_sdk_core  # noqa: F401


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # the descriptor that the listing itself had open


def _is_writable(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLOUT)
    return bool(poll.poll(0))


def watch(order: protocol.Order) -> None:
    """Watch the driver that a start order names, and end the process when nothing is left to do."""
    connection = Connection(order["connection"])
    try:
        version = protocol.version_to_speak(order.get("protocol", 1))
    except protocol.VersionError as error:
        connection.send_bytes(protocol.encode(protocol.Nack(str(error)), 0, protocol.OLDEST_VERSION))
        os._exit(1)
    sys.setswitchinterval(0.0005)  # so that no other thread's import delays a cancel
    watcher = Watcher(
        connection,
        DriverProcess(DriverIdentity(order["pid"], order["start_ticks"]), order["pidfd"]),
        version=version,
        sweep_window=order["sweep_window"],
        state=order["state"],
        lease_seconds=order["lease_seconds"],
    )
    signal.signal(signal.SIGTERM, lambda *_: watcher.post(p.Terminated()))
    me = os.getpid()
    connection.send_bytes(protocol.encode_hello(protocol.Hello(version, me, start_ticks(me))))
    watcher.run()
    watcher.leave()
    # Threads may wait for a service that does not answer; nobody waits for them.
    os._exit(0)
