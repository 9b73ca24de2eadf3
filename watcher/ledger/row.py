"""What is written of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ..facts import By, End, Figures, RunOutcome
from ..host_identity import HostIdentity, Process

RunState = Literal["guarded", "done", "cancelled", "pending", "expired"]
"""What a run has come to.

- guarded: its jobs are to be cancelled if its driver dies
- done: stood down by its driver
- cancelled: its jobs are cancelled, or were final already; that is confirmed
- pending: its jobs are to be cancelled, and that could not be confirmed yet
- expired: it was pending for so long that nobody tries any more
"""

UNFINISHED: frozenset[RunState] = frozenset({"guarded", "pending"})
FINAL: frozenset[RunState] = frozenset({"done", "cancelled", "expired"})

OPEN_OUTCOMES = ("", "unconfirmed")
"""Outcomes of jobs that whoever guards them may still cancel."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A guarded run. Times are in seconds of the Unix clock.

    Attributes:
        run: The run's id.
        host_identity: Where the driver and its watcher are: the ledger's own `Ledger.host_identity`.
        pid: The driver.
        start_ticks: The driver's start.
        watcher_pid: The watcher that guards it.
        watcher_start_ticks: The watcher's start.
        tag: The unique tag of the run's jobs; None for jobs that the user submitted.
        driver_tag: The tag of all the driver's jobs.
        endpoint: The base URL of the REST API.
        instance: The instance's CRN.
        jobs: The jobs known, each with what became of it; "" while that is open.
        figures: What is known of the jobs' costs and times, by job.
        session: A session to close.
        session_owner: Whether the session is the driver's own.
        answered: Whether every submission of it was answered, at the first try: then no job of it is unknown.
        state: What the run has come to.
        detail: Why, in a sentence.
        sweep_until: Until when a pending run is swept again.
        claimed_by: The process that cancels, in place of the dead.
        claimed_at: When it said so.
        key: The name that the user gave the run, under which a driver that comes back takes it up again; or None.
        fingerprint: What is submitted under the key.
        grace: Seconds that a job with a key is left alone after its driver's death.
        holder: Who holds the lease on it: a word that no other driver, and no other run of the same driver, has.
        held_by: In the shared ledger: the process that has the lease, by `SharedLedger.id`.
        epoch: How often the lease has changed hands.
        lease_until: Until when it is held, unless it is renewed. Only those who can't see its processes go by it.
        let_go_at: When it was first seen, or said, that nobody waits for it any more; the grace counts from here.
        retry_at: In the shared ledger: when a reaper may claim what is pending.
        is_shared: Whether the shared ledger has it too, and decides who may have it.
        created_at: When the row was written first.
        updated_at: When it was written last.
        backend, primitive, pubs, shots, label, tags, program, command, began_at: See `facts.About`.
        outcome: What became of it, see `facts.RunOutcome`; "" while that is open, or not known.
        ended_by, signum, reason: See `facts.End`.
        ended_at: When it ended.
    """

    run: str
    host_identity: HostIdentity
    pid: int
    start_ticks: int | None
    watcher_pid: int | None = None
    watcher_start_ticks: int | None = None
    tag: str | None = None
    driver_tag: str | None = None
    endpoint: str = ""
    instance: str = ""
    jobs: Mapping[str, str] = field(default_factory=dict)
    session: str | None = None
    session_owner: bool = False
    answered: bool = False
    state: RunState = "guarded"
    detail: str = ""
    sweep_until: float | None = None
    claimed_by: Process | None = None
    claimed_at: float | None = None
    key: str | None = None
    fingerprint: str = ""
    grace: float = 0.0
    holder: str = ""
    held_by: str = ""
    epoch: int = 0
    lease_until: float | None = None
    let_go_at: float | None = None
    retry_at: float | None = None
    is_shared: bool = False
    created_at: float = 0.0
    updated_at: float = 0.0
    figures: Mapping[str, Figures] = field(default_factory=dict)
    backend: str = ""
    primitive: str = ""
    pubs: int | None = None
    shots: int | None = None
    label: str = ""
    tags: tuple[str, ...] = ()
    program: str = ""
    command: str = ""
    began_at: float | None = None
    outcome: str = ""
    ended_by: str = ""
    signum: int | None = None
    reason: str = ""
    ended_at: float | None = None

    @property
    def open_jobs(self) -> list[str]:
        """Its jobs that whoever guards them may still cancel."""
        return [job for job, outcome in self.jobs.items() if outcome in OPEN_OUTCOMES]

    @property
    def end(self) -> End | None:
        """How it ended, where that is known."""
        outcome, by = cast(RunOutcome, self.outcome), cast(By, self.ended_by)
        return End(outcome, by, self.signum, self.reason) if outcome else None

    @property
    def estimated(self) -> float | None:
        """The QPU time that its jobs were expected to take, in seconds, as far as that is known."""
        return _sum(each.estimated for each in self.figures.values())

    @property
    def charged(self) -> float | None:
        """The QPU time charged for its jobs, in seconds, as far as that is known (`uncharged`)."""
        return _sum(each.charged for each in self.figures.values())

    @property
    def uncharged(self) -> list[str]:
        """The jobs whose charge is not known."""
        return [
            job
            for job, outcome in self.jobs.items()
            if outcome != "gone" and self.figures.get(job, Figures()).charged is None
        ]

    @property
    def is_over(self) -> bool:
        """Whether whoever had the lease writes nothing of it any more; what is pending is left to the reapers."""
        return self.state in FINAL or (self.state == "pending" and self.sweep_until is not None)


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


DETAIL_LENGTH = 300

# A JSON web token; an API key (44 characters; the longest word of ours, a tag with a UUID, has 40); what follows a
# word that announces one.
_SECRETS = (  # compiled when the first detail is written, not while a run waits for its watcher
    r"eyJ[\w-]+(?:\.[\w-]*)*"
    r"|[\w-]{44,}"
    r"|(?<=bearer )[^\s\"',;]+"
    r"|(?<=apikey )[^\s\"',;]+"
    r"|(?:(?<=token=)|(?<=apikey=)|(?<=api_key=)|(?<=password=))[^\s\"',;&]+"
)


LARGEST_WHOLE = 2**63 - 1  # of 64 bits


def fitted(value: Any) -> Any:
    """A value as a column can hold it: of text what both databases take, and nothing of a whole number too large.

    One value that is refused would keep all rows that are written with it from being written.
    """
    if isinstance(value, str):
        return text_of(value)
    return None if type(value) is int and abs(value) > LARGEST_WHOLE else value


def text_of(text: str) -> str:
    """What a database's text can hold: neither a NUL nor half a character, as of a file name that is not UTF-8."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def safe_detail(detail: str) -> str:
    """A sentence on one line, of bounded length, with whatever looks like a secret left out.

    A detail often comes from an exception of another library. None is known to quote a token, but this is the last
    place to stop one before it is on disk.
    """
    if not detail:
        return ""
    return re.sub(_SECRETS, "[left out]", " ".join(text_of(detail).split()), flags=re.IGNORECASE)[:DETAIL_LENGTH]


