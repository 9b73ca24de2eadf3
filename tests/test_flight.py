"""What a run does next: every state that it can come to, whoever ends it and whatever becomes of its POSTs.

A `World` has the threads around the machine: the run's own work, those who wish its end, the watcher, the service and
the program. They may do anything they might, in any order; the world knows the truth, and checks every order.
"""

from __future__ import annotations

from typing import Any

import pytest
from testkit.exploration import explore

from qx_supervisor.flight import machine as m

Move = tuple[Any, ...]

STATES: tuple[m.JobState, ...] = ("completed", "failed", "cancelled")
MOST_POSTS = 2
ANSWERS = [  # never left, ambiguous, lost; and whether a job may have been made
    (True, False, True, False),
    (False, False, False, False),
    (False, True, True, False),
    (False, True, True, True),
    (False, True, False, True),
]


class World:
    """All that is around one run. `moves` is all that may happen next; `make` has it happen.

    Args:
        is_keyed: Whether the run has a key.
        is_attached: Whether it is attached to a job, instead of submitting one.
        wishes: How many threads may wish the run's end, beside its own.
        extras: What else may happen once: "hurry", "overdue", "detach", "limit", "lose", "unwatched".
    """

    def __init__(self, *, is_keyed: bool, is_attached: bool, wishes: int, extras: tuple[str, ...]) -> None:
        self.machine = m.Machine()
        self.is_keyed = is_keyed
        self.is_attached = is_attached
        self.left = {"wish": wishes, **dict.fromkeys(extras, 1)}
        self.work = "claiming" if is_keyed else "preparing"
        self.posts = 0
        self.is_posting = False
        self.in_doubt = False  # an earlier driver may have left a job
        self.made: list[str] = []
        self.unfinished: set[str] = set()
        self.is_ambiguous = False  # the error that the work will end in
        self.enders: dict[str, str] = {}  # who wishes the end → what it waits for
        self.is_wished = self.is_hurried = False
        self.is_acknowledged = False
        self.is_watched = True
        self.is_announced = False
        self.has_stood_down = self.is_handed_over = self.is_let_go = False
        self.told_job = ""
        self.told_clean: bool | None = None
        self.is_over = False

    # What may happen

    def moves(self) -> list[Move]:
        return [*self.own_moves(), *self.others_moves()]

    def own_moves(self) -> list[Move]:
        """What the threads do that are under way."""
        moves: list[Move] = []
        stops = [("sees that it is to stop",)] if self.machine.is_stopping else []
        match self.work:
            case "claiming":
                moves += [("granted", True), ("granted", False), ("fail",), *stops]
            case "searching":
                moves += [("take up", only) for only in ((True, False) if self.in_doubt else (True,))]
                moves += [("search fails",)] if not stops else [("search stops",)]
                moves += [("none left",)]
            case "search stops":
                moves += [("search stops",)]
            case "preparing":
                moves += [("announce",), ("fail",), *stops]
                moves += [("attach", "over")] if self.is_attached else []
            case "ready" if self.is_attached:
                moves += [("attach", "in flight"), ("fail",), *stops]
            case "announced":
                moves += [("acknowledged",), ("fail",), *stops]
                moves += [("unwatched",)] if self.left.get("unwatched") else []
            case "ready" if self.posts < MOST_POSTS:
                moves += [("post",), *stops]
            case "ready":
                moves += stops or [("fail",)]
            case "posting":
                moves += [("answered",), ("put off",)]
                moves += [("resend", made) for made in (True, False)] if self.posts < MOST_POSTS else []
                moves += [("unanswered", *answer) for answer in ANSWERS]
            case "looking":
                moves += [("found", job) for job in self.made] + [("not found",), ("fail",), *stops]
            case "raising":
                moves += [("fail",)]
            case "stopping":
                moves += [("stopped",)]
            case "polling":
                moves += [("finished", state) for state in STATES]
                moves += [("fail",)]
            case "fetching":
                moves += [("fetched",), ("fail",), *stops]
            case "completing":
                moves += [("completed",), ("fail",)]
            case "failing":
                moves += [("fail",)]
        if self.is_hurried and not self.is_wished:  # there is no hurry without a wish
            moves += [("wish", False, wants) for wants in (False, True)]
        for who, doing in self.enders.items():
            match doing:
                case "answer":
                    moves += [("wait over", who)]
                case "cancel":
                    moves += [("cancelled", who, state) for state in STATES] + [("not cancelled", who)]
                case "hand over":
                    moves += [
                        ("handed over", who, accepts) for accepts in ((True, False) if self.is_watched else (False,))
                    ]
        return moves

    def others_moves(self) -> list[Move]:
        """What the program and other hosts do."""
        moves: list[Move] = []
        if self.left["wish"] and (self.is_wished or not self.is_hurried):
            moves += [("wish", False, False), ("wish", False, True)]
            moves += [("wish", True, False)] if self.is_keyed else []
        moves += [("hurry",)] if self.left.get("hurry") and (self.is_wished or self.left["wish"]) else []
        moves += [("overdue",)] if self.left.get("overdue") and self.machine.ending and not self.is_over else []
        moves += [("detach",)] if self.left.get("detach") else []
        moves += [("limit",)] if self.left.get("limit") else []
        moves += [("lose",)] if self.left.get("lose") and self.is_announced else []
        moves += [("watcher dies",)] if self.left.get("unwatched") and self.is_announced else []
        return moves

    # What happens

    def make(self, move: Move) -> None:
        match move:
            case ("granted", in_doubt):
                self.in_doubt, self.work = in_doubt, "searching"
                self.is_announced = True
                self.tell(m.Granted(in_doubt))
                if self.work == "stopping":
                    self.work = "search stops"
            case ("take up", only):
                self.made, self.unfinished = ["old"], {"old"} if self.in_doubt else set()
                self.in_doubt, self.work = self.in_doubt and not only, "polling"
                self.tell(m.TakenUp("old", only))
            case ("none left",):
                self.in_doubt, self.work = False, "preparing"
                self.tell(m.NoneLeft())
            case ("search fails",):
                self.work = "failing"
                self.tell(m.SearchFailed())
            case ("search stops",):
                self.work = "stopping"
                self.tell(m.SearchFailed())
            case ("announce",):
                self.tell(m.Announcing())
            case ("acknowledged",):
                self.work, self.is_acknowledged = "ready", True
                self.tell(m.Acknowledged())
            case ("unwatched",):
                self.left["unwatched"] = 0
                self.work, self.is_acknowledged, self.is_watched = "ready", True, False
                self.tell(m.Acknowledged())
            case ("attach", how):
                self.work, self.unfinished = "polling", {"there"} if how == "in flight" else set()
                self.tell(m.Attached("there", is_guarded=how == "in flight"))
            case ("post",):
                self.tell(m.AboutToPost())
            case ("sees that it is to stop",):
                self.work = "stopping"
            case ("stopped",):
                self.work, self.is_posting = "done", False
                self.tell(m.Stopped())
            case ("answered",):
                self.make_job()
                self.answer(self.made[-1])
            case ("put off",):
                self.work, self.is_posting = "ready", False
                self.tell(m.PutOff())
            case ("resend", made):
                if made:
                    self.make_job()
                self.posts += 1
                self.tell(m.Resending())
            case ("unanswered", never_left, is_ambiguous, is_lost, made):
                if made:
                    self.make_job()
                self.is_posting, self.is_ambiguous = False, is_ambiguous
                self.tell(m.Unanswered(never_left, is_ambiguous, is_lost))
            case ("found", job):
                self.answer(job)
            case ("not found",):
                self.tell(m.NotFound())
            case ("polled again",):
                self.work = "done"  # it is final, and whoever cancelled it has seen that
            case ("finished", state):
                self.finish()
                self.work = "done"
                self.tell(m.Finished(state))
            case ("fetched",):
                self.work = "completing"
                self.tell(m.Fetched())
            case ("completed",):
                self.work = "done"
                self.tell(m.Completed())
            case ("fail",):
                self.work, self.is_posting = "done", False
                self.tell(m.Failed(self.is_ambiguous))
            case ("wish", keep, wants):
                self.left["wish"] -= 1
                self.wish(f"w{self.left['wish']}", m.CancelWished(keep, wants))
            case ("hurry",):
                self.left["hurry"], self.is_hurried = 0, True
                self.tell(m.Hurried(), "hurry")
            case ("overdue",):  # a request of whoever ends it is not answered: it is handed over by another thread
                self.left["overdue"], self.is_hurried = 0, True
                self.tell(m.Hurried(), "overdue")
            case ("watcher dies",):
                self.left["unwatched"], self.is_watched = 0, False
            case ("detach",):
                self.left["detach"] = 0
                self.tell(m.Detached())
            case ("limit",):
                self.left["limit"] = 0
                self.wish("limit", m.CancelWished(is_limit=True))
            case ("lose",):
                self.left["lose"] = 0
                self.tell(m.LeaseLost("another"))
            case ("wait over", who):
                del self.enders[who]
                self.tell(m.WaitOver(), who)
            case ("cancelled", who, state):
                self.finish()
                del self.enders[who]
                self.tell(m.CancelEnded(state), who)
            case ("not cancelled", who):
                del self.enders[who]
                self.tell(m.CancelEnded(None), who)
            case ("handed over", who, accepts):
                del self.enders[who]
                self.tell(m.HandOverEnded(accepts), who)
            case _:
                raise AssertionError(move)

    def make_job(self) -> None:
        self.made.append(f"J{len(self.made)}")
        self.unfinished.add(self.made[-1])

    def answer(self, job: str) -> None:
        self.work, self.is_posting = "polling", False
        self.tell(m.Posted(job, self.is_watched and not self.has_lost_its_key))

    def finish(self) -> None:
        self.unfinished.discard(str(self.machine.job))

    @property
    def has_lost_its_key(self) -> bool:
        return self.is_keyed and bool(self.machine.lease_lost)

    @property
    def is_in_flight(self) -> bool:
        return self.machine.job in self.unfinished

    def wish(self, who: str, wish: m.CancelWished) -> None:
        self.is_wished |= not wish.is_failure and not (wish.is_limit and self.machine.is_detached)
        self.tell(wish, who)

    def tell(self, event: m.Event, who: str = "work") -> None:
        for action in self.machine.handle(event):
            self.order(action, who)

    # What is ordered

    def order(self, action: m.Action, who: str) -> None:
        match action:
            case m.Announce():
                self.work, self.is_announced = "announced", True
            case m.Post():
                assert not self.is_attached, "a POST of a run that is attached to a job"
                assert not self.is_posting, "two POSTs are under way"
                assert self.is_acknowledged, "a POST before its intent is acknowledged"
                assert not self.machine.is_stopping, "a POST of a run that is to end"
                assert not self.is_over
                assert not self.has_lost_its_key, "a POST under a key that is another's"
                assert not self.in_doubt, "a POST while an earlier driver's may make a job"
                assert not self.has_stood_down
                self.posts += 1
                self.work, self.is_posting = "posting", True
            case m.PostLater() | m.PostAgain():
                self.work = "ready"
            case m.LookFor():
                self.work = "looking"
            case m.Stop():
                self.work = "stopping"
            case m.Raise():
                self.work = "raising"
            case m.Refuse():
                self.work = "failing"
            case m.GiveUp(why):
                assert why != "refused" or not self.made, "a refusal that made a job"
                self.wish("failure", m.CancelWished(is_failure=True))
            case m.Conclude():
                assert not self.is_in_flight
                self.work = "fetching" if self.machine.state == "completed" else "failing"
            case m.AwaitAnswer():
                assert self.is_posting or self.work in ("raising", "stopping")
                self.enders[who] = "answer"
            case m.AwaitOutcome():
                assert who == "failure" or self.is_wished
                if not self.machine._is_settled:
                    self.enders[who] = "outcome"
            case m.CancelJob(is_late):
                self.check_cancel()
                self.enders["late" if is_late else who] = "cancel"
            case m.HandOver():
                assert who == "hurry" or self.enders.get(who) in (None, "answer", "cancel")
                self.is_handed_over = True
                if who != "hurry":
                    self.enders[who] = "hand over"
            case m.TellJob(job):
                self.told_job = job
            case m.TellPosted(clean):
                assert not clean or (set(self.made) <= {self.told_job} and not self.in_doubt), (
                    "a duplicate is forgotten"
                )
                self.told_clean = clean
            case m.TellAnew():
                self.told_clean = None
            case m.LetGo():
                assert self.is_keyed
                self.is_let_go = True
            case m.TellCancelling():
                assert not self.has_stood_down or self.machine.is_detached
            case m.StandDown():
                self.check_stand_down()
                self.has_stood_down = True
            case m.Answer(outcome):
                self.check_answer(outcome)
            case m.Settle(outcome):
                self.check_answer(outcome)
                if who != "hurry":
                    self.enders = {
                        each: doing for each, doing in self.enders.items() if doing != "outcome" and each != who
                    }
            case m.End():
                assert not self.is_over, "it ends twice"
                self.is_over = True
                assert self.is_cared_for(), "it ends, and its job is forgotten"

    def check_cancel(self) -> None:
        wish = self.machine.ending
        assert wish is not None, "false cancel: nobody wants it"
        assert self.is_wished or wish.is_failure
        assert not wish.keep, "false cancel: the job is to be kept"
        assert not self.has_lost_its_key, "false cancel: the job is another driver's"
        assert self.machine.job is not None

    def unknown(self) -> list[str]:
        """The jobs that the run does not know of."""
        return [job for job in self.made if job != self.machine.job]

    def check_stand_down(self) -> None:
        assert not self.is_posting, "it stands down while a POST is under way"
        assert not self.in_doubt or self.machine.job, "it stands down while there may be an earlier driver's job"
        if self.unknown():
            assert self.machine.job is not None, "a job that nobody knows is forgotten"
            assert self.told_clean is False, "a duplicate is forgotten"
        if self.is_in_flight:
            assert self.machine.is_detached, "a job in flight is forgotten"

    def is_cared_for(self) -> bool:
        """Whether no job of the run goes on though nobody wants it and nobody looks for it."""
        known = self.is_in_flight and not self.machine.is_detached
        if not (known or self.unknown() or self.is_posting):
            return True
        if self.has_stood_down:
            return not known and self.told_clean is False
        if self.machine.job and not known:
            return self.told_clean is False  # the watcher looks for duplicates
        return self.is_handed_over or self.is_let_go or self.has_lost_its_key

    def check_answer(self, outcome: str) -> None:
        match outcome:
            case "confirmed":
                assert self.machine.job is not None
                assert not self.is_in_flight
            case "nothing to cancel":
                assert not self.made or self.is_let_go or self.is_handed_over
            case "kept":
                assert self.has_lost_its_key or self.is_let_go
            case "handed over":
                assert self.is_handed_over
            case "unconfirmed":
                assert not self.has_stood_down or not self.is_in_flight or self.machine.is_detached


