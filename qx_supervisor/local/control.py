"""The control routes, under ``/_qx/``: what a test asks of the service and tells it.

They are never entered in the journal and no fault is injected into them. ``Service`` is their client.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from .journal import Pattern
from .messages import Reply, json_reply, problem
from .records import FINAL
from .state import State

PREFIX = "/_qx/"

_WAIT = 30.0  # seconds, where a waiting request names no timeout

Query = dict[str, list[str]]


def answer(state: State, method: str, path: str, query: Query, body: bytes) -> Reply:
    """Carry out a control request."""
    route = _ROUTES.get((method, path.removeprefix(PREFIX)))
    if route is None:
        return problem(404, f"There is no control route {method} {path}.")
    try:
        return route(state, query, json.loads(body or b"{}"))
    except (ValueError, KeyError, TypeError) as error:
        return problem(400, f"{method} {path}: {type(error).__name__}: {error}")


def _health(state: State, _query: Query, _body: Any) -> Reply:
    """Say so once the engine is there."""
    return json_reply(200, {"pid": os.getpid(), "backends": state.engine.backends})


def _cursor(state: State, _query: Query, _body: Any) -> Reply:
    return json_reply(200, {"seq": state.journal.cursor()})


def _journal(state: State, query: Query, _body: Any) -> Reply:
    return json_reply(200, {"entries": state.journal.select(_pattern(query))})


def _wait(state: State, query: Query, _body: Any) -> Reply:
    complete, entries = state.journal.wait(
        _pattern(query),
        count=int(_first(query, "count", "1")),
        timeout=float(_first(query, "timeout", str(_WAIT))),
        answered=_first(query, "answered", "0") == "1",
    )
    return json_reply(200 if complete else 408, {"entries": entries})


def _jobs(state: State, query: Query, _body: Any) -> Reply:
    return json_reply(200, {"jobs": state.engine.jobs.report(query.get("id"))})


def _wait_job(state: State, query: Query, _body: Any) -> Reply:
    named = _first(query, "status", "final")
    statuses = FINAL if named == "final" else frozenset(named.split(","))
    reached, job = state.engine.jobs.wait(query["id"][0], statuses, float(_first(query, "timeout", str(_WAIT))))
    if job is None:
        return problem(404, f"There is no job {query['id'][0]}.")
    return json_reply(200 if reached else 408, {"job": job})


def _wait_idle(state: State, query: Query, _body: Any) -> Reply:
    idle = state.engine.jobs.wait_idle(float(_first(query, "timeout", str(_WAIT))))
    return json_reply(200 if idle else 408, {"jobs": state.engine.jobs.report()})


def _scenario(state: State, _query: Query, body: Any) -> Reply:
    return state.engine.set_scenario(body)


def _hold(state: State, _query: Query, body: Any) -> Reply:
    where = body["hold"]
    if where not in (None, "queued", "running"):
        raise ValueError(f"hold is null, 'queued' or 'running', not {where!r}")
    lag = body.get("cancel_lag", 0.0)
    state.engine.jobs.hold(where, None if lag is None else float(lag))
    return Reply(204)


def _tell(state: State, _query: Query, body: Any) -> Reply:
    state.engine.tell(**body)
    return Reply(204)


def _auth(state: State, _query: Query, body: Any) -> Reply:
    state.tokens.reject(bool(body["reject_tokens"]))
    return Reply(204)


def _expire_tokens(state: State, _query: Query, _body: Any) -> Reply:
    state.tokens.expire_all()
    return Reply(204)


def _token_lifetime(state: State, _query: Query, body: Any) -> Reply:
    state.tokens.set_lifetime(int(body["seconds"]))
    return Reply(204)


def _reset(state: State, _query: Query, _body: Any) -> Reply:
    state.reset()
    return Reply(204)


_ROUTES: dict[tuple[str, str], Callable[[State, Query, Any], Reply]] = {
    ("GET", "health"): _health,
    ("GET", "cursor"): _cursor,
    ("GET", "journal"): _journal,
    ("GET", "wait"): _wait,
    ("GET", "jobs"): _jobs,
    ("GET", "wait-job"): _wait_job,
    ("GET", "wait-idle"): _wait_idle,
    ("PUT", "scenario"): _scenario,
    ("PUT", "hold"): _hold,
    ("PUT", "tell"): _tell,
    ("PUT", "auth"): _auth,
    ("PUT", "token-lifetime"): _token_lifetime,
    ("POST", "expire-tokens"): _expire_tokens,
    ("POST", "reset"): _reset,
}


def _pattern(query: Query) -> Pattern:
    return Pattern(
        after=int(_first(query, "after", "0")),
        method=_first(query, "method", "") or None,
        path=_first(query, "path", "") or None,
    )


def _first(query: Query, name: str, default: str) -> str:
    return query[name][0] if query.get(name) else default
