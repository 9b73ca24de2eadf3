"""Faulty answers: a proxy's login page, an empty body, a truncated one.

localqpu's faults have a status and a message in the form of IBM's errors. Ours may also have the `body` of the answer,
or `cut`, the number of bytes after which the true answer is truncated. Both are passed through localqpu in the message.
"""

from __future__ import annotations

import json
from typing import Any

from .messages import Reply

_MARK = "\0"


def with_bodies(raw: object) -> object:
    """Convert a scenario whose faults may have a `body` or a `cut` to localqpu's form."""
    if not isinstance(raw, dict) or not isinstance(raw.get("http_faults"), list):
        return raw
    return {**raw, "http_faults": [_with_body(fault) for fault in raw["http_faults"]]}


def _with_body(fault: Any) -> Any:
    if not isinstance(fault, dict) or not {"body", "cut"} & set(fault):
        return fault
    rest = {name: value for name, value in fault.items() if name not in ("body", "cut", "content_type")}
    page = {"body": fault.get("body"), "cut": fault.get("cut"), "type": fault.get("content_type", "text/html")}
    return {"status": 200, **rest, "message": _MARK + json.dumps(page)}


def page_of(fault: Any, reply: Reply | None) -> Reply | None:
    """The answer of a fault with a `body` or a `cut`; None for any other fault.

    Args:
        fault: The fault.
        reply: The true answer, or None.
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
