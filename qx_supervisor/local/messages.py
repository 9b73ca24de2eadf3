"""A request to the API, and the reply."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """A request to the API.

    Attributes:
        instance: The name of the instance, or "".
    """

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    authorization: str | None
    instance: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        status: HTTP status.
        payload: The encoded body.
        content_type: The media type of the body.
        headers: Further headers.
    """

    status: int
    payload: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(status: int, body: object) -> Reply:
    """A reply with a JSON body; an object such as a journal entry becomes an object of its attributes."""
    return Reply(status, json.dumps(body, default=vars).encode())


def problem(status: int, message: str, *, retry_after: int | None = None, code: int | None = None) -> Reply:
    """An error in the form of IBM's API, from which Qiskit's client takes the message; its code, if not the status."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = {"errors": [{"code": code or status, "message": message, "solution": "", "more_info": ""}]}
    return Reply(status, json.dumps(body).encode(), headers=headers)
