"""What became of one driver's runs, told as events for the log and as notices for those who want to hear.

It sees every event of the driver's policy and what was decided, and decides nothing itself. There is no clock and no
I/O here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from . import policy as p
from . import protocol
from .events import RUN_LENGTH, Event, Level
from .facts import End, Figures
from .seen_process import in_words, signal_name

CHARGE_SECONDS = 3.0
"""How long a notice of a run's end waits for what its job was charged."""

DEATH_SECONDS = 60.0
"""How long a notice of a death waits for all that follows from it: then it says what is known."""

NOTHING_MORE: Mapping[str, object] = {}

Kind = Literal["death", "failure", "end"]


class Notice(NamedTuple):
    """What somebody is to be told.

    Attributes:
        kind: "death": a driver died and had runs in flight; "failure": a run failed; "end": a long run is over.
        text: A sentence.
        fields: The same for programs, and more.
    """

    kind: Kind
    text: str
    fields: Mapping[str, object]


class Driver(NamedTuple):
    """The driver, as others know it.

    Attributes:
        pid: Its process id.
        program: Its program's name, or "".
        host: Its host.
    """

    pid: int
    program: str
    host: str

    def __str__(self) -> str:
        name = f"{self.program} (pid {self.pid})" if self.program else f"process {self.pid}"
        return f"{name} on host {self.host}"


@dataclass
class _Run:
    """A run that was seen."""

    id: str
    label: str
    since: float
    jobs: set[str] = field(default_factory=set)
    is_session: bool = False
    is_handed_over: bool = False


