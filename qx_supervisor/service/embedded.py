"""The embedded service in the place of an account, where `QX_LOCAL` asks for it.

It is the service that the programs of this machine share (`local.find_or_start`). `run` and the others take it where
they would take the saved account, and the program's own `QiskitRuntimeService()` connects to it, whatever account it
names: with `QX_LOCAL` no program submits to IBM Quantum by accident. A service object that the program made for
another address is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .. import forks, settings
from ..errors import ConfigError
from . import internals
from .post import HOOKED, hooking, is_hooked

if TYPE_CHECKING:
    from ..local import Service

logger = logging.getLogger("qx_supervisor")

CLIENT = "qiskit_ibm_runtime"

KEY = "local-key"
"""The API key that stands for the user's; the embedded service takes any."""

_lock = forks.make_lock()
_known: tuple[int, int, Any] | None = None  # this process, the service's, and the service object
_announced: set[int] = set()  # processes of services


def default_service() -> Any:
    """The embedded service as a `QiskitRuntimeService`: made once, and again when that service has ended.

    Raises:
        ConfigError: It is not running and can't be started.
    """
    from .. import local

    global _known  # noqa: PLW0603 - one per process, under a lock
    with _lock:
        if _known is not None and _known[0] == os.getpid():
            running = local.find()
            if running is not None and running.pid == _known[1]:
                return _known[2]
        running = shared()
        try:
            _known = (os.getpid(), running.pid, running.service(KEY))
        except local.ServiceError as error:
            raise ConfigError("config", str(error)) from None
        return _known[2]


def shared() -> Service:
    """The embedded service, found or started; says in the log that it is used.

    Raises:
        ConfigError: It is not running and can't be started.
    """
    from .. import local

    try:
        running = local.find_or_start()
    except (ImportError, local.ServiceError) as error:
        raise ConfigError("config", f"QX_LOCAL asks for the embedded service: {error}") from None
    if running.pid not in _announced:
        _announced.add(running.pid)
        logger.warning("QX_LOCAL is set: jobs go to the embedded service at %s, and no QPU runs them", running.url)
    return running


def is_its(client: Any) -> bool:
    """Whether a client is connected to the embedded service because `QX_LOCAL` asks for it."""
    if client is None or not settings.uses_local():
        return False
    from ..local.records import HOST

    return bool(urlsplit(internals.session_of(client).base_url).hostname == HOST)


def redirect_when_imported() -> None:
    """Have the program's own service objects connect to the embedded service, once it has imported Qiskit's client."""
    sys.meta_path.insert(0, _Finder())
    if CLIENT in sys.modules:
        # If another thread is importing it, this waits for the end of that. If this thread is, it fails: `exec` imports
        # us in the middle of it, and `adopt` calls `redirect` at its end.
        with contextlib.suppress(ImportError):
            redirect()


def redirect() -> None:
    """Have the program's own service objects connect to the embedded service from now on."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    with hooking:
        if is_hooked(QiskitRuntimeService.__init__):
            return
        made = _redirected(QiskitRuntimeService.__init__)
        setattr(made, HOOKED, True)
        QiskitRuntimeService.__init__ = made


def _redirected(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def made(service: Any, *args: Any, **kwargs: Any) -> None:
        said = signature.bind(service, *args, **kwargs).arguments
        if not settings.uses_local() or not _is_of_ibm(said.get("url")):
            init(service, *args, **kwargs)
            return
        running = shared()  # outside of what follows, which changes the environment of other threads too
        from ..local import client

        with client.connecting():
            init(service, **client.arguments(running.port, KEY))

    return made


def _is_of_ibm(url: str | None) -> bool:
    host = urlsplit(url).hostname or "" if url else ""
    return not url or f".{host}".endswith(".cloud.ibm.com")


class _Finder(importlib.abc.MetaPathFinder):
    """Leaves the import of Qiskit's client to the other finders, and has it redirected when it is complete.

    It stays for good: a spec that was found need not be executed, as where somebody only asks whether the client is
    there, an import may fail and be tried again, and removing a finder has imports in other threads skip the next one.
    """

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The spec of the client; None for any other module."""
        # Another finder that asks all others, as that of `exec` does, asks this one too.
        if name != CLIENT or getattr(self._asking, "is_asking", False):
            return None
        self._asking.is_asking = True
        try:
            return self._ask_others(name, path, target)
        finally:
            self._asking.is_asking = False

    def _ask_others(self, name: str, path: Any, target: ModuleType | None) -> Any:
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None or finder is self else find(name, path, target)
            if spec is not None:
                _redirect_after(spec.loader)
                return spec
        return None


def _redirect_after(loader: Any) -> None:
    """Have a loader of the client redirect it once it has executed it."""
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == CLIENT:  # a zip file has one loader for all its modules
            redirect()

    loader.exec_module = exec_module
