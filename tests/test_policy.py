"""The watcher's judgement: every cell of its table, every state that a run can come to, and random walks of several.

The last two put the policy into a `World`: a driver, a service and a clock that may do anything they might, in any
order, and that know the truth. The world checks every order that the policy gives.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from testkit.exploration import explore

from qx_supervisor.watcher import charges, protocol
from qx_supervisor.watcher import policy as p
from qx_supervisor.watcher.facts import End, Figures

Move = tuple[str, ...]


CREDENTIALS = protocol.Credentials("https://x.test/api/v1", "crn:v1:x", "https://iam.test", "key")


def said(kind: str, seq: int = 7, **content: object) -> p.Received:
    """A message as it comes from the wire."""
    if kind == "arm":
        content["credentials"] = CREDENTIALS.to_json()
    return p.Received(*protocol.decode_from_driver(json.dumps({"kind": kind, "seq": seq, **content}).encode()))


def ruling(
    answer: str, run: str = "r", tag: str = "t", *, is_new: bool = False, answered: bool = False
) -> protocol.LeaseAnswer:
    """What the ledger says of a key."""
    return {
        "answer": answer,
        "run": run,
        "tag": tag,
        "driver": "",
        "instance": "i",
        "jobs": {},
        "answered": answered,
        "is_new": is_new,
        "is_seen": False,
        "seconds_left": 0.0,
        "lease_until": None,
        "since": None,
        "pid": 7,
        "host": "here",
    }


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
DEATH = p.DriverDied()
WINDOW, PAUSE, GRACE = p.Timer("window", "r"), p.Timer("sweep", "r"), p.Timer("grace", "r", "h")
NOTHING = p.SweepEnded("r", ())
LEASE = {"key": "k", "fingerprint": "f", "grace": 60.0, "holder": "h"}
KEYED_INTENT = said("intent", run="r", account="a", tag="t", driver="", lease=LEASE)
CLAIM = said("claim", 5, run="r", account="a", tag="t", driver="d", lease=LEASE, instances=["i"])
GRANTED = p.LeaseTaken(5, ruling("granted", is_new=True, answered=True))
DOUBTFUL = p.LeaseTaken(5, ruling("granted"))
LET_GO = said("let go", run="r")
WON = p.LeaseRetaken("r", "h", won=True)

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
    "claiming": (CLAIM,),
    "claimed": (CLAIM, GRANTED),
    "key, doubtful": (CLAIM, DOUBTFUL),
    "key, posting": (CLAIM, GRANTED, KEYED_INTENT),
    "key, held": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN),
    "key, doubles": (CLAIM, GRANTED, KEYED_INTENT, JOB, IN_DOUBT),
    "key, cancelling": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN, CANCELLING),
    "let go": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN, LET_GO),
    "let go, doubles": (CLAIM, GRANTED, KEYED_INTENT, JOB, IN_DOUBT, LET_GO),
    "key died": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN, DEATH),
    "key died posting": (CLAIM, GRANTED, KEYED_INTENT, DEATH),
    "retaking": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN, CANCEL),
    "won": (CLAIM, GRANTED, KEYED_INTENT, JOB, CLEAN, CANCEL, WON),
    "key done, doubles": (CLAIM, GRANTED, KEYED_INTENT, JOB, IN_DOUBT, DONE),
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
    "let go": LET_GO,
    "bye": said("bye"),
    "inspect": said("inspect"),
    "malformed": p.Malformed("not JSON"),
    "hung up": p.HungUp(),
    "death": DEATH,
    "SIGTERM": p.Terminated(),
    "window over": p.Fired(WINDOW),
    "pause over": p.Fired(PAUSE),
    "found none": NOTHING,
    "found J": p.SweepEnded("r", ("J",)),
    "found K": p.SweepEnded("r", ("K",)),
    "no answer": p.SweepEnded("r", None, "503"),
    "J cancelled": p.CancelEnded("r", "J", "cancelled"),
    "closed": p.CloseEnded("r"),
    "granted": GRANTED,
    "granted?": DOUBTFUL,
    "refused": p.LeaseTaken(5, ruling("held")),
    "no ledger": p.LeaseTaken(5, None, "the disk is full"),
    "grace over": p.Fired(GRACE),
    "another's": p.Fired(p.Timer("grace", "r", "g")),
    "asked again": p.Fired(p.Timer("retake", "r", "h")),
    "won": WON,
    "lost": p.LeaseRetaken("r", "h", won=False),
    "not decided": p.LeaseRetaken("r", "h", won=None),
    "won, other": p.LeaseRetaken("r", "g", won=True),
    "taken": p.LeaseLost("r", "h"),
    "taken, other": p.LeaseLost("r", "g"),
}

TABLE = """
no run
    intent       ack
    job          nack
    posted       nack
    posted?      nack
    cancelling   nack
    cancel       nack
    let go       nack
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
claiming
    intent       ack
    job          nack
    posted       nack
    posted?      nack
    cancelling   nack
    cancel       nack
    let go       nack
    bye          nack
    inspect      inspect
    malformed    nack
    granted      answer
    granted?     answer + window
    refused      answer
    no ledger    nack
claimed
    intent       ack
    posted?      window
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        grace
key, doubtful
    intent       ack
    posted?      window
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        grace
key, posting
    intent       ack
    posted?      window
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        grace + window
key, held
    intent       ack
    posted?      window + sweep
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        grace
key, doubles
    intent       ack
    posted?      window
    done         retake
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        grace
    found none   pause
    found J      pause
    found K      cancel K + pause
    no answer    pause
key, cancelling
    intent       ack
    posted?      window + sweep
    cancel       retake + ack
    let go       grace
    bye          nack
    inspect      inspect
    malformed    nack
    death        retake
let go
    intent       ack
    posted?      window + sweep
    cancel       retake + ack
    bye          nack
    inspect      inspect
    malformed    nack
    grace over   retake
let go, doubles
    intent       ack
    posted?      window
    done         retake
    cancel       retake + ack
    bye          nack
    inspect      inspect
    malformed    nack
    grace over   retake
key died
    malformed    nack
    grace over   retake
    taken        exit
key died posting
    malformed    nack
    grace over   retake
    taken        exit
retaking
    intent       ack
    posted?      window + sweep
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    asked again  retake
    won          cancel J + sweep
    not decided  wait
won
    intent       ack
    posted?      window
    done         retake
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    found K      cancel K
    no answer    pause
