"""What an answer of the service says, for people: IBM's code and message from its JSON, or the title of a page.

The answer may also come from a gateway, a proxy or a network's login page. Whatever it is, no more than a sentence of
it is shown, and nothing that looks like a token.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

LONGEST = 300
"""How many characters of a message are shown."""

_MESSAGES = ("message", "errorMessage", "error_description", "detail", "title", "msg", "reason")
_CODES = ("code", "errorCode", "error_code", "reason_code")
_TITLES = re.compile(r"<title[^>]*>(.*?)</title|<h1[^>]*>(.*?)</h1", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")  # in JSON that was quoted, or cut off
_SECRET = re.compile(r"(?i:bearer|apikey)[\s:=]+\S+|eyJ[\w-]+\.[\w-]+\.[\w-]*")


@dataclass(frozen=True)
class ServiceMessage:
    """What an answer says.

    Attributes:
        message: Its message, in one line, or "".
        code: The service's own code, or None.
    """

    message: str = ""
    code: int | str | None = None

    def __str__(self) -> str:
        if self.code is None or str(self.code) in self.message:
            return self.message
        return f"{self.message} (code {self.code})" if self.message else f"code {self.code}"


def parse(text: str) -> ServiceMessage:
    """Read the text of an answer, whatever its form."""
    text = text.strip()
    if text[:1] in ("{", "[", '"'):
        try:
            return _of_json(json.loads(text))
        except (ValueError, RecursionError):
            pass  # it was cut off, or only looks like JSON
    if re.search(r"<(!doctype|html|head|body|title|h1)\b", text[:4000], re.IGNORECASE):
        found = _TITLES.search(text[:20000])
        title = one_line(html.unescape(_TAG.sub(" ", found[1] or found[2] or ""))) if found else ""
        return ServiceMessage(title or "an HTML page, not an answer of the service's interface")
    return ServiceMessage(one_line(text))


def one_line(text: str) -> str:
    """A text in one line of limited length, without terminal controls or tokens."""
    text = _ESCAPED.sub(_characters, text[: 20 * LONGEST])
    text = " ".join(_SECRET.sub("…", text).split())
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _characters(escaped: re.Match[str]) -> str:
    try:
        return str(json.loads(f'"{escaped[0]}"')).encode("utf-16", "surrogatepass").decode("utf-16")
    except ValueError:
        return "\ufffd"  # half of a surrogate pair


def answered(status: int, text: str) -> str:
    """An answer of the service with an error status, in words."""
    return f"the service answered {status_and_words(status, text)}"


def status_and_words(status: int, text: str) -> str:
    """An answer's status, and what it says."""
    found = parse(text)
    what = found.message if found.code == status else str(found)
    if not what:
        try:
            what = HTTPStatus(status).phrase
        except ValueError:
            return str(status)
    return f"{status}: {what}"


def code(value: object) -> int | str | None:
    """A code of the service: as a number, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else one_line(value)
    return value


def _of_json(value: Any) -> ServiceMessage:
    errors = value.get("errors") or value.get("error") if isinstance(value, dict) else value
    if isinstance(errors, list) and errors:
        errors = errors[0]
    for each in (errors, value):
        if isinstance(each, str):
            return ServiceMessage(one_line(each), code(value.get("code")) if isinstance(value, dict) else None)
        if isinstance(each, dict):
            message = next((each[name] for name in _MESSAGES if isinstance(each.get(name), str) and each[name]), "")
            number = next((found for name in _CODES if (found := code(each.get(name))) is not None), None)
            solution = each.get("solution")
            if message and isinstance(solution, str) and solution and solution not in message:
                message = f"{message.rstrip('. ')}. {solution}"
            if message or number is not None:
                return ServiceMessage(one_line(message), number)
    return ServiceMessage(one_line(json.dumps(value, ensure_ascii=False)) if value else "")
