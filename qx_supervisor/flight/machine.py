"""What a run does next, as a pure state machine: no threads, no I/O, no clock.

`Machine.handle(event)` returns the actions that an event calls for, in order. So every interleaving of answers,
signals, time limits and lost leases can be tested. Whatever happens:

- two POSTs of one run are never under way at once, and none leaves before the watcher has acknowledged its intent;
- a job is cancelled only because the program asks for it (a signal, `timeout=`, `cancel()`), or because the run fails;
- a run that ends has stood down, or its watcher still guards it: handed over, or left to its grace period;
- a POST that may have made a job is never forgotten: the job is looked for, or the run is handed over.

The phases of a run::

                  AboutToPost            Posted              Finished
    preparing ────────────────▶ posting ────────▶ submitted ──────────▶ final
      │    ▲ ◀───── PutOff ───── │  ▲                ▲
      │    │          Unanswered │  │ AboutToPost    │ Posted,
      │    │ NoneLeft            ▼  │                │ TakenUp
      └────┴──── Granted ────▶ doubtful ─────────────┘

A run that is attached to a job goes from *preparing* to *submitted* at once (`Attached`), and posts nothing.
In *doubtful*, a POST that nobody answered may have made a job: this run's own, or with a key an earlier driver's.
Whoever wishes the end of the run first decides how it ends: everyone else who wishes it waits for that outcome.
"""

from __future__ import annotations

from typing import Literal

from ..errors import CancelOutcome, JobState
from ..watcher.value import Value

Phase = Literal["preparing", "posting", "doubtful", "submitted", "final"]


# Events ---------------------------------------------------------------------------------------------------------


class Granted(Value):
    """The lease on the run's key is ours. In doubt: there may be a job of an earlier driver."""

    in_doubt: bool


class TakenUp(Value):
    """The key has a job to go on with. Only: it is certain that there is no other."""

    job: str
    is_only: bool


class NoneLeft(Value):
    """The key has no job to go on with, and none can turn up any more."""


class SearchFailed(Value):
    """The search for the key's job was given up."""


class Announcing(Value):
    """The watcher is about to be told of a POST, or of a job that is there already."""


class Acknowledged(Value):
    """The watcher knows of the POST that is about to leave; or it does not, and the program submits all the same."""


class Attached(Value):
    """A job that is there already is the run's from now on. Guarded: it is not final, so the watcher was told of it."""

    job: str
    is_guarded: bool


class AboutToPost(Value):
    """All is ready for the POST."""


class Resending(Value):
    """Qiskit's client sends the POST again, after an answer that does not say whether it made a job."""


class PutOff(Value):
    """The POST was answered: not now. It made no job."""


class Unanswered(Value):
    """The POST came to no job's id.

    Attributes:
        never_left: There was no connection for it.
        is_ambiguous: It may have made a job.
        is_lost: No answer came at all.
    """

    never_left: bool
    is_ambiguous: bool
    is_lost: bool


class NotFound(Value):
    """Under the run's tag there is no job: the POST made none."""


class Posted(Value):
    """The job's id is known. Guarded: a watcher that lives knows of the run."""

    job: str
    is_guarded: bool = True


class Finished(Value):
    """The job is final."""

    state: JobState


class Fetched(Value):
    """The results are there: the job needs no guard any more."""


class Completed(Value):
    """The run's result is made."""


class Failed(Value):
    """The run's own work ended in an error. Ambiguous: had it been the POST's, that might have made a job."""

    is_ambiguous: bool


class Stopped(Value):
    """The run's own work has seen that the run is to end."""


class LeaseLost(Value):
    """Another has the run's lease."""

    holder: str


class Detached(Value):
    """The program wants the job to go on by itself."""


class CancelWished(Value):
    """The program wants the run to end.

    Attributes:
        keep: The job is left to its grace period.
        wants_result: A job that completes all the same is gone on with.
        is_failure: The run failed, and ends for that.
        is_limit: A time limit is over. It does not concern a job that was let go, though it may fire at that moment.
        signum: The signal that it ends for, or 0.
        reason: Why, in words, for those who read the ledger.
    """

    keep: bool = False
    wants_result: bool = False
    is_failure: bool = False
    is_limit: bool = False
    signum: int = 0
    reason: str = ""


