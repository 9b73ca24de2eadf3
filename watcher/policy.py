"""The watcher's decisions, as a pure state machine.

`Policy.handle(event)` returns the actions that an event calls for, in order. There is no clock here, no I/O and no
process, so that every interleaving of messages, deaths, answers and timers can be tested. Two things must always hold:

- a run that was not stood down before its driver died has its jobs cancelled, or is recorded as pending;
- the job that a driver holds, alive or stood down, is never cancelled.

The life of a run: `Intent` (a POST is about to leave; the job's id is not known) → `JobKnown` → `StandDown`. A run is
*doomed* once its driver is dead, or hands the cancel over. Then its known jobs are cancelled at once, and its tag is
swept: for jobs whose id the driver never learned, and for duplicates that a retried POST made. While the sweep window
is open, a sweep that finds nothing proves nothing, and is repeated.

A run with a key has a lease, which was taken before all this. Its driver's death does not doom it: it *waits* for its
grace period, so that a driver that comes back can take it up again, with a watcher of its own. Then this watcher takes
the lease again (`RetakeLease`). If it gets it the run is doomed; if not, the run is another's, and is forgotten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from . import protocol
from .charges import Charges
from .facts import NOTHING, About, End, Figures
from .protocol import SWEEP_WINDOW, Lease, LeaseAnswer, Outcome, Report
from .value import Value

SWEEP_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between sweeps while the window is open; the last one repeats."""

SWEEP_FAILURES = 34
"""Failed sweeps in a row after which a run is recorded as pending: 15 minutes, with the pauses above."""

RETAKE_PAUSE = 15.0
"""Seconds until a ledger that could not say who has a lease is asked again."""

RETAKE_FAILURES = 40
"""Failures in a row after which the jobs are cancelled: ten minutes, in which nobody else could take the lease
either."""

LEAVE_SECONDS = 1.0
"""How long a watcher that agreed to leave stays, to refuse an intent that crossed its answer."""


class Timer(NamedTuple):
    """What is due when a timer fires.

    Attributes:
        kind: "window": the sweep window closes; "sweep": the pause between two sweeps is over; "grace": the grace
            period is over; "retake": the ledger is asked again; "charge": a job's charge is read again; "leave": the
            watcher leaves.
        run: The run that it is about, or "".
        holder: The holder of the run's lease for whom it was set ("grace", "retake"), or "".
        job: The job that it is about ("charge"), or "".
    """

    kind: Literal["window", "sweep", "grace", "retake", "charge", "leave"]
    run: str = ""
    holder: str = ""
    job: str = ""


# Events ---------------------------------------------------------------------------------------------------------


class Received(Value):
    """A message of the driver's, but for `UseLedger` and `Notify`."""

    seq: int
    message: protocol.FromDriver


class Malformed(Value):
    """The driver sent bytes that are no message, or one that can't be used."""

    reason: str
    seq: int = 0


class HungUp(Value):
    """The driver's end of the connection is closed. That is not a death."""


class DriverDied(Value):
    """The driver is dead, and everything that it had sent has been received."""


class Prepared(Value):
    """An account can be used, or could not be made usable (`problem`)."""

    account: str
    problem: str = ""


class LeaseTaken(Value):
    """The ledger has answered a `TakeLease`, or could not be asked (`problem`)."""

    seq: int
    answer: LeaseAnswer | None
    problem: str = ""


class LeaseRetaken(Value):
    """The lease of a run was taken again (True), is another's (False), or the ledger could not say (None)."""

    run: str
    holder: str
    won: bool | None


class LeaseLost(Value):
    """The lease of a run is another's."""

    run: str
    holder: str
    detail: str = ""


class CancelEnded(Value):
    """A cancel is over. The end: how the job ended, if not by this cancel."""

    run: str
    job: str
    outcome: Outcome
    detail: str = ""
    end: End | None = None


class FiguresRead(Value):
    """What a job cost was read, or could not be (None)."""

    run: str
    job: str
    figures: Figures | None


class SweepEnded(Value):
    """A sweep is over: the unfinished jobs under the tag, or None if the service could not be asked."""

    run: str
    found: tuple[str, ...] | None
    detail: str = ""


class CloseEnded(Value):
    """A session is closed, or could not be closed (`problem`)."""

    run: str
    problem: str = ""


class Fired(Value):
    """A timer has fired."""

    timer: Timer


