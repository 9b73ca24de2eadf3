"""localqpu as the engine: its backends, simulation and routes, with ours in front where it can't carry our checks.

Importing this module imports localqpu, and with it Qiskit: seconds. The server imports it once it already listens.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

from localqpu.app import build_context, scenario_fault_policy
from localqpu.context import ServerConfig
from localqpu.ibm.job_routes import register_job_routes
from localqpu.ibm.routes import job_to_api, register_ibm_routes
from localqpu.ibm.session_routes import register_session_routes
from localqpu.scenario import ScenarioError, ensure_known_backends, parse_scenario
from localqpu.server import Request, Response, Router

from .jobs import Jobs, Record, Told
from .messages import Call, Reply, problem
from .pages import with_bodies
from .tokens import Tokens

_PAGE = 20  # jobs a page where the client names no limit
_LARGEST_PAGE = 200  # as at IBM

Params = dict[str, str]
Query = dict[str, list[str]]


class Engine:
    """The API behind the server."""

    def __init__(self, backends: Sequence[str], tokens: Tokens) -> None:
        self._context = build_context(ServerConfig(backends=tuple(backends)))
        self._tokens = tokens
        self.backends: list[str] = self._context.catalog.names
        self.jobs = Jobs(self._context.scenario_state, self._context.config.max_sim_qubits)
        self._context.jobs.shutdown()
        self._context.jobs = self.jobs
        self._router = self._routes()
        # Whatever has a method and a path can be asked about: the fault to inject, counted as used, or None.
        self.fault_for = scenario_fault_policy(self._context.scenario_state)

    def handle(self, call: Call) -> Reply:
        """Carry out a request."""
        if call.path.startswith("/api/v1/") and not self._tokens.accepts(call.authorization):
            return problem(401, "The access token is invalid or has expired.")
        response = self._router.dispatch(Request(call.method, call.path, call.query, call.body))
        return Reply(response.status, response.encode(), response.content_type)

    def set_scenario(self, raw: object) -> Reply:
        """Install a scenario in localqpu's JSON form, and with the `body` of an answer in `http_faults`."""
        try:
            scenario = parse_scenario(with_bodies(raw))
            ensure_known_backends(scenario, self.backends)
        except ScenarioError as error:
            return problem(400, str(error))
        self._context.scenario_state.set_scenario(scenario)
        return Reply(204)

    def tell(self, **what: Any) -> None:
        """Set what is told of every job's place in the queue and cost, as `Told` has it."""
        self.jobs.told = Told(**what)

    def reset(self) -> None:
        """Forget jobs, sessions and the scenario."""
        self.jobs.reset()
        self._context.sessions.reset()

    def _routes(self) -> Any:
        """Ours first, since the first match is taken. localqpu's control and AWS routes stay out."""
        router = Router()
        router.add("POST", "/identity/token", self._issue_token)
        router.add("GET", "/api/v1/jobs", self._list_jobs)
        router.add("GET", "/api/v1/jobs/{job_id}", self._get_job)
        router.add("GET", "/api/v1/jobs/{job_id}/metrics", self._get_metrics)
        router.add("POST", "/api/v1/jobs/{job_id}/cancel", self._cancel_job)
        router.add("DELETE", "/api/v1/sessions/{session_id}/close", self._cancel_session)
        register_ibm_routes(router, self._context)
        register_job_routes(router, self._context)
        register_session_routes(router, self._context)
        return router

    def _issue_token(self, _request: Any, _params: Params) -> Any:
        """Issue a token for whatever API key: which keys are good is not what is being checked."""
        issued = None if self._context.scenario_state.current().reject_tokens else self._tokens.issue()
        if issued is None:
            return Response(400, {"errorCode": "BXNIM0415E", "errorMessage": "Provided API key could not be found."})
        token, lifetime, expiry = issued
        return Response(
            200,
            {
                "access_token": token,
                "refresh_token": "not_supported",
                "token_type": "Bearer",
                "expires_in": lifetime,
                "expiration": expiry,
            },
        )

    def _list_jobs(self, request: Any, _params: Params) -> Any:
        """List jobs. localqpu's list copies every job there ever was, a tenth of a second for a few thousand."""
        query: Query = request.query
        try:
            limit, offset = int(_first(query, "limit") or _PAGE), int(_first(query, "offset") or 0)
            after, before = _time(query, "created_after"), _time(query, "created_before")
        except ValueError as error:
            return _refuse(400, f"The query can't be read: {error}")
        exact = {"backend_name": "backend", "program_id": "program", "session_id": "session_id"}
        wanted = {name: _first(query, field) for name, field in exact.items() if field in query}
        tags = set(query.get("tags", ()))
        pending = {"true": True, "false": False}.get(_first(query, "pending") or "")

        def keep(record: Record) -> bool:
            return (
                (pending is None or pending != record.is_final)
                and all(getattr(record, name) == value for name, value in wanted.items())
                and (after is None or datetime.datetime.fromisoformat(record.created) >= after)
                and (before is None or datetime.datetime.fromisoformat(record.created) <= before)
            )

        records, count = self.jobs.page(
            keep, tags=tags, ascending=_first(query, "sort") == "ASC", offset=offset, limit=min(limit, _LARGEST_PAGE)
        )
        body = {"jobs": [job_to_api(record) for record in records], "count": count, "limit": limit, "offset": offset}
        return Response(200, body)

    def _get_job(self, _request: Any, params: Params) -> Any:
        record = self.jobs.get(params["job_id"])
        if record is None:
            return _refuse(404, f"Job {params['job_id']} not found.")
        reply = job_to_api(record)
        if self.jobs.told.qpu_seconds_estimated is not None:
            reply["estimated_running_time_seconds"] = self.jobs.told.qpu_seconds_estimated
        return Response(200, reply)

    def _get_metrics(self, _request: Any, params: Params) -> Any:
        """What IBM tells of a job's place in the queue and its cost, as far as the scenario has it."""
        record = self.jobs.get(params["job_id"])
        if record is None:
            return _refuse(404, f"Job {params['job_id']} not found.")
        told = self.jobs.told
        reply: dict[str, Any] = {
            "timestamps": {"created": record.created, "running": record.running_at, "finished": record.ended_at},
            "usage": {"status": "pending"},
        }
        if record.status == "Queued":
            if told.queue_position is not None:
                reply["position_in_queue"] = told.queue_position
            if told.starts_in is not None:
                start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=told.starts_in)
                reply["estimated_start_time"] = start.isoformat().replace("+00:00", "Z")
        elif record.is_final and told.qpu_seconds is not None:
            charged = told.qpu_seconds if record.status == "Completed" else 0.0
            reply["usage"] = {"status": "final", "quantum_seconds": charged, "qpu_charge_time_seconds": charged}
        return Response(200, reply)

    def _cancel_job(self, _request: Any, params: Params) -> Any:
        job_id = params["job_id"]
        outcome = self.jobs.cancel(job_id)
        if outcome == "not_found":
            return _refuse(404, f"Job {job_id} not found.")
        if outcome == "already_final":
            return _refuse(409, f"Job {job_id} is in a final state and can't be cancelled.")
        return Response(204)

    def _cancel_session(self, _request: Any, params: Params) -> Any:
        """Close a session and drop what is queued in it. IBM lets running jobs finish; localqpu cancels them too."""
        session_id = params["session_id"]
        if not self._context.sessions.close(session_id):
            return _refuse(404, f"Session {session_id} not found.")
        self.jobs.cancel_queued(session_id)
        return Response(204)


def _refuse(status: int, message: str) -> Any:
    return Response(status, json.loads(problem(status, message).payload))


def _first(query: Query, name: str) -> str | None:
    return query[name][0] if query.get(name) else None


def _time(query: Query, name: str) -> datetime.datetime | None:
    raw = _first(query, name)
    if raw is None:
        return None
    parsed = datetime.datetime.fromisoformat(raw)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