key done, doubles
    intent       ack
    posted?      window
    cancel       ack
    bye          nack
    inspect      inspect
    malformed    nack
    asked again  retake
    not decided  wait
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
            case p.SetTimer(timer, _):
                told.append({"sweep": "pause", "retake": "wait"}.get(timer.kind, timer.kind))
            case p.RetakeLease():
                told.append("retake")
            case p.TakeLease():
                told.append("claim")
            case p.Answer() | p.Ack() | p.Nack() | p.Exit() | p.Inspect():
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


@pytest.mark.parametrize("at", STATES)
def test_table(at):
    events = {
        name: event
        for name, event in EVENTS.items()
        if ("died" not in at or not isinstance(event, p.Received))  # the dead say nothing
        and (at == "claiming" or not isinstance(event, p.LeaseTaken))  # and only what was asked is answered
    }
    assert {name: words(brought_to(*STATES[at]).handle(event)) for name, event in events.items()} == {
        name: cell for (row, name), cell in table().items() if row == at and name in events
    }


# What the table does not show -----------------------------------------------------------------------------------


def test_an_intent_waits_for_its_account():
    policy = p.Policy()
    assert policy.handle(INTENT) == [p.Nack(7, "this account is not armed")]
    assert policy.handle(said("arm", 2, account="a")) == [p.Prepare("a")]
    announced = said("intent", 3, run="r", account="a", tag="t", driver="", lease={})
    assert policy.handle(announced) == [p.RecordRun("r", "guarded", "a", "t")]
    assert policy.handle(p.Prepared("a")) == [p.Ack(2), p.Ack(3)]


def test_credentials_that_are_refused_cost_newer_ones_nothing():
    """A watcher that was started anew has an old token at first, and the next run's while that is being refused."""
    policy = p.Policy()
    for seq in (1, 2):
        policy.handle(said("arm", seq, account="a"))
    assert policy.handle(p.Prepared("a", "no token")) == []
    assert policy.handle(p.Prepared("a")) == [p.Ack(1), p.Ack(2)]
    policy.handle(said("arm", 3, account="a"))
    assert policy.handle(p.Prepared("a", "no token")) == [p.Nack(3, "no token")]


def test_an_account_that_cannot_be_used_is_refused_and_its_runs_stay_guarded():
    policy = p.Policy()
    for event in (said("arm", 1, account="a"), said("intent", 2, run="r", account="a", tag="t", driver="", lease={})):
        policy.handle(event)
    assert policy.handle(p.Prepared("a", "the key")) == [p.Nack(1, "the key"), p.Nack(2, "the key")]
    late = said("intent", 3, run="late", account="a", tag="u", driver="", lease={})  # many are told again
    assert policy.handle(late) == [p.RecordRun("late", "guarded", "a", "u"), p.Nack(3, "the key")]
    assert words(policy.handle(DEATH)) == "window + sweep + window + sweep"


def test_an_intent_that_crosses_the_goodbye_is_refused():
    policy = brought_to()
    assert words(policy.handle(said("bye", 1))) == "ack + leave"
    assert policy.handle(said("intent", 2, run="r", account="a", tag="t", driver="", lease={})) == [
        p.Nack(2, "leaving")
    ]
    assert policy.handle(p.Fired(p.Timer("leave"))) == [p.Exit()]


def test_a_done_sent_before_the_death_wins():
    policy = brought_to(INTENT, JOB, CLEAN)
    assert policy.handle(DONE) == [p.RecordRun("r", "done")]
    assert policy.handle(DEATH) == [p.Exit()]


def test_runs_of_a_dead_driver_are_told_apart():
    policy = brought_to(INTENT, JOB, CLEAN, said("intent", run="q", account="a", tag="u", driver="", lease={}))
    policy.handle(DONE)
    assert [action for action in policy.handle(DEATH) if isinstance(action, p.StartSweep)] == [
        p.StartSweep("q", "a", "u")
    ]


def test_what_is_found_and_what_comes_of_it_is_written_down_and_told():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH)
    assert policy.handle(p.SweepEnded("r", ("K",))) == [p.RecordJob("r", "K"), p.StartCancel("r", "a", "K")]
    assert policy.handle(p.CancelEnded("r", "J", "cancelled")) == [
        p.RecordJob("r", "J", "cancelled"),
        protocol.Report("cancelled", "r", "J"),
    ]
    assert policy.handle(p.CancelEnded("r", "K", "unconfirmed", "503")) == [
        p.RecordJob("r", "K", "unconfirmed"),
        protocol.Report("unconfirmed", "r", "K", "503"),
        p.RecordRun("r", "pending", detail="503"),
        protocol.Report("pending", "r", detail="503"),
        p.ReadFigures("r", "a", "J"),
    ]
    assert policy.handle(p.FiguresRead("r", "J", CHARGED)) == [p.RecordFigures("r", "J", CHARGED), p.Exit()]


# How it ended, and what it cost --------------------------------------------------------------------------------------

CANCELLED = p.CancelEnded("r", "J", "cancelled")
PENDING, CHARGED = Figures(estimated=2.0), Figures(charged=1.5)
BY_SIGNAL = End("cancelled", "signal", 15)
FINISHED, FAILED = End("finished"), End("failed", "IBM", reason="code 9")


def ended(policy: p.Policy, event: p.Event) -> End | None:
    """The end that an event has written down."""
    [found] = [action.end for action in policy.handle(event) if isinstance(action, p.RecordRun)]
    return found


def test_the_watcher_has_cancelled_what_a_dead_driver_left():
    assert ended(brought_to(INTENT, JOB, CLEAN, DEATH, NOTHING), CANCELLED) == End("cancelled", "watcher")
    assert ended(brought_to(INTENT, said("posted", run="r", clean=True), DEATH), NOTHING) == End("cancelled", "watcher")


@pytest.mark.parametrize("end", [FINISHED, FAILED, End("cancelled", "IBM", reason="ran too long")])
def test_a_job_that_had_ended_before_its_driver_was_not_cancelled_by_the_watcher(end):
    policy = brought_to(INTENT, JOB, CLEAN, DEATH, NOTHING)
    outcome = "cancelled" if end.outcome == "cancelled" else "finished"
    assert ended(policy, p.CancelEnded("r", "J", outcome, end=end)) == end


@pytest.mark.parametrize("kind", [protocol.Cancelling, protocol.HandOver])
def test_why_a_driver_began_to_cancel_is_told_by_its_watcher(kind):
    policy = brought_to(INTENT, JOB, CLEAN, p.Received(8, kind("r", BY_SIGNAL)), DEATH, NOTHING)
    assert ended(policy, CANCELLED) == BY_SIGNAL


