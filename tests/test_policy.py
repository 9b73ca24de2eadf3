"""The watcher's judgement: every cell of its table, every state that a run can come to, and random walks of several.

The last two put the policy into a `World`: a caller, a service and a clock that may do anything they might, in any
order, and that know the truth. The world checks every order that the policy gives.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from watcher import policy as p

Move = tuple[str, ...]


def said(kind: str, seq: int = 7, **content: object) -> p.Received:
    return p.Received({"kind": kind, "seq": seq, **content})


# The table ------------------------------------------------------------------------------------------------------

ARMED = (said("arm", account="a"), p.Prepared("a"))
INTENT = said("intent", run="r", account="a", tag="t", driver="", lease={})
SESSION = said("session", run="r", account="a", tag="t", session="s", owner=True)
JOB = said("job", run="r", job="J")
CLEAN = said("posted", run="r", clean=True)
IN_DOUBT = said("posted", run="r", clean=False)
CANCELLING = said("cancelling", run="r")
DONE = said("done", run="r")
CANCEL = said("cancel", run="r")
DEATH = p.CallerDied()
NOTHING = p.SweepEnded("r", ())

STATES: dict[str, tuple[p.Event, ...]] = {
    "no run": (),
    "posting": (INTENT,),
    "answered": (INTENT, JOB),
    "held": (INTENT, JOB, CLEAN),
    "held, doubles": (INTENT, JOB, IN_DOUBT),
    "in doubt": (INTENT, IN_DOUBT),
    "cancelling": (INTENT, JOB, CLEAN, CANCELLING),
    "handed over, posting": (INTENT, CANCEL),
    "handed over": (INTENT, JOB, CLEAN, CANCEL),
    "died posting": (INTENT, DEATH),
    "died": (INTENT, JOB, CLEAN, DEATH),
    "died, doubles": (INTENT, JOB, IN_DOUBT, DEATH),
    "done, doubles": (INTENT, JOB, IN_DOUBT, DONE),
    "session": (SESSION, JOB),
    "session died": (SESSION, JOB, DEATH),
}
"""How a run gets there."""

EVENTS: dict[str, p.Event] = {
    "intent": INTENT,
    "job": JOB,
    "posted": CLEAN,
    "posted?": IN_DOUBT,
    "done": DONE,
    "cancelling": CANCELLING,
    "cancel": CANCEL,
    "bye": said("bye"),
    "inspect": said("inspect"),
    "malformed": p.Malformed("not JSON"),
    "hung up": p.HungUp(),
    "death": DEATH,
    "SIGTERM": p.Terminated(),
    "window over": p.Fired(("window", "r")),
    "pause over": p.Fired(("sweep", "r")),
    "found none": NOTHING,
    "found J": p.SweepEnded("r", ("J",)),
    "found K": p.SweepEnded("r", ("K",)),
    "no answer": p.SweepEnded("r", None, "503"),
    "J cancelled": p.CancelEnded("r", "J", "cancelled"),
    "closed": p.CloseEnded("r"),
}

TABLE = """
no run
    intent       ack
    job          nack
    posted       nack
    posted?      nack
    cancelling   nack
    cancel       nack
    bye          ack + leave
    inspect      inspect
    malformed    nack
    hung up      exit
    death        exit
    SIGTERM      exit
posting
    intent       ack
    posted?      window
    cancel       sweep + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        window + sweep
    found J      cancel J
    found K      cancel K
    no answer    pause
answered
    intent       ack
    posted?      window + sweep
    cancel       cancel J + sweep + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        cancel J + window + sweep
    found K      cancel K
    no answer    pause
held
    intent       ack
    posted?      window + sweep
    cancel       cancel J + sweep + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        cancel J + sweep
    found K      cancel K
    no answer    pause
held, doubles
    intent       ack
    posted?      window
    cancel       cancel J + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        cancel J
    found none   pause
    found J      pause
    found K      cancel K + pause
    no answer    pause
in doubt
    intent       ack
    posted?      window
    cancel       sweep + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        sweep
    window over  sweep
    pause over   sweep
    found none   pause
    found J      cancel J + pause
    found K      cancel K + pause
    no answer    pause
