"""Outages: requests of Qiskit's client that nobody answered, including those whose failure the client hides.

The client waits for ever for an answer that does not come, and when it looks for a backend it takes every failure for
"there is none". So a run that prepares its submission collects the failures of the client's requests, and gives each
request a timeout.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import RunError
from ..watcher import remote
from . import internals
from .access import need_token
from .failures import unsent
from .post import HOOKED, hooking, is_hooked, noticed

ANSWER_SECONDS = 60.0
"""How long the answer to the POST of a job may take. With the client's own 900 s nobody would notice for a quarter of
an hour that a load balancer has dropped the connection; and a job that was made all the same is found by its tag."""


class Unreachable(RunError):
    """Nothing was submitted, because IBM Quantum can't be reached now."""


@contextmanager
def noticing() -> Iterator[list[Exception]]:
    """Collect the failures of the client's requests in this context, and give each request a timeout."""
    _install()
    failures: list[Exception] = []
    token = noticed.set(failures)
    try:
        yield failures
    finally:
        noticed.reset(token)


def _install() -> None:
    kind = internals.find("RetrySession")
    with hooking:
        if not is_hooked(kind.request):
            kind.request = _noticed_by(kind.request)


def _noticed_by(request: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(request)
    def noticing_it(session: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        failures = noticed.get()
        if failures is None:
            return request(session, method, url, *args, **kwargs)
        if method.upper() == "POST" and url == "/jobs":
            kwargs["timeout"] = (remote.CONNECT_TIMEOUT, ANSWER_SECONDS)
        else:
            kwargs.setdefault("timeout", (remote.CONNECT_TIMEOUT, remote.READ_TIMEOUT))
        try:
            need_token(session.auth)
            reply = request(session, method, url, *args, **kwargs)
        except Exception as error:
            failures.append(error)
            raise
        if not _looks_like_json(reply):
            failures.append(remote.Transient("the service's answer was no JSON: a login page?"))
        return reply

    setattr(noticing_it, HOOKED, True)
    return noticing_it


def _looks_like_json(reply: Any) -> bool:
    """Whether it begins and ends as JSON does: the client will read it, but may hide that it could not."""
    text = reply.content.strip()
    return reply.status_code == 204 or (text[:1] in (b"{", b"[") and text[-1:] in (b"}", b"]"))


def outage(error: Exception, others: Sequence[Exception] = ()) -> remote.Transient | None:
    """The outage behind a failure before the submission; None if it will not pass.

    Args:
        error: What was raised.
        others: The failures of the client's requests until then.
    """
    return next(filter(None, map(_outage, (error, *others))), None)


def _outage(error: BaseException | None) -> remote.Transient | None:
    import ibm_cloud_sdk_core
    import requests

    while error is not None:
        if isinstance(error, Unreachable):
            return remote.Transient(error.reason)
        if isinstance(error, remote.Transient):
            return error
        if isinstance(error, ibm_cloud_sdk_core.ApiException):
            return _by_status(error.status_code or 0, "the token service, or the catalogue,")
        if isinstance(error, requests.RequestException):
            return _of_request(error)
        error = error.__cause__ or error.__context__
    return None


def _of_request(error: Any) -> remote.Transient | None:
    import requests

    if error.response is not None:
        return _by_status(error.response.status_code, "the service", error.response.headers.get("Retry-After"))
    if isinstance(error, requests.exceptions.RetryError):  # each of several tries was answered so
        status = re.search(r"too many (\d{3}) error", str(error))
        return remote.Transient(f"the service answered {status[1] if status else 'with errors'}")
    if isinstance(error, requests.JSONDecodeError):
        return remote.Transient("the service's answer was no JSON: a login page?")
    if isinstance(error, ValueError):  # an invalid address, of the service or a proxy
        return None
    what = "no connection" if unsent(error) else "no answer"
    return remote.Transient(f"{what} ({type(error).__name__})")  # its text may quote a proxy's password


def _by_status(status: int, who: str, retry_after: str | None = None) -> remote.Transient | None:
    if 400 <= status < 500 and status not in (408, 423, 425, 429):
        return None
    return remote.Transient(f"{who} answered {status}", status, remote.retry_after(retry_after))


def is_token_outage(reason: str) -> bool:
    """Whether a watcher can't guard a run because the token service is down, rather than because it refuses."""
    return "the token service" in reason and not re.search(r"answered 4(?!08|29)\d\d", reason)
