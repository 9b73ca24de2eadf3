"""A ``QiskitRuntimeService`` that connects to the embedded service only.

Qiskit's client uses three hosts: the API, the account service that issues tokens, and the catalogue of instances. Here
all three have invented names that don't resolve, and the embedded service is the HTTP proxy of every request. So no
request leaves the loopback: one to a real https address is a tunnel, which the embedded service refuses. Of a tunnel to
an invented name it is the other end itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from qiskit_ibm_runtime import QiskitRuntimeService

from . import older_clients
from .records import HOST, INSTANCE, crn

_INSTANCE = crn(INSTANCE)
"""The CRN of the default instance. Tests that make their own service object use it."""

_NO_PROXY = ("no_proxy", "NO_PROXY")

_environment_lock = threading.Lock()

older_clients.reach()  # at the import: tests make service objects of their own


def connect(
    port: int, token: str, host: str = "127.0.0.1", *, instance: str | None = INSTANCE, tls: bool = False
) -> QiskitRuntimeService:
    """Make the service object for an instance, given by name; None: for all instances.

    With `tls`, the certificate authority of the service must be trusted, for instance by ``REQUESTS_CA_BUNDLE``.

    Only tests that simulate several hosts on this machine pass another host: the service listens on the loopback only.

    ``NO_PROXY`` (or ``no_proxy``, whichever is in use) is extended by the invented host permanently: at every request,
    ``requests`` prefers a proxy of the environment over the client's own. The host does not resolve, so nothing else is
    affected. ``IAM_URL`` is set during the construction only.
    """
    scheme = "https" if tls else "http"
    with connecting(scheme):
        return QiskitRuntimeService(**arguments(port, token, host, instance=instance, scheme=scheme))


def arguments(
    port: int, token: str, host: str = "127.0.0.1", *, instance: str | None = INSTANCE, scheme: str = "http"
) -> dict[str, Any]:
    """The arguments with which a `QiskitRuntimeService` is made that connects here."""
    proxy = f"http://{host}:{port}"
    return {
        "channel": "ibm_quantum_platform",
        "token": token,
        "instance": None if instance is None else crn(instance),
        "url": f"{scheme}://{HOST}",
        "url_resolver": _resolve_tls if scheme == "https" else _resolve,
        "proxies": {"urls": {"http": proxy, "https": proxy}},
    }


@contextlib.contextmanager
def connecting(scheme: str = "http") -> Iterator[None]:
    """Change the environment as it must be while a service object is made (see `connect`)."""
    _bypass_environment_proxies()
    with _iam_url(f"{scheme}://iam.{HOST}"), _without_account_warning():
        yield


def _resolve(_url: str, _instance: str, _private_endpoint: bool | None = None, _channel: str = "") -> str:
    """The base URL of the API, instead of the client's own rule."""
    return f"http://{HOST}/api/v1"


def _resolve_tls(*_: object) -> str:
    """The same over TLS."""
    return f"https://{HOST}/api/v1"


def _bypass_environment_proxies() -> None:
    # Only names in use are extended. The lower-case one has precedence: if only the other is set, setting it would hide
    # the user's own list.
    for name in [name for name in _NO_PROXY if os.environ.get(name)] or _NO_PROXY:
        hosts = os.environ.get(name, "").split(",")
        if HOST not in hosts and hosts != ["*"]:
            os.environ[name] = ",".join([*filter(None, hosts), HOST])


@contextlib.contextmanager
def _iam_url(url: str) -> Iterator[None]:
    """Make the client fetch its tokens from ``url``, which can only be set in the environment."""
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
    """Silence the warnings that a saved account is not used, and that no instance is chosen, which are intended."""
    intended = ("Loading account with the given token", "Instance was not set at", "Default instance not set.")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(intended)

    logger = logging.getLogger("qiskit_ibm_runtime.qiskit_runtime_service")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
