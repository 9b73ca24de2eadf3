"""The control requests, ``POST /_qx/<name>``: what a test asks of the service and tells it.

The body has the arguments as a JSON object, the answer has the result. They are not entered in the journal, and no
fault is injected into them. ``Service`` is their client.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .charges import Rule
from .journal import Pattern
from .messages import Reply, json_reply, problem
from .records import FINAL
from .state import State

if TYPE_CHECKING:
    from .jobs import Hold

PREFIX = "/_qx/"


class Refused(Exception):
    """A request can't be carried out, for the reason given."""


def answer(state: State, path: str, body: bytes) -> Reply:
    """Carry out a control request."""
    request = _REQUESTS.get(path.removeprefix(PREFIX))
    if request is None:
        return problem(404, f"There is no control request {path}.")
    try:
        return json_reply(200, request(state, **json.loads(body or b"{}")))
    except Refused as error:
        return problem(400, str(error))
    except (ValueError, KeyError, TypeError) as error:
        return problem(400, f"{path}: {type(error).__name__}: {error}")


def _health(state: State) -> Any:
    return {"pid": os.getpid(), "backends": state.engine.backends}  # waits for the engine


def _wait_for(state: State, *, count: int, timeout: float, answered: bool, **pattern: Any) -> Any:
    complete, entries = state.journal.wait(Pattern(**pattern), count=count, timeout=timeout, answered=answered)
    return {"complete": complete, "entries": entries}


def _wait_job(state: State, *, job_id: str, statuses: list[str], timeout: float) -> Any:
    reached, job = state.engine.jobs.wait(job_id, statuses or FINAL, timeout)
    if job is None:
        raise Refused(f"There is no job {job_id}.")
    return {"complete": reached, "job": job}


def _wait_idle(state: State, *, timeout: float) -> Any:
    return {"complete": state.engine.jobs.wait_idle(timeout), "jobs": state.engine.jobs.report()}


def _scenario(state: State, *, scenario: object) -> None:
    problems = state.engine.set_scenario(scenario)
    if problems:
        raise Refused(problems)


def _charge(state: State, **rule: Any) -> None:
    state.engine.jobs.set_rule(Rule(**rule))


def _hold(state: State, *, where: Hold, cancel_lag: float | None) -> None:
    if where not in (None, "queued", "running"):
        raise ValueError(f"hold is null, 'queued' or 'running', not {where!r}")
    state.engine.jobs.hold(where, cancel_lag)


_REQUESTS: dict[str, Callable[..., Any]] = {
    "health": _health,
    "cursor": lambda state: state.journal.cursor(),
    "journal": lambda state, **pattern: state.journal.select(Pattern(**pattern)),
    "wait-for": _wait_for,
    "jobs": lambda state, ids: state.engine.jobs.report(ids),
    "wait-job": _wait_job,
    "wait-idle": _wait_idle,
    "scenario": _scenario,
    "hold": _hold,
    "authority": lambda state: state.tls.authority(),
    "charge": _charge,
    "spend": lambda state, seconds, ids: state.engine.jobs.spend(seconds, ids),
    "tell": lambda state, **info: state.engine.tell(**info),
    "auth": lambda state, reject_tokens: state.tokens.reject(reject_tokens),
    "expire-tokens": lambda state: state.tokens.expire_all(),
    "token-lifetime": lambda state, seconds: state.tokens.set_lifetime(seconds),
    "reset": lambda state: state.reset(),
}
