"""What the client's errors mean."""

from __future__ import annotations

from typing import Any

from ..watcher import service_messages
from . import internals
from .access import NoToken


def is_ambiguous(error: BaseException) -> bool:
    """Whether a failed POST may have created a job: yes, unless the service refused it."""
    seen = api_error(error)
    if seen is None:
        return not is_unauthorized(error)
    return not 400 <= seen.status_code < 500 or seen.status_code == 408


def unsent(error: BaseException | None) -> bool:
    """Whether a request was certainly not sent: there was no connection, or no token."""
    from requests import ConnectTimeout
    from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError, ProxyError

    while error is not None:
        if isinstance(error, NoToken | ConnectTimeout | ConnectTimeoutError | NewConnectionError):
            return True
        inner: Any = None
        if isinstance(error, MaxRetryError):
            inner = error.reason
        elif isinstance(error, ProxyError):
            inner = error.original_error
        elif error.args and isinstance(error.args[0], Exception):  # as `requests` wraps errors of urllib3
            inner = error.args[0]
        error = inner or error.__cause__ or error.__context__
    return False


def is_late(error: Any) -> bool:
    """Whether an error of urllib3 means that no answer came in time."""
    from urllib3.exceptions import ProxyError, ReadTimeoutError

    return isinstance(error.original_error if isinstance(error, ProxyError) else error, ReadTimeoutError | TimeoutError)


def is_answered(error: BaseException | None) -> bool:
    """Whether the service answered a POST with an error; otherwise its answer was lost."""
    from requests.exceptions import RequestException, RetryError

    while error is not None:
        if isinstance(error, RetryError) or (isinstance(error, RequestException) and error.response is not None):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_unauthorized(error: BaseException) -> bool:
    """Whether the service refused the account's credentials."""
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    return isinstance(error, IBMNotAuthorizedError)


def describe(error: BaseException) -> str:
    """An error of the client in one line: the service's answer if there was one, else the client's own message."""
    answer = _answer(error)
    if answer is not None:
        return service_messages.answered(answer.status_code, answer.text)
    # A QiskitError's str() is a repr.
    message = getattr(error, "message", None)
    return service_messages.one_line(message if isinstance(message, str) else str(error))


def said(error: BaseException) -> service_messages.ServiceMessage:
    """The service's message and code in an error of the client; empty ones if it did not answer."""
    answer = _answer(error)
    return service_messages.ServiceMessage() if answer is None else service_messages.parse(answer.text)


def status_of(error: BaseException) -> int:
    """The HTTP status of the answer that led to an error, or 0."""
    answer = _answer(error)
    return 0 if answer is None else int(answer.status_code)


def _answer(error: BaseException | None) -> Any:
    """The answer that led to an error, from the error or its causes; None if there is none."""
    while error is not None:
        for name in ("response", "http_response"):  # of errors of `requests`; of errors of IBM's own library
            answer = getattr(error, name, None)
            if answer is not None and getattr(answer, "status_code", 0) >= 400:
                return answer
        error = error.__cause__ or error.__context__
    return None


def api_error(error: BaseException | None) -> Any:
    """The client's error for an answer of the service, from an error or its causes; None if there is none."""
    kind = internals.find("RequestsApiError")
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
