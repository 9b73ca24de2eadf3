"""Taking a run up again: claiming its key, and choosing among the jobs that were submitted with it.

A key names one submission. The ledger says who has its lease, and which jobs it has; the service says what became of
them, and of those that the ledger does not know: all jobs of a key have a tag in common. So a driver that is killed and
started again at any moment submits nothing twice:

- if a job of the key has results, they are fetched;
- if one is queued or running, it is waited for;
- if an earlier POST may still make one, it is looked for until the sweep window is over;
- only then a job is submitted.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .backoff import EARLIER_JOB, REFUSED_SECONDS, Backoff, look_until
from .errors import ConfigError, WatcherError
from .link import CredentialsSource, Guarded, link
from .poller import ask
from .tags import fingerprint_in, key_tag, tags_of
from .watcher import protocol, remote

Say = Callable[[Any, str, str], None]
Sleep = Callable[[float], None]
T = TypeVar("T")

_BUSY_PAUSE, _HELD_PAUSE = 0.25, 1.0  # between two questions to the ledger, which answers: they don't grow
_JITTER = 0.2  # a database's time comes by way of this host's clock; a renewal adds a third of a lease


def claim(
    guarded: Guarded, source: CredentialsSource, instances: Sequence[str], say: Say, sleep: Sleep
) -> protocol.LeaseAnswer:
    """Claim a key: ask until its lease is this run's, or can't be.

    Args:
        guarded: The run, with its lease. Its id and tag become the key's.
        source: Gives the credentials of its account.
        instances: All instances that this process can use.
        say: Tells the user.
        sleep: Waits; it raises what ends the run.

    Returns:
        What the ledger has under the key: `Link.take_lease`.

    Raises:
        ConfigError: The key stands for another submission, or a living driver has its lease.
        WatcherError: There is no watcher, or no ledger.
    """
    assert guarded.lease is not None
    key = guarded.lease.key
    lease_until = None
    while True:
        try:
            found = link.take_lease(guarded, source, instances)
        except WatcherError as error:
            raise WatcherError(
                "submit", f"nothing was submitted, because the key {key!r} can't be held: {error.reason}"
            ) from None
        match found["answer"]:
            case "granted":
                return found
            case "busy":
                say("submit", "waiting for the key", "the jobs of an earlier driver are being cancelled")
                sleep(_BUSY_PAUSE)
            case "held":
                # A driver that can't be seen from here lives if its lease is renewed while we look.
                until = found["lease_until"] or 0.0
                if found["is_seen"] or (lease_until is not None and until > lease_until + _JITTER):
                    raise _held(key, found)
                lease_until = found["lease_until"] if lease_until is None else lease_until
                left = found["seconds_left"]
                how = f"its driver on {found['host']} may live; its lease ends in {left:.0f} s"
                say("submit", "waiting for the key", how)
                sleep(min(_HELD_PAUSE, left + 0.05))
            case "differs":
                raise _differs(key, sorted(found["jobs"]))
            case _:
                raise ConfigError(
                    "config",
                    f"nothing was submitted: the key {key!r} has a job in another instance of this account; give a "
                    f"service for it: QiskitRuntimeService(instance={found['instance']!r})",
                )


def _held(key: str, found: protocol.LeaseAnswer) -> ConfigError:
    mine = " (this process)" if found["pid"] == os.getpid() and found["is_seen"] else ""
    return ConfigError(
        "config",
        f"nothing was submitted: the key {key!r} is held by process {found['pid']}{mine} on {found['host']}, which "
        "lives; wait for its end, or use another key",
    )


def _differs(key: str, jobs: Sequence[str]) -> ConfigError:
    which = f" (job {', '.join(jobs)})" if jobs else ""
    return ConfigError(
        "config",
        f"nothing was submitted: the key {key!r} stands for another submission{which}: its circuits, values, backend, "
        "options or primitive differ from these; use another key (if they should be the same: is something random "
        "without a seed, or a classical register without a name?)",
    )


@dataclass
class Search:
    """The search for the job of a key, whose lease this run has.

    Attributes:
        there: The instance.
        guarded: The run.
        found: What the ledger has under the key: see `claim`.
        window: The sweep window: seconds after a driver's death in which its POST may still make a job.
        say: Tells the user a stage, a state and a detail.
        sleep: Waits; it raises what ends the run.
        outcomes: What became of the jobs that can't be gone on with.
    """

    there: remote.Remote
    guarded: Guarded
    found: protocol.LeaseAnswer
    window: float
    say: Say
    sleep: Sleep
    outcomes: dict[str, str] = field(default_factory=dict)

    @property
    def is_in_doubt(self) -> bool:
        """Whether there may be a job: until it is known to be over, the run must not stand down."""
        open_jobs = [job for job, outcome in self.found["jobs"].items() if outcome in ("", "unconfirmed")]
        return bool(open_jobs) or not self.found["answered"]

    def job(self) -> remote.JobState | None:
        """The job to go on with; None if one is to be submitted.

        Raises:
            ConfigError: The key stands for another submission, or has a job in flight whose driver is not known here.
            RunError: The service refuses to be asked.
        """
        since = self.found["since"] or 0.0
        # The watcher that saw the driver die may have recorded when. If not, it was before this moment.
        end = time.monotonic() + (0.0 if self.found["answered"] else max(0.0, self.window - since))
        jobs: dict[str, remote.JobState] = {}

        def look() -> remote.JobState | None:
            nonlocal jobs
            jobs = self._jobs()
            return self._choose(jobs)

        def tell(left: float) -> None:
            what = f"one that was being submitted may still turn up, for {left:.0f} s"
            self.say("submit", "looking for an earlier job", what)

        chosen = look_until(end, look, EARLIER_JOB, self.sleep, tell)
        self.outcomes = {
            job: "cancelled" if state.is_cancelled else "finished"
            for job, state in jobs.items()
            if state.is_final and self._is_ours(state)
        }
        return chosen

    def _jobs(self) -> dict[str, remote.JobState]:
        jobs = self._ask(lambda: self.there.tagged(key_tag(self.lease.key)))
        # A list may be late; a job whose id is known is read by itself.
        for job, outcome in self.found["jobs"].items():
            if job not in jobs and outcome not in ("cancelled", "gone"):
                state = self._ask(functools.partial(self._read, job))
                if state is not None:
                    jobs[job] = state
        return jobs

    def _read(self, job: str) -> remote.JobState | None:
        try:
            return self.there.job(job)
        except remote.RemoteError as error:
            if error.status == 404:
                return None
            raise

    def _ask(self, question: Callable[[], T]) -> T:
        # If there may be a job, it is looked for however long that takes; else the user has to mend a refusal.
        backoff = Backoff("submit", None, self.say, believes=None if self.is_in_doubt else REFUSED_SECONDS)
        return backoff.until_answered(lambda: ask(self.there, question), self.sleep)

    @property
    def lease(self) -> Any:
        """The run's lease."""
        return self.guarded.lease

    def _choose(self, jobs: Mapping[str, remote.JobState]) -> remote.JobState | None:
        key, fingerprint = self.lease.key, self.lease.fingerprint
        foreign = {job: state for job, state in jobs.items() if not self._is_ours(state)}
        # Submitted with this key from elsewhere, or the ledger was lost: only the tags tell what was submitted.
        others = [job for job, state in foreign.items() if fingerprint_in(tags_of(state)) != fingerprint]
        if others:
            raise _differs(key, others)
        completed = _first(jobs.values(), lambda state: state.is_completed, self.found["jobs"])
        if completed is not None:
            return completed
        for job, state in foreign.items():
            if not state.is_final:
                raise ConfigError(
                    "config",
                    f"nothing was submitted: job {job} of the key {key!r} is in flight, and its driver is not known "
                    f"here; wait for it, cancel it (qx-supervisor cancel {job}), or have all hosts share a ledger "
                    "(QX_LEDGER)",
                    job,
                )
        running = _first(jobs.values(), lambda state: state.status.lower() == "running", self.found["jobs"])
        return running or _first(jobs.values(), lambda state: not state.is_final, self.found["jobs"])

    def _is_ours(self, state: remote.JobState) -> bool:
        return self.guarded.tag in tags_of(state) or state.reply.get("id") in self.found["jobs"]


def _first(
    states: Iterable[remote.JobState], fits: Callable[[remote.JobState], bool], known: Mapping[str, str]
) -> remote.JobState | None:
    """Of the jobs that fit, one that the ledger knows, else the oldest."""
    fitting = [state for state in states if fits(state)]
    fitting.sort(key=lambda state: (state.reply["id"] not in known, str(state.reply.get("created") or "")))
    return fitting[0] if fitting else None