cancelling
    intent       ack
    posted?      window + sweep
    cancel       look at J + sweep + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        look at J + sweep
    found K      cancel K
    no answer    pause
handed over, posting
    intent       ack
    job          cancel J
    posted?      window
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        window
    found none   pause
    found J      cancel J + pause
    found K      cancel K + pause
    no answer    pause
handed over
    intent       ack
    posted?      window
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    found K      cancel K
    no answer    pause
died posting
    malformed    nack
    found none   pause
    found J      cancel J + pause
    found K      cancel K + pause
    no answer    pause
died
    malformed    nack
    found K      cancel K
    no answer    pause
died, doubles
    malformed    nack
    found none   pause
    found J      pause
    found K      cancel K + pause
    no answer    pause
done, doubles
    intent       ack
    posted?      window
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    found none   pause
    found J      pause
    found K      cancel K + pause
    no answer    pause
session
    intent       ack
    posted?      window + sweep
    cancel       cancel J + close s + sweep s + ack
    bye          nack
    inspect      inspect
    malformed    nack
    death        cancel J + close s + window + sweep s
    found K      cancel K
    no answer    pause
session died
    malformed    nack
    found none   pause
    found J      pause
    found K      cancel K + pause
    no answer    pause
"""


def words(actions: list[p.Action]) -> str:
    """What is ordered, without what is only written down or told."""
    told = []
    for action in actions:
        match action:
            case p.StartCancel(_, _, job, _, asked):
                told.append(f"look at {job}" if asked else f"cancel {job}")
            case p.StartSweep(_, _, _, session, _):
                told.append("sweep s" if session else "sweep")
            case p.StartClose():
                told.append("close s")
            case p.SetTimer((purpose, _), _):
                told.append({"sweep": "pause"}.get(purpose, purpose))
            case p.Ack() | p.Nack() | p.Exit() | p.Inspect():
                told.append(type(action).__name__.lower())
    return " + ".join(told)


def brought_to(*events: p.Event) -> p.Policy:
    policy = p.Policy()
    for event in (*ARMED, *events):
        policy.handle(event)
    return policy


def table() -> dict[tuple[str, str], str]:
    cells = dict.fromkeys(itertools.product(STATES, EVENTS), "")
    state = ""
    for line in TABLE.strip().splitlines():
        if not line.startswith(" "):
            state = line
        else:
            cells[state, line[4:16].strip()] = line[17:]
    return cells


@pytest.mark.parametrize("state", STATES)
def test_table(state):
    events = {
        name: event
        for name, event in EVENTS.items()
        if "died" not in state or not isinstance(event, p.Received)  # the dead say nothing
    }
    assert {name: words(brought_to(*STATES[state]).handle(event)) for name, event in events.items()} == {
        name: cell for (row, name), cell in table().items() if row == state and name in events
    }


# What the table does not show -----------------------------------------------------------------------------------


def test_an_intent_waits_for_its_account():
    policy = p.Policy()
    assert policy.handle(INTENT) == [p.Nack(7, "this account is not armed")]
    assert policy.handle(said("arm", 2, account="a")) == [p.Prepare("a")]
    announced = said("intent", 3, run="r", account="a", tag="t", driver="", lease={})
    assert policy.handle(announced) == [p.Remember("r", "guarded", "a", "t")]
    assert policy.handle(p.Prepared("a")) == [p.Ack(2), p.Ack(3)]


def test_an_account_that_cannot_be_used_is_refused_and_its_runs_stay_guarded():
    policy = p.Policy()
    for event in (said("arm", 1, account="a"), said("intent", 2, run="r", account="a", tag="t", driver="", lease={})):
        policy.handle(event)
    assert policy.handle(p.Prepared("a", "the key")) == [p.Nack(1, "the key"), p.Nack(2, "the key")]
    assert words(policy.handle(DEATH)) == "window + sweep"


def test_an_intent_that_crosses_the_goodbye_is_refused():
    policy = brought_to()
    assert words(policy.handle(said("bye", 1))) == "ack + leave"
    assert policy.handle(said("intent", 2, run="r", account="a", tag="t", driver="", lease={})) == [p.Nack(2, "leaving")]
    assert policy.handle(p.Fired(("leave", ""))) == [p.Exit()]


def test_a_done_sent_before_the_death_wins():
    policy = brought_to(INTENT, JOB, CLEAN)
    assert policy.handle(DONE) == [p.Remember("r", "done")]
    assert policy.handle(DEATH) == [p.Exit()]


def test_runs_of_a_dead_caller_are_told_apart():
    policy = brought_to(INTENT, JOB, CLEAN, said("intent", run="q", account="a", tag="u", driver="", lease={}))
    policy.handle(DONE)
    assert [action for action in policy.handle(DEATH) if isinstance(action, p.StartSweep)] == [
        p.StartSweep("q", "a", "u")
    ]


def test_what_is_found_and_what_comes_of_it_is_written_down_and_told():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH)
    assert policy.handle(p.SweepEnded("r", ("K",))) == [p.RememberJob("r", "K"), p.StartCancel("r", "a", "K")]
    assert policy.handle(p.CancelEnded("r", "J", "cancelled")) == [
        p.RememberJob("r", "J", "cancelled"),
        p.Report("cancelled", "r", "J"),
    ]
    assert policy.handle(p.CancelEnded("r", "K", "unconfirmed", "503")) == [
        p.RememberJob("r", "K", "unconfirmed"),
        p.Report("unconfirmed", "r", "K", "503"),
        p.Remember("r", "pending", detail="503"),
        p.Report("pending", "r", detail="503"),
        p.Exit(),
    ]


def test_the_one_cancel_of_a_job_that_is_in_a_guarded_session_too():
    policy = brought_to(INTENT, JOB, CLEAN, said("session", run="q", account="a", tag="u", session="s", owner=True))
    orders = [*policy.handle(DEATH), *policy.handle(p.SweepEnded("q", ("J", "K")))]
    assert [action.job for action in orders if isinstance(action, p.StartCancel)] == ["J", "K"]


def test_a_session_of_others_is_not_closed():
    policy = brought_to(said("session", run="r", account="a", tag="t", session="s", owner=False), JOB)
    assert words(policy.handle(DEATH)) == "cancel J + window + sweep"


def test_a_session_that_was_opened_is_closed_and_spares_what_is_in_it():
    policy = brought_to()
    opened = said("opened", run="r", account="a", tag="t", session="s")
    assert policy.handle(opened) == [
        p.Remember("r", "guarded", "a", "t", session="s"),
        p.Ack(7),
        p.RememberAnswered("r"),
    ]
    assert policy.handle(DEATH) == [p.StartClose("r", "a", "s", spares=True)]
    assert policy.handle(p.CloseEnded("r")) == [p.Remember("r", "cancelled"), p.Report("cancelled", "r"), p.Exit()]


def test_an_opened_session_that_its_driver_has_closed_is_left_alone():
    policy = brought_to(said("opened", run="r", account="a", tag="t", session="s"), DONE)
    assert policy.handle(DEATH) == [p.Exit()]


def test_an_opened_session_that_meets_a_leaving_watcher_is_refused():
    policy = brought_to(said("bye"))
    assert policy.handle(said("opened", run="r", account="a", tag="t", session="s")) == [p.Nack(7, "leaving")]


def test_pauses_grow_and_a_sweep_that_always_fails_ends_after_a_quarter_of_an_hour():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH, p.CancelEnded("r", "J", "cancelled"))
    pauses = []
    while not isinstance((actions := policy.handle(p.SweepEnded("r", None, "503")))[-1], p.Exit):
        [timer] = actions
        pauses.append(timer.seconds)
        assert words(policy.handle(p.Fired(timer.timer))) == "sweep"
    assert pauses == sorted(pauses)
    assert 13 * 60 < sum(pauses) < 16 * 60
    assert p.Remember("r", "pending", detail="503") in actions


@pytest.mark.parametrize("first", ["done", "failures"])
def test_duplicates_that_could_not_be_looked_for_are_left_to_the_ledger(first):
    """The run went well, and a retried POST of it may have made another job. Whoever reaps spares the one kept."""
    policy = brought_to(INTENT, JOB, IN_DOUBT)
    actions = policy.handle(DONE) if first == "done" else []
    for _ in range(p.SWEEP_FAILURES):
        actions += policy.handle(p.SweepEnded("r", None, "503"))
        policy.handle(p.Fired(("sweep", "r")))
    actions += policy.handle(DONE)
    assert p.RememberJob("r", "J", "kept") in actions
    written = [action for action in actions if isinstance(action, p.Remember)]
    assert written == [p.Remember("r", "pending", detail="503")]
    assert not policy.runs


def test_failures_from_before_a_death_do_not_shorten_what_follows_it():
    """The list could not be read while the caller lived, and duplicates were given up; then it dies."""
    policy = brought_to(INTENT, JOB, IN_DOUBT)
    for _ in range(p.SWEEP_FAILURES - 1):
        policy.handle(p.SweepEnded("r", None, "503"))
        policy.handle(p.Fired(("sweep", "r")))
    assert words(policy.handle(p.SweepEnded("r", None, "503"))) == ""
    assert words(policy.handle(DEATH)) == "cancel J + sweep"
    policy.handle(p.CancelEnded("r", "J", "cancelled"))
    assert words(policy.handle(p.SweepEnded("r", None, "503"))) == "pause"
    policy.handle(p.Fired(("window", "r")))
    assert policy.handle(NOTHING)[:1] == [p.Remember("r", "cancelled")]


def test_a_session_with_a_job_that_cannot_be_cancelled_is_left_to_the_ledger():
    policy = brought_to(SESSION, JOB, DEATH, p.CloseEnded("r"), p.CancelEnded("r", "J", "unconfirmed", "503"))
    assert words(policy.handle(p.SweepEnded("r", ("J",)))) == "pause"
    policy.handle(p.Fired(("sweep", "r")))
    actions = policy.handle(p.SweepEnded("r", ("J",)))
    assert p.Remember("r", "pending", detail="503") in actions
    assert actions[-1] == p.Exit()


# The world ------------------------------------------------------------------------------------------------------

FATES = ("cancelled", "finished", "gone", "unconfirmed")


@dataclass
class Truth:
    """A run, a session of one's own, or one's part of another's, as it really is."""

    id: str
    kind: str  # "run", "session", "shared"
    intents: int = 0
    guarded: bool = False  # its intent was taken
    posts: int = 0
    in_flight: int = 0  # of these, not arrived yet and not lost
    made: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    told: bool = False  # "posted" was said
    retried: bool = False
    closed: bool = False
    handed_over: bool = False
    done: bool = False
    over: str = ""  # what the ledger says at last
    excused: bool = False  # the service could not be asked, or a cancel not be confirmed

    @property
    def tag(self) -> str:
        return f"tag of {self.id}"


