"""What the service says is told in words that people read, whatever form it comes in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from qiskit_ibm_runtime import QiskitRuntimeService
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from testkit.circuits import BACKEND, ones

from qx_supervisor import SubmitError, local, submit
from qx_supervisor.local.english import english
from qx_supervisor.watcher import service_messages

PAGE = "<!DOCTYPE html><html><head><title>Attention Required!\n | Cloudflare</title></head>" + "<div>&nbsp;</div>" * 200

LONG = pytest.mark.long

ANSWERS = [
    ('{"errors": [{"code": 3245, "message": "The queue is disabled."}]}', "The queue is disabled. (code 3245)"),
    ('{"errors": [{"code": 1, "message": "Full.", "solution": "Wait."}]}', "Full. Wait. (code 1)"),
    ('{"errors": [{"code": 403, "message": "The code says no more."}]}', "The code says no more."),
    ('{"error": {"code": "1305", "message": "Ran too long"}}', "Ran too long (code 1305)"),
    ('{"errorCode": "BXNIM0415E", "errorMessage": "No such key."}', "No such key. (code BXNIM0415E)"),
    ('{"error": "invalid_request"}', "invalid_request"),
    ('{"message": "\\ud55c\\ub3c4"}', "한도"),
    (PAGE, "Attention Required! | Cloudflare"),
    ("<html><h1>413 Request &amp; Entity Too Large</h1></html>", "413 Request & Entity Too Large"),
    ("<html><body>" + "x" * 900, "an HTML page, not an answer of the service's interface"),
    ("upstream connect error", "upstream connect error"),
    ('{"errors": [{"message": "\\ud55c\\ub3c4', '{"errors": [{"message": "한도'),  # cut off
    ("", "Forbidden"),
    ("[]", "Forbidden"),
]


@pytest.mark.parametrize(("text", "said"), ANSWERS)
def test_an_answer_in_words(text: str, said: str) -> None:
    assert service_messages.answered(403, text) == f"the service answered 403: {said}"


def test_no_answer_is_too_long_or_too_open() -> None:
    told = service_messages.answered(400, "x" * 5000 + "\x1b[2J")
    assert len(told) < 400
    token = "eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl"
    for text in (f"Bearer {token}", f'{{"message": "the token {token} has expired\\u001b[2J"}}'):
        told = service_messages.answered(403, text)
        assert token not in told
        assert told.isprintable()


def posting(answer: requests.Response, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a gateway answer what posts a job."""
    from qiskit_ibm_runtime.api.session import RetrySession

    sends = RetrySession.send

    def send(session: Any, request: Any, **how: Any) -> Any:
        if request.method == "POST" and request.url.endswith("/jobs"):
            answer.request, answer.url = request, request.url
            return answer
        return sends(session, request, **how)

    monkeypatch.setattr(RetrySession, "send", send)


@pytest.mark.parametrize(
    ("status", "text", "said", "code"),
    [
        (403, PAGE, "the service answered 403: Attention Required! | Cloudflare", None),
        pytest.param(400, ANSWERS[0][0], f"the service answered 400: {ANSWERS[0][1]}", 3245, marks=LONG),
    ],
)
def test_a_submission_that_a_gateway_refuses(
    ibm: local.Service,
    service: QiskitRuntimeService,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    text: str,
    said: str,
    code: int | None,
) -> None:
    answer = requests.Response()
    answer.status_code, answer._content = status, text.encode()
    posting(answer, monkeypatch)
    with pytest.raises(SubmitError) as caught:
        submit(ones(), BACKEND, service=service).result()
    assert caught.value.reason == f"the job could not be submitted: {said}"
    assert caught.value.code == code
    assert caught.value.service_message in said


# The embedded service speaks English


def messages() -> Iterator[tuple[str, str]]:
    """What localqpu's routes and programs, and its reader of scenarios, may say in Korean."""
    root = Path(pytest.importorskip("localqpu").__file__).parent
    files = [*root.glob("ibm/*.py"), *root.glob("programs/*.py")]
    files += [root / name for name in ("scenario.py", "sessions.py", "simulation.py")]
    for file in files:
        if file.name == "braket.py":
            continue
        nodes = list(ast.walk(ast.parse(file.read_text())))
        parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        documents = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "it" for part in node.values)
            elif isinstance(node, ast.Constant) and node not in parts | documents and isinstance(node.value, str):
                text = node.value
            if re.search("[가-힣]", text):
                yield f"{file.name}:{node.lineno}", text


def test_every_message_of_the_embedded_service_has_its_english() -> None:
    found = list(messages())
    assert len(found) > 50
    for where, text in found:
        told = english(text)
        assert told.isascii(), where
        assert "refuses this" not in told, where
    assert english("A plain message: it stays.") == "A plain message: it stays."
    assert english("usage: 새로운 메시지 limit=3") == "usage: The embedded service refuses this: limit=3"


def test_the_embedded_service_speaks_english(ibm: local.Service, service: QiskitRuntimeService) -> None:
    with pytest.raises(local.ServiceError, match=r"usage: usage.limit_seconds must be a whole number, not 'many'\."):
        ibm.scenario({"usage": {"limit_seconds": "many"}})
    client = service._active_api_client
    with pytest.raises(RequestsApiError, match="Job d0 not found"):
        client.job_results("d0")
