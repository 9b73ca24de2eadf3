"""Answers that are not the service's: a login page, nothing, half of what it should be.

localqpu's faults know a status and a message in the form of IBM's errors. To these come the `body` of an answer, and
`cut`, which leaves so many bytes of the true one. They travel in the message, where localqpu lets any text pass.
"""

from __future__ import annotations

import json
from typing import Any

from .messages import Reply

_MARK = "\0"


def with_bodies(raw: object) -> object:
    """A scenario as localqpu reads it, of one whose faults may have a `body` or a `cut`."""
    if not isinstance(raw, dict) or not isinstance(raw.get("http_faults"), list):
        return raw
    return {**raw, "http_faults": [_with_body(fault) for fault in raw["http_faults"]]}


def _with_body(fault: Any) -> Any:
    if not isinstance(fault, dict) or not {"body", "cut"} & set(fault):
        return fault
    left = {name: value for name, value in fault.items() if name not in ("body", "cut", "content_type")}
    page = {"body": fault.get("body"), "cut": fault.get("cut"), "type": fault.get("content_type", "text/html")}
    return {"status": 200, **left, "message": _MARK + json.dumps(page)}


def page_of(fault: Any, reply: Reply | None) -> Reply | None:
    """The answer that a fault has a body for; None for any other fault.

    Args:
        fault: The fault.
        reply: The true answer, if there is one.
    """
    message = fault.message or ""
    if not message.startswith(_MARK):
        return None
    page = json.loads(message[len(_MARK) :])
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    if page["cut"] is not None:
        whole = reply.payload if reply is not None else b""
        return Reply(fault.status, whole[: int(page["cut"])], headers=headers)
    return Reply(fault.status, str(page["body"]).encode(), str(page["type"]), headers)