class World:
    """The caller, the service and the clock. `moves` is all that may happen next; `make` has it happen."""

    def __init__(self, *kinds: str) -> None:
        self.policy = p.Policy()
        self.runs = {name: Truth(name, kind) for name, kind in zip("pqrs", kinds, strict=False)}
        self.unfinished: dict[str, str] = {}  # job → run
        self.alive = True
        self.connected = True
        self.gone = False
        self.armed = 0
        self.cancels: list[tuple[str, str]] = []
        self.asked: set[str] = set()
        self.sweeps: dict[str, tuple[str, ...]] = {}  # run → what was there when it began
        self.closings: list[str] = []
        self.timers: Counter[p.Timer] = Counter()
        self.preparing = 0
        self.ready = False
        self.seq = 0
        self.unanswered: dict[int, tuple[str, str]] = {}  # seq → kind, run

    # What may happen

    def moves(self) -> list[Move]:
        if self.gone:
            return []
        moves = self.environment()
        if self.alive:
            moves.append(("die",))
            if self.connected:
                moves += self.callers()
                moves += [("hang up",)] if self.armed else []
        return moves

    def environment(self) -> list[Move]:
        """What happens by itself."""
        moves: list[Move] = [("cancelled", *pair, fate) for pair in self.cancels for fate in FATES]
        moves += [("swept", run, what) for run in self.sweeps for what in ("now", "before", "failed")]
        moves += [("closed", run, how) for run in self.closings for how in ("", "no")]
        moves += [("fire", *timer) for timer in self.timers]
        moves += [("prepared", how) for how in ("", "no")] if self.preparing else []
        moves += [("land", run.id) for run in self.runs.values() if run.in_flight and not run.closed]
        return moves

    def callers(self) -> list[Move]:
        moves: list[Move] = [("bye",)] if self.armed else []
        if self.armed < 2:
            moves.append(("arm",))
        for run in self.runs.values():
            if run.intents < 2 and not run.over and not run.done:
                moves.append(("intent", run.id))
            if not run.intents or run.done:
                continue
            moves += [("done", run.id), ("cancel", run.id)]
            moves += [("cancelling", run.id)] if run.held else []
            if not run.guarded or run.told or run.handed_over:
                if run.kind == "run" and run.posts and not run.told and run.guarded:
                    moves += [("answer", run.id)] if self._has_answer(run) else []
                    moves += [("posted", run.id)]
                continue
            if run.posts < 2 and not run.closed and (run.kind != "run" or not run.held):
                moves.append(("post", run.id))
            if self._has_answer(run):
                moves.append(("answer", run.id))
            if run.posts:
                moves.append(("posted", run.id))
        return moves

    @staticmethod
    def _has_answer(run: Truth) -> bool:
        waits = len(run.made) > len(run.held)
        return waits and (run.kind != "run" or (not run.held and not run.in_flight))

    # What happens

    def make(self, move: Move) -> None:
        match move:
            case ("die",):
                self.alive = False
                self.tell(p.CallerDied())
            case ("hang up",):
                self.connected = False
                self.tell(p.HungUp())
            case ("terminate",):
                self.tell(p.Terminated())
            case ("arm",):
                self.armed += 1
                self.say("arm", account="a")
            case ("prepared", problem):
                self.preparing -= 1
                self.ready |= not problem
                self.tell(p.Prepared("a", problem))
            case ("intent", name):
                self._intend(self.runs[name])
            case ("post", name):
                run = self.runs[name]
                run.retried |= run.posts == 1
                run.posts += 1
                run.in_flight += 1
            case ("land", name):
                run = self.runs[name]
                run.in_flight -= 1
                run.made.append(f"{name}{len(run.made)}")
                self.unfinished[run.made[-1]] = name
            case ("answer", name):
                run = self.runs[name]
                job = run.made[-1] if run.kind == "run" else run.made[len(run.held)]
                run.held.add(job)
                self.say("job", name, job=job)
            case ("posted", name):
                run = self.runs[name]
                run.told = True
                unknown = run.in_flight or len(run.made) > len(run.held)
                self.say("posted", name, clean=not unknown and not (run.kind == "run" and run.retried))
            case ("done", name):
                self.runs[name].done = True
                self.say("done", name)
            case ("cancel", name):
                self.runs[name].handed_over = True
                self.say("cancel", name)
            case ("cancelling", name):
                self.say("cancelling", name)
            case ("bye",):
                self.say("bye")
            case ("cancelled", name, job, fate):
                self.cancels.remove((name, job))
                if fate == "unconfirmed":
                    self.runs[name].excused = True
                else:
                    self.unfinished.pop(job, None)
                self.tell(p.CancelEnded(name, job, fate))
            case ("swept", name, what):
                before = self.sweeps.pop(name)
                now = tuple(job for job, owner in self.unfinished.items() if owner == name)
                self.runs[name].excused |= what == "failed"
                self.tell(p.SweepEnded(name, {"now": now, "before": before, "failed": None}[what]))
            case ("closed", name, problem):
                self.closings.remove(name)
                if problem:
                    self.runs[name].excused = True
                else:
                    self.runs[name].closed = True
                    self.runs[name].in_flight = 0
                self.tell(p.CloseEnded(name, problem))
            case ("fire", purpose, name):
                self.timers[purpose, name] -= 1
                self.timers += Counter()
                if purpose == "window":
                    self.runs[name].in_flight = 0  # that is what the window is
                self.tell(p.Fired((purpose, name)))
            case _:
                raise AssertionError(move)

    def _intend(self, run: Truth) -> None:
        run.intents += 1
        if run.kind == "run":
            self.say("intent", run.id, account="a", tag=run.tag, driver="", lease={})
        else:
            owner = run.kind == "session"
            self.say("session", run.id, account="a", tag=run.tag, session=f"session {run.id}", owner=owner)

    def say(self, kind: str, run: str = "", **content: object) -> None:
        self.seq += 1
        self.unanswered[self.seq] = kind, run
        self.tell(p.Received({"kind": kind, "seq": self.seq, **({"run": run} if run else {}), **content}))
        if kind in ("job", "posted", "cancelling", "done"):
            self.unanswered.pop(self.seq, None)
        elif kind in ("cancel", "bye"):
            assert self.seq not in self.unanswered, f"{kind} is not answered"

    def tell(self, event: p.Event) -> None:
        for action in self.policy.handle(event):
            assert not self.gone, "something is ordered after the end"
            self.order(action)

    # What is ordered

    def order(self, action: p.Action) -> None:
        match action:
            case p.Ack(seq):
                kind, name = self.unanswered.pop(seq)
                if kind in ("intent", "session"):
                    assert self.ready, "an intent is acknowledged without a token"
                    assert self.runs[name].guarded, "an intent is acknowledged before it is written down"
            case p.Nack(seq):
                self.unanswered.pop(seq)
            case p.Prepare():
                self.preparing += 1
            case p.Remember(name, state):
                self._remember(self.runs[name], state)
            case p.SetTimer(timer, seconds):
                assert seconds > 0
                self.timers[timer] += 1
            case p.StartSweep(name, _, tag, session, _):
                assert name not in self.sweeps, "two sweeps of one run at once"
                assert tag == self.runs[name].tag
                assert not session or self.runs[name].kind == "session"
                self.sweeps[name] = tuple(job for job, owner in self.unfinished.items() if owner == name)
            case p.StartClose(name, _, _):
                assert self.runs[name].kind == "session"
                assert self._is_to_end(self.runs[name]), "the session of a caller that wants it"
                self.closings.append(name)
            case p.StartCancel(name, _, job):
                assert job not in self.asked, f"{job} is cancelled twice"
                assert self._may_cancel(self.runs[name], job), f"false cancel of {job}"
                self.asked.add(job)
                self.cancels.append((name, job))
            case p.Exit():
                self._check_end()
                self.gone = True

    def _remember(self, run: Truth, state: str) -> None:
        if state == "guarded":
            run.guarded = True
            return
        assert not run.over, f"{run.id} is {run.over} already, and now {state}"
        run.over = state
        if state == "cancelled":
            assert not run.done
            assert self._is_to_end(run)
            assert not self._left(run), f"{self._left(run)} go on"
            assert not run.in_flight, "a job may still be made"

    def _is_to_end(self, run: Truth) -> bool:
        return not run.done and (not self.alive or run.handed_over)

    def _may_cancel(self, run: Truth, job: str) -> bool:
        if self._is_to_end(run):
            return True
        # A duplicate, or a job whose id the caller will never learn. Not what it holds, nor what it may yet learn.
        answered = run.told or run.handed_over
        return bool(answered and job not in run.held and (run.held or not run.done))

    def _left(self, run: Truth) -> list[str]:
        return [job for job in run.made if job in self.unfinished]

    def _check_end(self) -> None:
        for run in self.runs.values():
            if not run.guarded:
                continue
            assert run.over, f"{run.id} is forgotten"
            if run.over == "pending":
                assert run.excused, "given up for nothing"
            if run.done and run.held and run.told and not run.excused:
                assert not set(self._left(run)) - run.held, "duplicates are left"


