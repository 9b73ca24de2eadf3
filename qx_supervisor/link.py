"""The caller's end of the pipe to the watcher: arm, announce, stand down.

One `Link` per process, one watcher for all its runs. A thread of the link starts the watcher, hears its answers,
notices its death at once, and then starts another one and tells it every run that is guarded. In a forked child the
link is closed and forgotten: the watcher is the parent's, and a child that runs jobs gets one of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import placement, shared_ledger
from .errors import WatcherError
from .launch import START_SECONDS, Starting, WatcherProcess, launch, start
from .watcher import ledger, protocol

logger = logging.getLogger("qx_supervisor")

ANSWER_SECONDS = 15.0
"""How long an answer may take: arming may wait for the token service."""

LINGER_SECONDS = 60.0
"""How long a watcher stays after the last run, for the next one."""

RELAUNCHES, RELAUNCH_SPAN = 3, 60.0
"""More deaths of watchers in so many seconds, and no other one is started: something kills them."""

TRY_AGAIN_SECONDS = 60.0
"""After which another start is tried, where there are runs to guard and none could be started."""

SEND_SECONDS = 5.0
"""How long a watcher may take to make room for a message. One that was stopped (`kill -STOP`) takes nothing, and all
runs would wait for it. Then it is ended, and the next one is told everything."""


class CredentialsSource(Protocol):
    """Gives the credentials of an account."""

    def __call__(self, *, fetch: bool = True) -> protocol.Credentials:
        """The credentials, with the token at hand; fetch: with a new one, where that has expired."""


@dataclass
class Guarded:
    """A run that the watcher is to know of.

    Attributes:
        run: The run's id.
        account: The name under which its service is armed.
        tag: The tag that no other run has.
        driver: The tag of all jobs of this process, or "" where this one's have none.
        report: Called with what the watcher reports of the run, in the link's thread.
        session: A session to guard as a whole, or "".
        owner: Whether that session is this program's own.
        opened: Whether it is only to be closed, with the jobs in it left to those who guard them.
        lease: What the ledger is told of its key; None without one.
    """

    run: str
    account: str
    tag: str
    report: Callable[[dict[str, Any]], None]
    driver: str = ""
    session: str = ""
    owner: bool = False
    opened: bool = False
    lease: protocol.Lease | None = None
    jobs: list[str] = field(default_factory=list)
    posted: bool | None = None
    handed_over: bool = False
    let_go: bool = False

    def intent(self) -> tuple[str, dict[str, Any]]:
        """The message that announces it: its kind, and what it says."""
        content = {"run": self.run, "account": self.account, "tag": self.tag}
        if self.opened:
            return "opened", {**content, "session": self.session}
        if self.session:
            return "session", {**content, "session": self.session, "owner": self.owner}
        return "intent", {**content, "driver": self.driver, "lease": self.lease.to_json() if self.lease else {}}


@dataclass
class _Question:
    asked_of: WatcherProcess
    seq: int = 0
    answer: dict[str, Any] | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class _Died(Exception):
    """The watcher died before it answered."""


class Link:
    """The caller's end. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._process: WatcherProcess | None = None
        self._thread: threading.Thread | None = None
        self._failure: WatcherError | None = None
        self._sources: dict[str, CredentialsSource] = {}
        self._armed: set[str] = set()
        self._runs: dict[str, Guarded] = {}
        self._questions: dict[int, _Question] = {}
        self._seq = 0
        self._advised = False
        self._idle_since = 0.0
        self._bye = -1  # the number of the last goodbye
        self._deaths: deque[float] = deque(maxlen=RELAUNCHES + 1)

    # What a run says

    def prepare(self) -> None:
        """Begin to start the watcher, unless there is one; that takes some milliseconds."""
        with self._lock:
            self._idle_since = time.monotonic()
            if self._process is None and self._thread is None:
                self._failure = None
                try:
                    # Here, and not in the thread, which would have to wait for the interpreter's lock again and again
                    # while the caller builds its circuits.
                    begun = start()
                    thread = threading.Thread(target=self._serve, args=(begun,), name="qx-watcher-link", daemon=True)
                    thread.start()
                    self._thread = thread
                except Exception as error:  # noqa: BLE001 - too many threads, for one; who needs the watcher hears of it
                    self._failure = _as_watcher_error(error)

    @property
    def watcher_pid(self) -> int | None:
        """The watcher's process id, or None where there is none."""
        process = self._process
        return process.pid if process else None

    def is_armed(self, account: str) -> bool:
        """Whether there is a watcher that is ready for an account."""
        with self._lock:
            return self._process is not None and account in self._armed

    def arm(self, account: str, source: CredentialsSource) -> None:
        """Have the watcher ready for an account, so that an announcement takes no longer than it must.

        Raises:
            WatcherError: If there can be none.
        """
        with contextlib.suppress(_Died):  # an announcement tries again
            self._arm(account, source, source())

    def announce(self, guarded: Guarded, source: CredentialsSource) -> None:
        """Tell the watcher that a POST of this run is about to leave; returns when it has acknowledged that.

        Args:
            guarded: The run.
            source: Gives the credentials of its account, with a token that is valid now.

        Raises:
            WatcherError: If the run can't be protected.
        """

        def ask() -> dict[str, Any]:
            with self._lock:
                self._runs[guarded.run] = guarded
            kind, content = guarded.intent()
            return self._ask(kind, **content)

        self._ask_armed(guarded.account, source, ask)

    def announce_early(self, guarded: Guarded, source: CredentialsSource) -> Callable[[], None] | None:
        """Announce a run to a watcher that is there and armed, and do not wait.

        Returns:
            What waits for the acknowledgement, and raises what `announce` does; None if there is no such watcher.
        """
        with self._lock:
            if not self.is_armed(guarded.account):
                return None
            self._runs[guarded.run] = guarded
            kind, content = guarded.intent()
            question = self._put(kind, **content)

        def wait() -> None:
            try:
                self._await(question, ANSWER_SECONDS)
            except (_Died, WatcherError):
                self.announce(guarded, source)  # it died, or was leaving

        return wait

    def job(self, run: str, job: str) -> None:
        """The id of a job of the run is known."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.jobs.append(job)
                self._tell("job", run=run, job=job)

    def posted(self, run: str, *, clean: bool) -> None:
        """No POST of the run leaves any more. Clean: each was answered at the first try, so no job is unknown."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.posted = clean
                self._tell("posted", run=run, clean=clean)

    def cancelling(self, run: str) -> None:
        """This process is about to ask for the cancel itself; should it die, the watcher looks first."""
        with self._lock:
            if run in self._runs:
                self._tell("cancelling", run=run)

    def stand_down(self, run: str, of: Guarded | None = None) -> None:
        """The run is over: the watcher is to forget it.

        Args:
            run: The run's id.
            of: Whose it was, of a run with a key: a later call of this process may have it by now.
        """
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is None or guarded is not (of or guarded):
                return
            del self._runs[run]
            told = self._send("done", run=run)
            self._idle_since = time.monotonic()
        if not told:
            _write_down(guarded)

    def hand_over(self, run: str, seconds: float) -> bool:
        """Leave the cancel of a run to the watcher.

        Returns:
            Whether it said within so many seconds that it will.
        """
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is None:
                return False
            guarded.handed_over = True
        try:
            self._ask("cancel", run=run, seconds=seconds)
        except (WatcherError, _Died):
            return False
        return True

    def inspect(self) -> dict[str, Any]:
        """What the watcher knows of itself.

        Raises:
            WatcherError: If there is none.
        """
        try:
            return self._ask("inspect")
        except _Died:
            raise WatcherError("config", "the watcher died") from None

    def is_guarded(self, run: str) -> bool:
        """Whether a watcher that lives knows of the run."""
        with self._lock:
            return self._process is not None and run in self._runs

    def all_guarded(self) -> list[Guarded]:
        """What is guarded now. Takes no lock, so that the end of the interpreter can ask."""
        return list(self._runs.values())

    def forget(self) -> None:
        """In a forked child: close the parent's pipe and know nothing. Takes no lock: its holder is not here."""
        process = self._process
        if process is not None:
            try:
                process.close()
            except OSError:
                pass
        self.__init__()  # type: ignore[misc]

    # Runs with a key

    def claim(self, guarded: Guarded, source: CredentialsSource, instances: Sequence[str]) -> dict[str, Any]:
        """Ask for the key of a run; if the answer is "granted", the run is guarded from here on.

        The run's id and tag become those that the ledger has under the key.

        Args:
            guarded: The run, with its `lease`.
            source: Gives the credentials of its account, with a token that is valid now.
            instances: The CRNs of all instances that this process can use.

        Returns:
            What the watcher answered: "answer" (`watcher.ledger.lease.Answer`), "run", "tag", "jobs" and the rest.

        Raises:
            WatcherError: If the watcher, or the ledger, can't be had.
        """
        lease = guarded.lease
        assert lease is not None

        # If the watcher dies before the run is entered here, the next one is not told of it. Then the key is asked for
        # again, and the ledger finds that the lease is this run's already.
        def ask() -> dict[str, Any]:
            question = self._question(
                "claim",
                START_SECONDS + 5,
                run=guarded.run,
                account=guarded.account,
                tag=guarded.tag,
                driver=guarded.driver,
                lease=lease.to_json(),
                instances=list(instances),
            )
            found = self._await(question, ANSWER_SECONDS)
            if found["answer"] == "granted":
                with self._lock:
                    if self._process is not question.asked_of:
                        raise _Died
                    guarded.run, guarded.tag = found["run"], found["tag"]
                    if not found["is_new"]:
                        guarded.driver = ""  # its jobs so far are another driver's
                    self._runs[guarded.run] = guarded
            return found

        return self._ask_armed(guarded.account, source, ask)

    def anew(self, run: str, outcomes: dict[str, str]) -> None:
        """What became of the jobs of a run with a key; another one will be submitted."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.jobs.clear()
                guarded.posted = None
                self._tell("anew", run=run, outcomes=outcomes)

    def let_go(self, run: str) -> None:
        """Nobody waits for a run with a key any more: its grace begins, in which it may be taken up again."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.let_go = True
                self._tell("let go", run=run)

    # Questions and answers

    def _arm(self, account: str, source: CredentialsSource, credentials: protocol.Credentials) -> None:
        with self._lock:
            self._sources[account] = source
            if self._process is not None and account in self._armed:
                return
        question = self._question("arm", START_SECONDS + 5, account=account, credentials=credentials.to_json())
        self._await(question, ANSWER_SECONDS)
        with self._lock:
            if self._process is not question.asked_of:
                raise _Died  # the next one has not heard of it
            self._armed.add(account)

    def _ask_armed(self, account: str, source: CredentialsSource, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Ask a watcher that is armed for an account, and the next one if it dies, or was leaving.

        Raises:
            WatcherError: If there can be none, or it refuses.
        """
        credentials = source()
        for attempt in range(RELAUNCHES + 1):
            try:
                self._arm(account, source, credentials)
                return ask()
            except _Died:
                continue
            except WatcherError as error:
                # A watcher that was leaving when the question crossed its goodbye: there will be another.
                if error.reason != "leaving" or attempt == RELAUNCHES:
                    raise
                self._wait_for_end()
        raise WatcherError("config", "the watcher keeps dying; look for what kills it (see `dmesg`), then run again")

    def _ask(self, kind: str, seconds: float = ANSWER_SECONDS, **content: Any) -> dict[str, Any]:
        until = time.monotonic() + seconds
        question = self._question(kind, seconds if kind == "cancel" else START_SECONDS + 5, **content)
        return self._await(question, max(0.0, until - time.monotonic()) if kind == "cancel" else seconds)

    def _question(self, kind: str, seconds: float, **content: Any) -> _Question:
        """Send a question to a watcher, which may take so many seconds to start."""
        with self._lock:
            self._running(seconds)
            return self._put(kind, **content)

    def _put(self, kind: str, **content: Any) -> _Question:
        """Send a question to the watcher that runs. Called with the lock held."""
        assert self._process is not None
        question = _Question(self._process)
        question.seq = self._tell(kind, **content)
        self._questions[question.seq] = question
        return question

    def _await(self, question: _Question, seconds: float) -> dict[str, Any]:
        if not question.answered.wait(seconds):
            with self._lock:
                is_late = self._questions.pop(question.seq, None) is not None
            if is_late:
                pid = question.asked_of.pid
                raise WatcherError("config", f"the watcher (pid {pid}) did not answer within {seconds:.0f} s")
            question.answered.wait()  # it is being heard at this moment
        if question.answer is None:
            raise _Died
        if question.answer["kind"] == "nack":
            raise WatcherError("config", str(question.answer.get("reason")))
        return question.answer

    def _running(self, seconds: float) -> WatcherProcess:
        """The watcher, started if there is none. Called with the lock held."""
        self.prepare()
        deadline = time.monotonic() + seconds
        while self._process is None:
            if self._failure is not None:
                raise self._failure
            if not self._changed.wait(deadline - time.monotonic()):
                raise WatcherError("config", "the watcher did not start in time; is the machine overloaded?")
        return self._process

    def _tell(self, kind: str, **content: Any) -> int:
        """Send a message, if there is a watcher to send it to; returns its number. Called with the lock held."""
        self._send(kind, **content)  # if it died, the link's thread sees that, and tells the next one all
        return self._seq

    def _send(self, kind: str, **content: Any) -> bool:
        """Send a message; returns whether there was a watcher to take it. Called with the lock held."""
        self._seq += 1
        if self._process is None:
            return False
        try:
            if self._process.takes(SEND_SECONDS):
                self._process.connection.send_bytes(protocol.encode(kind, self._seq, **content))
                return True
            self._process.kill()
        except OSError:
            pass
        return False

    # The link's thread

    def _serve(self, begun: Starting | None) -> None:
        while True:
            try:
                process = launch(begun)
            except Exception as error:  # noqa: BLE001 - whatever it is, the runs that wait must hear of it
                self._give_up(_as_watcher_error(error))
                return
            begun = None
            with self._lock:
                self._process = process
                self._replay()
                self._changed.notify_all()
            if not self._advised:
                self._advised = True
                with contextlib.suppress(RuntimeError):  # no thread can be had any more
                    threading.Thread(target=placement.warn, name="qx-placement", daemon=True).start()
            self._listen(process)
            with self._lock:
                self._process = None
                self._armed.clear()
                process.kill()  # if it lives, it was the pipe that broke
                process.close()
                questions, self._questions = self._questions, {}
                for question in questions.values():
                    question.answered.set()
                self._deaths.append(time.monotonic())
                self._changed.notify_all()
                if not self._runs:
                    self._thread = None
                    return
                if len(self._deaths) > RELAUNCHES and self._deaths[-1] - self._deaths[0] < RELAUNCH_SPAN:
                    break
            logger.warning("the watcher (pid %d) died; starting another one", process.pid)
        self._give_up(WatcherError("config", "the watcher keeps dying; look for what kills it (see `dmesg`)"))

    def _give_up(self, failure: WatcherError) -> None:
        with self._lock:
            runs = len(self._runs)
            self._failure = failure
            self._thread = None
            self._changed.notify_all()
        if runs:
            logger.warning("%d runs are not protected any more: %s", runs, failure.reason)
            again = threading.Timer(TRY_AGAIN_SECONDS, self._try_again)
            again.daemon = True
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                again.start()

    def _try_again(self) -> None:
        with self._lock:
            if self._runs:
                self.prepare()

    def _replay(self) -> None:
        """Tell a new watcher every guarded run. Called with the lock held."""
        if url := shared_ledger.url():
            self._tell("ledger", url=url)
        # Nothing is fetched here, and no account passes for armed: the token service may be what is out of order. The
        # watcher asks it by itself, and the next run asks for the account to be armed again.
        for account in {guarded.account for guarded in self._runs.values()}:
            self._tell("arm", account=account, credentials=self._sources[account](fetch=False).to_json())
        for guarded in self._runs.values():
            kind, content = guarded.intent()
            self._tell(kind, **content)
            for job in guarded.jobs:
                self._tell("job", run=guarded.run, job=job)
            if guarded.posted is not None:
                self._tell("posted", run=guarded.run, clean=guarded.posted)
            if guarded.let_go:
                self._tell("let go", run=guarded.run)
            if guarded.handed_over:
                self._tell("cancel", run=guarded.run)

    def _listen(self, process: WatcherProcess) -> None:
        """Hear the watcher until it is gone."""
        from multiprocess.connection import wait

        watched: list[Any] = [process.connection]
        if process.pidfd is not None:
            watched.append(process.pidfd)
        while True:
            ready = wait(watched, LINGER_SECONDS / 4)
            if not process.is_whole():
                return
            if process.connection in ready:
                try:
                    self._hear(protocol.decode_from_watcher(process.connection.recv_bytes()))
                except (EOFError, OSError, protocol.ProtocolError):
                    return
            elif ready or self._may_leave():
                return

    def _may_leave(self) -> bool:
        """Say goodbye to a watcher that had nothing to do for a while; True if it leaves."""
        with self._lock:
            if self._runs or time.monotonic() - self._idle_since < LINGER_SECONDS:
                return False
            # An intent that crosses this is refused, and its run gets a new watcher.
            self._bye = self._tell("bye")
            self._idle_since = time.monotonic()
            return False

    def _hear(self, message: dict[str, Any]) -> None:
        with self._lock:
            question = self._questions.pop(message["seq"], None)
            guarded = self._runs.get(message.get("run", ""))
        if question is not None:
            question.answer = message
            question.answered.set()
        elif message.get("answer") == "granted" and guarded is None:  # a key that nobody waits for any more
            with self._lock:
                self._tell("let go", run=message["run"])
        elif message["kind"] == "report":
            if message["event"] == "ledger lost":
                logger.warning(
                    "the ledger can't be kept (%s): the watcher protects the runs all the same, but should it die with "
                    "this process, their jobs would not be found again",
                    message["detail"],
                )
            elif message["event"] == "shared ledger away":
                logger.warning(
                    "the ledger of many hosts is away (%s): the watcher protects the runs all the same, but should "
                    "this host be lost, their jobs would not be cancelled; it is tried again",
                    message["detail"],
                )
            elif message["event"] == "shared ledger back":
                logger.info("the ledger of many hosts is back")
            elif message["event"] == "fault":
                logger.error("a fault in the watcher, which goes on: %s; please report it", message["detail"])
            elif message["event"] == "token refused":
                logger.warning(
                    "the token service refuses this account's API key (%s): jobs in flight could not be cancelled if "
                    "this process died; check the key",
                    message["detail"],
                )
            elif guarded is not None:
                guarded.report(message)
                is_over = message["event"] in ("cancelled", "pending") and not message["job"]
                # Without a key the watcher guards it all the same: who has it now is a reaper, and can only cancel too.
                is_lost = message["event"] == "lost" and guarded.lease is not None
                if is_lost or (is_over and (guarded.handed_over or guarded.let_go)):
                    self.stand_down(guarded.run)
        elif message["kind"] == "nack" and message["seq"] != self._bye:  # who still looks for duplicates stays
            logger.warning("the watcher refused a message: %s", message["reason"])

    def _wait_for_end(self) -> None:
        """Wait until a watcher that is leaving has left."""
        with self._lock:
            deadline = time.monotonic() + 5
            leaving = self._process
            while self._process is leaving and leaving is not None:
                if not self._changed.wait(deadline - time.monotonic()):
                    return


def _as_watcher_error(error: Exception) -> WatcherError:
    if isinstance(error, WatcherError):
        return error
    return WatcherError("config", f"the watcher could not be started: {error} ({type(error).__name__})")


def _write_down(guarded: Guarded) -> None:
    """Write to the ledger that a run was stood down, for want of a watcher that could.

    The next watcher is not told of it any more. Left as it is, its row would be an orphan's once this process ends, and
    whoever reaps would cancel a job that was let go.
    """
    is_over = guarded.posted is not False or not guarded.jobs  # else there may be duplicates, for whoever reaps
    shared_ledger.stand_down(guarded.run, guarded.jobs, is_over=is_over)
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            for job in guarded.jobs:
                book.job_outcome(guarded.run, job, "kept")
            if is_over:
                book.finish(guarded.run, "done", durable=True)
    except ledger.LedgerError as error:
        logger.debug("run %s is not written down as over: %s", guarded.run, error)


link = Link()
os.register_at_fork(after_in_child=link.forget)
