"""The start of the page's server, in a thread, and its end."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .access import Cancel, Token
from .address import Address, name_in

if TYPE_CHECKING:
    import uvicorn

    from .ledgers import Source

logger = logging.getLogger("qx_supervisor.page")

STOP_SECONDS = 1.5
"""How long an end is waited for. Whoever has the page in its process has other things to do."""

MOST_REQUESTS = 200
"""Connections at one time; beyond that the answer is 503."""


class Page:
    """A page: it listens from the start, and answers from `start` to `stop`.

    Args:
        address: Where it listens.
        token: What must be given first.
        names: More names under which browsers may come, such as a proxy's.

    Attributes:
        address: Where it listens, with the port that was found.

    Raises:
        ConfigError: If what it needs is not installed, the address is open to other machines and there is no token, or
            nobody can listen there.
    """

    def __init__(self, address: Address, token: Token | None = None, names: Iterable[str] = ()) -> None:
        if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
            raise ConfigError(
                "config",
                "the page needs the packages starlette and uvicorn: pip install '.[page]' in a checkout",
            )
        if not address.is_private and token is None:
            raise ConfigError(
                "config",
                f"{address} can be reached from other machines: set QX_PAGE_TOKEN or give --token-file, or choose an "
                f"address of this machine alone, such as 127.0.0.1:{address.port}",
            )
        self._names = frozenset({os.uname().nodename.lower(), *map(_checked, names)})
        self._token = token
        self._socket, self._inode = _listen(address)
        self.address = address if address.path else replace(address, port=self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, source: Source, *, cancel: Cancel | None = None, price: tuple[float, str] | None = None) -> None:
        """Answer requests from now on.

        Args:
            source: What is shown.
            cancel: Cancels a job; only with a token it is offered.
            price: What a second of QPU time costs, and the currency.
        """
        import uvicorn

        from .app import application
        from .reader import Reader
        from .stream import Listeners

        self._reader = Reader(source)
        listeners = Listeners(self._reader)

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                listeners.stop()  # else each of them would be waited for
                await super().shutdown(sockets)

        app = application(self._reader, listeners, names=self._names, token=self._token, cancel=cancel, price=price)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=MOST_REQUESTS,
            timeout_graceful_shutdown=1,
        )
        self._server = Server(config)
        self._thread = threading.Thread(target=self._serve, name="qx-page", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        assert self._server is not None
        try:
            self._server.run(sockets=[self._socket])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, what this process is for goes on
            logger.warning("the page at %s has ended: %s: %s; start it anew", self.address, type(error).__name__, error)

    def end_soon(self) -> None:
        """Tell it to end, and wait for nothing; also from a signal handler."""
        if self._server is not None:
            self._server.should_exit = True

    def stop(self) -> None:
        """End it; returns soon, whatever the page is doing."""
        self.end_soon()
        if self._thread is not None:
            until = time.monotonic() + STOP_SECONDS
            self._thread.join(STOP_SECONDS)
            self._reader.stop(max(0.0, until - time.monotonic()))
        with contextlib.suppress(OSError):
            self._socket.close()
        if self.address.path:
            with contextlib.suppress(OSError):
                if os.lstat(self.address.path).st_ino == self._inode:
                    Path(self.address.path).unlink()


def _checked(name: str) -> str:
    if not (found := name_in(name)) or ":" in name:
        raise ConfigError("config", f"--page-name is the name of a host, such as qx.example.org, not {name!r}")
    return found


def _listen(address: Address) -> tuple[socket.socket, int]:
    """Listen; returns the socket, and the inode of its path."""
    try:
        if address.path:
            return _listen_at_path(address.path)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family), 0
    except OSError as error:
        raise ConfigError("config", f"the page can't be served at {address}: {_why(error, address)}") from None


def _why(error: OSError, address: Address) -> str:
    match error.errno:
        case errno.EADDRINUSE if address.path:
            return "another process listens there; choose another path"
        case errno.EADDRINUSE:
            return "the port is in use; choose another one, or 0 for any that is free"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; 127.0.0.1 is its own"
        case errno.EACCES | errno.EPERM:
            return (
                "that is not permitted; choose a port above 1023"
                if address.port
                else "that is not permitted; choose another path"
            )
        case errno.EEXIST:
            return "there is a file of this name, which is no socket; choose another path"
        case errno.ENOENT:
            return "there is no such folder; make it, with mode 700"
    return f"{error.strerror or type(error).__name__}; choose another address"


def _listen_at_path(path: str) -> tuple[socket.socket, int]:
    _remove_leftover(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        # Nobody can connect until it listens, so there is no moment at which others could.
        Path(path).chmod(0o600)
        inode = os.lstat(path).st_ino
        made.listen(128)
    except BaseException:
        made.close()
        raise
    return made, inode


def _remove_leftover(path: str) -> None:
    """Remove the socket of a page that was killed."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        try:
            tried.connect(path)
        except ConnectionRefusedError:
            if status.st_uid == os.geteuid():
                Path(path).unlink()
            return
    raise OSError(errno.EADDRINUSE, "in use")
