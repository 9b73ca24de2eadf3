"""The embedded service in the place of an account, where `QX_LOCAL` asks for it.

It is the service that the programs of this machine share (`local.find_or_start`). `run` and the others take it where
they would take the saved account, and the program's own `QiskitRuntimeService()` connects to it, whatever account it
names: with `QX_LOCAL` no program submits to IBM Quantum by accident. A service object that the program made for
another address is left as it is.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import inspect
import logging
import os
import sys
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
    module = sys.modules.get(CLIENT)
    if module is None:
        sys.meta_path.insert(0, _Finder())
    elif hasattr(module, "QiskitRuntimeService"):  # else it is being imported, and `adopt` calls `redirect` then
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
    """Leaves the import of Qiskit's client to the other finders, and has it redirected when it is complete."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:  # noqa: ARG002
        """The spec of the client; None for any other module."""
        if name != CLIENT:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                redirect()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