def test_what_could_not_be_resolved_has_no_end_yet():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH, NOTHING)
    assert ended(policy, p.CancelEnded("r", "J", "unconfirmed", "503")) is None


@pytest.mark.parametrize("end", [FINISHED, FAILED, BY_SIGNAL, End("detached", "program"), None])
def test_a_driver_says_how_its_run_has_ended(end):
    policy = brought_to(INTENT, JOB, CLEAN)
    done = p.Received(9, protocol.StandDown("r", end))
    assert policy.handle(done) == [p.RecordRun("r", "done", end=end)]


def test_a_run_that_stays_for_its_duplicates_ends_as_its_driver_has_said():
    policy = brought_to(INTENT, JOB, said("posted", run="r", clean=False), NOTHING)
    policy.handle(p.Received(9, protocol.StandDown("r", FINISHED)))
    policy.handle(p.Fired(p.Timer("window", "r")))
    policy.handle(p.Fired(p.Timer("sweep", "r")))
    assert ended(policy, p.SweepEnded("r", ())) == FINISHED


def test_charges_are_read_when_no_cancel_is_under_way():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH)
    policy.handle(p.SweepEnded("r", ("K",)))
    assert not [each for each in policy.handle(CANCELLED) if isinstance(each, p.ReadFigures)]
    assert policy.handle(p.CancelEnded("r", "K", "finished"))[-2:] == [
        p.ReadFigures("r", "a", "J"),
        p.ReadFigures("r", "a", "K"),
    ]
    assert policy.handle(p.FiguresRead("r", "K", CHARGED)) == [p.RecordFigures("r", "K", CHARGED)]
    assert policy.handle(p.FiguresRead("r", "J", CHARGED)) == [p.RecordFigures("r", "J", CHARGED), p.Exit()]


def test_a_charge_that_is_pending_is_read_again_and_left_to_others_at_last():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH, NOTHING)
    assert policy.handle(CANCELLED)[-1] == p.ReadFigures("r", "a", "J")
    timer = p.Timer("charge", job="J")
    for pause in charges.PAUSES:
        assert policy.handle(p.FiguresRead("r", "J", PENDING)) == [
            p.RecordFigures("r", "J", PENDING),
            p.SetTimer(timer, pause),
        ]
        assert policy.handle(p.Fired(timer)) == [p.ReadFigures("r", "a", "J")]
    assert policy.handle(p.FiguresRead("r", "J", None)) == [p.Exit()]


def test_a_driver_reads_its_charges_while_it_lives_and_its_watcher_what_is_left():
    policy = brought_to(INTENT, JOB, CLEAN)
    assert words(policy.handle(p.Received(9, protocol.StandDown("r", FINISHED)))) == ""
    assert policy.handle(DEATH) == [p.ReadFigures("r", "a", "J")]
    assert policy.handle(p.FiguresRead("r", "J", CHARGED))[-1] == p.Exit()


@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_driver_has_read_is_not_read_again(is_first):
    figures, done = (
        p.Received(8, protocol.JobFigures("r", "J", CHARGED)),
        p.Received(9, protocol.StandDown("r", FINISHED)),
    )
    policy = brought_to(INTENT, JOB, CLEAN, *(() if is_first else (done,)))
    assert policy.handle(figures) == [p.RecordFigures("r", "J", CHARGED)]
    if is_first:
        policy.handle(done)
    assert policy.handle(DEATH) == [p.Exit()]


@pytest.mark.parametrize("end", [End("detached", "program"), None])
def test_the_charge_of_a_job_that_was_let_go_is_not_waited_for(end):
    policy = brought_to(INTENT, JOB, CLEAN, p.Received(9, protocol.StandDown("r", end)))
    assert policy.handle(DEATH) == [p.Exit()]


def test_no_charge_keeps_a_watcher_from_leaving_that_is_told_to():
    done = p.Received(9, protocol.StandDown("r", FINISHED))
    assert brought_to(INTENT, JOB, CLEAN, done, DEATH).handle(p.Terminated()) == [p.Exit()]
    policy = brought_to(INTENT, JOB, CLEAN, done, said("bye"))
    assert policy.handle(p.Fired(p.Timer("leave"))) == [p.Exit()]


def test_of_a_driver_that_lives_for_long_the_latest_charges_are_kept():
    policy = brought_to()
    for number in range(charges.MOST + 5):
        run = f"r{number}"
        policy.handle(said("intent", run=run, account="a", tag=run, driver="", lease={}))
        policy.handle(said("job", run=run, job=f"J{number}"))
        policy.handle(said("posted", run=run, clean=True))
        policy.handle(p.Received(9, protocol.StandDown(run, FINISHED)))
    orders = policy.handle(DEATH)
    assert [order.job for order in orders] == [f"J{number}" for number in range(5, charges.MOST + 5)]


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
        p.RecordRun("r", "guarded", "a", "t", session="s"),
        p.Ack(7),
        p.RecordAnswered("r"),
    ]
    assert policy.handle(DEATH) == [p.StartClose("r", "a", "s", spares=True)]
    assert policy.handle(p.CloseEnded("r")) == [
        p.RecordRun("r", "cancelled", end=End("cancelled", "watcher")),
        protocol.Report("cancelled", "r"),
        p.Exit(),
    ]


def test_an_opened_session_that_its_driver_has_closed_is_left_alone():
    policy = brought_to(said("opened", run="r", account="a", tag="t", session="s"), DONE)
    assert policy.handle(DEATH) == [p.Exit()]


def test_an_opened_session_that_meets_a_leaving_watcher_is_refused():
    policy = brought_to(said("bye"))
    assert policy.handle(said("opened", run="r", account="a", tag="t", session="s")) == [p.Nack(7, "leaving")]


def test_pauses_grow_and_a_sweep_that_always_fails_ends_after_a_quarter_of_an_hour():
    policy = brought_to(INTENT, JOB, CLEAN, DEATH, CANCELLED, p.FiguresRead("r", "J", CHARGED))
    pauses = []
    while not isinstance((actions := policy.handle(p.SweepEnded("r", None, "503")))[-1], p.Exit):
        [timer] = actions
        pauses.append(timer.seconds)
        assert words(policy.handle(p.Fired(timer.timer))) == "sweep"
    assert pauses == sorted(pauses)
    assert 13 * 60 < sum(pauses) < 16 * 60
    assert p.RecordRun("r", "pending", detail="503") in actions


