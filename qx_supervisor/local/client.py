"""A ``QiskitRuntimeService`` that talks to the embedded service and to nothing else.

Qiskit's client knows three hosts: the API, the account service that issues tokens, and the catalogue of instances. All
three are given made-up names that don't resolve, with the embedded service as the HTTP proxy for every request. So a
request that takes a wrong turn ends at the loopback too, and one to a real https address is a tunnel that is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from qiskit_ibm_runtime import QiskitRuntimeService

from .records import INSTANCE, crn

_HOST = "localqpu.test"
_INSTANCE = crn(INSTANCE)
"""The CRN of the only instance, where none are named: for who makes a service object in a way of their own."""

_NO_PROXY = ("no_proxy", "NO_PROXY")

_environment_lock = threading.Lock()


def connect(port: int, token: str, host: str = "127.0.0.1", *, instance: str | None = INSTANCE) -> QiskitRuntimeService:
    """Make the service object, for the instance of a name; None for one that uses all.

    Another host than the loopback is for tests in which this machine plays several: the service itself listens at the
    loopback alone.

    ``NO_PROXY`` (or ``no_proxy``, whichever is in use) is extended by the made-up host, for good: ``requests`` prefers
    a proxy that the environment names over the one that Qiskit's client was given, and looks at every request. The host
    resolves nowhere, so nothing else is affected. ``IAM_URL`` is set during the construction only.
    """
    proxy = f"http://{host}:{port}"
    _bypass_environment_proxies()
    with _iam_url(f"http://iam.{_HOST}"), _without_account_warning():
        return QiskitRuntimeService(
            channel="ibm_quantum_platform",
            token=token,
            instance="auto" if instance is None else crn(instance),
            url=f"http://{_HOST}",
            url_resolver=_resolve,
            proxies={"urls": {"http": proxy, "https": proxy}},
        )


def _resolve(_url: str, _instance: str, _private_endpoint: bool | None = None, _channel: str = "") -> str:
    """The base of the API, in place of the client's own rule for it."""
    return f"http://{_HOST}/api/v1"


def _bypass_environment_proxies() -> None:
    # Only names that are in use are extended. The lower-case one is looked at first: setting it where only the other
    # was set would hide the user's own list.
    for name in [name for name in _NO_PROXY if os.environ.get(name)] or _NO_PROXY:
        hosts = os.environ.get(name, "").split(",")
        if _HOST not in hosts and hosts != ["*"]:
            os.environ[name] = ",".join([*filter(None, hosts), _HOST])


@contextlib.contextmanager
def _iam_url(url: str) -> Iterator[None]:
    """Have the client take its tokens from ``url``: the environment is the only way to tell it."""
    with _environment_lock:
        before = os.environ.get("IAM_URL")
        os.environ["IAM_URL"] = url
        try:
            yield
        finally:
            if before is None:
                del os.environ["IAM_URL"]
            else:
                os.environ["IAM_URL"] = before


@contextlib.contextmanager
def _without_account_warning() -> Iterator[None]:
    """Silence the warning that a saved account is not used: that is the point."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Loading account with the given token")

    logger = logging.getLogger("qiskit_ibm_runtime.qiskit_runtime_service")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
