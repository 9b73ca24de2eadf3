"""`qx-supervisor sessions`."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from . import account, exits, hosts, jobs, output, questions, rows, table
from .group import debug_option, json_option

if TYPE_CHECKING:
    from ..open_sessions import OpenSession
    from ..watcher import remote

EPILOG = """\b
  qx-supervisor sessions
  qx-supervisor sessions --close d1a2b3c4e5f6g7h8i9j0

\b
STATE  not started: nothing has run in it yet, and nothing is billed
       active: the backend is reserved, and the clock runs (of a batch:
       what its jobs take)
       inactive: it was idle for too long, and starts again with a job
       closing: it takes no more jobs, and ends with those in it
JOBS   the user's own unfinished jobs in it
IDLE   for how long no job in it is unfinished; no: there is one;
       –: somebody else's, and that can't be told
BY     the program that guards it, if this machine's ledger, or the
       shared one, knows it; else the user's id

\b
--json prints an object for each session; what is not known is null:
  session      its id
  mode         "session" or "batch"
  state        as IBM Quantum has it: "open", "active", "inactive" ...
  accepting    whether it takes further jobs
  backend      the backend
  own          whether it is the user's own
  user         the user's id
  opened       when it was opened, such as 2026-01-31T12:00:00Z
  idle         whether no job in it is unfinished
  idle_since   since when
  seconds      for how long it was used, as billed
  max_seconds  how long it may last
  queued, running
               the user's own jobs in it
  program, host, pid, guard
               the program that guards it, and "live" if that runs, or
               another state as in ps
