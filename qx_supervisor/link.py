"""The driver's end of the connection to its watcher: it arms, announces and stands down.

There is one `Link` in a process, and one watcher for all its runs. A thread of the link starts the watcher, receives
its messages, and notices its death at once; then it starts another one, and tells it every run that is guarded. A
forked child closes the link and forgets it: the watcher is its parent's, and a child that runs jobs gets one of its
own.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from . import forks, placement, settings, shared_ledger
from .distribution import please_report
from .errors import WatcherError
from .launch import START_SECONDS, Starting, WatcherProcess, launch, start
from .threads import log_fault
from .watcher import ledger, protocol
from .watcher.facts import NOTHING, About, End, Figures

if TYPE_CHECKING:
    from multiprocess.connection import Connection

T = TypeVar("T")

logger = logging.getLogger("qx_supervisor")

ANSWER_SECONDS = 15.0
"""How long an answer may take: arming may wait for the token service."""

RUNNING_SECONDS = START_SECONDS + 5
"""How long to wait for a watcher that is being started."""

LINGER_SECONDS = 60.0
"""How long a watcher stays after the last run, for the next one."""

LOOK_SECONDS = 1.0
"""How often it is looked whether this process has closed the descriptors of a shared watcher."""

RELAUNCHES, RELAUNCH_SPAN = 3, 60.0
"""After more deaths of watchers than this, within this many seconds, no other one is started: something kills them."""

TRY_AGAIN_SECONDS = 60.0
"""After this, another start is tried, if there are runs to guard and none could be started."""

SEND_SECONDS = 5.0
"""How long a watcher may take to make room for a message. One that was stopped (`kill -STOP`) takes none, and all runs
would wait for it. So it is killed, and the next one is told everything."""


class CredentialsSource(Protocol):
    """Gives the credentials of an account."""

    def __call__(self, *, fetch: bool = True) -> protocol.Credentials:
        """The credentials, with the token at hand; fetch: with a new one, if that has expired."""


@dataclass
class Guarded:
    """A run that the watcher is to guard.

    Attributes:
        run: The run's id.
        account: The name under which its service is armed.
        tag: The tag that no other run has.
        report: Called with what the watcher reports of the run, in the link's thread.
        driver_tag: The tag of all jobs of this process, or "" if this run's have none.
        session: A session to guard as a whole, or "".
        owner: Whether this program owns that session.
        opened: Whether that session is only to be closed, and its jobs left to those who guard them.
        lease: The lease on its key; None without one.
        jobs: The ids of its jobs that are known.
        posted: None while a POST may still leave; then whether each was answered at the first try.
        cancelling: Whether this process requests the cancel itself.
        handed_over: Whether the watcher is to cancel it.
        let_go: Whether nobody waits for it any more; it has a key.
        about: What it is, for those who read the ledger.
        end: Why it ends, and how it has ended then.
    """

    run: str
    account: str
    tag: str
    report: Callable[[protocol.Report], None]
    driver_tag: str = ""
    session: str = ""
    owner: bool = False
    opened: bool = False
    lease: protocol.Lease | None = None
    jobs: list[str] = field(default_factory=list)
    posted: bool | None = None
    cancelling: bool = False
    handed_over: bool = False
    let_go: bool = False
    about: About = NOTHING
    end: End | None = None

    def intent(self) -> protocol.Intent | protocol.GuardSession | protocol.OpenedSession:
        """The message that announces it."""
        if self.opened:
            return protocol.OpenedSession(self.run, self.account, self.tag, self.session, self.about)
        if self.session:
            return protocol.GuardSession(self.run, self.account, self.tag, self.session, self.owner, self.about)
        return protocol.Intent(self.run, self.account, self.tag, self.driver_tag, self.lease, self.about)


@dataclass
class _Question:
    asked_of: WatcherProcess
    seq: int = 0
    answer: protocol.Ack | protocol.Nack | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class _Died(Exception):
    """The watcher died before it answered."""


class Link:
    """The driver's end. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._process: WatcherProcess | None = None
        self._thread: threading.Thread | None = None
        self._failure: WatcherError | None = None
        self._is_to_try = False  # a thread waits, and tries again then
        self._sources: dict[str, CredentialsSource] = {}
        self._armed: set[str] = set()
        self._runs: dict[str, Guarded] = {}
        self._questions: dict[int, _Question] = {}
        self._seq = 0
        self._advised = False
        self._idle_since = 0.0
        self._bye = -1  # the number of the last `Bye`
        self._leaving: WatcherProcess | None = None  # the last watcher that has agreed to leave
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
                    # while the driver builds its circuits.
                    begun = start()
                    thread = threading.Thread(target=self._serve, args=(begun,), name="qx-watcher-link", daemon=True)
                    thread.start()
                    self._thread = thread
                except Exception as error:  # noqa: BLE001 - too many threads, say; the next question raises it
                    self._failure = _as_watcher_error(error)

    @property
    def watcher_pid(self) -> int | None:
        """The watcher's process id, or None if there is no watcher."""
        process = self._process
        return process.pid if process else None

    def is_armed(self, account: str) -> bool:
        """Whether there is a watcher that is ready for an account."""
        with self._lock:
            return self._process is not None and account in self._armed

    def arm(self, account: str, source: CredentialsSource) -> None:
        """Get the watcher ready for an account, so that an announcement is quick.

        Raises:
            WatcherError: If there can be no watcher.
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

        def ask() -> protocol.Ack:
            with self._lock:
                self._runs[guarded.run] = guarded
            return self._ask(guarded.intent())

        self._ask_armed(guarded.account, source, ask)

    def announce_early(self, guarded: Guarded, source: CredentialsSource) -> Callable[[], None] | None:
        """Announce a run to a watcher that is there and armed, without waiting.

        Returns:
            A function that waits for the acknowledgement, and raises what `announce` does; None if there is no such
            watcher.
        """
        with self._lock:
            if not self.is_armed(guarded.account):
                return None
            self._runs[guarded.run] = guarded
            question = self._put(guarded.intent())

        def wait() -> None:
            try:
                self._await(question, ANSWER_SECONDS)
            except (_Died, WatcherError):
                self.announce(guarded, source)  # it died, or was leaving

        return wait

    def reserve(self, wanted: protocol.Reserve) -> protocol.ReserveAnswer | None:
        """Reserve QPU time for a POST; None if the watcher is of a release that knows no budgets.

        Raises:
            WatcherError: If there is no watcher.
        """
        for _ in range(RELAUNCHES + 1):
            with contextlib.suppress(_Died):  # asked again, it is not reserved twice
                with self._lock:
                    if not protocol.is_understood(wanted, self._running(RUNNING_SECONDS).version):
                        return None
                    question = self._put(wanted)
                ack = self._await(question, ANSWER_SECONDS)
                try:
                    return protocol.reserve_answer(ack)
                except protocol.ProtocolError as error:
                    raise WatcherError("config", f"the watcher's answer is refused: {error}") from None
        raise WatcherError("config", "the watcher keeps dying; look for what kills it (see `dmesg`), then run again")

    def job(self, run: str, job: str) -> None:
        """The id of a job of the run is known."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.jobs.append(job)
                self._tell(protocol.JobKnown(run, job))

    def posted(self, run: str, *, clean: bool) -> None:
        """No more POST of the run leaves. Clean: each was answered at the first try, so that no job is unknown."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.posted = clean
                self._tell(protocol.Posted(run, clean))

    def cancelling(self, run: str, end: End | None = None) -> None:
        """This process is about to request the cancel itself; should it die, the watcher looks first.

        Args:
            run: The run's id.
            end: Why, and how the run has ended then.
        """
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.cancelling, guarded.end = True, end
                self._tell(protocol.Cancelling(run, end))

    def figures(self, run: str, job: str, figures: Figures) -> None:
        """Have written down what a job cost; its run may be over."""
        message = protocol.JobFigures(run, job, figures)
        with self._lock:
            process = self._process
            if process is not None and not protocol.is_understood(message, process.version):
                return
            told = self._send(message)
        if not told:
            _write_figures(run, job, figures)

    def stand_down(self, run: str, of: Guarded | None = None, end: End | None = None) -> None:
        """The run is over: the watcher is to forget it.

        If its job goes on by itself, that is in the ledger when this returns.

        Args:
            run: The run's id.
            of: The call that stands down, if the run has a key: a later call of this process may have it by now.
            end: How it ended.
        """
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is None or guarded is not (of or guarded):
                return
            is_told = self._tell_done(guarded, end)
        if not is_told or _goes_on(guarded):
            _write_down([guarded], is_told=is_told)

    def detach(self, several: Sequence[Guarded], end: End, until: float) -> list[Guarded]:
        """Stand down for several runs whose jobs go on by themselves, as `stand_down` does for one.

        Args:
            several: The runs.
            end: How they ended.
            until: When no more are stood down, by the monotonic clock.

        Returns:
            Those that were stood down.
        """
        done, is_told = [], True
        for guarded in several:
            if time.monotonic() >= until:
                break
            with self._lock:
                if self._runs.get(guarded.run) is guarded:
                    is_told &= self._tell_done(guarded, end)
                    done.append(guarded)
        if done:
            _write_down(done, is_told=is_told)
        return done

    def _tell_done(self, guarded: Guarded, end: End | None) -> bool:
        """Returns whether there was a watcher to be told. Called with the lock held."""
        del self._runs[guarded.run]
        if not self._runs:
            self._changed.notify_all()
        guarded.end = end or guarded.end
        self._idle_since = time.monotonic()
        return self._send(protocol.StandDown(guarded.run, guarded.end))

    def hand_over(self, run: str, seconds: float, end: End | None = None) -> bool:
        """Leave the cancel of a run to the watcher.

        Args:
            run: The run's id.
            seconds: How long the watcher may take to answer.
            end: Why, and how the run has ended then.

        Returns:
            Whether it took it over within that many seconds.
        """
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is None:
                return False
            guarded.handed_over = True
            guarded.end = end or guarded.end
        until = time.monotonic() + seconds
        try:
            question = self._question(protocol.HandOver(run, guarded.end), seconds)
            self._await(question, max(0.0, until - time.monotonic()))
        except (WatcherError, _Died):
            return False
        return True

    def inspect(self) -> protocol.Inspection:
        """What the watcher knows of itself.

        Raises:
            WatcherError: If there is no watcher.
        """
        try:
            return cast(protocol.Inspection, self._ask(protocol.Inspect()).content)
        except _Died:
            raise WatcherError("config", "the watcher died") from None

    def is_guarded(self, run: str) -> bool:
        """Whether a watcher that lives knows of the run."""
        with self._lock:
            return self._process is not None and run in self._runs

    def all_guarded(self) -> list[Guarded]:
        """What is guarded now. Takes no lock, so that it can be asked while the interpreter ends."""
        return list(self._runs.values())

    def forget(self) -> None:
        """In a forked child: close the parent's connection and forget everything.

        Takes no lock: the thread that holds it may not exist here.
        """
        process = self._process
        if process is not None:
            try:
                process.close()
            except OSError:
                pass
        self.__init__()  # type: ignore[misc]

    # Runs with a key

    def take_lease(self, guarded: Guarded, source: CredentialsSource, instances: Sequence[str]) -> protocol.LeaseAnswer:
        """Ask for the lease on a run's key; if the answer is "granted", the run is guarded from here on.

        The run's id and tag become those that the ledger has under the key.

        Args:
            guarded: The run, with its `lease`.
            source: Gives the credentials of its account, with a token that is valid now.
            instances: The CRNs of all instances that this process can use.

        Raises:
            WatcherError: If there is no watcher, or no ledger.
        """
        lease = guarded.lease
        assert lease is not None

        # If the watcher dies before the run is entered here, the next one is not told of it. Then the lease is asked
        # for again, and the ledger finds that it is this run's already.
        def ask() -> protocol.LeaseAnswer:
            wanted = protocol.TakeLease(
                guarded.run,
                guarded.account,
                guarded.tag,
                guarded.driver_tag,
                lease,
                tuple(instances),
                guarded.about,
            )
            question = self._question(wanted, RUNNING_SECONDS)
            ack = self._await(question, ANSWER_SECONDS)
            try:
                found = protocol.lease_answer(ack)
            except protocol.ProtocolError as error:
                raise WatcherError("config", f"the watcher's answer is refused: {error}") from None
            if found["answer"] == "granted":
                with self._lock:
                    if self._process is not question.asked_of:
                        raise _Died
                    guarded.run, guarded.tag = found["run"], found["tag"]
                    if not found["is_new"]:
                        guarded.driver_tag = ""  # its jobs so far are another driver's
                    self._runs[guarded.run] = guarded
            return found

        return self._ask_armed(guarded.account, source, ask)

    def resubmit(self, run: str, outcomes: dict[str, str]) -> None:
        """The earlier jobs of a run with a key have ended, and another one will be submitted."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.jobs.clear()
                guarded.posted = None
                self._tell(protocol.Resubmit(run, outcomes))

    def let_go(self, run: str) -> None:
        """Nobody waits for a run with a key any more: its grace period begins, in which it may be taken up again."""
        with self._lock:
            guarded = self._runs.get(run)
            if guarded is not None:
                guarded.let_go = True
                self._tell(protocol.LetGo(run))

    # Questions and answers

    def _arm(self, account: str, source: CredentialsSource, credentials: protocol.Credentials) -> None:
        with self._lock:
            self._sources[account] = source
            if self._process is not None and account in self._armed:
                return
        question = self._question(protocol.Arm(account, credentials), RUNNING_SECONDS)
        self._await(question, ANSWER_SECONDS)
        with self._lock:
            if self._process is not question.asked_of:
                raise _Died  # the next one is not armed
            self._armed.add(account)

    def _ask_armed(self, account: str, source: CredentialsSource, ask: Callable[[], T]) -> T:
        """Ask a watcher that is armed for an account, and the next one if it dies, or was leaving.

        Raises:
            WatcherError: If there can be no watcher, or it refuses.
        """
        credentials = source()
        for attempt in range(RELAUNCHES + 1):
            try:
                self._arm(account, source, credentials)
                return ask()
            except _Died:
                continue
            except WatcherError as error:
                # The watcher had just agreed to leave: the next attempt starts another one.
                if error.reason != "leaving" or attempt == RELAUNCHES:
                    raise
                self._wait_for_end()
        raise WatcherError("config", "the watcher keeps dying; look for what kills it (see `dmesg`), then run again")

    def _ask(self, message: protocol.FromDriver) -> protocol.Ack:
        return self._await(self._question(message, RUNNING_SECONDS), ANSWER_SECONDS)

    def _question(self, message: protocol.FromDriver, seconds: float) -> _Question:
        """Send a question to a watcher, which may take some seconds to start."""
        with self._lock:
            self._running(seconds)
            return self._put(message)

    def _put(self, message: protocol.FromDriver) -> _Question:
        """Send a question to the watcher that runs. Called with the lock held."""
        assert self._process is not None
        question = _Question(self._process)
        question.seq = self._tell(message)
        self._questions[question.seq] = question
        return question

    def _await(self, question: _Question, seconds: float) -> protocol.Ack:
        if not question.answered.wait(seconds):
            with self._lock:
                is_late = self._questions.pop(question.seq, None) is not None
            if is_late:
                pid = question.asked_of.pid
                raise WatcherError("config", f"the watcher (pid {pid}) did not answer within {seconds:.0f} s")
            question.answered.wait()  # the answer is being received at this moment
        match question.answer:
            case None:
                raise _Died
            case protocol.Nack(reason):
                raise WatcherError("config", reason)
            case answer:
                return answer

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

    def _tell(self, message: protocol.FromDriver) -> int:
        """Send a message, if there is a watcher; returns its number. Called with the lock held."""
        self._send(message)  # if the watcher died, the link's thread notices, and tells the next one everything
        return self._seq

    def _send(self, message: protocol.FromDriver) -> bool:
        """Send a message; returns whether there was a watcher to take it. Called with the lock held."""
        self._seq += 1
        if self._process is None:
            return False
        try:
            if self._process.has_room(SEND_SECONDS):
                self._process.send(protocol.encode(message, self._seq, self._process.version))
                return True
            if self._process.is_intact():
                self._process.kill()
            else:  # this process closed the descriptors, which is no fault of other drivers' watcher
                self._process.give_up()
        except OSError:
            pass
        return False

    # The link's thread

    def _serve(self, begun: Starting | None) -> None:
        """Have a watcher for as long as one is needed; while none can be had, try again now and then."""
        while (failure := self._kept(begun)) is not None and self._tries_again(failure):
            begun = None

    def _kept(self, begun: Starting | None) -> WatcherError | None:
        """`_keep_one`, and whatever fails in it: the runs are to have another watcher."""
        try:
            return self._keep_one(begun)
        except Exception as error:  # noqa: BLE001 - see above
            log_fault()
            with self._lock:
                if self._process is not None:
                    self._lose(self._process)
            return _as_watcher_error(error)

    def _keep_one(self, begun: Starting | None) -> WatcherError | None:
        """Have a watcher; returns when none is needed any more, or why none can be had."""
        while True:
            try:
                process = launch(begun)
            except Exception as error:  # noqa: BLE001 - whatever it is, the runs that wait must hear of it
                return _as_watcher_error(error)
            begun = None
            with self._lock:
                self._process = process
                self._replay()
                self._changed.notify_all()
            if not self._advised:
                self._advised = True
                with contextlib.suppress(RuntimeError):  # no more threads can be started
                    threading.Thread(
                        target=placement.warn, args=(process.pid,), name="qx-placement", daemon=True
                    ).start()
            self._listen(process)
            with self._lock:
                self._lose(process)
                if not self._runs:
                    self._thread = None
                    return None
                if len(self._deaths) > RELAUNCHES and self._deaths[-1] - self._deaths[0] < RELAUNCH_SPAN:
                    return WatcherError("config", "the watcher keeps dying; look for what kills it (see `dmesg`)")
            logger.warning("the watcher (pid %d) died; starting another one", process.pid)

    def _lose(self, process: WatcherProcess) -> None:
        """Do without a watcher that is of no use any more. Called with the lock held."""
        self._process = None
        self._armed.clear()
        # If it lives, it was the connection that broke; or it has nothing to guard, and waits for the database, which
        # is to know what was let go.
        if self._leaving is not process:
            process.give_up()
        process.close()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.answered.set()
        self._deaths.append(time.monotonic())
        self._changed.notify_all()

    def _tries_again(self, failure: WatcherError) -> bool:
        """Say that no watcher can be had, and wait; returns whether this thread is to try again.

        It waits in this thread, and not in a timer's: whatever keeps a watcher from being started may keep a thread
        from it, too.
        """
        with self._lock:
            runs = len(self._runs)
            self._failure, self._thread = failure, None  # a run that begins meanwhile tries at once
            self._changed.notify_all()
        if not runs:
            return False
        logger.warning("%d runs are not protected any more: %s", runs, failure.reason)
        with self._lock:
            if self._is_to_try:  # another thread waits already
                return False
            self._is_to_try = True
            self._changed.wait_for(lambda: self._process is not None or not self._runs, TRY_AGAIN_SECONDS)
            self._is_to_try = False
            if not self._runs or self._process is not None or self._thread is not None:
                return False
            self._failure, self._thread = None, threading.current_thread()
            return True

    def _replay(self) -> None:
        """Tell a new watcher every guarded run. Called with the lock held."""
        if url := settings.ledger_url():
            self._tell(protocol.UseLedger(url))
        notify = settings.notify()
        if notify is not None and self._process is not None and protocol.is_understood(notify, self._process.version):
            self._tell(notify)
        # No token is fetched here, and no account counts as armed: it may be the token service that fails. The watcher
        # asks it by itself, and the next run arms the account again.
        for account in {guarded.account for guarded in self._runs.values()}:
            self._tell(protocol.Arm(account, self._sources[account](fetch=False)))
        for guarded in self._runs.values():
            self._tell(guarded.intent())
            for job in guarded.jobs:
                self._tell(protocol.JobKnown(guarded.run, job))
            if guarded.posted is not None:
                self._tell(protocol.Posted(guarded.run, guarded.posted))
            if guarded.cancelling:
                self._tell(protocol.Cancelling(guarded.run, guarded.end))
            if guarded.let_go:
                self._tell(protocol.LetGo(guarded.run))
            if guarded.handed_over:
                self._tell(protocol.HandOver(guarded.run, guarded.end))

    def _listen(self, process: WatcherProcess) -> None:
        """Receive the watcher's messages until it is gone."""
        from multiprocess.connection import wait

        watched: list[Connection | int] = [process.connection]
        if process.pidfd is not None:
            watched.append(process.pidfd)
        # The closing of a descriptor does not end a wait for it, and a shared watcher is not killed for it.
        pause = LOOK_SECONDS if process.is_shared else LINGER_SECONDS / 4
        while True:
            ready = wait(watched, pause)
            if not process.is_intact():
                return
            if process.connection in ready:
                try:
                    seq, message = protocol.decode_from_watcher(process.connection.recv_bytes())
                except (EOFError, OSError):
                    return
                except protocol.ProtocolError as error:
                    logger.warning("the watcher (pid %d) sent a message that is refused: %s", process.pid, error)
                    return
                self._receive(seq, message)
            elif ready:
                return
            else:
                self._let_leave()

    def _let_leave(self) -> None:
        """Say goodbye to a watcher that had nothing to do for a while."""
        with self._lock:
            if not self._runs and time.monotonic() - self._idle_since >= LINGER_SECONDS:
                # An intent that crosses this is refused, and its run gets a new watcher.
                self._bye = self._tell(protocol.Bye())
                self._idle_since = time.monotonic()

    def _receive(self, seq: int, message: protocol.FromWatcher) -> None:
        if isinstance(message, protocol.Report):
            self._receive_report(message)
            return
        with self._lock:
            question = self._questions.pop(seq, None)
            if question is not None:
                question.answer = message
                question.answered.set()
            elif seq == self._bye:
                if isinstance(message, protocol.Ack):
                    self._leaving = self._process
                # A watcher that still looks for duplicates refuses to leave.
            elif isinstance(message, protocol.Ack):
                # A lease that was asked for, and for which nobody waits any more.
                run = str(message.content.get("run"))
                if message.content.get("answer") == "granted" and run not in self._runs:
                    self._tell(protocol.LetGo(run))
            else:
                logger.warning("the watcher refused a message: %s", message.reason)

    def _receive_report(self, report: protocol.Report) -> None:
        match report.event:
            case "ledger lost":
                logger.warning(
                    "the ledger can't be kept (%s): the watcher protects the runs all the same, but should it die with "
                    "this process, their jobs would not be found again",
                    report.detail,
                )
            case "shared ledger away":
                logger.warning(
                    "the shared ledger is away (%s): the watcher protects the runs all the same, but should "
                    "this host be lost, their jobs would not be cancelled; it is tried again",
                    report.detail,
                )
            case "shared ledger back":
                logger.info("the shared ledger is back")
            case "fault":
                logger.error("a fault in the watcher, which goes on: %s; %s", report.detail, please_report())
            case "token refused":
                logger.warning(
                    "the token service refuses this account's API key (%s): jobs in flight could not be cancelled if "
                    "this process died; check the key",
                    report.detail,
                )
            case "cancelled" | "finished" | "gone" | "unconfirmed" | "pending" | "done" | "lost":
                self._receive_report_of_run(report)
            case _:  # of a later release
                logger.warning(  # type: ignore[unreachable]
                    "the watcher reported an event that this process does not know: %s", report.event
                )

    def _receive_report_of_run(self, report: protocol.Report) -> None:
        with self._lock:
            guarded = self._runs.get(report.run)
        if guarded is None:
            return
        guarded.report(report)
        is_over = report.event in ("cancelled", "pending") and not report.job
        # Without a key the watcher guards it all the same: a reaper has it, and can only cancel too.
        is_lost = report.event == "lost" and guarded.lease is not None
        if is_lost or (is_over and (guarded.handed_over or guarded.let_go)):
            self.stand_down(guarded.run)

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