class Terminated(Value):
    """The watcher received a SIGTERM."""


Event = (
    Received
    | Malformed
    | HungUp
    | DriverDied
    | Prepared
    | LeaseTaken
    | LeaseRetaken
    | LeaseLost
    | CancelEnded
    | FiguresRead
    | SweepEnded
    | CloseEnded
    | Fired
    | Terminated
)


# Actions --------------------------------------------------------------------------------------------------------


class Ack(Value):
    """Acknowledge a message."""

    seq: int


class Answer(Value):
    """Answer a message with what the ledger said."""

    seq: int
    answer: LeaseAnswer


class Nack(Value):
    """Refuse a message."""

    seq: int
    reason: str


class Prepare(Value):
    """Make sure that there is a token for an account; answer with `Prepared`."""

    account: str


class TakeLease(Value):
    """Ask the ledger for a lease; answer with `LeaseTaken`."""

    seq: int
    wanted: protocol.TakeLease


class RetakeLease(Value):
    """Take the lease of a run that waited again, in order to cancel its jobs; answer with `LeaseRetaken`."""

    run: str
    holder: str


class Inspect(Value):
    """Answer a message with what the watcher knows of itself."""

    seq: int


class StartCancel(Value):
    """Cancel a job and confirm that; answer with `CancelEnded`.

    Attributes:
        driver_tag: Another tag of the job, or "". One list of that tag shows the states of many jobs.
        asked: Whether the driver has requested the cancel, or was about to.
    """

    run: str
    account: str
    job: str
    driver_tag: str = ""
    asked: bool = False


class StartSweep(Value):
    """List the unfinished jobs under a tag, and in a session if one is named; answer with `SweepEnded`.

    Attributes:
        driver_tag: Another tag of all jobs under the tag, or "". One list of that tag serves many sweeps.
    """

    run: str
    account: str
    tag: str
    session: str = ""
    driver_tag: str = ""


class StartClose(Value):
    """Close a session; answer with `CloseEnded`.

    Attributes:
        spares: Whether the jobs in it are left to finish: they may be another driver's. Otherwise queued jobs are
        dropped.
    """

    run: str
    account: str
    session: str
    spares: bool = False


class SetTimer(Value):
    """Answer with `Fired` after some seconds."""

    timer: Timer
    seconds: float


class RecordRun(Value):
    """Write a run and its state to the ledger."""

    run: str
    state: Literal["guarded", "done", "cancelled", "pending"]
    account: str = ""
    tag: str = ""
    driver_tag: str = ""
    session: str = ""
    owner: bool = False
    detail: str = ""
    lease: Lease | None = None
    about: About = NOTHING
    end: End | None = None


class RecordResubmit(Value):
    """Write the outcomes of a key's earlier jobs to the ledger: another one will be submitted."""

    run: str
    outcomes: dict[str, str]
    holder: str


class RecordLetGo(Value):
    """Write to the ledger that nobody waits for a run any more."""

    run: str
    holder: str


class RecordJob(Value):
    """Write a job of a run, and its outcome, to the ledger. "kept": its driver was given it, so it is not cancelled."""

    run: str
    job: str
    outcome: Outcome | Literal["", "kept"] = ""


class ReadFigures(Value):
    """Read what a job cost; answer with `FiguresRead`."""

    run: str
    account: str
    job: str


class RecordFigures(Value):
    """Write to the ledger what a job cost. Its run may be over."""

    run: str
    job: str
    figures: Figures


class RecordAnswered(Value):
    """Write to the ledger that no job of a run is unknown."""

    run: str
    holder: str = ""


class Exit(Value):
    """End the process: nothing is left to do."""


Action = (
    Ack
    | Answer
    | Nack
    | Report
    | Prepare
    | TakeLease
    | RetakeLease
    | Inspect
    | StartCancel
    | StartSweep
    | StartClose
    | SetTimer
    | RecordRun
    | RecordResubmit
    | RecordLetGo
    | RecordJob
    | ReadFigures
    | RecordFigures
    | RecordAnswered
    | Exit
)


# State ----------------------------------------------------------------------------------------------------------