and with --close:
  session      its id
  outcome      "closed", "closing" (it ends with the jobs that run),
               "unconfirmed"
  dropped      the queued jobs that were dropped
  running      the jobs that were left to finish
  detail       what went wrong, or an empty string"""

SHOWN = ("SESSION", "KIND", "STATE", "OPEN", "IDLE", "JOBS", "BACKEND", "BY")
GIVES = ("BY", "BACKEND")
DROPS = ("BY", "BACKEND", "KIND", "IDLE", "OPEN")  # where the terminal is too narrow still; --json has it
UNKNOWN = "–"

_STATES = {"open": "not started"}

CLOSE_SECONDS = 60.0
"""Seconds after which a close that is not confirmed is given up."""


@click.command("sessions", epilog=EPILOG)
@click.option("--close", "to_close", metavar="ID", multiple=True, help="Close this one; can be repeated.")
@questions.yes_option
@account.account_options
@hosts.ledger_option
@json_option
@debug_option
def sessions_command(
    *,
    to_close: tuple[str, ...],
    yes: bool,
    local: bool,
    instance: str | None,
    ledger_url: str | None,
    as_json: bool,
) -> int:
    """List the open sessions and batches of the account, or close some.

    A session is billed by the clock while it is active, also while nothing runs in it. --close says what would be
    dropped, and asks: queued jobs are dropped, jobs that run finish.

    The exit code is 6 if a close could not be confirmed, 2 if there is no such session, and 1 if the answer to the
    question was no.
    """
    for session in to_close:
        jobs.check(session, "session")
    if yes and not to_close:
        raise click.UsageError("--yes is for --close", click.get_current_context())
    account.check(local, instance)
    hosts.use(ledger_url)
    service = account.connect(local, instance)
    return _close(service, to_close, yes=yes, as_json=as_json) if to_close else _list(service, as_json=as_json)


def _list(service: Any, *, as_json: bool) -> int:
    from .. import open_sessions
    from .. import service as qiskit_service
    from .chosen import guards

    known = guards(required=False)
    found = [
        session
        for client in qiskit_service.clients_of(service)
        for session in open_sessions.read(qiskit_service.remote_of(client), known, say=output.say)
    ]
    if as_json:
        for each in found:
            output.record(**_fields(each))
    elif found:
        now = time.time()
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        for line in table.lines(SHOWN, [_cells(each, now) for each in found], width, GIVES, DROPS):
            output.line(line)
    else:
        output.say("no session and no batch is open")
    return exits.DONE


def _cells(session: OpenSession, now: float) -> dict[str, str]:
    return {
        "SESSION": session.id,
        "KIND": session.mode,
        "STATE": _state(session),
        "OPEN": UNKNOWN if session.opened is None else rows.age(now - session.opened),
        "IDLE": _idle(session, now),
        "JOBS": _jobs(session),
        "BACKEND": session.backend or UNKNOWN,
        "BY": _whose(session),
    }


def _state(session: OpenSession) -> str:
    if not session.is_accepting:
        return "closing"
    return _STATES.get(session.state, session.state) or UNKNOWN


def _idle(session: OpenSession, now: float) -> str:
    if session.is_idle is None:
        return UNKNOWN
    if not session.is_idle:
        return "no"
    return "yes" if session.idle_since is None else rows.age(now - session.idle_since)


def _jobs(session: OpenSession) -> str:
    counts = ((len(session.running), "running"), (len(session.queued), "queued"))
    words = ", ".join(f"{count} {word}" for count, word in counts if count)
    return words or ("0" if session.is_own else UNKNOWN)


def _whose(session: OpenSession) -> str:
    guard = session.guarded
    if guard is not None:
        return f"{guard.driver} ({rows.state_of(guard.row, guard.liveness)})"
    return session.user or UNKNOWN


def _fields(session: OpenSession) -> dict[str, Any]:
    guard = session.guarded
    return {
        "session": session.id,
        "mode": session.mode,
        "state": session.state or None,
        "accepting": session.is_accepting,
        "backend": session.backend or None,
        "own": session.is_own,
        "user": session.user or None,
        "opened": output.time_of(session.opened),
        "idle": session.is_idle,
        "idle_since": output.time_of(session.idle_since),
        "seconds": session.seconds,
        "max_seconds": session.longest,
        "queued": list(session.queued),
        "running": list(session.running),
        "program": guard.row.program or None if guard else None,
        "host": guard.row.host_identity.host if guard else None,
        "pid": guard.row.pid if guard else None,
        "guard": rows.state_of(guard.row, guard.liveness) if guard else None,
    }


# Closing


def _close(service: Any, ids: tuple[str, ...], *, yes: bool, as_json: bool) -> int:
    from .. import service as qiskit_service
    from .chosen import guards

    known = guards(required=False)
    remotes = [qiskit_service.remote_of(client) for client in qiskit_service.clients_of(service)]
    found: list[tuple[remote.Remote, OpenSession]] = [_find(remotes, id_, known) for id_ in dict.fromkeys(ids)]
    questions.check(yes, "closing a session")
    lines = [] if yes and as_json else [line for _, session in found for line in _would_drop(session)]
    what = f"these {len(found)}" if len(found) > 1 else f"this {found[0][1].mode}"
    if not questions.ask(f"Close {what}?", lines, yes=yes):
        return exits.FAILED
    outcomes = set()
    for there, session in found:
        outcome, trouble = _close_one(there, session)
        outcomes.add(outcome)
        dropped = [] if outcome == "unconfirmed" else list(session.queued)
        if as_json:
            running = list(session.running)
            output.record(session=session.id, outcome=outcome, dropped=dropped, running=running, detail=trouble)
            continue
        output.line(f"{outcome:11}  {session.id}")
        if outcome == "unconfirmed":
            output.say(f"session {session.id}: its end could not be confirmed ({trouble}); try again in a while")
        elif session.running:
            still = " ".join(session.running)
            output.say(f"session {session.id} ends with what runs in it; to cancel that: qx-supervisor cancel {still}")
    return exits.UNCONFIRMED if "unconfirmed" in outcomes else exits.DONE


def _find(remotes: list[remote.Remote], session: str, known: Any) -> tuple[remote.Remote, OpenSession]:
    """Find a session in the instances of an account."""
    from .. import open_sessions
    from ..watcher import remote

    for there in remotes:
        try:
            return there, open_sessions.read_one(there, session, known)
        except remote.RemoteError as error:
            if error.status not in open_sessions.REFUSED:
                raise
    raise exits.UnknownJob(
        f"there is no session {session} in this account; qx-supervisor sessions lists those open, or give its "
        "--instance"
    )


def _would_drop(session: OpenSession) -> list[str]:
    """What a close does to a session, in lines."""
    now = time.time()
    parts = [f"{session.mode} {session.id}", session.backend or "backend unknown"]
    parts += ["closed already"] if session.state == "closed" else [_state(session)]
    parts += [f"open for {rows.age(now - session.opened)}"] if session.opened is not None else []
    lines = [", ".join(parts)]
    if session.guarded is not None and session.guarded.is_live:
        lines.append(f"  its program runs: {session.guarded.driver}")
    elif session.user:
        lines.append(f"  opened by {session.user}")
    if session.queued:
        lines.append(f"  dropped: {len(session.queued)} queued, {' '.join(session.queued)}")
    if session.running:
        lines.append(f"  goes on to its end: {len(session.running)} running, {' '.join(session.running)}")
    if not session.queued and not session.running:
        lines.append("  no job of yours is in it")
    return lines


def _close_one(there: remote.Remote, session: OpenSession) -> tuple[str, str]:
    """Close a session, and look until it takes no more jobs."""
    from ..poller import ask
    from ..watcher import remote

    if session.state == "closed":
        return "closed", ""
    end = time.monotonic() + CLOSE_SECONDS
    pause, trouble, is_asked = 0.1, "", False
    while True:
        try:
            if not is_asked:
                ask(there, lambda: there.close_session(session.id))
                is_asked = True
            reply = ask(there, lambda: there.session(session.id))
            if str(reply.get("state")).lower() == "closed":
                return "closed", ""
            if reply.get("accepting_jobs") is False:
                return "closing", ""
            trouble = "it says that it is open"
        except remote.Transient as error:
            trouble = str(error)
        except remote.RemoteError as error:  # as for the session of somebody else; the others are closed all the same
            return "unconfirmed", str(error)
        if time.monotonic() + pause >= end:
            return "unconfirmed", trouble
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
