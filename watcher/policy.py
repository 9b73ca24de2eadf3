"""What follows from what: the watcher's judgement, as a pure state machine.

`Policy.handle(event)` returns the actions that the event calls for, in the order in which they are to be done. There
is no clock here, no I/O and no process, so that every interleaving of messages, deaths, answers and timers can be
tested. Two things must hold whatever happens:

- a run that was not stood down before its caller died has its jobs cancelled, or is recorded as pending;
- the job that a caller holds, alive or stood down, is never cancelled.

The life of a run: `intent` (a POST is about to leave; the job's id is not known) → `job` (its answer came) → `done`.
A run is *doomed* when its caller is dead or hands the cancel over. Then its known jobs are cancelled at once, and its
tag is swept: for jobs whose id the caller never learned, and for duplicates that a retried POST made. As long as a
POST of it may still make a job (the *window*), a sweep that finds nothing proves nothing and is repeated.

A run with a key is a lease, claimed before all this: its caller's death does not doom it. It *waits*, for the grace
that the caller asked for, so that a caller that comes back can take it up again, with a watcher of its own. Only when
the lease has then been won once more (`Contest`) is it doomed; lost, it is forgotten, for it is another's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from .protocol import SWEEP_WINDOW, Lease, Message, Outcome

SWEEP_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between sweeps while the window is open; the last one repeats."""

SWEEP_FAILURES = 34
"""Failed sweeps in a row after which a run is recorded as pending: 15 minutes, with the pauses above."""

CONTEST_PAUSE = 15.0
"""Seconds until a ledger is asked again that could not say who has a lease."""

CONTEST_FAILURES = 40
"""After which its jobs are cancelled: ten minutes, in which nobody else could take the lease either."""

LEAVE_SECONDS = 1.0
"""How long a watcher that said goodbye stays to refuse an intent that crossed the goodbye."""


# Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """A message of the caller's."""

    message: Message


@dataclass(frozen=True)
class Malformed:
    """Bytes from the caller that are no message, or one that can't be used."""

    reason: str
    seq: int = 0


@dataclass(frozen=True)
class HungUp:
    """The caller's end of the pipe is closed. That is not a death."""


@dataclass(frozen=True)
class DriverDied:
    """The caller is dead, and all that it had sent has been received."""


@dataclass(frozen=True)
class Prepared:
    """An account can be used, or could not be made usable (`problem`)."""

    account: str
    problem: str = ""


@dataclass(frozen=True)
class Claimed:
    """The ledger was asked for a key.

    Attributes:
        seq: The message that asked.
        problem: Why it could not be asked, or "".
        content: What the caller is told.
        run: The run that it has now, or "".
        tag: The run's tag.
        is_new: Whether nothing was known under the key.
        answered: Whether no job of the run is unknown.
    """

    seq: int
    problem: str = ""
    content: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    tag: str = ""
    is_new: bool = False
    answered: bool = False


@dataclass(frozen=True)
class Contested:
    """The lease of a run that waited was won once more, or lost, or None where the ledger could not say."""

    run: str
    holder: str
    won: bool | None


@dataclass(frozen=True)
class Lost:
    """The lease of a run is another's."""

    run: str
    holder: str
    detail: str = ""


@dataclass(frozen=True)
class CancelEnded:
    """A cancel is over."""

    run: str
    job: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class SweepEnded:
    """A sweep is over: the unfinished jobs under the tag, or None where the service could not be asked."""

    run: str
    found: tuple[str, ...] | None
    detail: str = ""


@dataclass(frozen=True)
class CloseEnded:
    """A session is closed, or could not be closed (`problem`)."""

    run: str
    problem: str = ""


@dataclass(frozen=True)
class Fired:
    """A timer has run out."""

    timer: Timer


@dataclass(frozen=True)
class Terminated:
    """Someone sent the watcher a SIGTERM."""


Event = (
    Received
    | Malformed
    | HungUp
    | DriverDied
    | Prepared
    | Claimed
    | Contested
    | Lost
    | CancelEnded
    | SweepEnded
    | CloseEnded
    | Fired
    | Terminated
)


# Actions --------------------------------------------------------------------------------------------------------

Timer = tuple[str, str]
"""What a timer is for ("window", "sweep", "leave"; "grace", "contest" and the holder) and the run that it is about."""


@dataclass(frozen=True)
class Ack:
    """Answer a message."""

    seq: int


