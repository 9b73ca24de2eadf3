"""The list of sessions and batches, and what is known of one: localqpu has no such list, and names nobody.

At IBM, GET /workloads lists jobs, sessions and batches, a page at a time; here, sessions and batches only, which is
what qx_supervisor asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from localqpu.ibm.session_routes import session_to_api

from .records import USER, crn

_LIMIT = 10  # workloads a page where the client names no limit
_LARGEST = 50  # as at IBM
_MODES = {"dedicated": "session", "batch": "batch"}


class SessionJob(Protocol):
    """What is looked at of a job."""

    session_id: str | None
    ended_at: str | None

    @property
    def is_final(self) -> bool:
        """Whether it is over."""


def described(session: Any, jobs: Collection[SessionJob]) -> dict[str, Any]:
    """A session in the form of GET /sessions/{id}."""
    ends = [job.ended_at for job in jobs if job.session_id == session.session_id and job.ended_at]
    return {**session_to_api(session), "user_id": USER, "last_job_completed": max(ends, default=None)}


def page(
    sessions: Mapping[str, Any], instance: str, jobs: Collection[SessionJob], query: Mapping[str, list[str]]
) -> dict[str, Any]:
    """A page of sessions in the form of GET /workloads.

    Args:
        sessions: The sessions of the instance, oldest first.
        instance: The instance's name.
        jobs: Its jobs.
        query: What is asked for: `mode`, `status`, `sort`, `limit` and `next`.

    Raises:
        ValueError: The query can't be read.
    """
    limit = min(_LARGEST, int(query.get("limit", [str(_LIMIT)])[0]))
    begin = int(query.get("next", ["0"])[0])
    unfinished = {job.session_id for job in jobs if not job.is_final}
    found = [_workload(session, instance, is_busy=id_ in unfinished) for id_, session in sessions.items()]
    for name in ("mode", "status"):
        if name in query:
            found = [each for each in found if each[name] in query[name]]
    if query.get("sort") == ["-createdAt"]:
        found.reverse()
    body: dict[str, Any] = {"workloads": found[begin : begin + limit], "total_count": len(found), "limit": limit}
    if begin + limit < len(found):
        body["next"] = {"href": f"/api/v1/workloads?next={begin + limit}"}
    return body


def _workload(session: Any, instance: str, *, is_busy: bool) -> dict[str, Any]:
    is_over = session.state == "closed" and not is_busy
    return {
        "id": session.session_id,
        "created": session.started_at,
        "ended": session.closed_at if is_over else None,
        "backend": session.backend_name,
        "instance": crn(instance),
        "user_id": USER,
        "accepting_jobs": session.accepting_jobs,
        "mode": _MODES[session.mode],
        "status": "completed" if is_over else "pending" if session.state == "open" else "in_progress",
        "tags": [],
    }