def walk(first: World, depth: int | None = None) -> int:
    """Come to every state; each must lead to the end of the run, whatever the program does not do."""
    return explore(
        first,
        key,
        lambda world: world.own_moves(),
        lambda world: not world.own_moves(),
        others=lambda world: world.others_moves(),
        check_end=check_end,
        depth=depth,
    )


def check_end(world: World) -> None:
    """Nothing is under way any more."""
    assert world.is_over, "it stands still"
    assert world.is_cared_for(), "a job is forgotten"


def key(world: World) -> str:
    """What tells two states apart."""
    rest = {**vars(world), "machine": vars(world.machine), "unfinished": sorted(world.unfinished)}
    rest["enders"] = sorted(world.enders.items())
    return repr(rest)


# Two that were found so -----------------------------------------------------------------------------------------


def posting(wish: m.CancelWished) -> m.Machine:
    """A run with a key that is wished to end while its POST is under way, and does not wait for the answer."""
    machine = m.Machine()
    for event in (m.Granted(in_doubt=False), m.NoneLeft(), m.Announcing(), m.Acknowledged(), m.AboutToPost(), wish):
        machine.handle(event)
    return machine


def test_a_lease_that_is_lost_after_the_hand_over_costs_its_new_holder_no_job() -> None:
    machine = posting(m.CancelWished())
    assert machine.handle(m.WaitOver()) == [m.HandOver()]
    machine.handle(m.LeaseLost("another"))
    assert machine.handle(m.Posted("J", is_guarded=False)) == [m.TellJob("J"), m.TellPosted(clean=True)]