@dataclass(frozen=True)
class Answer:
    """Answer a message, with what was asked for."""

    seq: int
    content: dict[str, Any]


@dataclass(frozen=True)
class Nack:
    """Refuse a message."""

    seq: int
    reason: str


@dataclass(frozen=True)
class Report:
    """Tell the caller what happened to a run."""

    event: str
    run: str = ""
    job: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Prepare:
    """Take the credentials of an account and make sure of a token; answer with `Prepared`."""

    account: str


@dataclass(frozen=True)
class Claim:
    """Ask the ledger for a key; answer with `Claimed`."""

    seq: int
    run: str
    account: str
    tag: str
    driver: str
    lease: Lease
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Contest:
    """Win the lease of a run that waited once more; answer with `Contested`."""

    run: str
    holder: str


@dataclass(frozen=True)
class Inspect:
    """Answer with what the watcher knows of itself."""

    seq: int


@dataclass(frozen=True)
class StartCancel:
    """Cancel a job and confirm it; answer with `CancelEnded`. Asked: its caller did ask, or was about to.

    It is under the driver's tag too, if one is named: one list of it shows many.
    """

    run: str
    account: str
    job: str
    driver: str = ""
    asked: bool = False


@dataclass(frozen=True)
class StartSweep:
    """List the unfinished jobs under a tag, or in a session if one is named; answer with `SweepEnded`.

    All jobs under the tag are under the driver's tag too, if one is named: one list of it answers many.
    """

    run: str
    account: str
    tag: str
    session: str = ""
    driver: str = ""


@dataclass(frozen=True)
class StartClose:
    """Close a session, so that its queued jobs are dropped and no other is taken; answer with `CloseEnded`.

    Spares: the jobs that are in it are left to come to their ends; they may be another driver's.
    """

    run: str
    account: str
    session: str
    spares: bool = False


@dataclass(frozen=True)
class SetTimer:
    """Answer with `Fired` after so many seconds."""

    timer: Timer
    seconds: float


@dataclass(frozen=True)
class Remember:
    """Write to the ledger what a run has come to."""

    run: str
    state: Literal["guarded", "done", "cancelled", "pending"]
    account: str = ""
    tag: str = ""
    driver: str = ""
    session: str = ""
    owner: bool = False
    detail: str = ""
    lease: Lease | None = None


@dataclass(frozen=True)
class RememberAnew:
    """Write to the ledger what became of a key's jobs so far."""

    run: str
    outcomes: dict[str, str]
    holder: str


@dataclass(frozen=True)
class RememberLetGo:
    """Write to the ledger that nobody waits for a run any more."""

    run: str
    holder: str


@dataclass(frozen=True)
class RememberJob:
    """Write to the ledger a job of a run: its id is known, or what became of it."""

    run: str
    job: str
    outcome: str = ""


@dataclass(frozen=True)
class RememberAnswered:
    """Write to the ledger that no job of a run is unknown."""

    run: str
    holder: str = ""


@dataclass(frozen=True)
class Exit:
    """End the process: nothing is left to do."""


Action = (
    Ack
    | Answer
    | Nack
    | Report
    | Prepare
    | Claim
    | Contest
    | Inspect
    | StartCancel
    | StartSweep
    | StartClose
    | SetTimer
    | Remember
    | RememberAnew
    | RememberLetGo
    | RememberJob
    | RememberAnswered
    | Exit
)


# State ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A guarded run, or a guarded session: then its jobs are many."""

    id: str
    account: str
    tag: str
    driver: str = ""  # the tag of all jobs that its driver submits by itself
    session: str = ""  # a session that is the driver's own: it is closed, and all that runs in it is cancelled
    lease: Lease | None = None  # it has a key
    waiting: bool = False  # nobody waits for it; in its grace a driver may come back for it
    contesting: bool = False  # the grace has passed; whether a driver came back is being asked
    contests: int = 0  # that the ledger could not decide, in a row
    opened: str = ""  # a session that the driver has opened, for itself or for others: it takes no more jobs
    held: set[str] = field(default_factory=set)  # the jobs whose ids the caller knows
    posting: bool = True  # a POST of it may still leave
    window: bool = True  # a POST of it may still make a job
    doomed: bool = False  # its jobs are to be cancelled
    cancelling: bool = False  # its caller asks for the cancel itself
    stood_down: bool = False  # done: it stays only for the duplicates of a retried POST
    sweeping: bool = False  # a sweep is under way
    swept: bool = True  # nothing is left to look for
    sweeps: int = 0
    closing: bool = False  # its session is being closed
    quiet: bool = False  # the last sweep of the session found nothing
    failures: int = 0  # sweeps that failed, in a row
    cancels: dict[str, str] = field(default_factory=dict)  # job → "" under way, else the outcome
    unresolved: str = ""  # why it will have to be recorded as pending

    def is_resolved(self) -> bool:
        """Whether nothing is under way and nothing is left to look for."""
        if self.waiting or self.contesting:
            return False
        return not self.sweeping and not self.closing and self.swept and all(self.cancels.values())

    @property
    def holder(self) -> str:
        """Who holds its lease, or "" without a key."""
        return self.lease.holder if self.lease else ""