@dataclass
class GuardedRun:
    """A run that is guarded, or a whole session: then its jobs are many."""

    id: str
    account: str
    tag: str
    driver_tag: str = ""  # the tag of all jobs that its driver submits by itself, or ""
    session: str = ""  # a session that is the driver's own: it is closed, and all its jobs are cancelled
    opened: str = ""  # a session that the driver opened, perhaps for others too: it only takes no more jobs
    lease: Lease | None = None  # it has a key
    waiting: bool = (
        False  # let go, or its driver is dead; until the grace period is over, a driver may come back for it
    )
    retaking: bool = False  # the grace period is over, and the ledger is asked whether a driver came back
    undecided: int = 0  # how often in a row the ledger could not say
    held: set[str] = field(default_factory=set)  # the jobs whose ids the driver knows
    posting: bool = True  # a POST of it may still leave
    window: bool = True  # the sweep window is open: a POST of it may still make a job
    doomed: bool = False  # its jobs are to be cancelled
    cancelling: bool = False  # the driver requests the cancel itself
    stood_down: bool = False  # it stays only for the duplicates of a retried POST
    sweeping: bool = False  # a sweep is under way
    swept: bool = True  # nothing is left to look for
    sweeps: int = 0
    failures: int = 0  # sweeps that failed, in a row
    closing: bool = False  # its session is being closed
    quiet: bool = False  # the last sweep of the session found nothing
    cancels: dict[str, Outcome | None] = field(default_factory=dict)  # by job; None: under way
    unresolved: str = ""  # why it will have to be recorded as pending
    charged: set[str] = field(default_factory=set)  # the jobs whose charges the driver has read
    wished: End | None = None  # why its driver ends it, and how it has ended then
    ended: End | None = None  # how a job of it has ended, if not by a cancel of this watcher's

    def is_resolved(self) -> bool:
        """Whether nothing is under way, and nothing is left to look for."""
        if self.waiting or self.retaking:
            return False
        return not self.sweeping and not self.closing and self.swept and all(self.cancels.values())

    @property
    def holder(self) -> str:
        """Who holds its lease, or "" without a key."""
        return self.lease.holder if self.lease else ""


