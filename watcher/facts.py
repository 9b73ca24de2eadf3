"""What is told of a run to those who read the ledger: what it is, how it ended, and what its jobs cost.

None of it decides anything. Who may cancel a job, and whether one is to be cancelled, goes by the states of runs
(`ledger.RunState`) and by leases alone.
"""
# Named tuples, not dataclasses, because a watcher makes these classes as it starts.

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

RunOutcome = Literal["finished", "failed", "cancelled", "detached"]
"""What became of a run.

- finished: its job completed
- failed: its job failed, or the run did before it had one
- cancelled: its job was cancelled, or none had been submitted when the run was ended
- detached: the program let its job go on by itself
"""

By = Literal["", "program", "signal", "watcher", "reap", "reaper", "someone else", "IBM"]
"""Who ended a run that failed or was cancelled.

- program: the driver itself: `cancel()`, a `timeout`, an error of its own
- signal: the driver, because it was sent a signal
- watcher: the driver's watcher, after the driver's death
- reap, reaper: the one or the other, after the deaths of both
- someone else: another client of the account
- IBM: the service, which says why
"""


class About(NamedTuple):
    """What a run is.

    Attributes:
        backend: The backend's name, or "" while it is not known.
        primitive: "sampler", "estimator", or the class of the user's own; "" if the job is none of ours.
        pubs: The number of PUBs.
        shots: How often each circuit is executed; None: the primitive's default, or not the same for all.
        label: The user's words for it.
        tags: The user's tags.
        program: The program's name: a file's or a module's.
        command: Its command line, of bounded length, without what looks like a secret.
        began_at: When it began, in seconds of the driver's Unix clock.
    """

    backend: str = ""
    primitive: str = ""
    pubs: int | None = None
    shots: int | None = None
    label: str = ""
    tags: tuple[str, ...] = ()
    program: str = ""
    command: str = ""
    began_at: float | None = None


NOTHING = About()
"""Of a run of a driver that says nothing about it."""


class End(NamedTuple):
    """How a run ended.

    Attributes:
        outcome: What became of it.
        by: Who ended it; "" if it finished by itself.
        signum: The signal, by its number, if one did.
        reason: Why, in a sentence; "" where nothing is known beyond the rest.
    """

    outcome: RunOutcome
    by: By = ""
    signum: int | None = None
    reason: str = ""


class Figures(NamedTuple):
    """What IBM Quantum reports of a job's cost and times. None: not reported (yet).

    Attributes:
        estimated: The expected QPU time, in seconds.
        charged: The QPU time charged, in seconds; None while that is pending.
        queued: When the job was accepted, in seconds of IBM Quantum's Unix clock.
        ran: When it began to run.
        ended: When it ended.
    """

    estimated: float | None = None
    charged: float | None = None
    queued: float | None = None
    ran: float | None = None
    ended: float | None = None

    @classmethod
    def read(cls, job: Mapping[str, Any], metrics: Mapping[str, Any]) -> Self:
        """Extract them from two answers, every field of which may be missing.

        Args:
            job: The answer to GET /jobs/{id}, or {}.
            metrics: The answer to GET /jobs/{id}/metrics, or {}.
        """
        usage, times = metrics.get("usage"), metrics.get("timestamps")
        charged = None
        # The figures may change until the status is final.
        if isinstance(usage, dict) and usage.get("status", "pending") != "pending":
            charged = number(usage.get("qpu_charge_time_seconds"))
            if charged is None:
                charged = number(usage.get("quantum_seconds"))
        if not isinstance(times, dict):
            times = {}
        return cls(
            estimated=number(job.get("estimated_running_time_seconds")),
            charged=charged,
            queued=moment(times.get("created") or job.get("created")),
            ran=moment(times.get("running")),
            ended=moment(times.get("finished")),
        )

    def updated(self, later: "Figures") -> "Figures":
        """These, with what is known later; what was known once stays known."""
        return Figures(*(old if new is None else new for old, new in zip(self, later, strict=True)))


def number(value: object) -> float | None:
    """A number of an answer, if it is one that makes sense."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return float(value)


def moment(value: object) -> float | None:
    """A time of an answer, in seconds since the epoch."""
    if not isinstance(value, str):
        return None
    import datetime  # which is there by then: `requests` uses it, too

    try:
        found = datetime.datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