@pytest.mark.parametrize("first", ["done", "failures"])
def test_duplicates_that_could_not_be_looked_for_are_left_to_the_ledger(first):
    """The run went well, and a retried POST of it may have made another job. Whoever reaps spares the one kept."""
    policy = brought_to(INTENT, JOB, IN_DOUBT)
    actions = policy.handle(DONE) if first == "done" else []
    for _ in range(p.SWEEP_FAILURES):
        actions += policy.handle(p.SweepEnded("r", None, "503"))
        policy.handle(p.Fired(PAUSE))
    actions += policy.handle(DONE)
    assert p.RecordJob("r", "J", "kept") in actions
    written = [action for action in actions if isinstance(action, p.RecordRun)]
    assert written == [p.RecordRun("r", "pending", detail="503")]
    assert not policy.runs


def test_failures_from_before_a_death_do_not_shorten_what_follows_it():
    """The list could not be read while the driver lived, and duplicates were given up; then it dies."""
    policy = brought_to(INTENT, JOB, IN_DOUBT)
    for _ in range(p.SWEEP_FAILURES - 1):
        policy.handle(p.SweepEnded("r", None, "503"))
        policy.handle(p.Fired(PAUSE))
    assert words(policy.handle(p.SweepEnded("r", None, "503"))) == ""
    assert words(policy.handle(DEATH)) == "cancel J + sweep"
    policy.handle(p.CancelEnded("r", "J", "cancelled"))
    assert words(policy.handle(p.SweepEnded("r", None, "503"))) == "pause"
    policy.handle(p.Fired(WINDOW))
    assert policy.handle(NOTHING)[:1] == [p.RecordRun("r", "cancelled", end=End("cancelled", "watcher"))]


def test_a_session_with_a_job_that_cannot_be_cancelled_is_left_to_the_ledger():
    policy = brought_to(SESSION, JOB, DEATH, p.CloseEnded("r"), p.CancelEnded("r", "J", "unconfirmed", "503"))
    assert words(policy.handle(p.SweepEnded("r", ("J",)))) == "pause"
    policy.handle(p.Fired(PAUSE))
    actions = policy.handle(p.SweepEnded("r", ("J",)))
    assert p.RecordRun("r", "pending", detail="503") in actions
    assert actions[-1] == p.Exit()


# With a key -----------------------------------------------------------------------------------------------------

AGAIN = said("claim", 6, run="r", account="a", tag="t", driver="d", lease={**LEASE, "holder": "h2"}, instances=["i"])


def granted_again(*, answered: bool) -> p.LeaseTaken:
    return p.LeaseTaken(6, ruling("granted", answered=answered))


def test_a_claim_asks_the_ledger_and_its_answer_goes_to_the_driver():
    policy = brought_to()
    lease = protocol.Lease(**LEASE)
    assert policy.handle(CLAIM) == [p.TakeLease(5, protocol.TakeLease("r", "a", "t", "d", lease, ("i",)))]
    assert policy.handle(p.LeaseTaken(5, ruling("granted", "q", "u", answered=True))) == [
        p.Answer(5, ruling("granted", "q", "u", answered=True))
    ]
    # It is guarded under the id and the tag that the key has had before; its jobs so far are not this driver's.
    assert policy.handle(said("let go", run="q")) == [
        p.RecordLetGo("q", "h"),
        p.SetTimer(p.Timer("grace", "q", "h"), 60.0),
    ]
    assert policy.handle(p.Fired(p.Timer("grace", "q", "h"))) == [p.RetakeLease("q", "h")]
    assert policy.handle(p.LeaseRetaken("q", "h", won=True)) == [p.StartSweep("q", "a", "u")]


def test_a_claim_needs_an_account():
    policy = p.Policy()
    assert policy.handle(CLAIM) == [p.Nack(5, "this account is not armed")]
    policy = brought_to(said("bye"))
    assert policy.handle(CLAIM) == [p.Nack(5, "leaving")]


@pytest.mark.parametrize("goes", [DEATH, p.HungUp()])
@pytest.mark.parametrize("answer", [p.LeaseTaken(5, ruling("held")), p.LeaseTaken(5, None, "the disk is full")])
def test_the_watcher_does_not_leave_before_a_claim_is_answered(goes, answer):
    policy = brought_to(CLAIM)
    assert policy.handle(goes) == []
    assert policy.handle(answer)[-1] == p.Exit()


def test_a_claim_that_is_granted_to_the_dead_waits_for_its_grace():
    policy = brought_to(CLAIM, DEATH)
    assert policy.handle(GRANTED)[1:] == [p.RecordLetGo("r", "h"), p.SetTimer(GRACE, 60.0)]
    assert policy.handle(p.Fired(GRACE)) == [p.RetakeLease("r", "h")]
    assert words(policy.handle(WON)) == "sweep"
    lease = protocol.Lease(**LEASE)
    assert policy.handle(NOTHING) == [
        p.RecordRun("r", "cancelled", lease=lease, end=End("cancelled", "watcher")),
        protocol.Report("cancelled", "r"),
        p.Exit(),
    ]


def test_what_another_has_taken_up_is_forgotten():
    for event in (p.LeaseLost("r", "h"), p.LeaseRetaken("r", "h", won=False)):
        policy = brought_to(*STATES["retaking"])
        assert policy.handle(event) == [protocol.Report("lost", "r")]
        assert words(policy.handle(DEATH)) == "exit"


def test_a_ledger_that_never_decides_is_asked_for_ten_minutes():
    policy = brought_to(*STATES["key died"], p.Fired(GRACE))
    waited = 0.0
    while words(actions := policy.handle(p.LeaseRetaken("r", "h", won=None))) == "wait":
        waited += actions[0].seconds
        assert policy.handle(p.Fired(actions[0].timer)) == [p.RetakeLease("r", "h")]
    assert words(actions) == "cancel J + sweep"
    assert waited == 600


def test_a_grace_that_ends_while_the_lease_is_retaken_asks_no_second_time():
    policy = brought_to(*STATES["let go"], CANCEL)
    assert policy.handle(p.Fired(GRACE)) == []


