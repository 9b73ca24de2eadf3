"""A run of more PUBs than a job takes: each part is a run of its own, in one batch; their results are joined."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Unpack

from .. import threads
from ..errors import CancelOutcome, JobCancelled, JobState, RunError
from ..request import Request
from ..result import RunResult, joined
from ..status import Status
from .failures import reword
from .flight import Flight
from .outcome import Ending, Then
from .parts import Parts
from .retried import RetriedFlight
from .several import Several
from .together import Together

OUTCOMES: tuple[CancelOutcome, ...] = ("unconfirmed", "handed over", "kept", "confirmed", "nothing to cancel")
"""What became of the cancel of a part: of all parts it is the first of these that any has."""

_ALIKE = ("backend", "auth")
"""Stages in which all parts fail alike."""


class SplitFlight(Several):
    """One run, with `split`.

    Args:
        request: What is to be run.
        tell: Receives every `Status`.
        then: As a flight takes it.
        asks_details: As a flight takes it.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Status], None],
        then: Then = lambda _, work: work(),
        *,
        asks_details: bool = False,
    ) -> None:
        # The parts have the circuits, and let go of them when they are submitted.
        super().__init__(dataclasses.replace(request, pubs=[]), tell, then, asks_details=asks_details)
        self._together = Together(request)
        requests = parts_of(request)
        self._sizes = [len(each.pubs) for each in requests]
        self._parts = [self._part(number, each) for number, each in enumerate(requests)]
        self._latest: list[Status | None] = [None] * len(self._parts)
        self._state = Parts(len(self._parts))

    def _part(self, number: int, request: Request) -> Flight | RetriedFlight:
        def hear(status: Status) -> None:
            self._hear(number, status)

        if request.retries:
            return RetriedFlight(request, hear, together=self._together)
        return Flight(request, hear, together=self._together, is_part=True)

    # What there is to see

    @property
    def flights(self) -> Sequence[Flight]:
        """Those of all parts, in order."""
        found: list[Flight] = []
        for part in self._parts:
            found += part.flights if isinstance(part, RetriedFlight) else [part]
        return found

    @property
    def job_id(self) -> str | None:
        """The id of the first part's job, once it is known."""
        return self._parts[0].job_id

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The ids of the parts' jobs, in order, as far as they are known."""
        return tuple(part.job_id for part in self._parts if part.job_id)

    @property
    def failed_job_ids(self) -> tuple[str, ...]:
        """The jobs of all parts that failed, and were submitted again."""
        return tuple(job for part in self._parts for job in part.failed_job_ids)

    @property
    def job_state(self) -> JobState | None:
        """How all jobs ended, where that is the same and known."""
        states = {part.job_state for part in self._parts if part.job_id}
        return states.pop() if len(states) == 1 else "cancelled" if "cancelled" in states else None

    # The work

    def start(self, begin: Callable[[Callable[[], object]], object]) -> None:  # noqa: ARG002 - each part needs a thread
        """Begin. The parts are submitted a few at a time, whoever waits."""
        self._begin()
        threads.parting.keep_one()
        for number, part in enumerate(self._parts):
            part.outcome.add_done_callback(functools.partial(self._ended, number))
        for part in self._parts:
            part.start(threads.submitting.do)

    def _hear(self, number: int, status: Status) -> None:
        """A part tells a status."""
        with self._telling:
            self._latest[number] = status
            if self.is_over:
                return
            known = [each for each in self._latest if each is not None]
            done, number_of_parts = len(self._state.done), len(self._parts)
            if not done and not any(each.job_id for each in known):
                state, detail = status.state, status.detail
            else:
                state = f"{done} of {number_of_parts} parts done"
                counts = Counter(each.state for each in known if each.state != "done")
                detail = ", ".join(f"{count} {words}" for words, count in counts.items())
                why = next((each.detail for each in known if each.state == "queued" and each.detail), "")
                detail += f"; {why}" if why else ""  # a backend that is paused, say
            told = dataclasses.replace(
                status,
                state=state,
                detail=detail,
                job_id=None,
                url="",
                watcher=next((each.watcher for each in known if each.watcher is not None), None),
                queue_position=None,
                estimated_start=None,
                qpu_seconds_estimated=None,
                qpu_seconds=None,
                taken_up=any(each.taken_up for each in known),
                key=self._request.key or "",
                pubs=sum(self._sizes),
            )
            if (told.state, told.detail, told.watcher) != (self.status.state, self.status.detail, self.status.watcher):
                self._pass_on(told)

    def _ended(self, number: int, _: object) -> None:
        """A part is over."""
        error = self._parts[number].outcome.exception()
        with self._telling:
            orders = self._state.ended(number, has_result=error is None)
            latest = self._latest[number]
            if error is None and latest is not None and not orders.is_over:
                self._hear(number, latest)
        if orders.abandon:
            why = f"part {number + 1} of {len(self._parts)} failed"
            for other in orders.abandon:
                abandon = functools.partial(self._abandon_failed, other, why)
                try:
                    threads.parting.do(abandon)
                except RuntimeError:  # no thread can be had
                    abandon()
        if orders.is_over:
            self._conclude()

    def _abandon_failed(self, number: int, why: str) -> None:
        part = self._parts[number]
        part.abandon(lambda _: JobCancelled("job", why, part.job_id), is_failure=True, reason=why)

    def _conclude(self) -> None:
        """All parts are over."""
        self._together.close()
        try:
            outcome = self._come_to()
        except Exception as error:  # noqa: BLE001 - a fault of our own must not keep whoever waits
            outcome = RunError("results", f"the results can't be joined: {type(error).__name__}: {error}", self.job_id)
            outcome.__cause__ = error
        if isinstance(outcome, RunError):
            self.say(outcome.stage, "failed", outcome.reason)
        else:
            self.say("results", "done")
        self._end(outcome)

    def _come_to(self) -> RunResult | RunError:
        failed = self._state.failed
        if failed is None:
            return joined([part.outcome.result() for part in self._parts], self.cost, is_list=self._request.is_list)
        if self._state.is_wished:
            return self._wished_error(self._how_it_ended())
        cause = self._parts[failed].outcome.exception()
        assert isinstance(cause, RunError)
        return self._named(cause, failed)

    def _how_it_ended(self) -> CancelOutcome:
        """What the cancels came to, by what the parts ended in."""
        found = [part.cancel_outcome for part in self._parts]
        return worst([each for each in found if each is not None])

    def _named(self, cause: RunError, failed: int) -> RunError:
        """The error of a part, with the PUBs that it had."""
        if cause.stage in _ALIKE:
            return cause
        first = sum(self._sizes[:failed])
        last = first + self._sizes[failed] - 1
        which = f"PUB {first}" if first == last else f"PUBs {first} to {last}"
        error = copy.copy(cause)
        done = [str(self._parts[number].job_id) for number in sorted(self._state.done)]
        others = f"done were {', '.join(done)}, and the rest was cancelled" if done else "the others were cancelled"
        reword(error, f"{which} (part {failed + 1} of {len(self._parts)}): {cause.reason}; {others}")
        error.__cause__ = cause
        return error

    # The end

    def abandon(
        self, error: Callable[[CancelOutcome], RunError] | None = None, **ending: Unpack[Ending]
    ) -> CancelOutcome:
        """End the run, as a flight ends: all its parts, at once."""
        if os.getpid() != self._process:
            return "unconfirmed"  # a forked child leaves its parent's `run`
        with self._telling:
            orders = self._state.wish()
            self._error = self._error or error
        # Not by the pool that others' ends wait for: they would wait for each other.
        begun = {
            number: threads.parting.begin(functools.partial(self._parts[number].abandon, **ending))
            for number in orders.abandon
        }
        # Those that are over are asked too, and answer at once, as a run of one job does: so the answer is the same
        # whenever it is asked for.
        return worst(
            [
                begun[number].result() if number in begun else part.abandon(**ending)
                for number, part in enumerate(self._parts)
            ]
        )

    def hurry(self) -> CancelOutcome:
        """Hand the cancels that are under way over to the watcher, at once."""
        left = [self._parts[number].hurry() for number in sorted(self._state.left)]
        done: list[CancelOutcome] = ["confirmed" for _ in self._state.done]
        # The others are over too, where the batch is being closed: what became of them is known.
        return worst([*left, *done, self._how_it_ended()])

    def detach(self) -> None:
        """Let the watcher forget the run, while its jobs go on."""
        self.is_detached = True
        if self._timer is not None:
            self._timer.cancel()
        for part in self._parts:
            part.detach()


def parts_of(request: Request) -> list[Request]:
    """The parts of a request."""
    size = request.split or len(request.pubs)
    return [
        dataclasses.replace(
            request,
            pubs=request.pubs[first : first + size],
            is_list=True,
            split=None,
            timeout=None,
            key=None if request.key is None else part_key(request.key, first // size + 1),
        )
        for first in range(0, len(request.pubs), size)
    ]


def part_key(key: str, number: int) -> str:
    """The key of a part. Not its number among how many: with more PUBs to a job a part is another submission."""
    return f"{key} [part {number}]"


def worst(outcomes: Sequence[CancelOutcome]) -> CancelOutcome:
    """What all came to together."""
    return min(outcomes, key=OUTCOMES.index, default="nothing to cancel")
