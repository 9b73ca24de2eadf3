"""The engine: localqpu's backends, simulation and routes, with ours instead where localqpu's do not suffice.

Importing this module imports localqpu and Qiskit, which takes seconds. The server imports it once it listens.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from localqpu.app import build_context, scenario_fault_policy
from localqpu.context import ServerConfig
from localqpu.ibm.job_routes import register_job_routes
from localqpu.ibm.routes import job_to_api, register_ibm_routes, search_instances, submit_job
from localqpu.ibm.session_routes import register_session_routes
from localqpu.scenario import ScenarioError, UsageSettings, ensure_known_backends, parse_scenario
from localqpu.server import Request, Response, Router

from . import workloads
from .bounds import Bounds
from .charges import LONGEST, bound_of, shots_of
from .english import english
from .jobs import Jobs, QueueInfo, Record, current_bound, current_instance
from .messages import Call, Reply, problem
from .pages import with_bodies
from .records import crn
from .tokens import Tokens

TOO_MANY_SHOTS = 1103
"""IBM's code of a job with more shots than its backend allows."""

_PAGE = 20  # jobs a page where the client names no limit
_LARGEST_PAGE = 200  # as at IBM
_USAGE_PERIOD = datetime.timedelta(days=28)

_INSTANCE_PATH = re.compile(r"/api/v1/(backends|instances|jobs|sessions|workloads)(?:/([^/]+)|$)")

Params = dict[str, str]
Query = dict[str, list[str]]