class Small(World):
    """One run, armed, and nothing in it that only multiplies the states."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        for move in (("arm",), ("prepared", ""), ("intent", "p")):
            self.make(move)

    def moves(self) -> list[Move]:
        return [move for move in super().moves() if self._matters(move)]

    def _matters(self, move: Move) -> bool:
        run = self.runs["p"]
        match move:
            case ("arm" | "intent" | "cancelling" | "bye", *_) | ("cancelled", _, _, "finished" | "gone"):
                return False
            case ("swept", _, "before"):
                return False
            case ("post", _):
                return run.kind == "run" or not run.posts
            case ("hang up",):
                return run.done
        return True


@pytest.mark.parametrize("kind", ["run", "session", "shared"])
def test_every_state_that_one_run_can_come_to(kind, monkeypatch):
    """All of them, breadth first, where a sweep that fails is given up; and each leads to the end."""
    monkeypatch.setattr(p, "SWEEP_FAILURES", 1)
    first = Small(kind)
    numbers = {_key(first): 0}
    came_by: list[tuple[int, Move]] = [(0, ())]
    before: list[list[int]] = [[]]  # from which states each can be come to
    waiting = deque([pickle.dumps(first)])
    ends = []
    for number in itertools.count():
        if not waiting:
            break
        state = waiting.popleft()
        world: World = pickle.loads(state)
        if world.gone:
            ends.append(number)
        for move in world.moves():
            after: World = pickle.loads(state)
            try:
                after.make(move)
            except AssertionError as error:
                error.add_note(f"after {_way(came_by, number)}, {move}")
                raise
            following = numbers.setdefault(_key(after), len(before))
            if following == len(before):
                before.append([])
                came_by.append((number, move))
                waiting.append(pickle.dumps(after))
            before[following].append(number)
    ending = set(ends)
    while ends:
        ends = [number for end in ends for number in before[end] if number not in ending]
        ending |= set(ends)
    stuck = set(range(len(before))) - ending
    assert not stuck, f"no way out after {_way(came_by, min(stuck))}"


def _way(came_by: list[tuple[int, Move]], number: int) -> list[Move]:
    way: list[Move] = []
    while number:
        number, move = came_by[number]
        way.insert(0, move)
    return way


def _key(world: World) -> str:
    """What tells two states apart: no numbers that only count."""
    policy = dict(vars(world.policy))
    policy["runs"] = [{**vars(run), "sweeps": 0, "held": sorted(run.held)} for run in world.policy.runs.values()]
    policy["_cancelled"], policy["_given_up"] = sorted(world.policy._cancelled), sorted(world.policy._given_up)
    rest = {**vars(world), "policy": policy, "seq": 0, "unanswered": 0, "timers": sorted(world.timers.items())}
    rest["asked"] = sorted(world.asked)
    rest["runs"] = [{**vars(run), "held": sorted(run.held)} for run in world.runs.values()]
    return repr(rest)


class Walk(RuleBasedStateMachine):
    """Three runs and all that can happen to them and around them."""

    @initialize(kinds=st.lists(st.sampled_from(["run", "run", "session", "shared"]), min_size=3, max_size=3))
    def begin(self, kinds: list[str]) -> None:
        self.world = World(*kinds)
        self.world.make(("arm",))

    def _go(self, data: st.DataObject, moves: list[Move]) -> None:
        self.world.make(data.draw(st.sampled_from(moves)))

    @precondition(lambda self: self.world.alive and self.world.connected and not self.world.gone)
    @rule(data=st.data())
    def caller_says(self, data):
        self._go(data, self.world.callers())

    @precondition(lambda self: self.world.environment() and not self.world.gone)
    @rule(data=st.data())
    def something_happens(self, data):
        self._go(data, self.world.environment())

    @precondition(lambda self: not self.world.gone)
    @rule(seq=st.integers(0, 9))
    def nonsense_comes(self, seq):
        for event in (p.Malformed("not JSON"), said("done", seq, run="?"), said("inspect", seq), p.Terminated()):
            if not self.world.gone:
                orders = words(self.world.policy.handle(event))
                assert orders in ("", "nack", "inspect", "exit")
                self.world.gone |= orders == "exit"
                assert not self.world.gone or all(run.over or not run.guarded for run in self.world.runs.values())

    @precondition(lambda self: self.world.alive and not self.world.gone and self.world.seq > 8)
    @rule(how=st.sampled_from(["die", "die", "hang up"]))
    def caller_goes(self, how):
        if how == "die" or self.world.connected:
            self.world.make((how,))

    @precondition(lambda self: self.world.gone)
    @rule()
    def nothing_comes_after_the_end(self):
        assert not self.world.moves()

    def teardown(self) -> None:
        """Whatever it has come to, once the caller is dead and requests are answered, it ends."""
        world = getattr(self, "world", None)
        if world is None or world.gone:
            return
        if world.alive:
            world.make(("die",))
        for number in range(400):
            if world.gone:
                return
            moves = [move for move in world.environment() if move[-1] not in ("failed", "unconfirmed", "no")]
            assert moves, "nothing is under way, and the watcher stays"
            world.make(moves[number % len(moves)])
        raise AssertionError("the watcher does not come to an end")


def test_random_walks_of_three_runs():
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=200,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
