"""What the client's errors mean."""

from __future__ import annotations

from typing import Any

from ..watcher import service_messages
from .access import NoToken


def is_ambiguous(error: BaseException) -> bool:
    """Whether a failed POST may have made a job all the same: anything but a refusal by the service."""
    seen = api_error(error)
    if seen is None:
        return not is_unauthorized(error)
    return not 400 <= seen.status_code < 500 or seen.status_code == 408


def unsent(error: BaseException | None) -> bool:
    """Whether a request has certainly not left: the connection could not be made, or there was no token."""
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
        elif error.args and isinstance(error.args[0], Exception):  # as `requests` wraps what urllib3 raises
            inner = error.args[0]
        error = inner or error.__cause__ or error.__context__
    return False


def is_late(error: Any) -> bool:
    """Whether it is urllib3's word that an answer did not come in time."""
    from urllib3.exceptions import ProxyError, ReadTimeoutError

    return isinstance(error.original_error if isinstance(error, ProxyError) else error, ReadTimeoutError | TimeoutError)


def is_answered(error: BaseException | None) -> bool:
    """Whether the service did answer a POST, with an error of its own: else its answer was lost."""
    from requests.exceptions import RequestException, RetryError

    while error is not None:
        if isinstance(error, RetryError) or (isinstance(error, RequestException) and error.response is not None):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_unauthorized(error: BaseException) -> bool:
    """Whether the service did not accept the account's credentials."""
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    return isinstance(error, IBMNotAuthorizedError)


def describe(error: BaseException) -> str:
    """An error of the client's in one line: what the service answered, if it did, else the client's own words."""
    answer = _answer(error)
    if answer is not None:
        return service_messages.answered(answer.status_code, answer.text)
    # A QiskitError's str() is a repr.
    message = getattr(error, "message", None)
    return service_messages.one_line(message if isinstance(message, str) else str(error))


def said(error: BaseException) -> service_messages.ServiceMessage:
    """The service's own message and code in an error of the client's; empty ones where it did not answer."""
    answer = _answer(error)
    return service_messages.ServiceMessage() if answer is None else service_messages.parse(answer.text)


def status_of(error: BaseException) -> int:
    """The HTTP status of the answer that made the client raise an error, or 0."""
    answer = _answer(error)
    return 0 if answer is None else int(answer.status_code)


def _answer(error: BaseException | None) -> Any:
    """The answer in an error's history that made the client raise it."""
    while error is not None:
        for name in ("response", "http_response"):  # of requests' errors; of those of IBM's own library
            answer = getattr(error, name, None)
            if answer is not None and getattr(answer, "status_code", 0) >= 400:
                return answer
        error = error.__cause__ or error.__context__
    return None


def api_error(error: BaseException | None) -> Any:
    """The service's own answer in an error's history, with its `status_code`; None where it gave none."""
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError

    while error is not None and not isinstance(error, RequestsApiError):
        error = error.__cause__ or error.__context__
    return error