class Engine:
    """The API behind the server."""

    def __init__(self, backends: Sequence[str], tokens: Tokens, instances: Sequence[str], bounds: Bounds) -> None:
        self._context = build_context(ServerConfig(backends=tuple(backends)))
        self._tokens = tokens
        self._instances = tuple(instances)
        self._sessions: dict[str, str] = {}  # the instance of each
        self._began = datetime.datetime.now(datetime.UTC)
        self.backends: list[str] = self._context.catalog.names
        self._bounds = bounds
        self.jobs = Jobs(self._context.scenario_state, bounds)
        self._context.jobs.shutdown()
        self._context.jobs = self.jobs
        self._router = self._routes()
        # For anything that has a method and a path it returns the fault to inject, now counted as used, or None.
        self.fault_for = scenario_fault_policy(self._context.scenario_state)

    def handle(self, call: Call) -> Reply:
        """Handle a request."""
        if call.path.startswith("/api/v1/") and not self._tokens.accepts(call.authorization):
            return problem(401, "The access token is invalid or has expired.")
        # If there is only one instance, a request may give it any name.
        instance = call.instance if len(self._instances) > 1 else self._instances[0]
        refusal = self._refusal(call, instance)
        if refusal is not None:
            return refusal
        token = current_instance.set(instance)
        try:
            response = self._router.dispatch(Request(call.method, call.path, call.query, call.body))
        finally:
            current_instance.reset(token)
        reply = _in_english(response)
        if (call.method, call.path, reply.status) == ("POST", "/api/v1/sessions", 200):
            self._sessions[json.loads(reply.payload)["id"]] = instance
        return reply

    def _refusal(self, call: Call, instance: str) -> Reply | None:
        """The refusal of a request about another instance's job or session; None for any other request."""
        path = _INSTANCE_PATH.match(call.path)
        if path is None:
            return None
        if instance not in self._instances:
            return problem(403, f"There is no instance {instance!r} in this account.")
        if path[2] and self._is_elsewhere(path[1], path[2], instance):
            return problem(404, f"{'Job' if path[1] == 'jobs' else 'Session'} {path[2]} not found.")
        if (call.method, call.path) == ("POST", "/api/v1/jobs"):
            session = str(_object(call.body).get("session_id") or "")
            if session and self._is_elsewhere("sessions", session, instance):
                return problem(400, f"Session {session} not found.")
        return None

    def _is_elsewhere(self, kind: str, id_: str, instance: str) -> bool:
        if kind == "sessions":
            return self._sessions.get(id_, instance) != instance
        record = self.jobs.get(id_) if kind == "jobs" else None
        return record is not None and record.instance != instance

    def set_scenario(self, raw: object) -> str:
        """Install a scenario in localqpu's JSON form, extended by `pages`; returns what is wrong with it, or ""."""
        try:
            scenario = parse_scenario(with_bodies(raw))
            ensure_known_backends(scenario, self.backends)
        except ScenarioError as error:
            return english(str(error))
        self._context.scenario_state.set_scenario(scenario)
        return ""

    def tell(self, **info: Any) -> None:
        """Set what is reported of every job, with the fields of `QueueInfo`."""
        self.jobs.queue_info = QueueInfo(**info)

    def reset(self) -> None:
        """Forget jobs, sessions and the scenario."""
        self.jobs.reset()
        self._context.sessions.reset()
        self._sessions.clear()

    def _routes(self) -> Any:
        """Ours first, since the first match wins. localqpu's control and AWS routes are left out."""
        router = Router()
        router.add("POST", "/identity/token", self._issue_token)
        router.add("POST", "/v3/resources/search", self._list_instances)
        router.add("GET", "/api/v1/instances/usage", self._get_usage)
        router.add("POST", "/api/v1/jobs", self._submit_job)
        router.add("GET", "/api/v1/jobs", self._list_jobs)
        router.add("GET", "/api/v1/jobs/{job_id}", self._get_job)
        router.add("GET", "/api/v1/jobs/{job_id}/metrics", self._get_metrics)
        router.add("POST", "/api/v1/jobs/{job_id}/cancel", self._cancel_job)
        router.add("GET", "/api/v1/workloads", self._list_workloads)
        router.add("GET", "/api/v1/sessions/{session_id}", self._get_session)
        router.add("DELETE", "/api/v1/sessions/{session_id}/close", self._cancel_session)
        register_ibm_routes(router, self._context)
        register_job_routes(router, self._context)
        register_session_routes(router, self._context)
        return router

    def _issue_token(self, _request: Any, _params: Params) -> Any:
        """Issue a token for any API key."""
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

    def _list_instances(self, request: Any, params: Params) -> Any:
        """List the instances, each as localqpu describes its only one."""
        [item] = search_instances(self._context, request, params).body["items"]
        items = [{**item, "crn": crn(name), "name": name} for name in self._instances]
        return Response(200, {"items": items, "search_cursor": None})

    def _submit_job(self, request: Any, params: Params) -> Any:
        """Accept a job. As at IBM, an instance that has used up its time queues jobs; localqpu refuses them."""
        context = dataclasses.replace(self._context, scenario_state=_Unlimited(self._context.scenario_state))
        body = _object(request.body)
        try:
            bound = bound_of(body.get("cost"))
        except ValueError as error:
            return _refuse(400, f"Invalid job request body: {error}", code=1208)
        if refusal := self._bounds.refusal_of_shots(shots_of(body.get("params"))):
            return _refuse(400, refusal, code=TOO_MANY_SHOTS)
        token = current_bound.set(bound)
        try:
            return submit_job(context, request, params)
        finally:
            current_bound.reset(token)

    def _get_usage(self, _request: Any, _params: Params) -> Any:
        """The instance's usage and its usage period."""
        usage = self._context.scenario_state.current().usage
        instance = current_instance.get()
        consumed = usage.consumed_seconds + self.jobs.used(instance)
        return Response(
            200,
            {
                "instance_id": crn(instance),
                "usage_consumed_seconds": consumed,
                "usage_limit_seconds": usage.limit_seconds,
                "usage_allocation_seconds": usage.limit_seconds,
                "usage_limit_reached": consumed >= usage.limit_seconds,
                "usage_period": {"start_time": _iso(self._began), "end_time": _iso(self._began + _USAGE_PERIOD)},
            },
        )

    def _list_jobs(self, request: Any, _params: Params) -> Any:
        """List jobs. localqpu's own route copies every job, which takes 0.1 s for a few thousand."""
        query: Query = request.query
        try:
            limit, offset = int(_first(query, "limit") or _PAGE), int(_first(query, "offset") or 0)
            after, before = _time(query, "created_after"), _time(query, "created_before")
        except ValueError as error:
            return _refuse(400, f"The query can't be read: {error}")
        exact = {"backend_name": "backend", "program_id": "program", "session_id": "session_id"}
        wanted = {name: _first(query, field) for name, field in exact.items() if field in query}
        tags = set(query.get("tags", ()))
        instance = current_instance.get()
        pending = {"true": True, "false": False}.get(_first(query, "pending") or "")

        def keep(record: Record) -> bool:
            return (
                record.instance == instance
                and (pending is None or pending != record.is_final)
                and all(getattr(record, name) == value for name, value in wanted.items())
                and (after is None or datetime.datetime.fromisoformat(record.created) >= after)
                and (before is None or datetime.datetime.fromisoformat(record.created) <= before)
            )

        records, count = self.jobs.page(
            keep, tags=tags, ascending=_first(query, "sort") == "ASC", offset=offset, limit=min(limit, _LARGEST_PAGE)
        )
        body = {
            "jobs": [self._described(record) for record in records],
            "count": count,
            "limit": limit,
            "offset": offset,
        }
        return Response(200, body)

    def _get_job(self, _request: Any, params: Params) -> Any:
        record = self.jobs.get(params["job_id"])
        if record is None:
            return _refuse(404, f"Job {params['job_id']} not found.")
        return Response(200, self._described(record))

    def _described(self, record: Record) -> dict[str, Any]:
        """A job in the form of IBM's API."""
        described: dict[str, Any] = job_to_api(record)
        if record.bound < LONGEST:
            described["cost"] = int(record.bound)
        told = self.jobs.queue_info.qpu_seconds_estimated
        estimate = record.estimate if told is None else told
        if estimate is not None:
            described["estimated_running_time_seconds"] = estimate
        return described

    def _get_metrics(self, _request: Any, params: Params) -> Any:
        """The job's place in the queue and its cost, as far as they are set."""
        record = self.jobs.get(params["job_id"])
        if record is None:
            return _refuse(404, f"Job {params['job_id']} not found.")
        info = self.jobs.queue_info
        reply: dict[str, Any] = {
            "timestamps": {"created": record.created, "running": record.running_at, "finished": record.ended_at},
            "usage": {"status": "pending", "qpu_charge_time_seconds": record.used},
        }
        if record.status == "Queued":
            if info.queue_position is not None:
                reply["position_in_queue"] = info.queue_position
            if info.starts_in is not None:
                start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=info.starts_in)
                reply["estimated_start_time"] = start.isoformat().replace("+00:00", "Z")
        charged = self.jobs.charge(record)
        if charged is not None:
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

    def _list_workloads(self, request: Any, _params: Params) -> Any:
        instance = current_instance.get()
        found = {id_: self._context.sessions.get(id_) for id_, at in list(self._sessions.items()) if at == instance}
        try:
            return Response(200, workloads.page(found, instance, self.jobs.in_sessions(), request.query))
        except ValueError as error:
            return _refuse(400, f"The query can't be read: {error}")

    def _get_session(self, _request: Any, params: Params) -> Any:
        session = self._context.sessions.get(params["session_id"])
        if session is None:
            return _refuse(404, f"Session {params['session_id']} not found.")
        return Response(200, workloads.described(session, self.jobs.in_sessions()))

    def _cancel_session(self, _request: Any, params: Params) -> Any:
        """Close a session and cancel its queued jobs. IBM lets running jobs finish; localqpu cancels them too."""
        session_id = params["session_id"]
        if not self._context.sessions.close(session_id):
            return _refuse(404, f"Session {session_id} not found.")
        self.jobs.cancel_queued(session_id)
        return Response(204)


class _Unlimited:
    """The state of the scenario, but with no limit on usage."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def current(self) -> Any:
        """The scenario without the limit."""
        return dataclasses.replace(self._state.current(), usage=UsageSettings())


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_english(response: Any) -> Reply:
    if response.status >= 400 and isinstance(response.body, dict):
        message = _message(response.body)
        if english(message) != message:
            return problem(response.status, english(message))
    return Reply(response.status, response.encode(), response.content_type)


def _message(body: dict[str, Any]) -> str:
    errors = body.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else body
    return str(first.get("message") or first.get("errorMessage") or "")


def _refuse(status: int, message: str, *, code: int | None = None) -> Any:
    return Response(status, json.loads(problem(status, message, code=code).payload))


def _object(body: bytes) -> dict[str, Any]:
    """A submission, or {}. The route refuses a body that can't be read."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _first(query: Query, name: str) -> str | None:
    return query[name][0] if query.get(name) else None


def _time(query: Query, name: str) -> datetime.datetime | None:
    raw = _first(query, name)
    if raw is None:
        return None
    parsed = datetime.datetime.fromisoformat(raw)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