def test_a_job_that_is_to_be_kept_is_not_cancelled_for_want_of_a_watcher() -> None:
    machine = posting(m.CancelWished(keep=True))
    assert machine.handle(m.WaitOver())[0] == m.LetGo()
    assert machine.handle(m.Posted("J", is_guarded=False)) == [m.TellJob("J"), m.TellPosted(clean=True)]


def test_without_a_watcher_the_driver_cancels_late() -> None:
    machine = posting(m.CancelWished())
    machine.handle(m.WaitOver())
    assert machine.handle(m.Posted("J", is_guarded=False))[-1] == m.CancelJob(is_late=True)


# Every state -----------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[bool, int, tuple[str, ...]]] = {
    "signals": (False, 2, ("hurry",)),
    "overdue": (False, 2, ("overdue",)),
    "unwatched": (False, 1, ("hurry", "unwatched")),
    "detached": (False, 2, ("detach",)),
    "detached, timed out": (False, 0, ("detach", "limit")),
    "lease lost": (False, 1, ("lose",)),
    "key": (True, 2, ("hurry",)),
    "key lost": (True, 1, ("hurry", "lose", "unwatched")),
    "key, detached": (True, 1, ("detach", "lose")),
}


ATTACHED: dict[str, tuple[bool, int, tuple[str, ...]]] = {
    "attached": (False, 2, ("hurry", "unwatched")),
    "attached, let go": (False, 1, ("detach", "limit", "lose")),
}


def world(kind: str) -> World:
    is_keyed, wishes, extras = {**KINDS, **ATTACHED}[kind]
    return World(is_keyed=is_keyed, is_attached=kind in ATTACHED, wishes=wishes, extras=extras)


@pytest.mark.parametrize("kind", [*KINDS, *ATTACHED])
def test_all_sequences_of_a_few_events(kind: str) -> None:
    assert walk(world(kind), depth=5 if kind in ATTACHED else 7) > 100


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, *ATTACHED])
def test_every_state(kind: str) -> None:
    walk(world(kind))