def _goes_on(guarded: Guarded) -> bool:
    """Whether the job of a run that was stood down goes on by itself."""
    return guarded.end is not None and guarded.end.outcome == "detached"


def _write_down(several: Sequence[Guarded], *, is_told: bool) -> None:
    """Write to the ledger that runs were stood down: for want of a watcher that could, or since it may die as well.

    The next watcher is not told of a run. Its row would become an orphan's when this process ends, and whoever reaps
    would cancel a job that its driver let go. So it would if this process and its watcher ended together, as at the end
    of a container, before the watcher has written what it was told. The watcher writes the same.
    """
    over = [
        shared_ledger.StoodDown(
            guarded.run,
            guarded.lease.holder if guarded.lease is not None else "",
            tuple(guarded.jobs),
            guarded.end,
            guarded.posted is not False or not guarded.jobs,  # else there may be duplicates, for whoever reaps
        )
        for guarded in several
    ]
    try:
        with ledger.Ledger.open(ledger.state_directory()) as book, book.batch(durable=True):
            for each in over:
                _write_one_down(book, each)
    except ledger.LedgerError as error:
        logger.debug("the ledger does not show that %d runs are over: %s", len(over), error)
    shared_ledger.stand_down(over, is_told=is_told)


def _write_one_down(book: ledger.Ledger, each: shared_ledger.StoodDown) -> None:
    try:
        for job in each.jobs:
            book.job_outcome(each.run, job, "kept", holder=each.holder)
        if each.is_over:
            book.finish(each.run, "done", holder=each.holder, end=each.end)
    except ledger.LedgerError as error:  # its row was never written, say
        logger.debug("the ledger does not show that run %s is over: %s", each.run, error)


def _write_figures(run: str, job: str, figures: Figures) -> None:
    """Write what a job cost to this machine's ledger, if there is no watcher any more that could."""
    with contextlib.suppress(ledger.LedgerError), ledger.Ledger.open(ledger.state_directory()) as book:
        book.job_figures(run, job, figures)


link = Link()
forks.reset_in_child(link.forget)