class Hurried(Value):
    """There is no more time to cancel: a second signal, or a deadline."""


class WaitOver(Value):
    """The POST has been answered, or has been waited for long enough."""


class CancelEnded(Value):
    """The cancel is confirmed (then the job's state says how it ended), or could not be (None)."""

    state: JobState | None


class HandOverEnded(Value):
    """The watcher will cancel, or did not answer."""

    is_accepted: bool


Event = (
    Granted
    | TakenUp
    | NoneLeft
    | SearchFailed
    | Announcing
    | Acknowledged
    | Attached
    | AboutToPost
    | Resending
    | PutOff
    | Unanswered
    | NotFound
    | Posted
    | Finished
    | Fetched
    | Completed
    | Failed
    | Stopped
    | LeaseLost
    | Detached
    | CancelWished
    | Hurried
    | WaitOver
    | CancelEnded
    | HandOverEnded
)


# Actions --------------------------------------------------------------------------------------------------------


class TellJob(Value):
    """Tell the watcher the job's id."""

    job: str


class TellPosted(Value):
    """Tell the watcher that no POST leaves any more. Clean: no job is unknown."""

    clean: bool


class TellAnew(Value):
    """Tell the watcher that the key's jobs so far are of no use any more."""


class TellCancelling(Value):
    """Tell the watcher that the cancel is about to be asked for."""


class LetGo(Value):
    """Tell the watcher that the run's grace period begins."""


class StandDown(Value):
    """Have the watcher forget the run."""


class Announce(Value):
    """Announce the intent."""


class Post(Value):
    """Let the POST leave."""


class PostLater(Value):
    """Let the POST leave again after a pause (`AboutToPost`): it found no connection."""


class LookFor(Value):
    """Look for the job that the POST may have made; answer with `Posted` or `NotFound`."""


class PostAgain(Value):
    """Send the POST again (`AboutToPost`): it has made no job."""


class Refuse(Value):
    """Submit nothing: the key is another driver's."""


class Stop(Value):
    """End the run's own work (`Stopped`)."""


class Raise(Value):
    """End the run's own work in the error at hand (`Failed`)."""


class GiveUp(Value):
    """End the run in an error (`CancelWished`): of the submission, which was refused or not answered, or any other."""

    why: Literal["refused", "unanswered", "failed"]


class Conclude(Value):
    """Fetch the results of a job that is completed; else raise how it ended."""


class AwaitAnswer(Value):
    """Wait for the answer to the POST that is under way, as long as there is time; answer with `WaitOver`."""


class AwaitOutcome(Value):
    """Wait for what another's wish to end the run comes to."""


class CancelJob(Value):
    """Cancel the job and confirm that; answer with `CancelEnded`. Late: nobody waits for it."""

    is_late: bool = False


class HandOver(Value):
    """Leave the cancel to the watcher; answer with `HandOverEnded`, unless that was hurried."""


class Answer(Value):
    """Tell whoever caused the event how the cancel stands."""

    outcome: CancelOutcome


class Settle(Value):
    """Tell all who wish the end of the run what that came to."""

    outcome: CancelOutcome


class End(Value):
    """The run is over: in its result, or in what its wished end came to."""

    outcome: CancelOutcome | None = None


Action = (
    TellJob
    | TellPosted
    | TellAnew
    | TellCancelling
    | LetGo
    | StandDown
    | Announce
    | Post
    | PostLater
    | LookFor
    | PostAgain
    | Refuse
    | Stop
    | Raise
    | GiveUp
    | Conclude
    | AwaitAnswer
    | AwaitOutcome
    | CancelJob
    | HandOver
    | Answer
    | Settle
    | End
)


# State ----------------------------------------------------------------------------------------------------------


