"""Where an exception comes from: the network and the service, or the program itself."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from types import TracebackType

from ..errors import ConfigError, RunError, RunTimeout, WatcherError
from .internals import ASKING

_CLIENT_MODULES = (*ASKING, "ibm_cloud_sdk_core", "requests", "urllib3")
"""The modules that send requests to the service and read its answers."""


def is_of_the_service(error: BaseException) -> bool:
    """Whether an exception comes from the network or the service, and so says nothing about what the program wants.

    Such an exception does not cancel the jobs of a `guard` block that it ends; every other one does.

    A time limit that the program set (`job.result(timeout=...)`), its faults, and what it raises itself are its own;
    what it raises `from` a failure of the service is the service's.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_of_the_service(each) for each in error.exceptions)
    if not isinstance(error, Exception):
        return False  # Ctrl-C, sys.exit()
    if error.__cause__ is not None and is_of_the_service(error.__cause__):
        return True
    if isinstance(error, RunError):
        return not isinstance(error, ConfigError | WatcherError | RunTimeout)
    return _is_by_its_type(error) or _is_raised_by_the_client(error)


def _is_by_its_type(error: Exception) -> bool:
    import ibm_cloud_sdk_core
    import requests
    import urllib3
    from qiskit_ibm_runtime.exceptions import IBMError, IBMInputValueError, RuntimeJobFailureError

    network = (ConnectionError, socket.gaierror, socket.herror, ssl.SSLError, http.client.HTTPException)
    libraries = (requests.RequestException, urllib3.exceptions.HTTPError, ibm_cloud_sdk_core.ApiException)
    # What the service says about one job says nothing about the others.
    client = (IBMError, RuntimeJobFailureError)
    return isinstance(error, (*network, *libraries, *client)) and not isinstance(error, IBMInputValueError)


def _is_raised_by_the_client(error: Exception) -> bool:
    """Whether it was raised where an answer was read: a page instead of JSON, a field that is not there."""
    from qiskit.providers import JobTimeoutError
    from qiskit_ibm_runtime.exceptions import IBMInputValueError

    if isinstance(error, JobTimeoutError | IBMInputValueError):
        return False  # the program's own limit; its own input
    asker = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] != json.__name__:  # whoever had the text read
            asker = name
        trace = trace.tb_next
    return any(asker == each or asker.startswith(f"{each}.") for each in _CLIENT_MODULES)