def safe_endpoint(endpoint: str) -> str:
    """A URL without a user's name and password, query and fragment."""
    return re.sub(r"//[^/?#]*@", "//", endpoint).partition("?")[0].partition("#")[0]


# An option, or a variable of `env`, that takes a secret; and code in a word (`python -c`) that names one.
_SECRET_NAME = r"[\w.-]*(?:token|key|secret|passw|pwd|credential|auth)[\w.-]*"  # noqa: S105
_SECRET_IN_CODE = rf"({_SECRET_NAME}[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&)]+"


def safe_command(arguments: Sequence[str]) -> str:
    """A command line on one line, of bounded length, with whatever looks like a secret left out."""
    gap = "[left-out]"  # without a space: what is taken out by `safe_detail` ends there
    words: list[str] = []
    is_value = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_secret = re.fullmatch(_SECRET_NAME, name, re.IGNORECASE) is not None
        if is_value and not argument.startswith("-"):
            words.append(gap)
        elif is_secret and equals:
            words.append(f"{name}={gap}")
        else:
            text = re.sub(r"//[^/?#\s]*@", "//", argument)  # a URL's user and password
            words.append(shlex.quote(re.sub(_SECRET_IN_CODE, rf"\1{gap}", text, flags=re.IGNORECASE)))
        is_value = is_secret and not equals and argument.startswith("-")
    return safe_detail(" ".join(words)).replace(gap, "[left out]")