class Policy:
    """The state machine.

    Args:
        sweep_window: `SWEEP_WINDOW`, or less in tests.
    """

    def __init__(self, sweep_window: float = SWEEP_WINDOW) -> None:
        self.sweep_window = sweep_window
        self.runs: dict[str, Run] = {}
        self.caller_alive = True
        self._cancelled: set[str] = set()
        self._given_up: set[str] = set()  # of these, those whose cancel could not be confirmed
        self._windows: Counter[str] = Counter()  # run → timers that have not fired
        self._sweeps: dict[str, str] = {}  # runs that are swept now → the lease's holder when the sweep began
        self._hung_up = False
        self._leaving = False
        self._ready: set[str] = set()  # accounts with credentials and a token
        self._waiting: dict[str, list[int]] = {}  # account → messages that wait for it
        self._preparing: Counter[str] = Counter()  # account → how often it is being made ready
        self._claims: dict[int, Message] = {}  # that the ledger has not answered

    def handle(self, event: Event) -> list[Action]:
        """What is to be done about an event."""
        touched: tuple[str, ...] = ()  # the runs that may be resolved by it
        match event:
            case Received(message):
                touched = (message.get("run", ""),)
                actions = self._receive(message)
            case Malformed(reason, seq):
                actions = [Nack(seq, reason)]
            case HungUp():
                self._hung_up = True
                actions = []
            case DriverDied():
                self.caller_alive = False
                touched = tuple(self.runs)
                actions = [action for run in list(self.runs.values()) for action in self._bereave(run)]
            case Prepared(account, problem):
                actions = self._prepared(account, problem)
            case Claimed():
                actions = self._claimed(event)
            case Contested(run_id, holder, won):
                touched = (run_id,)
                actions = self._contested(run_id, holder, won=won)
            case Lost(run_id, holder, detail):
                touched = (run_id,)
                actions = self._lost(run_id, holder, detail)
            case CancelEnded(run_id, job, outcome, detail):
                touched = (run_id,)
                actions = self._cancel_ended(run_id, job, outcome, detail)
            case SweepEnded(run_id, found, detail):
                touched = (run_id,)
                actions = self._sweep_ended(run_id, found, detail)
            case CloseEnded(run_id, problem):
                touched = (run_id,)
                actions = self._close_ended(run_id, problem)
            case Fired(timer):
                touched = (timer[1],)
                actions = self._fired(timer)
            case Terminated():
                # While anything is guarded a SIGTERM is not obeyed: whoever ends a process tree ends the driver too.
                self._hung_up |= not self.runs
                actions = []
        return [*actions, *self._settle(touched)]

    # Messages

    def _receive(self, message: Message) -> list[Action]:
        kind, seq = message["kind"], message["seq"]
        match kind:
            case "inspect":
                return [Inspect(seq)]
            case "arm":
                self._waiting.setdefault(message["account"], []).append(seq)
                self._preparing[message["account"]] += 1
                return [Prepare(message["account"])]
            case "intent":
                lease = Lease.from_json(message["lease"]) if message["lease"] else None
                run = Run(message["run"], message["account"], message["tag"], message["driver"], lease=lease)
                return self._intent(
                    seq, run, Remember(run.id, "guarded", run.account, run.tag, run.driver, lease=lease)
                )
            case "claim":
                return self._claim(seq, message)
            case "session":
                session, owner = message["session"], message["owner"]
                run = Run(message["run"], message["account"], message["tag"], session=session if owner else "")
                return self._intent(
                    seq, run, Remember(run.id, "guarded", run.account, run.tag, session=session, owner=owner)
                )
            case "opened":
                session = message["session"]
                run = Run(
                    message["run"], message["account"], message["tag"], opened=session, posting=False, window=False
                )
                actions = self._intent(seq, run, Remember(run.id, "guarded", run.account, run.tag, session=session))
                return [*actions, RememberAnswered(run.id)] if run.id in self.runs else actions
            case "bye":
                if self.runs or self._claims:
                    return [Nack(seq, "runs are guarded")]
                self._leaving = True
                return [Ack(seq), SetTimer(("leave", ""), LEAVE_SECONDS)]
        known = self.runs.get(message["run"])
        if known is None:  # it is over already; a second `done` is no fault
            return [] if kind == "done" else [Nack(seq, "this run is not guarded")]
        match kind:
            case "job":
                return self._job(known, message["job"])
            case "posted":
                return self._posted(known, clean=message["clean"])
            case "cancelling":
                known.cancelling = True
                return []
            case "anew":
                return [RememberAnew(known.id, message["outcomes"], known.holder)] if known.lease else []
            case "let go":
                return self._wait(known)
            case "cancel":
                is_leased = known.lease is not None and not known.stood_down
                return [*(self._contest(known) if is_leased else self._doom(known)), Ack(seq)]
            case "done":
                return self._done(known)
        raise AssertionError(kind)  # the protocol lets no other kind through

    def _intent(self, seq: int, run: Run, remember: Remember) -> list[Action]:
        if self._leaving:
            return [Nack(seq, "leaving")]
        if run.account not in self._ready and run.account not in self._waiting:
            return [Nack(seq, "this account is not armed")]
        # Replayed to a new watcher, or twice: what is known of it stays known.
        known = self.runs.setdefault(run.id, run)
        if run.lease is not None:  # it was claimed before; now a POST may leave
            known.posting = known.window = True
        if run.account in self._ready:
            return [remember, Ack(seq)]
        self._waiting[run.account].append(seq)
        return [remember]

    def _claim(self, seq: int, message: Message) -> list[Action]:
        if self._leaving:
            return [Nack(seq, "leaving")]
        account = message["account"]
        if account not in self._ready and account not in self._waiting:
            return [Nack(seq, "this account is not armed")]
        self._claims[seq] = message
        lease, instances = Lease.from_json(message["lease"]), tuple(message["instances"])
        return [Claim(seq, message["run"], account, message["tag"], message["driver"], lease, instances)]

    def _claimed(self, event: Claimed) -> list[Action]:
        message = self._claims.pop(event.seq)
        if event.problem:
            return [Nack(event.seq, event.problem)]
        actions: list[Action] = [Answer(event.seq, event.content)]
        if event.run:
            # The jobs of an earlier driver are not under this one's tag: they are looked for by themselves.
            driver = message["driver"] if event.is_new else ""
            run = Run(event.run, message["account"], event.tag, driver, lease=Lease.from_json(message["lease"]))
            run.posting, run.window = False, not event.answered
            known = self.runs.get(run.id)
            if known is not None:  # this caller let go of it; a cancel that is under way is still to be waited for
                run.cancels = {job: "" for job, outcome in known.cancels.items() if not outcome}
            self.runs[run.id] = run
            if run.window:  # an earlier driver's POST may still make one, if only for so long from now
                self._windows[run.id] += 1
                actions.append(SetTimer(("window", run.id), self.sweep_window))
            if not self.caller_alive:
                actions += self._bereave(run)
        return actions

    def _prepared(self, account: str, problem: str) -> list[Action]:
        self._preparing -= Counter({account: 1})  # keeps none that is 0
        if problem and self._preparing[account]:
            return []  # of credentials that newer ones have replaced: how those fare is heard in a moment
        waiting = self._waiting.pop(account, [])
        # Without a token its runs stay guarded all the same: the token may come by the time that it is needed.
        if problem:
            return [Nack(seq, problem) for seq in waiting]
        self._ready.add(account)
        return [Ack(seq) for seq in waiting]

    def _job(self, run: Run, job: str) -> list[Action]:
        run.held.add(job)
        actions: list[Action] = [RememberJob(run.id, job)]
        if run.doomed:
            actions += self._cancel(run, job)
        return actions

    def _posted(self, run: Run, *, clean: bool) -> list[Action]:
        run.posting = False
        # One POST, one answer: there is no other job. A retried one may have made a job each time, and so may one whose
        # answer was lost, the last of them after a while.
        if clean:
            run.window = False
            return [RememberAnswered(run.id, run.holder)]
        actions = self._open_window(run)
        if run.held and not run.sweeping:
            actions += self._sweep(run)
        return actions

    def _done(self, run: Run) -> list[Action]:
        run.stood_down, run.doomed, run.waiting = True, False, False
        # It stays for one thing only: the duplicates of a retried POST, beside the job that the caller holds.
        if not run.held or (run.is_resolved() and not run.unresolved):
            del self.runs[run.id]
            return [Remember(run.id, "done", lease=run.lease)]
        # Should this watcher die too: whoever reads the ledger then must spare what the caller holds.
        actions: list[Action] = [RememberJob(run.id, job, "kept") for job in sorted(run.held)]
        # Who is done sends no POST any more, whether it said so or not.
        if run.posting:
            actions += self._posted(run, clean=False)
        # From now on another may have its lease, and submit a job of its own under the same tag: won once more, it is
        # this watcher's until it is done with the duplicates.
        return [*actions, *self._contest(run)] if run.lease else actions

    # The end of a caller

    def _bereave(self, run: Run) -> list[Action]:
        """Its caller is dead."""
        if run.lease is None or run.doomed or run.stood_down:
            return self._doom(run)
        # One that it was about to cancel is not left for anybody to come back for.
        actions = self._contest(run) if run.cancelling else self._wait(run)
        if run.posting:
            actions += self._open_window(run)
        return actions

    def _wait(self, run: Run) -> list[Action]:
        """Leave a run with a key alone for its grace: a driver may come back for it."""
        if run.lease is None or run.waiting or run.contesting or run.doomed or run.stood_down:
            return []
        run.waiting = True
        actions: list[Action] = [RememberLetGo(run.id, run.holder)]
        if run.lease.grace > 0:
            return [*actions, SetTimer((f"grace {run.holder}", run.id), run.lease.grace)]
        return [*actions, *self._contest(run)]

    def _contest(self, run: Run) -> list[Action]:
        if run.contesting or run.doomed:
            return []
        run.waiting, run.contesting = False, True
        return [Contest(run.id, run.holder)]

    def _contested(self, run_id: str, holder: str, *, won: bool | None) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None or run.holder != holder or not run.contesting:
            return []
        if won is None:
            run.contests += 1
            if run.contests <= CONTEST_FAILURES:
                return [SetTimer((f"contest {holder}", run_id), CONTEST_PAUSE)]
        run.contesting = False
        if won is False:
            return self._lost(run_id, holder, "")
        if run.stood_down:
            return [] if run.sweeping or run.swept else self._sweep(run)
        return self._doom(run)

    def _lost(self, run_id: str, holder: str, detail: str) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None or run.holder != holder:
            return []
        del self.runs[run_id]
        return [Report("lost", run_id, detail=detail)]

    def _doom(self, run: Run) -> list[Action]:
        if run.doomed or run.stood_down:
            # Its caller handed it over and died since: only now is the last moment of a POST known.
            return self._open_window(run) if run.doomed and run.posting and not self.caller_alive else []
        run.doomed = True
        if run.opened:  # no job is submitted under its tag
            run.closing = True
            return [StartClose(run.id, run.account, run.opened, spares=True)]
        run.swept = False
        # What was given up while its caller lived is tried anew.
        run.failures = 0
        if "unconfirmed" not in run.cancels.values():
            run.unresolved = ""
        actions: list[Action] = []
        for job in sorted(run.held):
            actions += self._cancel(run, job)
        if run.session:
            run.closing = True
            actions.append(StartClose(run.id, run.account, run.session))
        if run.posting and not self.caller_alive:
            actions += self._open_window(run)
        if not run.sweeping:
            actions += self._sweep(run)
        return actions

    def _open_window(self, run: Run) -> list[Action]:
        run.window, run.swept = True, False
        if not self.caller_alive:
            run.posting = False
        self._windows[run.id] += 1
        return [SetTimer(("window", run.id), self.sweep_window)]

    def _cancel(self, run: Run, job: str) -> list[Action]:
        # A job of a run may be in a guarded session too: one of the two cancels it.
        if job in self._cancelled:
            return []
        self._cancelled.add(job)
        run.cancels[job] = ""
        return [StartCancel(run.id, run.account, job, run.driver, run.cancelling and job in run.held)]

    def _sweep(self, run: Run) -> list[Action]:
        run.sweeping = True
        # A sweep that starts with the window closed is the last one that is needed.
        run.swept = not run.window
        if run.id in self._sweeps:  # for an earlier holder of its lease; when that has ended, this one begins
            return []
        self._sweeps[run.id] = run.holder
        return [StartSweep(run.id, run.account, run.tag, run.session if run.doomed else "", run.driver)]

    # Answers

    def _cancel_ended(self, run_id: str, job: str, outcome: str, detail: str) -> list[Action]:
        if outcome == "unconfirmed":
            self._given_up.add(job)
        run = self.runs.get(run_id)
        if run is None:
            return []
        run.cancels[job] = outcome
        if outcome == "unconfirmed":
            run.unresolved = detail or "a cancel could not be confirmed"
        return [RememberJob(run_id, job, outcome), Report(outcome, run_id, job, detail)]

    def _sweep_ended(self, run_id: str, found: tuple[str, ...] | None, detail: str) -> list[Action]:
        began_for = self._sweeps.pop(run_id, "")
        run = self.runs.get(run_id)
        if run is None:
            return []
        if began_for != run.holder:
            # The same caller has claimed the run anew, and has not said yet which of its jobs it goes on with.
            return self._sweep(run) if run.sweeping else []
        run.sweeping = False
        actions: list[Action] = []
        if run.waiting or run.contesting:  # who comes back for it chooses which of its jobs to keep
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
                # What the caller holds is its own, unless the run is doomed.
                if job not in run.held or run.doomed:
                    actions += [RememberJob(run_id, job), *self._cancel(run, job)]
                    if job in self._given_up and not run.unresolved:
                        run.unresolved = "a cancel could not be confirmed"
            if run.session and run.doomed:
                # A closing session is quiet when two sweeps in a row find nothing: a job may be on its way from its
                # queue to the machine, and in neither list. What was given up is the ledger's.
                left = [job for job in found if job not in self._given_up]
                run.swept &= run.quiet and not left
                run.quiet = not left
        if not run.swept:
            pause = SWEEP_PAUSES[min(run.sweeps, len(SWEEP_PAUSES) - 1)]
            run.sweeps += 1
            actions.append(SetTimer(("sweep", run_id), pause))
        return actions

    def _close_ended(self, run_id: str, problem: str) -> list[Action]:
        run = self.runs.get(run_id)
        if run is None:
            return []
        run.closing = False
        if problem:
            run.unresolved = problem
        else:
            run.window = run.posting = False  # a closed session takes no job any more
        return []

    def _fired(self, timer: Timer) -> list[Action]:
        purpose, run_id = timer
        if purpose == "leave":
            self._hung_up = True
            return []
        if purpose == "window":
            self._windows -= Counter({run_id: 1})  # keeps none that is 0
        run = self.runs.get(run_id)
        if run is None:
            return []
        if purpose == f"contest {run.holder}":
            return [Contest(run_id, run.holder)] if run.contesting else []
        if purpose == f"grace {run.holder}":
            return self._contest(run) if run.waiting else []
        if purpose not in ("window", "sweep"):
            return []  # of an earlier holder
        # The last one was set last; and a POST that leaves later has one of its own.
        if purpose == "window" and not self._windows[run_id] and not run.posting:
            run.window = False
        if run.waiting or run.contesting:
            return []
        # A timer of a pause that a later sweep has overtaken changes nothing.
        if run.sweeping or run.swept:
            return []
        return self._sweep(run)

    # The end of a run, and of the watcher

    def _settle(self, touched: tuple[str, ...]) -> list[Action]:
        actions: list[Action] = []
        for run_id in touched:
            run = self.runs.get(run_id)
            if run is None or not run.is_resolved():
                continue
            state: Literal["pending", "cancelled", "done"]
            if run.doomed:
                del self.runs[run.id]
                state = "pending" if run.unresolved else "cancelled"
                actions.append(Remember(run.id, state, detail=run.unresolved, lease=run.lease))
                actions.append(Report(state, run.id, detail=run.unresolved))
            elif run.stood_down:
                # A duplicate may be left, which could not be looked for or not be cancelled: that is the ledger's.
                del self.runs[run.id]
                state = "pending" if run.unresolved else "done"
                actions.append(Remember(run.id, state, detail=run.unresolved, lease=run.lease))
        if not self.runs and not self._claims and (not self.caller_alive or self._hung_up):
            actions.append(Exit())
        return actions