class Witness:
    """The witness of one driver.

    Args:
        pid: The driver.
        host: The driver's host.

    Attributes:
        program: The driver's program, as far as that is known.
        notice_after: How many seconds a run must have lasted for its end to be told.
    """

    def __init__(self, pid: int, host: str) -> None:
        self._pid = pid
        self._host = host
        self.program = ""
        self.notice_after = 60.0
        self._runs: dict[str, _Run] = {}
        self._labels: dict[int, str] = {}  # of leases that were asked for, by the message
        self._charges: dict[str, float] = {}
        self._died_at: float | None = None
        self._wait_status: int | None = None
        self._in_flight = 0  # runs, when the driver died
        self._taken_up = 0  # of these, those that another driver has
        self._ended: list[tuple[_Run, End | None, float]] = []  # runs whose ends are to be told
        self._jobs: dict[str, str] = {}  # what became of the jobs that were cancelled, or tried to be
        self._pending: list[str] = []  # runs that could not be resolved
        self._told: object = None  # of the death, at last

    @property
    def driver(self) -> Driver:
        """The driver."""
        return Driver(self._pid, self.program, self._host)

    @property
    def has_runs(self) -> bool:
        """Whether there is anything to tell of."""
        return bool(self._runs)

    @property
    def is_after_death(self) -> bool:
        """Whether the driver has died and left runs behind."""
        return self._died_at is not None

    def learn_wait_status(self, status: int | None) -> None:
        """How the driver ended, if it is known by now."""
        if status is not None:
            self._wait_status = status

    def saw(self, event: p.Event, actions: list[p.Action], now: float) -> list[Event | Notice]:
        """What is to be told of an event and of what was decided.

        Args:
            event: What the policy was told.
            actions: What it decided.
            now: The monotonic clock's time, in seconds.
        """
        return [*self._of_event(event, now), *self._of_actions(actions, now)]

    # What happens

    def _of_event(self, event: p.Event, now: float) -> Iterator[Event | Notice]:
        match event:
            case p.Received(seq, message):
                yield from self._received(seq, message, now)
            case p.LeaseTaken(seq, answer):
                label = self._labels.pop(seq, "")
                if answer is not None and answer["answer"] == "granted":
                    self._begin(answer["run"], label, now)
            case p.DriverDied():
                yield from self._driver_died(now)
            case p.CancelEnded():
                yield self._cancel_ended(event, now)

    def _received(self, seq: int, message: protocol.FromDriver, now: float) -> Iterator[Event | Notice]:
        match message:
            case protocol.Intent() | protocol.GuardSession() | protocol.OpenedSession():
                self._begin(message.run, message.about.label, now, is_session=not isinstance(message, protocol.Intent))
                self.program = self.program or message.about.program
            case protocol.TakeLease(about=about):
                self._labels[seq] = about.label
                self.program = self.program or about.program
            case protocol.JobKnown(run, job):
                if run in self._runs:
                    self._runs[run].jobs.add(job)
            case protocol.HandOver(run=run):
                if (seen := self._runs.get(run)) is not None and not seen.is_handed_over:
                    seen.is_handed_over = True
                    yield self._event("handed over", "INFO", "the driver leaves the cancel to this watcher", seen)
            case protocol.JobFigures(_, job, figures):
                self._learn_charge(job, figures)
                yield from self.tell_of_ends()
            case protocol.StandDown(run, end):
                if (seen := self._runs.pop(run, None)) is not None:
                    self._run_ended(seen, end, now)
                    yield from self.tell_of_ends()

    def _begin(self, run: str, label: str, now: float, *, is_session: bool = False) -> None:
        seen = self._runs.setdefault(run, _Run(run, label, now, is_session=is_session))
        seen.label = seen.label or label

    def _driver_died(self, now: float) -> Iterator[Event]:
        if not self._runs:
            return
        self._died_at = now
        self._in_flight = len(self._runs)
        jobs = sorted({job for run in self._runs.values() for job in run.jobs})
        message = f"{self.driver} {in_words(self._wait_status)}: {_count(self._in_flight, 'run')} in flight"
        yield self._event(
            "driver died",
            "WARNING",
            message,
            more={"wait_status": self._wait_status, "runs": self._in_flight, "jobs": jobs},
        )

    def _cancel_ended(self, ended: p.CancelEnded, now: float) -> Event:
        if self._died_at is not None:  # else it was a duplicate, or handed over
            self._jobs[ended.job] = ended.outcome
        seen = self._runs.get(ended.run) or _Run(ended.run, "", now)
        level: Level = "WARNING" if ended.outcome == "unconfirmed" else "INFO"
        message = {
            "cancelled": "cancelled",
            "finished": "finished before it could be cancelled",
            "gone": "there is no such job",
            "unconfirmed": "its cancel could not be confirmed",
        }[ended.outcome]
        if ended.detail:
            message += f": {ended.detail}"
        return self._event(f"job {ended.outcome}", level, message, seen, ended.job, seconds=self._since_death(now))

    # What is decided

    def _of_actions(self, actions: list[p.Action], now: float) -> Iterator[Event | Notice]:
        for action in actions:
            match action:
                case p.RecordFigures(_, job, figures):
                    self._learn_charge(job, figures)
                    yield from self.tell_of_ends()
                case p.StartCancel(run=run, job=job):
                    if (seen := self._runs.get(run)) is not None and job not in seen.jobs:
                        seen.jobs.add(job)
                        yield self._event("job found", "INFO", "found by its tag; it is cancelled", seen, job)
                case p.RecordLetGo(run=run):
                    if self._died_at is not None and (seen := self._runs.get(run)) is not None:
                        yield self._event("run waits", "INFO", "it may be taken up again within its grace period", seen)
                case protocol.Report(event="lost", run=run):
                    if (seen := self._runs.pop(run, None)) is not None:
                        self._taken_up += self._died_at is not None
                        yield self._event("lease lost", "INFO", "it is another driver's, or a reaper's", seen)
                case p.RecordRun(run=run, state="cancelled" | "pending", detail=detail):
                    if (seen := self._runs.get(run)) is not None:
                        yield from self._resolved(seen, detail, now, is_pending=action.state == "pending")
                case p.Exit():
                    yield from self.tell_of_ends(is_late=True)
                    yield from self.tell_of_death(now, is_over=True)

    def _resolved(self, seen: _Run, detail: str, now: float, *, is_pending: bool) -> Iterator[Event]:
        if self._died_at is not None or is_pending:  # a driver that handed it over still has to stand it down
            self._runs.pop(seen.id)
        if is_pending:
            self._pending.append(seen.id)
            message = f"not everything could be cancelled: {detail}; qx-supervisor reap goes on with it"
            yield self._event("run pending", "WARNING", message, seen, seconds=self._since_death(now))
        else:
            yield self._event(
                "run cancelled", "INFO", "nothing of it runs any more", seen, seconds=self._since_death(now)
            )

    def _since_death(self, now: float) -> float | None:
        return None if self._died_at is None else round(now - self._died_at, 3)

    def _learn_charge(self, job: str, figures: Figures) -> None:
        known = (*self._runs.values(), *(run for run, _, _ in self._ended))
        if figures.charged is not None and (job in self._jobs or any(job in run.jobs for run in known)):
            self._charges[job] = figures.charged

    # What is told of a whole

    def of_watcher(self, name: str, detail: str) -> Event:
        """The event that something is the matter with the watcher itself, or its ledgers."""
        return self._event(name, "INFO" if name == "shared ledger back" else "WARNING", detail or name)

    def tell_of_death(self, now: float, *, is_over: bool = False) -> list[Event | Notice]:
        """Tell of the driver's death as a whole; nothing, where it left nothing behind or nothing is new.

        Args:
            now: The monotonic clock's time.
            is_over: Whether nothing is left to do for the driver.
        """
        if self._died_at is None:
            return []
        found = Counter(self._jobs.values())
        charged = [self._charges[job] for job in self._jobs if job in self._charges]
        seconds = self._since_death(now)
        parts = [f"{_count(found['cancelled'], 'job')} cancelled"]
        if found["finished"]:
            parts.append(f"{found['finished']} had finished")
        if found["unconfirmed"]:
            parts.append(f"{found['unconfirmed']} could not be cancelled yet")
        left = len(self._runs)
        if self._taken_up:
            parts.append(f"{_count(self._taken_up, 'run')} taken up by another program")
        if left:
            parts.append(f"{_count(left, 'run')} still looked after")
        if charged:
            all_known = len(charged) == len(self._jobs)
            parts.append(f"{sum(charged):g} s charged{'' if all_known else ' so far'}")
        fields: dict[str, object] = {
            "driver": self._pid,
            "program": self.program,
            "host": self._host,
            "wait_status": self._wait_status,
            "runs": self._in_flight,
            "cancelled": found["cancelled"],
            "finished": found["finished"],
            "unconfirmed": found["unconfirmed"],
            "unresolved": left + len(self._pending),
            "charged": sum(charged) if charged else None,
            "seconds": seconds,
        }
        text = f"{self.driver} {in_words(self._wait_status)}, {', '.join(parts)}"
        told: list[Event | Notice] = []
        if is_over:
            told.append(self._event("all resolved", "INFO", f"{text}; after {seconds:g} s", more=fields))
        news = (found, left, self._taken_up, self._pending[:])
        if news != self._told:
            self._told = news
            told.append(Notice("death", text, fields))
        return told

    @property
    def has_ended_runs(self) -> bool:
        """Whether there are ends of runs that are not told yet, because a charge is not known."""
        return bool(self._ended)

    def _run_ended(self, seen: _Run, end: End | None, now: float) -> None:
        is_failure = end is not None and end.outcome == "failed"
        seconds = now - seen.since
        if is_failure or (seconds >= self.notice_after and not seen.is_session):
            self._ended.append((seen, end, seconds))
        else:
            self._forget_charges(seen)

    def _forget_charges(self, seen: _Run) -> None:
        for job in seen.jobs:
            self._charges.pop(job, None)

    def tell_of_ends(self, *, is_late: bool = False) -> list[Notice]:
        """Tell of the ends of runs whose charges are known.

        Args:
            is_late: Tell of the others too.
        """
        due = [each for each in self._ended if is_late or each[0].jobs <= self._charges.keys()]
        self._ended = [each for each in self._ended if each not in due]
        return [self._notice_of_end(*each) for each in due]

    def _notice_of_end(self, seen: _Run, end: End | None, seconds: float) -> Notice:
        outcome, reason = ("ended", "") if end is None else (end.outcome, end.reason)
        if end is not None and end.signum is not None and not reason:
            reason = signal_name(end.signum)
        charged = [self._charges[job] for job in seen.jobs if job in self._charges]
        self._forget_charges(seen)
        name = f"run {seen.id[:RUN_LENGTH]}" + (f" ({seen.label})" if seen.label else "")
        how = f"{outcome}: {reason}" if reason else outcome
        text = f"{name} of {self.driver} {how}; after {seconds:.0f} s"
        if charged:
            text += f", {sum(charged):g} s charged"
        fields: dict[str, object] = {
            "driver": self._pid,
            "program": self.program,
            "host": self._host,
            "run": seen.id,
            "jobs": sorted(seen.jobs),
            "label": seen.label or None,
            "outcome": outcome,
            "reason": reason or None,
            "seconds": round(seconds, 3),
            "charged": sum(charged) if charged else None,
        }
        return Notice("failure" if outcome == "failed" else "end", text, fields)

    def _event(
        self,
        name: str,
        level: Level,
        message: str,
        seen: _Run | None = None,
        job: str = "",
        *,
        seconds: float | None = None,
        more: Mapping[str, object] = NOTHING_MORE,
    ) -> Event:
        about = {"driver": self._pid, "program": self.program, "host": self._host, "seconds": seconds, **more}
        known = {name: value for name, value in about.items() if value not in (None, "", [])}
        return Event(name, level, message, seen.id if seen else "", job, seen.label if seen else "", known)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