def test_a_sweep_for_an_earlier_call_cancels_nothing_of_the_next():
    """The same process let go of a job whose duplicates were being looked for, and takes it up again."""
    policy = brought_to(*STATES["key, doubles"], LET_GO, AGAIN)
    policy.handle(granted_again(answered=False))
    assert policy.handle(p.SweepEnded("r", ("J",))) == []
    # Nor is it taken for the next one's, whose own begins when it has ended.
    policy = brought_to(*STATES["key, doubles"], LET_GO, AGAIN, granted_again(answered=False), JOB)
    assert words(policy.handle(IN_DOUBT)) == "window"
    assert words(policy.handle(p.SweepEnded("r", ("J", "K")))) == "sweep"
    assert words(policy.handle(p.SweepEnded("r", ("J", "K")))) == "cancel K + pause"


def test_the_window_is_over_when_the_last_of_its_timers_fires():
    policy = brought_to(*STATES["key, doubles"], LET_GO, AGAIN, granted_again(answered=False), NOTHING, CANCEL)
    assert words(policy.handle(p.LeaseRetaken("r", "h2", won=True))) == "sweep"
    policy.handle(p.Fired(WINDOW))  # of the first call
    assert words(policy.handle(NOTHING)) == "pause"
    assert words(policy.handle(p.Fired(WINDOW))) == "sweep"
    assert protocol.Report("cancelled", "r") in policy.handle(NOTHING)


def test_the_window_of_an_earlier_submission_does_not_end_the_next_ones():
    """It was looked for, and not found; the next one has left when the window ends, and is handed over."""
    policy = brought_to(CLAIM, DOUBTFUL, said("anew", run="r", outcomes={}), KEYED_INTENT, p.Fired(WINDOW))
    policy.handle(CANCEL)
    assert words(policy.handle(WON)) == "sweep"
    assert words(policy.handle(NOTHING)) == "pause"


def test_the_cancel_of_a_duplicate_is_waited_for_by_the_next_call():
    policy = brought_to(*STATES["key, doubles"], p.SweepEnded("r", ("J", "K")), LET_GO, AGAIN)
    policy.handle(granted_again(answered=True))
    policy.handle(CANCEL)
    assert words(policy.handle(p.LeaseRetaken("r", "h2", won=True))) == "sweep"
    assert protocol.Report("cancelled", "r") not in policy.handle(p.SweepEnded("r", ("J", "K")))
    policy.handle(p.CancelEnded("r", "J", "cancelled"))
    assert protocol.Report("cancelled", "r") in policy.handle(p.CancelEnded("r", "K", "cancelled"))


@pytest.mark.parametrize("won", [True, False])
def test_duplicates_of_what_is_done_are_cancelled_under_a_lease_that_was_won(won):
    """From its `done` on another may have the key, and submit a job of its own under the same tag."""
    policy = brought_to(*STATES["key, doubles"])
    assert policy.handle(DONE) == [p.RecordJob("r", "J", "kept"), p.RetakeLease("r", "h")]
    assert words(policy.handle(p.SweepEnded("r", ("J", "K")))) == ""
    assert words(policy.handle(p.LeaseRetaken("r", "h", won=won))) == ("sweep" if won else "")
    assert words(policy.handle(p.SweepEnded("r", ("J", "K")))) == ("cancel K + pause" if won else "")


def test_what_is_replayed_to_a_new_watcher_is_let_go_there_too():
    policy = brought_to(KEYED_INTENT, JOB, CLEAN)
    assert policy.handle(LET_GO) == [p.RecordLetGo("r", "h"), p.SetTimer(GRACE, 60.0)]
    lease = protocol.Lease(**LEASE)
    assert policy.handle(KEYED_INTENT)[0] == p.RecordRun("r", "guarded", "a", "t", lease=lease)


# The world ------------------------------------------------------------------------------------------------------

FATES = ("cancelled", "finished", "gone", "unconfirmed")

KEYED = {
    "keyed": "nothing is known under its key",
    "at once": "the same, without a grace",
    "known": "an earlier driver left a job",
    "doubtful": "an earlier driver left a submission that is on its way",
    "replayed": "another watcher claimed it for the driver, and died",
    "taken": "the same, it let go of it, and another driver has it by now",
}
"""The kinds of a run that has a key."""

ANOTHER = "another driver"


@dataclass
class Truth:
    """A run, a session of one's own, or one's part of another's, as it really is."""

    id: str
    kind: str  # "run", "session", "shared", or one of `KEYED`
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
    # With a key: the driver
    claims: int = 0
    holder: str = ""  # what its call is told from others by
    chosen: bool = True  # it knows what is under the key
    cancelling: bool = False
    let_go: bool = False
    grace_over: bool = False
    # the ledger
    owner: str = ""  # whose the lease is
    answered: bool = True
    is_free: bool = False  # let go, or its watcher took it to cancel
    claimed: bool = False  # by its watcher, to cancel
    away: bool = False  # it can't be asked, by anybody
    # and what it knows of others
    before: int = 0  # the jobs that there were when it chose to submit another
    older: int = 0  # submissions of an earlier call or driver, on their way
    lost: bool = False  # the watcher has seen that it is another's

    def __post_init__(self) -> None:
        if not self.is_keyed:
            return
        self.chosen = self.kind in ("keyed", "at once")
        self.grace_over = not self.grace
        if self.kind in ("known", "doubtful"):
            self.owner, self.is_free = "a dead driver", True
            self.answered = self.kind == "known"
            self.older = int(self.kind == "doubtful")
        if self.kind in ("replayed", "taken"):
            self.claims, self.chosen, self.holder = 1, True, "h1"
            self.owner = "h1" if self.kind == "replayed" else ANOTHER

    @property
    def is_keyed(self) -> bool:
        return self.kind in KEYED

    @property
    def is_run(self) -> bool:
        return self.kind == "run" or self.is_keyed

    @property
    def grace(self) -> float:
        return 0.0 if self.kind == "at once" else 60.0

    @property
    def lease(self) -> dict[str, object]:
        return {"key": "k", "fingerprint": "f", "grace": self.grace, "holder": self.holder}

    @property
    def tag(self) -> str:
        return f"tag of {self.id}"


