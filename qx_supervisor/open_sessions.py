"""The sessions and batches of an account that are open: since when, whose they are, and whether they are idle.

An open session is billed by the clock while it is active, also while nothing runs in it. IBM Quantum's API has no list
of sessions, but one of workloads, which are jobs, sessions and batches: GET /workloads. Where an instance refuses it,
the sessions are those that the user's recent jobs and the ledger name; one that never had a job is then not found.

A list of jobs has the user's own only. So whether somebody else's session is idle is told by what the session says of
its last job.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from .guarded import Guarded, Guards
from .poller import ask
from .watcher import remote
from .watcher.facts import moment, number

Mode = Literal["session", "batch"]

MODES: tuple[Mode, ...] = ("session", "batch")

RECENT = datetime.timedelta(days=1)
"""How old the jobs are at most that are looked at for sessions: none lasts that long."""

REFUSED = (400, 403, 404, 405, 501)
"""HTTP statuses of an instance that does not list workloads for this user."""

_AT_ONCE = remote.CONNECTIONS


@dataclass(frozen=True)
class OpenSession:
    """A session or batch that is not closed. None: not known. Times are in seconds of IBM Quantum's Unix clock.

    Attributes:
        id: Its id.
        mode: "session" or "batch".
        backend: The backend's name, or "".
        state: The service's word: "open" (nothing has run yet), "active", "inactive" and so on.
        is_accepting: Whether it takes further jobs.
        is_own: Whether it is the user's own.
        user: The id of the user who opened it, or "".
        opened: When it was opened.
        activated: When it became active.
        last_job_ended: When the last job in it ended.
        seconds: For how long it has been used, as it is billed.
        longest: Seconds that it may last in all.
        queued, running: The user's unfinished jobs in it.
        is_idle: Whether no job in it is unfinished.
        guarded: Who guards it, or a job in it; None: nobody who is known of here.
    """

    id: str
    mode: Mode
    backend: str
    state: str
    is_accepting: bool
    is_own: bool | None
    user: str
    opened: float | None
    activated: float | None
    last_job_ended: float | None
    seconds: float | None
    longest: float | None
    queued: tuple[str, ...]
    running: tuple[str, ...]
    is_idle: bool | None
    guarded: Guarded | None

    @property
    def idle_since(self) -> float | None:
        """Since when it is idle; None if it is not, or that is not known."""
        if not self.is_idle:
            return None
        return max((each for each in (self.opened, self.last_job_ended) if each is not None), default=None)

    @property
    def is_left_open(self) -> bool:
        """Whether it waits for jobs, and nobody is seen who would submit any."""
        return self.is_accepting and self.is_idle is True and not (self.guarded and self.guarded.is_live)


def read(
    there: remote.Remote, guards: Guards, *, mine: bool = False, say: Callable[[str], object] = lambda _: None
) -> list[OpenSession]:
    """Read the open sessions and batches of an instance, the oldest first.

    Args:
        there: The instance.
        guards: Who guards what.
        mine: Only the user's own.
        say: Called with a message if the service does not list them.

    Raises:
        RemoteError: The service could not be asked.
    """
    try:
        listed = {item["id"]: item["mode"] for mode in MODES for item in _workloads(there, mode, mine=mine)}
        own = set(listed)
        if not mine:
            own = {item["id"] for mode in set(listed.values()) for item in _workloads(there, mode, mine=True)}
    except remote.RemoteError as error:
        if error.status not in REFUSED:
            raise
        say(f"the instance does not list its sessions ({error}): those of recent jobs and of the ledger are shown")
        listed, own = {}, _named_by_jobs(there)
    wanted = list(dict.fromkeys([*reversed(listed), *sorted(own), *guards.sessions]))
    jobs = ask(there, there.unfinished_jobs) if wanted else {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="qx-sessions") as pool:
        found = pool.map(functools.partial(_read_if_there, there, jobs, guards, own), wanted)
        sessions = [session for session in found if session is not None and session.state != "closed"]
    return sorted(sessions, key=lambda session: session.opened or 0.0)


def read_one(there: remote.Remote, session: str, guards: Guards) -> OpenSession:
    """Read one session or batch, which may be closed.

    Raises:
        RemoteError: There is none of this id in this instance, or the service could not be asked.
    """
    reply = ask(there, lambda: there.session(session))
    jobs = ask(there, lambda: there.unfinished_jobs(session=session))
    return _described(session, reply, jobs, guards, is_own=True if jobs else None)


def _workloads(there: remote.Remote, mode: Mode, *, mine: bool) -> list[remote.Json]:
    return ask(there, lambda: there.open_workloads(mode, mine=mine))


def _named_by_jobs(there: remote.Remote) -> set[str]:
    since = (datetime.datetime.now(datetime.UTC) - RECENT).strftime("%Y-%m-%dT%H:%M:%SZ")
    named = {item.get("session_id") for item in ask(there, lambda: there.recent_jobs(since))}
    return {session for session in named if isinstance(session, str) and session}


def _read_if_there(
    there: remote.Remote, jobs: dict[str, remote.JobState], guards: Guards, own: set[str], session: str
) -> OpenSession | None:
    try:
        reply = ask(there, lambda: there.session(session))
    except remote.RemoteError as error:
        if error.status in REFUSED:  # it was deleted meanwhile, or is another instance's
            return None
        raise
    return _described(session, reply, jobs, guards, is_own=session in own)


def _described(
    session: str, reply: remote.Json, jobs: dict[str, remote.JobState], guards: Guards, *, is_own: bool | None
) -> OpenSession:
    inside = {job: state for job, state in reversed(jobs.items()) if state.reply.get("session_id") == session}
    running = tuple(job for job, state in inside.items() if state.status.lower() == "running")
    started, ended = moment(reply.get("last_job_started")), moment(reply.get("last_job_completed"))
    is_idle: bool | None
    if inside or is_own:
        is_idle = not inside
    elif started is not None:
        is_idle = ended is not None and started <= ended
    else:
        is_idle = True if str(reply.get("state")).lower() == "open" else None
    return OpenSession(
        id=session,
        mode="batch" if reply.get("mode") == "batch" else "session",
        backend=str(reply.get("backend_name") or ""),
        state=str(reply.get("state") or "").lower(),
        is_accepting=reply.get("accepting_jobs") is not False,
        is_own=is_own,
        user=str(reply.get("user_id") or ""),
        opened=moment(reply.get("started_at")) or _first_time(reply.get("timestamps")),
        activated=moment(reply.get("activated_at")),
        last_job_ended=ended,
        seconds=number(reply.get("elapsed_time")),
        longest=number(reply.get("max_ttl")),
        queued=tuple(job for job in inside if job not in running),
        running=running,
        is_idle=is_idle,
        guarded=guards.of_session(session) or _guard_of_any(inside, guards),
    )


def _first_time(timestamps: object) -> float | None:
    """The first moment in a list of what a session went through."""
    if not isinstance(timestamps, list):
        return None
    found = (moment(each.get("timestamp")) for each in timestamps if isinstance(each, dict))
    return min((each for each in found if each is not None), default=None)


def _guard_of_any(inside: dict[str, remote.JobState], guards: Guards) -> Guarded | None:
    found = (guards.of_state(job, state) for job, state in inside.items())
    return next((each for each in found if each is not None), None)