class Policy:
    """The state machine.

    Args:
        sweep_window: `SWEEP_WINDOW`, or another one.
    """

    def __init__(self, sweep_window: float = SWEEP_WINDOW) -> None:
        self.sweep_window = sweep_window
        self.runs: dict[str, GuardedRun] = {}
        self.driver_alive = True
        self._cancelled: set[str] = set()  # jobs whose cancel was ordered
        self._given_up: set[str] = set()  # of these, those whose cancel could not be confirmed
        self._windows: Counter[str] = Counter()  # run → window timers that have not fired
        self._sweeps: dict[str, str] = {}  # runs that are being swept → the lease's holder when the sweep began
        self._hung_up = False
        self._leaving = False
        self._ready: set[str] = set()  # accounts with credentials and a token
        self._problems: dict[str, str] = {}  # account → why the last attempt to make it ready failed
        self._waiting: dict[str, list[int]] = {}  # account → messages that wait for it
        self._preparing: Counter[str] = Counter()  # account → how often it is being made ready
        self._wanted: dict[int, protocol.TakeLease] = {}  # leases that the ledger was asked for
        self._charges = Charges()
        self._cancels = 0  # that are under way

    def handle(self, event: Event) -> list[Action]:
        """What is to be done about an event."""
        touched = self._touched(event)
        match event:
            case Received(seq, message):
                actions = self._receive(seq, message)
            case Malformed(reason, seq):
                actions = [Nack(seq, reason)]
            case HungUp():
                self._hung_up = True
                self._charges.take_over()
                actions = []
            case DriverDied():
                self.driver_alive = False
                self._charges.take_over()
                actions = [action for run in list(self.runs.values()) for action in self._driver_died(run)]
            case Prepared(account, problem):
                actions = self._prepared(account, problem)
            case LeaseTaken(seq, answer, problem):
                actions = self._lease_taken(seq, answer, problem)
            case LeaseRetaken(run_id, holder, won):
                actions = self._lease_retaken(run_id, holder, won=won)
            case LeaseLost(run_id, holder, detail):
                actions = self._lease_lost(run_id, holder, detail)
            case CancelEnded(run_id, job, outcome, detail, end):
                actions = self._cancel_ended(run_id, job, outcome, detail, end)
            case FiguresRead(run_id, job, figures):
                actions = self._figures_read(run_id, job, figures)
            case SweepEnded(run_id, found, detail):
                actions = self._sweep_ended(run_id, found, detail)
            case CloseEnded(run_id, problem):
                actions = self._close_ended(run_id, problem)
            case Fired(timer):
                actions = self._fired(timer)
            case Terminated():
                # While anything is guarded a SIGTERM is ignored: whoever ends a process tree ends the driver too.
                if not self.runs:
                    self._hung_up = True
                    self._charges.forget()
                actions = []
        return [*actions, *self._settle(touched)]

    def _touched(self, event: Event) -> tuple[str, ...]:
        """The runs that an event may resolve."""
        match event:
            case DriverDied():
                return tuple(self.runs)
            case Received(_, message):
                return (getattr(message, "run", ""),)
            case Fired(timer):
                return (timer.run,)
            case _:
                return (getattr(event, "run", ""),)

    # Messages

    def _receive(self, seq: int, message: protocol.FromDriver) -> list[Action]:
        match message:
            case protocol.UseLedger() | protocol.Notify() | protocol.Reserve():
                raise AssertionError("the caller keeps this one")
            case protocol.Inspect():
                return [Inspect(seq)]
            case protocol.Arm(account):
                self._waiting.setdefault(account, []).append(seq)
                self._preparing[account] += 1
                return [Prepare(account)]
            case protocol.Intent(run_id, account, tag, driver_tag, lease, about):
                run = GuardedRun(run_id, account, tag, driver_tag, lease=lease)
                record = RecordRun(run_id, "guarded", account, tag, driver_tag, lease=lease, about=about)
                return self._guard(seq, run, record)
            case protocol.TakeLease(account=account):
                if (refusal := self._refusal(seq, account)) is not None:
                    return [refusal]
                self._wanted[seq] = message
                return [TakeLease(seq, message)]
            case protocol.GuardSession(run_id, account, tag, session, owner, about):
                run = GuardedRun(run_id, account, tag, session=session if owner else "")
                record = RecordRun(run_id, "guarded", account, tag, session=session, owner=owner, about=about)
                return self._guard(seq, run, record)
            case protocol.OpenedSession(run_id, account, tag, session, about):
                run = GuardedRun(run_id, account, tag, opened=session, posting=False, window=False)
                record = RecordRun(run_id, "guarded", account, tag, session=session, about=about)
                actions = self._guard(seq, run, record)
                return [*actions, RecordAnswered(run_id)] if run_id in self.runs else actions
            case protocol.Bye():
                if self.runs or self._wanted:
                    return [Nack(seq, "runs are guarded")]
                self._leaving = True
                self._charges.forget()  # the driver goes on asking
                return [Ack(seq), SetTimer(Timer("leave"), LEAVE_SECONDS)]
            case protocol.JobFigures(run_id, job, figures):
                known = self.runs.get(run_id)
                if figures.charged is not None:
                    self._charges.known(job)
                    if known is not None:
                        known.charged.add(job)
                return [RecordFigures(run_id, job, figures)]
            case _:
                known = self.runs.get(message.run)
                if known is not None:
                    return self._receive_about(known, seq, message)
                # It is over already; a second `StandDown` is no fault.
                return [] if isinstance(message, protocol.StandDown) else [Nack(seq, "this run is not guarded")]

    def _receive_about(self, run: GuardedRun, seq: int, message: protocol.RunMessage) -> list[Action]:
        match message:
            case protocol.JobKnown(_, job):
                run.held.add(job)
                return [RecordJob(run.id, job), *(self._cancel(run, job) if run.doomed else [])]
            case protocol.Posted(_, clean):
                return self._posted(run, clean=clean)
            case protocol.Cancelling(_, end):
                run.cancelling, run.wished = True, end
                return []
            case protocol.Resubmit(_, outcomes):
                return [RecordResubmit(run.id, outcomes, run.holder)] if run.lease else []
            case protocol.LetGo():
                return self._wait(run)
            case protocol.HandOver(_, end):
                run.wished = end or run.wished
                is_leased = run.lease is not None and not run.stood_down
                return [*(self._retake(run) if is_leased else self._doom(run)), Ack(seq)]
            case protocol.StandDown(_, end):
                run.wished = end
                return self._stand_down(run)

    def _refusal(self, seq: int, account: str) -> Nack | None:
        if self._leaving:
            return Nack(seq, "leaving")
        if account not in self._ready and account not in self._waiting:
            return Nack(seq, "this account is not armed")
        return None

    def _guard(self, seq: int, run: GuardedRun, record: RecordRun) -> list[Action]:
        problem = "" if self._leaving else self._problems.get(run.account, "")
        if (refusal := self._refusal(seq, run.account)) is not None and not problem:
            return [refusal]
        # Sent twice, as to a watcher that was started in place of another: what is known of it stays known.
        known = self.runs.setdefault(run.id, run)
        if run.lease is not None:  # its lease was taken before; now a POST may leave
            known.posting = known.window = True
        if run.account in self._ready:
            return [record, Ack(seq)]
        if run.account in self._waiting:
            self._waiting[run.account].append(seq)
            return [record]
        # The runs of a driver that tells them again may have jobs, whether its account can be used now or not.
        return [record, Nack(seq, problem)]

    def _lease_taken(self, seq: int, answer: LeaseAnswer | None, problem: str) -> list[Action]:
        wanted = self._wanted.pop(seq)
        if answer is None:
            return [Nack(seq, problem)]
        actions: list[Action] = [Answer(seq, answer)]
        if answer["answer"] == "granted":
            # The jobs of an earlier driver are not under this one's tag: they are looked for by themselves.
            driver_tag = wanted.driver if answer["is_new"] else ""
            run = GuardedRun(answer["run"], wanted.account, answer["tag"], driver_tag, lease=wanted.lease)
            run.posting, run.window = False, not answer["answered"]
            known = self.runs.get(run.id)
            if known is not None:  # this driver had let go of it; a cancel that is under way still has to end
                run.cancels = {job: None for job, outcome in known.cancels.items() if outcome is None}
            self.runs[run.id] = run
            if run.window:  # an earlier driver's POST may still make a job, for one window from now
                self._windows[run.id] += 1
                actions.append(SetTimer(Timer("window", run.id), self.sweep_window))
            if not self.driver_alive:
                actions += self._driver_died(run)
        return actions

    def _prepared(self, account: str, problem: str) -> list[Action]:
        self._preparing -= Counter({account: 1})  # drops those that are 0
        if problem and self._preparing[account]:
            return []  # newer credentials have replaced these, and are being tried
        waiting = self._waiting.pop(account, [])
        # Without a token its runs stay guarded all the same: there may be one by the time that it is needed.
        if problem:
            self._problems[account] = problem
            return [Nack(seq, problem) for seq in waiting]
        self._ready.add(account)
        return [Ack(seq) for seq in waiting]

    def _posted(self, run: GuardedRun, *, clean: bool) -> list[Action]:
        run.posting = False
        # One POST, one answer: there is no other job. A retried POST may have made a job each time, and a POST without
        # an answer may still make one.
        if clean:
            run.window = False
            return [RecordAnswered(run.id, run.holder)]
        actions = self._open_window(run)
        if run.held and not run.sweeping:
            actions += self._sweep(run)
        return actions

    def _stand_down(self, run: GuardedRun) -> list[Action]:
        run.stood_down, run.doomed, run.waiting = True, False, False
        if run.wished is not None and run.wished.outcome != "detached":
            for job in sorted(run.held - run.charged):
                self._charges.leave_to_driver(run.id, run.account, job)
        # It stays for one thing only: the duplicates of a retried POST, beside the job that the driver holds.
        if not run.held or (run.is_resolved() and not run.unresolved):
            del self.runs[run.id]
            return [RecordRun(run.id, "done", lease=run.lease, end=run.wished)]
        # Should this watcher die too, whoever reads the ledger then must spare what the driver holds.
        actions: list[Action] = [RecordJob(run.id, job, "kept") for job in sorted(run.held)]
        # A run that is over sends no more POST, whether its driver said so or not.
        if run.posting:
            actions += self._posted(run, clean=False)
        # From now on another driver may take the lease, and submit a job under the same tag. So it is taken again, and
        # held until the duplicates are cancelled.
        return [*actions, *self._retake(run)] if run.lease else actions

    # The death of the driver

    def _driver_died(self, run: GuardedRun) -> list[Action]:
        if run.lease is None or run.doomed or run.stood_down:
            return self._doom(run)
        # A job that it was about to cancel does not wait for a driver to come back.
        actions = self._retake(run) if run.cancelling else self._wait(run)
        if run.posting:
            actions += self._open_window(run)
        return actions

    def _wait(self, run: GuardedRun) -> list[Action]:
        """Leave a run with a key alone for its grace period: a driver may come back for it."""
        if run.lease is None or run.waiting or run.retaking or run.doomed or run.stood_down:
            return []
        run.waiting = True
        actions: list[Action] = [RecordLetGo(run.id, run.holder)]
        if run.lease.grace > 0:
            return [*actions, SetTimer(Timer("grace", run.id, run.holder), run.lease.grace)]
        return [*actions, *self._retake(run)]

    def _retake(self, run: GuardedRun) -> list[Action]:
        if run.retaking or run.doomed:
            return []
        run.waiting, run.retaking = False, True
        return [RetakeLease(run.id, run.holder)]

    def _lease_retaken(self, run_id: str, holder: str, *, won: bool | None) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None or run.holder != holder or not run.retaking:
            return []
        if won is None:
            run.undecided += 1
            if run.undecided <= RETAKE_FAILURES:
                return [SetTimer(Timer("retake", run_id, holder), RETAKE_PAUSE)]
        run.retaking = False
        if won is False:
            return self._lease_lost(run_id, holder, "")
        if run.stood_down:
            return [] if run.sweeping or run.swept else self._sweep(run)
        return self._doom(run)

    def _lease_lost(self, run_id: str, holder: str, detail: str) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None or run.holder != holder:
            return []
        del self.runs[run_id]
        return [Report("lost", run_id, detail=detail)]

    def _doom(self, run: GuardedRun) -> list[Action]:
        if run.doomed or run.stood_down:
            # Its driver handed it over and has died since: only now is the last moment of a POST known.
            return self._open_window(run) if run.doomed and run.posting and not self.driver_alive else []
        run.doomed = True
        if run.opened:  # no job is submitted under its tag
            run.closing = True
            return [StartClose(run.id, run.account, run.opened, spares=True)]
        run.swept = False
        # What was given up while its driver lived is tried again.
        run.failures = 0
        if "unconfirmed" not in run.cancels.values():
            run.unresolved = ""
        actions: list[Action] = []
        for job in sorted(run.held):
            actions += self._cancel(run, job)
        if run.session:
            run.closing = True
            actions.append(StartClose(run.id, run.account, run.session))
        if run.posting and not self.driver_alive:
            actions += self._open_window(run)
        if not run.sweeping:
            actions += self._sweep(run)
        return actions

    def _open_window(self, run: GuardedRun) -> list[Action]:
        run.window, run.swept = True, False
        if not self.driver_alive:
            run.posting = False
        self._windows[run.id] += 1
        return [SetTimer(Timer("window", run.id), self.sweep_window)]

    def _cancel(self, run: GuardedRun, job: str) -> list[Action]:
        # A job of a run may be in a guarded session too: one of the two cancels it.
        if job in self._cancelled:
            return []
        self._cancelled.add(job)
        self._cancels += 1
        run.cancels[job] = None
        return [StartCancel(run.id, run.account, job, run.driver_tag, run.cancelling and job in run.held)]

    def _sweep(self, run: GuardedRun) -> list[Action]:
        run.sweeping = True
        # A sweep that starts with the window closed is the last one that is needed.
        run.swept = not run.window
        if run.id in self._sweeps:  # for an earlier holder of its lease; this one begins when that has ended
            return []
        self._sweeps[run.id] = run.holder
        return [StartSweep(run.id, run.account, run.tag, run.session if run.doomed else "", run.driver_tag)]

    # Answers

    def _cancel_ended(self, run_id: str, job: str, outcome: Outcome, detail: str, end: End | None) -> list[Action]:
        self._cancels -= 1
        if outcome == "unconfirmed":
            self._given_up.add(job)
        run = self.runs.get(run_id)
        if run is None:
            return []
        if outcome in ("cancelled", "finished"):
            self._charges.expect(run_id, run.account, job)
        run.cancels[job] = outcome
        run.ended = end or run.ended
        if outcome == "unconfirmed":
            run.unresolved = detail or "a cancel could not be confirmed"
        return [RecordJob(run_id, job, outcome), Report(outcome, run_id, job, detail)]

    def _figures_read(self, run_id: str, job: str, figures: Figures | None) -> list[Action]:
        actions: list[Action] = [] if figures is None else [RecordFigures(run_id, job, figures)]
        if figures is not None and figures.charged is not None:
            self._charges.known(job)
        elif (pause := self._charges.pending(job)) is not None:
            actions.append(SetTimer(Timer("charge", job=job), pause))
        return actions

    def _sweep_ended(self, run_id: str, found: tuple[str, ...] | None, detail: str) -> list[Action]:
        began_for = self._sweeps.pop(run_id, "")
        run = self.runs.get(run_id)
        if run is None:
            return []
        if began_for != run.holder:
            # The same driver has taken the lease anew, and has not said yet which of the run's jobs it goes on with.
            return self._sweep(run) if run.sweeping else []
        run.sweeping = False
        actions: list[Action] = []
        if run.waiting or run.retaking:  # a driver that comes back for it chooses which of its jobs to keep
            run.swept = False
            return []
        if found is None:
            run.failures += 1
            run.swept = False
            if run.failures >= SWEEP_FAILURES:
                run.swept, run.unresolved = True, detail or "the service could not be asked for its jobs"
                return []
        else:
            run.failures = 0
            for job in found:
                # What the driver holds is its own, unless the run is doomed.
                if job not in run.held or run.doomed:
                    actions += [RecordJob(run_id, job), *self._cancel(run, job)]
                    if job in self._given_up and not run.unresolved:
                        run.unresolved = "a cancel could not be confirmed"
            if run.session and run.doomed:
                # A closing session is quiet when two sweeps in a row find nothing: a job may be on its way from the
                # queue to the machine, and in neither list. Jobs that were given up are left to the ledger.
                unfinished = [job for job in found if job not in self._given_up]
                run.swept &= run.quiet and not unfinished
                run.quiet = not unfinished
        if not run.swept:
            pause = SWEEP_PAUSES[min(run.sweeps, len(SWEEP_PAUSES) - 1)]
            run.sweeps += 1
            actions.append(SetTimer(Timer("sweep", run_id), pause))
        return actions

    def _close_ended(self, run_id: str, problem: str) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None:
            return []
        run.closing = False
        if problem:
            run.unresolved = problem
        else:
            run.window = run.posting = False  # a closed session takes no more jobs
        return []

    def _fired(self, timer: Timer) -> list[Action]:
        if timer.kind == "leave":
            self._hung_up = True
            return []
        if timer.kind == "charge":
            self._charges.paused(timer.job)
            return []
        if timer.kind == "window":
            self._windows -= Counter({timer.run: 1})  # drops those that are 0
        run = self.runs.get(timer.run)
        if run is None:
            return []
        if timer.kind in ("grace", "retake"):
            if timer.holder != run.holder:  # set for an earlier holder of the lease
                return []
            if timer.kind == "grace":
                return self._retake(run) if run.waiting else []
            return [RetakeLease(run.id, run.holder)] if run.retaking else []
        # The timer that was set last closes the window; and a POST that leaves later has one of its own.
        if timer.kind == "window" and not self._windows[run.id] and not run.posting:
            run.window = False
        if run.waiting or run.retaking:
            return []
        # A pause that a later sweep has overtaken changes nothing.
        if run.sweeping or run.swept:
            return []
        return self._sweep(run)

    # The end of a run, and of the watcher

    def _settle(self, touched: tuple[str, ...]) -> list[Action]:
        actions: list[Action] = []
        for run_id in touched:
            run = self.runs.get(run_id)
            if run is None or not run.is_resolved() or not (run.doomed or run.stood_down):
                continue
            del self.runs[run.id]
            # Of a run that was stood down, a duplicate may be left that could not be found or cancelled.
            over: Literal["cancelled", "done"] = "cancelled" if run.doomed else "done"
            state: Literal["pending", "cancelled", "done"] = "pending" if run.unresolved else over
            end = _end(run) if run.doomed and not run.unresolved else run.wished if run.stood_down else None
            actions.append(RecordRun(run.id, state, detail=run.unresolved, lease=run.lease, end=end))
            if run.doomed:
                actions.append(Report(state, run.id, detail=run.unresolved))
        if not self._cancels:
            actions += [ReadFigures(each.run, each.account, each.job) for each in self._charges.due()]
        is_left = not self.driver_alive or self._hung_up
        if is_left and not self.runs and not self._wanted and not self._charges.is_reading:
            actions.append(Exit())
        return actions


def _end(run: GuardedRun) -> End:
    """How a run has ended whose jobs were to be cancelled."""
    is_cancelled = "cancelled" in run.cancels.values() or not run.cancels
    if run.ended is not None and (not is_cancelled or run.ended.outcome == "cancelled"):
        return run.ended
    return run.wished or End("cancelled", "watcher")