class World:
    """The driver, the service and the clock. `moves` is all that may happen next; `make` has it happen."""

    def __init__(self, *kinds: str) -> None:
        self.policy = p.Policy()
        self.runs = {name: Truth(name, kind) for name, kind in zip("pqrs", kinds, strict=False)}
        self.unfinished: dict[str, str] = {}  # job → run
        for run in self.runs.values():
            if run.kind == "known":
                run.made.append(f"{run.id}0")
                self.unfinished[run.made[0]] = run.id
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
        self.claims: dict[str, tuple[int, str]] = {}  # run → seq, holder
        self.is_quick = False  # the ledger decides and answers at once
        self.retakes: dict[tuple[str, str], str] = {}  # run, holder → "" not decided, "won", "lost"

    # What may happen

    def moves(self) -> list[Move]:
        if self.gone:
            return []
        moves = self.environment()
        if self.alive:
            moves.append(("die",))
            if self.connected:
                moves += self.driver_moves()
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
        moves += [("land late", run.id) for run in self.runs.values() if run.older]
        moves += [("claimed", name, how) for name in self.claims for how in self._rulings(self.runs[name])]
        for (name, holder), verdict in self.retakes.items():
            run = self.runs[name]
            moves.append(("retaken" if verdict or self.is_quick else "decide", name, holder, verdict))
            # It can't be asked for as long as it takes to give up: then nobody can ask it.
            known = self.policy.runs.get(name)
            if run.owner == run.holder or known is None or known.undecided < p.RETAKE_FAILURES:
                moves.append(("retaken", name, holder, "?"))
        for run in self.runs.values():
            if run.is_keyed and run.owner == run.holder and not (run.over or run.claimed or run.away) and run.guarded:
                moves += [("taken", run.id)] if run.is_free or not self.alive else []
                moves += [("cut off", run.id)] if self.alive else []
            if run.holder == "h2" and run.kind not in ("replayed", "taken"):
                moves.append(("noticed late", run.id))
            if run.owner == ANOTHER and run.guarded and not run.lost and run.id in self.policy.runs:
                moves.append(("noticed", run.id))
        return moves

    def _rulings(self, run: Truth) -> tuple[str, ...]:
        """What the ledger may say to a claim."""
        if run.away:
            return ("trouble",)
        is_had = not run.owner or (
            run.owner != ANOTHER and not run.claimed and (run.is_free or run.over in ("cancelled", "done"))
        )
        # Before anything was known of it here, it may be another's.
        return ("granted", "trouble") if is_had else ("refused", "trouble")

    def driver_moves(self) -> list[Move]:
        moves: list[Move] = [("bye",)] if self.armed else []
        if self.armed < 2:
            moves.append(("arm",))
        for run in self.runs.values():
            if run.is_keyed and not self._is_claimed(run, moves):
                continue
            if run.intents < 2 and not (run.over or run.done or run.let_go or (run.is_keyed and run.handed_over)):
                moves.append(("intent", run.id))
            if (not run.intents and not run.is_keyed) or run.done:
                continue
            # One that may have a job that is not known is not stood down.
            is_sure = run.held or (run.chosen and not run.posts and not run.handed_over)
            moves += [("done", run.id)] if not run.is_keyed or is_sure else []
            moves += [("cancel", run.id)]
            moves += [("let go", run.id)] if run.is_keyed and not run.let_go else []
            moves += [("cancelling", run.id)] if run.held else []
            if not run.guarded or run.told or run.handed_over:
                if run.is_run and run.posts and not run.told and run.guarded:
                    moves += [("answer", run.id)] if self._has_answer(run) else []
                    moves += [("posted", run.id)]
                continue
            may_post = run.intents and not run.let_go
            if may_post and run.posts < 2 and not run.closed and (not run.is_run or not run.held):
                moves.append(("post", run.id))
            if self._has_answer(run):
                moves.append(("answer", run.id))
            if run.posts or (run.is_keyed and run.held):
                moves.append(("posted", run.id))
        return moves

    def _is_claimed(self, run: Truth, moves: list[Move]) -> bool:
        """Whether a driver goes on with a run that has a key; adds what it may do to come to that."""
        is_mine = run.guarded or run.kind in ("replayed", "taken")
        is_left = run.let_go or run.over or run.lost or not is_mine
        if is_left and run.claims < 2 and run.id not in self.claims:
            moves.append(("claim", run.id))
        if not is_mine or run.over or run.lost:
            return False
        if not run.chosen and not (run.let_go or run.handed_over or run.done):
            if any(owner == run.id for owner in self.unfinished.values()):
                moves.append(("take up", run.id))
            elif not run.older:
                moves.append(("anew", run.id))
            in_doubt = run.older or any(owner == run.id for owner in self.unfinished.values())
            moves += [("let go", run.id), ("cancel", run.id)] + ([] if in_doubt else [("done", run.id)])
            return False
        return True

    @staticmethod
    def _has_answer(run: Truth) -> bool:
        if run.is_keyed:
            return len(run.made) > run.before and run.posts > 0 and not run.held and not run.in_flight
        waits = len(run.made) > len(run.held)
        return waits and (run.kind != "run" or (not run.held and not run.in_flight))

    # What happens

    def make(self, move: Move) -> None:
        match move:
            case ("die",):
                self.alive = False
                self.tell(p.DriverDied())
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
            case ("land late", name):
                run = self.runs[name]
                run.older -= 1
                run.made.append(f"{name}{len(run.made)}")
                self.unfinished[run.made[-1]] = name
            case ("answer", name):
                run = self.runs[name]
                job = run.made[-1] if run.is_run else run.made[len(run.held)]
                run.held.add(job)
                self.say("job", name, job=job)
            case ("posted", name):
                run = self.runs[name]
                run.told = True
                unknown = run.in_flight or len(run.made) > len(run.held)
                clean = not unknown and not (run.is_run and run.retried)
                if run.is_keyed:
                    clean = run.answered if not run.posts else not (run.in_flight or run.retried or not run.held)
                self.say("posted", name, clean=clean)
            case ("done", name):
                self.runs[name].done = True
                self.say("done", name)
            case ("cancel", name):
                self.runs[name].handed_over = True
                self.say("cancel", name)
            case ("cancelling", name):
                self.runs[name].cancelling = True
                self.say("cancelling", name)
            case ("claim", name):
                run = self.runs[name]
                run.claims += 1
                self.claims[name] = self.seq + 1, f"h{run.claims}"
                lease = {**run.lease, "holder": f"h{run.claims}"}
                self.say("claim", name, account="a", tag=run.tag, driver="", lease=lease, instances=[])
            case ("claimed", name, how):
                self._rule(self.runs[name], how)
            case ("take up", name):
                run = self.runs[name]
                run.chosen = True
                job = next(job for job, owner in self.unfinished.items() if owner == name)
                run.held.add(job)
                self.say("job", name, job=job)
            case ("anew", name):
                run = self.runs[name]
                run.chosen, run.before = True, len(run.made)
                self.say("anew", name, outcomes={})
            case ("let go", name):
                self.runs[name].let_go = True
                self.say("let go", name)
            case ("taken", name):
                self.runs[name].owner = ANOTHER
            case ("noticed", name):
                self.tell(p.LeaseLost(name, self.runs[name].holder))
            case ("noticed late", name):
                self.tell(p.LeaseLost(name, "h1"))
            case ("cut off", name):
                self.runs[name].owner = ANOTHER
                self.tell(p.LeaseLost(name, self.runs[name].holder))
            case ("decide", name, holder, _):
                run = self.runs[name]
                won = run.owner == holder and run.over not in ("cancelled", "done")
                self.retakes[name, holder] = "won" if won else "lost"
                run.claimed |= won
                run.is_free |= won
            case ("retaken", name, holder, verdict):
                if not verdict:
                    self.make(("decide", name, holder, ""))
                    verdict = self.retakes[name, holder]
                del self.retakes[name, holder]
                run, known = self.runs[name], self.policy.runs.get(name)
                if verdict == "?" and known is not None and known.undecided >= p.RETAKE_FAILURES:
                    run.away = True
                self.tell(p.LeaseRetaken(name, holder, {"won": True, "lost": False, "?": None}[verdict]))
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
            case ("fire", *fields):
                timer = p.Timer(*fields)
                self.timers[timer] -= 1
                self.timers += Counter()
                if timer.kind == "window" and not self.timers[timer]:
                    self.runs[timer.run].in_flight = self.runs[timer.run].older = 0  # that is what the window is
                if timer.kind == "grace" and timer.holder == self.runs[timer.run].holder:
                    self.runs[timer.run].grace_over = True
                self.tell(p.Fired(timer))
            case _:
                raise AssertionError(move)

    def _intend(self, run: Truth) -> None:
        run.intents += 1
        if run.is_run:
            lease = run.lease if run.is_keyed else {}
            self.say("intent", run.id, account="a", tag=run.tag, driver="", lease=lease)
        else:
            owner = run.kind == "session"
            self.say("session", run.id, account="a", tag=run.tag, session=f"session {run.id}", owner=owner)

    def _rule(self, run: Truth, how: str) -> None:
        """The ledger answers a claim."""
        seq, holder = self.claims.pop(run.id)
        if how != "granted":
            trouble = how == "trouble"
            self.tell(p.LeaseTaken(seq, None if trouble else ruling(how), "the disk is full" if trouble else ""))
            return
        is_new = not run.owner
        run.answered |= run.over in ("cancelled", "done")
        run.owner = run.holder = holder
        run.older += run.in_flight
        run.in_flight = run.posts = run.intents = 0
        run.guarded, run.chosen, run.grace_over = True, is_new, not run.grace
        run.is_free = run.claimed = run.let_go = run.done = run.handed_over = run.cancelling = run.told = False
        run.retried = run.lost = False
        run.held, run.over = set(), ""
        self.tell(p.LeaseTaken(seq, ruling(how, run.id, run.tag, is_new=is_new, answered=run.answered)))

    def say(self, kind: str, run: str = "", **content: object) -> None:
        self.seq += 1
        self.unanswered[self.seq] = kind, run
        self.tell(said(kind, self.seq, **({"run": run} if run else {}), **content))
        if kind in ("job", "posted", "cancelling", "done", "anew", "let go"):
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
                kind, name = self.unanswered.pop(seq)
                if kind == "claim":
                    self.claims.pop(name, None)
            case p.Prepare():
                self.preparing += 1
            case p.Answer(seq):
                self.unanswered.pop(seq)
            case p.TakeLease(seq, wanted):
                assert self.claims[wanted.run][0] == seq
            case p.RetakeLease(name, holder):
                assert (name, holder) not in self.retakes, "asked twice at once"
                self.retakes[name, holder] = ""
            case p.RecordLetGo(name, holder):
                self.runs[name].is_free |= self.runs[name].owner == holder
            case p.RecordAnswered(name):
                self.runs[name].answered = True
            case protocol.Report("lost", name):
                assert self.runs[name].owner != self.runs[name].holder, "lost for nothing"
                self.runs[name].lost = True
            case p.RecordRun(name, state, lease=lease):
                self._remember(self.runs[name], state, lease.holder if lease else "")
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
                assert self._is_to_end(self.runs[name]), "the session of a driver that wants it"
                self.closings.append(name)
            case p.StartCancel(name, _, job):
                assert job not in self.asked, f"{job} is cancelled twice"
                assert self._may_cancel(self.runs[name], job), f"false cancel of {job}"
                self.asked.add(job)
                self.cancels.append((name, job))
            case p.ReadFigures(name, _, job):
                assert not self.cancels, "a charge is read while a cancel is under way"
                for answer in self.policy.handle(p.FiguresRead(name, job, CHARGED)):
                    self.order(answer)
            case p.Exit():
                self._check_end()
                self.gone = True

    def _remember(self, run: Truth, state: str, holder: str) -> None:
        assert holder == run.holder
        if state == "guarded":
            run.guarded = True
            run.answered &= run.owner != holder
            return
        if run.owner != holder:  # the ledger takes no word of a former holder
            run.lost = True
            return
        assert not run.over, f"{run.id} is {run.over} already, and now {state}"
        run.over = state
        run.claimed = False
        if state == "cancelled":
            assert not run.done
            assert self._is_to_end(run)
            assert not self._left(run), f"{self._left(run)} go on"
            assert not run.in_flight, "a job may still be made"
            assert not run.older, "a job may still be made"

    def _is_to_end(self, run: Truth) -> bool:
        if not run.is_keyed or run.handed_over:
            return not run.done and (not self.alive or run.handed_over)
        is_left = run.let_go or not self.alive
        return not run.done and is_left and (run.grace_over or (run.cancelling and not self.alive))

    def _may_cancel(self, run: Truth, job: str) -> bool:
        if run.owner != run.holder:
            return False  # another has its lease
        if self._is_to_end(run):
            return not run.is_keyed or run.claimed or run.away
        if run.is_keyed and not run.done and (run.let_go or not self.alive):
            return False  # it waits
        # A duplicate, or a job whose id the driver will never learn. Not what it holds, nor what it may yet learn.
        answered = run.told or run.handed_over or (run.is_keyed and run.done)
        return bool(answered and job not in run.held and (run.held or not run.done))

    def _left(self, run: Truth) -> list[str]:
        return [job for job in run.made if job in self.unfinished]

    def _check_end(self) -> None:
        assert not self.claims, "a claim is not answered"
        for run in self.runs.values():
            if not run.guarded:
                continue
            assert run.over or run.lost, f"{run.id} is forgotten"
            if run.over == "pending":
                assert run.excused, "given up for nothing"
            if run.over and run.done and run.held and run.told and not run.excused:
                assert not set(self._left(run)) - run.held, "duplicates are left"


