"""The watcher's process: one wait, and what the policy orders.

Three things wake it: a message of the caller's, the caller's pidfd, and an answer of one of its own threads. Timers and
the psutil poll bound the wait. Requests to the service are made by a few threads, a step at a time, so that one slow
service keeps nobody waiting; everything else happens here, in order.
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
from typing import TYPE_CHECKING, Any

from multiprocess.connection import Connection

from . import policy as p
from .book import Book, Entry
from .cancel import GIVE_UP, Cancellation, Closing, Crowd, Effort
from .driver_process import DriverIdentity, DriverProcess
from .host_identity import start_ticks
from .protocol import Credentials, ProtocolError, check_lease, decode_from_caller, encode
from .remote import CONNECTIONS, Refused, Remote, RemoteError, Token, watcher_remote

if TYPE_CHECKING:
    from .ledger import Ruling

POLL_SECONDS = 1.0
TOKEN_MARGIN = 720.0
"""A token with less than this left, a fifth of its hour, is renewed: then a refusal is heard while the driver lives."""

TOKEN_RETRY = 60.0

LEDGER_SECONDS = 1.0
"""How long an answer, or the end, waits for the ledger: a disk that hangs must not keep a run from being submitted."""

LOAD_PSUTIL_AFTER = 0.5
"""Before the first poll, and after the caller has what it waits for."""

LOAD_TOKENS_AFTER = 2.0
"""IBM's token library takes 0.2 s to load. Not at the start, when a caller waits; and not at the first need, which is
hours later, when an upgrade may have taken its files away."""


@dataclass
class Account:
    """A service that jobs are guarded on."""

    credentials: Credentials
    remote: Remote
    token: Token
    told: bool = False  # the caller knows that the token service refuses
    renews: bool = False  # its token is looked after


class Watcher:
    """A watcher for one caller.

    Args:
        connection: The caller's pipe.
        parent: The caller.
        sweep_window: See `policy.SWEEP_WINDOW`.
        state: The directory of the ledger.
        lease_seconds: How long a lease is held without being renewed.
    """

    def __init__(
        self, connection: Connection, parent: DriverProcess, sweep_window: float, state: str, lease_seconds: float
    ) -> None:
        self._policy = p.Policy(sweep_window)
        self._connection: Connection | None = connection
        self._parent = parent
        self._accounts: dict[str, Account] = {}
        self._crowds: dict[tuple[str, str], Crowd] = {}
        self._to_sweep: defaultdict[tuple[str, str], deque[tuple[str, str]]] = defaultdict(deque)
        self._events: queue.SimpleQueue[p.Event | Callable[[], object]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._lease_seconds = lease_seconds
        self._book = Book(state, parent.identity, self._complain, lease_seconds)
        self._written: Future[None] | None = None
        self._over = False
        self._is_dismissed = False  # by a SIGTERM that came when nothing was guarded

    def run(self) -> None:
        """Watch until nothing is left to do."""
        self._pool.submit(_load_http)
        self._after(LOAD_PSUTIL_AFTER, lambda: self._pool.submit(_load_psutil))
        self._after(LOAD_TOKENS_AFTER, lambda: self._pool.submit(_load_tokens))
        self._after(self._lease_seconds / 3, self._renew_leases)
        next_poll = time.monotonic() + POLL_SECONDS
        if self._parent.is_dead():
            self._bury()
        while not self._over:
            now = time.monotonic()
            if now >= next_poll:
                next_poll = now + POLL_SECONDS
                if self._policy.caller_alive and self._parent.poll_finds_dead():
                    self._bury()
                    continue
            until = min(next_poll, self._timers[0][0] if self._timers else next_poll)
            watched = [self._wake_reader.fileno()]
            if self._connection is not None:
                watched.append(self._connection.fileno())
            if self._policy.caller_alive:
                if self._parent.pidfd is not None:
                    watched.append(self._parent.pidfd)
            else:
                next_poll = float("inf")
                until = self._timers[0][0] if self._timers else now + 3600
            ready = _ready(watched, max(0.0, min(until - now, 3600.0)))  # poll(2) takes no centuries
            if self._policy.caller_alive and self._parent.pidfd in ready and self._parent.is_dead():
                self._bury()
            if self._connection is not None and self._connection.fileno() in ready:
                self._listen()
            if self._wake_reader.fileno() in ready:
                self._drain_wake()
            self._hear()
            self._fire()

    def leave(self) -> None:
        """Let the ledgers write what they were given, which may take a while where a database is away.

        A SIGTERM ends that, one that came when the loop had ended already included.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while not self._events.empty():
            self._is_dismissed |= isinstance(self._events.get_nowait(), p.Terminated)
        self._book.close(LEDGER_SECONDS)
        if not self._is_dismissed:
            self._book.wait_for_shared()

    def _complain(self, trouble: str) -> None:
        """The ledger fails: that costs the ledger only, and the caller hears of it once."""
        self.post(lambda: self._say("report", 0, event="ledger lost", run="", job="", detail=trouble))

    def _share(self, url: str) -> None:
        """Write to the ledger of many hosts, too."""

        def tell(event: str, detail: str) -> None:
            self.post(lambda: self._say("report", 0, event=f"shared ledger {event}", run="", job="", detail=detail))

        def lost(run: str, holder: str, detail: str) -> None:
            # Without a key it stays guarded by this watcher all the same: whoever has it now can only cancel it, too.
            self.post(p.Lost(run, holder, detail) if holder else lambda: self._do(p.Report("lost", run, detail=detail)))

        self._book.share(url, tell, lost)

    # What wakes it

    def _listen(self) -> None:
        """Take every message that the caller has sent."""
        while self._connection is not None and not self._over:
            try:
                if not self._connection.poll(0):
                    return
                data = self._connection.recv_bytes()
            except (EOFError, OSError):
                # No death: a daemonising driver may close it, and a forked child may hold it open after one.
                self._connection.close()
                self._connection = None
                self._handle(p.HungUp())
                return
            message: dict[str, Any] = {}
            try:
                message = decode_from_caller(data)
                if message["kind"] == "ledger":
                    self._share(message["url"])
                    continue
                if message["kind"] == "arm":
                    self._take(message)
                check_lease(message)
            except ProtocolError as error:
                self._handle(p.Malformed(str(error), message.get("seq", 0)))
            else:
                self._handle(p.Received(message))

    def _bury(self) -> None:
        """The caller is dead: first all that it had sent, so that a `done` sent before its death wins."""
        if self._policy.caller_alive:
            self._listen()
            self._book.driver_died()
            self._handle(p.DriverDied())

    def _hear(self) -> None:
        while not self._over:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if callable(event):
                event()
                continue
            if isinstance(event, p.Terminated):
                self._listen()  # what is stood down in the pipe is not guarded any more
                self._is_dismissed |= not self._policy.runs
            self._handle(event)

    def _fire(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic() and not self._over:
            heapq.heappop(self._timers)[2]()

    def _drain_wake(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def post(self, event: p.Event | Callable[[], object]) -> None:
        """Hand an event, or a call, to the loop; from any thread, or a signal handler."""
        self._events.put(event)
        try:
            self._wake_writer.send(b"\0")
        except BlockingIOError:
            pass  # it is awake already

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    # What the policy orders

    def _handle(self, event: p.Event) -> None:
        for action in self._policy.handle(event):
            try:
                self._do(action)
            except Exception as error:  # noqa: BLE001 - one fault must not end the watch over everything else
                self._say("report", 0, event="fault", run="", job="", detail=f"{type(error).__name__}: {error}")

    def _do(self, action: p.Action) -> None:
        match action:
            case p.Ack(seq):
                self._acknowledge(seq)
            case p.Nack(seq, reason):
                self._say("nack", seq, reason=reason)
            case p.Report(event, run, job, detail):
                self._say("report", 0, event=event, run=run, job=job, detail=detail)
            case p.Inspect(seq):
                self._say("ack", seq, **self._describe())
            case p.Prepare(account):
                self._pool.submit(lambda: self._prepare(account))
            case p.StartCancel(run, account, job, driver, asked):
                self._start_cancel(run, account, job, driver, asked=asked)
            case p.StartSweep(run, account, tag, session, driver):
                self._start_sweep(run, account, tag, session, driver)
            case p.StartClose(run, account, session, spares):
                self._start_close(run, account, session, spares=spares)
            case p.Answer(seq, content):
                self._say("ack", seq, **content)
            case p.Claim():
                self._claim(action)
            case p.Contest(run, holder):
                self._contest(run, holder)
            case p.RememberAnew(run, outcomes, holder):
                self._book.job_outcomes(run, outcomes, holder)
            case p.RememberLetGo(run, holder):
                self._book.let_go(run, holder)
            case p.Remember(run, "guarded", account, tag, driver, session, owner, _, lease):
                how = self._accounts[account].credentials
                self._written = self._book.guard(
                    Entry(
                        run=run,
                        tag=tag,
                        driver=driver,
                        endpoint=how.endpoint,
                        instance=how.instance,
                        session=session,
                        owner=owner,
                        lease=lease,
                    )
                )
            case p.Remember(run, state, detail=detail, lease=lease):
                self._book.finish(run, state, detail, lease.holder if lease else "")
            case p.RememberJob(run, job, outcome):
                self._book.job(run, job, outcome)
            case p.RememberAnswered(run, holder):
                self._book.answered(run, holder)
            case p.SetTimer(timer, seconds):
                self._after(seconds, lambda: self._handle(p.Fired(timer)))
            case p.Exit():
                self._over = True

    def _claim(self, claim: p.Claim) -> None:
        """Ask the ledger for a key, and tell the policy what it says."""
        how = self._accounts[claim.account].credentials
        entry = Entry(
            run=claim.run,
            tag=claim.tag,
            driver=claim.driver,
            endpoint=how.endpoint,
            instance=how.instance,
            lease=claim.lease,
        )

        def answered(said: Future[Ruling]) -> None:
            trouble = said.exception()
            if trouble is not None:
                self.post(p.Claimed(claim.seq, f"a key needs the ledger: {trouble}"))
                return
            ruling = said.result()
            row = ruling.row
            content = {
                "answer": ruling.answer,
                "run": row.run,
                "tag": row.tag,
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
            if ruling.answer == "granted":
                self.post(p.Claimed(claim.seq, "", content, row.run, row.tag or "", ruling.is_new, row.answered))
            else:
                self.post(p.Claimed(claim.seq, "", content))

        self._book.take(entry, claim.instances).add_done_callback(answered)

    def _contest(self, run: str, holder: str) -> None:
        """Ask the ledger whether a run is still its dead driver's, and tell the policy."""

        def answered(said: Future[bool]) -> None:
            self.post(p.Contested(run, holder, None if said.exception() else said.result()))

        self._book.contest(run, holder).add_done_callback(answered)

    def _renew_leases(self) -> None:
        """Hold the leases of this caller's runs for longer; see which of those that wait have been taken up."""
        leased = [run for run in self._policy.runs.values() if run.lease is not None]
        holders = [run.holder for run in leased if not run.waiting]
        if holders and self._policy.caller_alive:
            self._book.renew(holders)
        for run in leased:
            if run.waiting:
                self._look_whether_taken(run.id, run.holder)
        self._after(self._lease_seconds / 3, self._renew_leases)

    def _look_whether_taken(self, run: str, holder: str) -> None:
        def answered(said: Future[bool]) -> None:
            if said.exception() is None and not said.result():
                self.post(p.Lost(run, holder))

        self._book.holds(run, holder).add_done_callback(answered)

    def _acknowledge(self, seq: int) -> None:
        """Answer when the last row that was handed to the ledger is on disk, or the ledger takes too long."""
        written, self._written = self._written, None
        if written is None or written.done():
            self._say("ack", seq)
            return
        waiting = [seq]

        def answer() -> None:
            if waiting:
                self._say("ack", waiting.pop())

        written.add_done_callback(lambda _: self.post(answer))
        self._after(LEDGER_SECONDS, answer)

    def _say(self, kind: str, seq: int, **content: Any) -> None:
        """Send a message, unless the caller does not read: a stopped caller must not stop its watcher."""
        if self._connection is None:
            return
        try:
            if _is_writable(self._connection):
                self._connection.send_bytes(encode(kind, seq, **content))
        except OSError:
            pass  # it hung up; the end of its input will say so

    # Requests, made by threads

    def _take(self, message: dict[str, Any]) -> None:
        credentials = Credentials.from_json(message.pop("credentials"))
        known = self._accounts.get(message["account"])
        remote, token = watcher_remote(credentials)
        if known is not None:
            known.credentials, known.remote, known.token, known.told = credentials, remote, token, False
        else:
            self._accounts[message["account"]] = Account(credentials, remote, token)

    def _prepare(self, name: str) -> None:
        account = self._accounts[name]
        problem = ""
        try:
            # The acknowledgement waits for it: a cancel that is due at the next moment must not.
            account.remote.open()
            account.token.header()
        except RemoteError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - the caller waits to hear of it
            problem = f"no token could be had ({type(error).__name__})"
        self.post(p.Prepared(name, problem))
        if account.renews:
            return
        account.renews = True
        self._later(self._renewal(account), lambda: self._renew(name))

    @staticmethod
    def _renewal(account: Account) -> float:
        return max(TOKEN_RETRY, account.token.seconds_left() - TOKEN_MARGIN)

    def _renew(self, name: str) -> None:
        """Renew a token in good time, so that a key that was withdrawn is heard of while its driver lives."""
        account = self._accounts[name]
        if self._policy.runs and account.token.seconds_left() <= TOKEN_MARGIN:
            try:
                account.token.renew()
                account.told = False
            except Refused as error:
                if not account.told:
                    account.told = True
                    detail = str(error)
                    self.post(lambda: self._do(p.Report("token refused", detail=detail)))
            except RemoteError:
                pass  # the next try is due in a minute, and a cancel tries again by itself
        self._later(self._renewal(account), lambda: self._renew(name))

    def _start_cancel(self, run: str, account: str, job: str, driver: str, *, asked: bool) -> None:
        remote = self._accounts[account].remote
        crowd = None
        if driver:
            crowd = self._crowds.setdefault((account, driver), Crowd(remote, driver, time.monotonic))
            crowd.jobs.add(job)
        cancellation = Cancellation(job, remote, time.monotonic, asked=asked, crowd=crowd)

        def ended(outcome: str) -> p.Event:
            if crowd is not None:
                crowd.jobs.discard(job)
            return p.CancelEnded(run, job, outcome, cancellation.trouble if outcome == "unconfirmed" else "")

        self._carry(cancellation, remote, ended)

    def _start_close(self, run: str, account: str, session: str, *, spares: bool) -> None:
        remote = self._accounts[account].remote
        closing = Closing(session, remote, spares=spares)

        def ended(outcome: str) -> p.Event:
            return p.CloseEnded(run, closing.trouble if outcome == "unconfirmed" else "")

        self._carry(closing, remote, ended)

    def _carry(self, effort: Effort, remote: Remote, ended: Callable[[str], p.Event]) -> None:
        """Take an effort to its end, a step at a time."""
        deadline = time.monotonic() + GIVE_UP

        def step() -> None:
            closed = remote.seconds_closed()
            outcome = effort.step() if not closed or time.monotonic() >= deadline else closed
            if isinstance(outcome, str):
                self.post(ended(outcome))
            elif (left := deadline - time.monotonic()) <= 0:
                self.post(ended("unconfirmed"))
            else:
                self._later(min(outcome, left), step)  # a last try at the very end, whatever the service asks to wait

        self._pool.submit(step)

    def _later(self, seconds: float, work: Callable[[], object]) -> None:
        """Have a thread do something after a while; from any thread."""
        self.post(lambda: self._after(seconds, lambda: self._pool.submit(work)))

    def _start_sweep(self, run: str, account: str, tag: str, session: str, driver: str) -> None:
        remote = self._accounts[account].remote
        if session or not driver:

            def alone() -> None:
                self._sweep({run: tag}, remote, lambda: {tag: remote.unfinished(tag=tag, session=session)})

            self._pool.submit(alone)
            return
        # Who takes one takes all that wait: after a death they are as many as the runs.
        waiting = self._to_sweep[account, driver]
        waiting.append((run, tag))

        def together() -> None:
            if closed := remote.seconds_closed():
                self._later(closed, together)
                return
            tags = dict(_taken_from(waiting))
            if len(tags) > 1:
                self._sweep(tags, remote, lambda: remote.unfinished_by_tag(driver))
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
        except Exception as error:  # noqa: BLE001 - the policy waits to hear of it, and asks again
            detail = f"the service's answer could not be understood ({type(error).__name__})"
        for run, tag in tags.items():
            self.post(p.SweepEnded(run, None if found is None else found.get(tag, ()), detail))

    # What it knows of itself: its own user can't look into a process that is not dumpable

    def _describe(self) -> dict[str, Any]:
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


def _taken_from(waiting: deque[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """What waits, removed as it is taken, by any number of threads."""
    with contextlib.suppress(IndexError):
        while True:
            yield waiting.popleft()


def _ready(descriptors: list[int], seconds: float) -> set[int]:
    """Which of them have something to read, or are closed, within so many seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(math.ceil(seconds * 1000))}


def _load_http() -> None:
    import requests  # noqa: F401 - while the caller transpiles


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


def watch(order: dict[str, Any]) -> None:
    """Watch the caller that an order of `boot` describes, and end the process when nothing is left to do."""
    connection = Connection(order["connection"])
    parent = DriverProcess(DriverIdentity(order["pid"], order["start_ticks"]), order["pidfd"])
    sys.setswitchinterval(0.0005)  # a cancel waits for no other thread's import
    watcher = Watcher(connection, parent, order["sweep_window"], order["state"], order["lease_seconds"])
    signal.signal(signal.SIGTERM, lambda *_: watcher.post(p.Terminated()))
    me = os.getpid()
    connection.send_bytes(encode("ack", 0, pid=me, start_ticks=start_ticks(me)))
    watcher.run()
    watcher.leave()
    # Threads may wait for a service that does not answer; nobody waits for them.
    os._exit(0)