class Machine:
    """The state machine of one run.

    Attributes:
        phase: See above.
        job: The job's id, once it is known.
        state: How the job ended, once that is known; the run may have ended before.
        lease_lost: Who has the run's lease by now, or "".
        is_stopping: The run's own work is to end.
        is_hurried: No wait for a cancel goes on.
        is_detached: The job was let go for good.
        is_over: The run has ended.
        ending: The wish that ends it.
    """

    def __init__(self) -> None:
        self.phase: Phase = "preparing"
        self.job: str | None = None
        self.state: JobState | None = None
        self.lease_lost = ""
        self.ending: CancelWished | None = None
        self.is_stopping = self.is_hurried = self.is_detached = self.is_over = False
        self._is_keyed = False
        self._is_guarded = False  # the watcher is to stand down
        self._is_acknowledged = False
        self._several = False  # more than one POST may have left, and each may have made a job
        self._lost = False  # one of them got no answer at all
        self._is_refused = False  # nothing is submitted under a key that is another's
        self._unanswered: Unanswered | None = None
        self._is_settled = False  # what the wished end came to is known
        self._gave_up = False  # it was handed over before the POST was answered

    @property
    def has_lost_its_key(self) -> bool:
        """Whether the job is another driver's by now. One without a key is guarded by the watcher here all the same."""
        return self._is_keyed and bool(self.lease_lost)

    def handle(self, event: Event) -> list[Action]:
        """What is to be done about an event."""
        match event:
            case Granted() | TakenUp() | NoneLeft() | SearchFailed():
                return self._key(event)
            case Announcing() | Acknowledged() | AboutToPost() | Resending() | PutOff() | Unanswered() | NotFound():
                return self._submission(event)
            case Attached(job, is_guarded):
                if self.is_stopping:
                    return [Stop()]
                self._is_guarded = is_guarded
                return self._submitted(job, clean=True)
            case Posted(job, is_guarded):
                actions = self._submitted(job, clean=not self._several)
                # It was handed over, and there is no watcher to cancel it.
                is_late = self._gave_up and not is_guarded and not self.has_lost_its_key
                return [*actions, CancelJob(is_late=True)] if is_late else actions
            case Finished(state):
                if self.is_stopping or self.is_over or self.phase == "final":
                    return []
                self.phase, self.state = "final", state
                return [Conclude()]
            case Fetched():
                return self._stand_down()
            case Completed():
                return self._end()
            case Failed(is_ambiguous):
                return self._failed(is_ambiguous=is_ambiguous)
            case Stopped():
                if self.phase in ("posting", "doubtful"):
                    self.phase = "doubtful"
                    return [TellPosted(clean=False)]
                return self._stand_down() if self.job is None else []  # it may have been announced since
            case LeaseLost(holder):
                self.lease_lost = holder
                return []
            case Detached():
                self.is_detached = True
                return self._stand_down() if self.job is not None else []
        return self._ends(event)

    # With a key

    def _key(self, event: Granted | TakenUp | NoneLeft | SearchFailed) -> list[Action]:
        match event:
            case Granted(in_doubt):
                self._is_keyed = True
                self._is_guarded = not in_doubt  # else there may be a job, which must not be stood down
                self.phase = "doubtful" if in_doubt else "preparing"
                return [Stop()] if self.is_stopping else []
            case TakenUp(job, is_only):
                self._is_guarded = True
                return self._submitted(job, clean=is_only)
            case NoneLeft():
                self._is_guarded = True
                self.phase = "preparing"
                return [TellAnew()]
            case SearchFailed():
                in_doubt, self.phase = self.phase == "doubtful", "preparing"
                return [LetGo()] if in_doubt else []  # what there is keeps its grace, unless it is handed over

    # The submission

    def _submission(
        self, event: Announcing | Acknowledged | AboutToPost | Resending | PutOff | Unanswered | NotFound
    ) -> list[Action]:
        match event:
            case Announcing() | AboutToPost() if self.has_lost_its_key:
                self._is_refused = True
                return [Refuse()]
            case Announcing():
                self._is_guarded = True
                return [Announce()]
            case Acknowledged():
                self._is_acknowledged = True
                return []
            case AboutToPost():
                if self.is_stopping:
                    return [Stop()]
                assert self._is_acknowledged
                self.phase = "posting"
                return [Post()]
            case Resending():
                self._several = True
                return [Stop()] if self.is_stopping else []
            case PutOff():
                self.phase = "doubtful" if self._several else "preparing"  # an earlier one may have made one
                return []
            case Unanswered(never_left, is_ambiguous, _):
                if never_left and not self._several:
                    self.phase = "preparing"
                    return [PostLater()]
                if not is_ambiguous and not self._several:
                    return [Raise()]
                self.phase, self._unanswered = "doubtful", event
                return [LookFor()]
            case NotFound():
                # An answer that is lost is worth one other POST; an outage, in which none is accepted, any number.
                last = self._unanswered
                assert last is not None
                if not last.is_ambiguous or (last.is_lost and self._lost):
                    return [Raise()]
                self._lost |= last.is_lost
                self._several = True
                return [PostAgain()]

    def _submitted(self, job: str, *, clean: bool) -> list[Action]:
        self.job, self.phase = job, "submitted"
        return [TellJob(job), TellPosted(clean), *(self._stand_down() if self.is_detached else [])]

    def _failed(self, *, is_ambiguous: bool) -> list[Action]:
        if self.phase == "posting" and not is_ambiguous and not self._several:
            self.phase = "preparing"
            return [*self._stand_down(), GiveUp("refused")]
        if self.phase in ("posting", "doubtful") and not self._is_refused:
            self.phase = "doubtful"
            return [TellPosted(clean=False), GiveUp("unanswered")]
        return [GiveUp("failed")]

    # The end

    def _ends(self, event: CancelWished | Hurried | WaitOver | CancelEnded | HandOverEnded) -> list[Action]:
        match event:
            case CancelWished():
                return self._wished(event)
            case Hurried():
                self.is_hurried = True
                # The thread that wishes the end may not have come to it yet; then it hands over itself.
                return [Answer("unconfirmed")] if self.ending is None else self._leave(is_hurried=True)
            case WaitOver():
                return self._leave()
            case CancelEnded(None):
                return [HandOver()]
            case CancelEnded(state):
                self.phase, self.state = "final", state
                return [*self._stand_down(), *self._settle("confirmed")]
            case HandOverEnded(is_accepted):
                return self._settle("handed over" if is_accepted else "unconfirmed")

    def _wished(self, wish: CancelWished) -> list[Action]:
        if wish.is_limit and self.is_detached:
            return [Answer("unconfirmed")]
        if wish.is_failure and self.is_detached and self.job is not None:
            return self._end() or [Answer("unconfirmed")]
        if self.ending is not None:
            return [AwaitOutcome()]
        if wish.wants_result and self.phase == "final" and self.state != "cancelled":
            return [Answer("confirmed")]  # there is nothing to cancel, and the result is on its way
        self.ending, self._is_settled, self.is_stopping = wish, False, True
        # A POST that has left can't be called back; most often its answer is a moment away.
        return [AwaitAnswer()] if self.phase == "posting" and not self.is_hurried else self._leave()

    def _leave(self, *, is_hurried: bool = False) -> list[Action]:
        """Stop, let go, cancel or hand over, whatever there is."""

        def answered(outcome: CancelOutcome) -> list[Action]:
            return [Answer(outcome)] if is_hurried else self._settle(outcome)

        if self.phase in ("preparing", "final"):
            return [*self._stand_down(), *answered("nothing to cancel" if self.job is None else "confirmed")]
        if self.has_lost_its_key:
            return answered("kept")
        if self.ending is not None and self.ending.keep:
            return [LetGo(), *answered("kept")]
        if self.phase == "submitted" and not is_hurried:
            return [TellCancelling(), CancelJob()]
        self._gave_up |= self.phase == "posting" and not is_hurried
        return [HandOver()]

    def _settle(self, outcome: CancelOutcome) -> list[Action]:
        if self.ending is None or self._is_settled:
            return []  # it was late
        self._is_settled = True
        if self.ending.wants_result and self.state in ("completed", "failed") and not self.is_over:
            # It ended otherwise than by the cancel: the run goes on, and may be wished to end anew.
            self.ending, self.is_stopping, self.phase = None, False, "final"
            return [Settle(outcome), Conclude()]
        return [Settle(outcome), *self._end(outcome)]

    def _stand_down(self) -> list[Action]:
        return [StandDown()] if self._is_guarded else []

    def _end(self, outcome: CancelOutcome | None = None) -> list[Action]:
        if self.is_over:
            return []
        self.is_over = True
        return [End(outcome)]