class Small(World):
    """One run, armed, and nothing in it that only multiplies the states."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.is_quick = kind != "at once"
        begin = {"replayed": ["intent"], "taken": ["intent", "let go"]}.get(
            kind, ["claim" if kind in KEYED else "intent"]
        )
        for move in (("arm",), ("prepared", ""), *((each, "p") for each in begin)):
            self.make(move)

    def moves(self) -> list[Move]:
        return [move for move in super().moves() if self._matters(move)]

    def _matters(self, move: Move) -> bool:
        run = self.runs["p"]
        if run.is_keyed and not self._matters_with_a_key(run, move):
            return False
        match move:
            case ("arm" | "bye", *_) | ("cancelled", _, _, "finished" | "gone"):
                return False
            case ("cancelling" | "intent", _):
                return run.is_keyed
            case ("swept", _, "before"):
                return False
            case ("post", _):
                return run.kind in ("run", "replayed") or not run.posts
            case ("hang up",):
                return run.done
        return True

    @staticmethod
    def _matters_with_a_key(run: Truth, move: Move) -> bool:
        """Each kind has some moves to itself: what all may do together is for the random walks."""
        match move:
            case ("hang up",) | ("swept", _, "failed"):
                return False
            case ("intent", _):
                return not run.intents and not run.held
            case ("post", _):
                return not run.posts or run.kind == "replayed"
            case ("anew", _):
                return run.kind == "keyed"
            case ("cancelling", _):
                return run.kind == "known" and not run.cancelling
            case ("cut off", _):
                return run.kind == "known"
            case ("noticed" | "taken" | "let go", _) if run.claims == 2:
                return False
            case ("cancel", _) if run.kind in ("keyed", "replayed"):
                return run.claims == 2 or run.let_go
            case ("noticed" | "noticed late", _) if run.kind in ("replayed", "doubtful"):
                return False
            case ("taken" | "noticed", _) if run.kind == "keyed":
                return False
            case ("done", _) if run.kind in ("keyed", "doubtful"):
                return run.kind == "keyed" and run.claims == 1 and not run.let_go
            case ("cancel" | "answer" | "posted" | "done", _) if run.let_go:
                return run.kind == "replayed"
            case ("retaken", _, _, "?") | ("claimed", _, "trouble"):
                return run.kind == "at once"
            case ("cancelled", _, _, "unconfirmed"):
                return run.kind == "known"
            case ("claim", _):
                return not run.claims or run.kind not in ("at once", "replayed")
        return True


@pytest.mark.parametrize("kind", ["run", "session", "shared", *KEYED])
@pytest.mark.long
def test_every_state_that_one_run_can_come_to(kind, monkeypatch):
    """All of them, breadth first, where a sweep that fails is given up; and each leads to the end."""
    monkeypatch.setattr(p, "SWEEP_FAILURES", 1)
    monkeypatch.setattr(p, "RETAKE_FAILURES", 1)
    explore(Small(kind), _key, lambda world: world.moves(), lambda world: world.gone)


def _key(world: World) -> str:
    """What tells two states apart: no numbers that only count."""
    if world.gone:
        return "gone"
    policy = dict(vars(world.policy))
    policy["runs"] = [{**vars(run), "sweeps": 0, "held": sorted(run.held)} for run in world.policy.runs.values()]
    policy["_cancelled"], policy["_given_up"] = sorted(world.policy._cancelled), sorted(world.policy._given_up)
    timers = {timer: 1 if timer.kind == "sweep" else number for timer, number in world.timers.items()}
    rest = {**vars(world), "policy": policy, "seq": 0, "unanswered": 0, "timers": sorted(timers.items())}
    policy["_windows"], policy["_sweeps"] = dict(world.policy._windows), sorted(world.policy._sweeps.items())
    policy["_wanted"] = len(world.policy._wanted)
    policy["_charges"] = [each.job for each in world.policy._charges._due]  # all others are read by now
    rest["asked"] = sorted(world.asked)
    rest["claims"] = [(name, holder) for name, (_, holder) in world.claims.items()]
    # What the driver would do next, if it lived.
    plans = {} if world.alive else dict.fromkeys(("intents", "posts", "retried", "claims", "before", "chosen"), 0)
    rest["runs"] = [{**vars(run), "held": sorted(run.held), **plans} for run in world.runs.values()]
    return repr(rest)


class Walk(RuleBasedStateMachine):
    """Three runs and all that can happen to them and around them."""

    @initialize(
        kinds=st.lists(
            st.sampled_from(["run", "run", "session", "shared", "keyed", "keyed", "at once", "known", "doubtful"]),
            min_size=3,
            max_size=3,
        )
    )
    def begin(self, kinds: list[str]) -> None:
        self.world = World(*kinds)
        self.world.make(("arm",))

    def _go(self, data: st.DataObject, moves: list[Move]) -> None:
        self.world.make(data.draw(st.sampled_from(moves)))

    @precondition(lambda self: self.world.alive and self.world.connected and not self.world.gone)
    @rule(data=st.data())
    def driver_says(self, data):
        self._go(data, self.world.driver_moves())

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
                assert not self.world.gone or all(
                    run.over or run.lost or not run.guarded for run in self.world.runs.values()
                )

    @precondition(lambda self: self.world.alive and not self.world.gone and self.world.seq > 8)
    @rule(how=st.sampled_from(["die", "die", "hang up"]))
    def driver_goes(self, how):
        if how == "die" or self.world.connected:
            self.world.make((how,))

    @precondition(lambda self: self.world.gone)
    @rule()
    def nothing_comes_after_the_end(self):
        assert not self.world.moves()

    def teardown(self) -> None:
        """Whatever it has come to, once the driver is dead and requests are answered, it ends."""
        world = getattr(self, "world", None)
        if world is None or world.gone:
            return
        if world.alive:
            world.make(("die",))
        for number in range(400):
            if world.gone:
                return
            moves = [
                move for move in world.environment() if move[-1] not in ("failed", "unconfirmed", "no", "?", "trouble")
            ]
            assert moves, "nothing is under way, and the watcher stays"
            world.make(moves[number % len(moves)])
        raise AssertionError("the watcher does not come to an end")


@pytest.mark.long
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
