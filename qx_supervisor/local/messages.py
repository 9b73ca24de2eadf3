"""A request as the API sees it, and what is sent back for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """A request, as far as the API cares.

    Attributes:
        instance: The name of the instance that is asked, or "".
    """

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    authorization: str | None
    instance: str = ""


@dataclass(frozen=True)
class Reply:
    """A status, a body and the headers that are not the same for every reply.

    Attributes:
        status: HTTP status.
        payload: Body, ready to be sent.
        content_type: What the body is.
        headers: Further headers.
    """

    status: int
    payload: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(status: int, body: object) -> Reply:
    """A reply with a JSON body; objects such as journal entries are sent as their attributes."""
    return Reply(status, json.dumps(body, default=vars).encode())


def problem(status: int, message: str, *, retry_after: int | None = None) -> Reply:
    """An error in the form of IBM's API, from which Qiskit's client takes the message."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = {"errors": [{"code": status, "message": message, "solution": "", "more_info": ""}]}
    return Reply(status, json.dumps(body).encode(), headers=headers)
