"""A way to the embedded service that can be closed: no connection is to be had then, and those that there are break."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from qiskit_ibm_runtime import QiskitRuntimeService

_PIECE = 65536


class Gate:
    """Passes bytes on, as long as it is open. A context manager.

    Args:
        target: The service's port on the loopback.

    Attributes:
        port: Where clients connect.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for thread in self._threads:
            thread.join(60)

    def service(self, token: str = "local-key") -> QiskitRuntimeService:
        """Qiskit's client, by this way."""
        from qx_supervisor.local.client import connect

        return connect(self.port, token)

    def open(self) -> None:
        """Let clients in, at the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """Let nobody in, and break the connections that there are."""
        with self._lock:
            ended, self._listener = self._listener, None
            for each in (*self._sockets, *([ended] if ended else [])):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            if ended is not None:
                ended.close()

    def _start(self, work: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="gate", daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return  # it is closed
            service = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                is_open = self._listener is listener
                if is_open:
                    self._sockets |= {client, service}
            if is_open:
                self._start(self._carry, client, service)
            else:
                client.close()
                service.close()

    def _carry(self, client: socket.socket, service: socket.socket) -> None:
        with client, service, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(client, selectors.EVENT_READ, service)
            selector.register(service, selectors.EVENT_READ, client)
            is_whole = True
            while is_whole:
                for key, _ in selector.select():
                    piece = key.fileobj.recv(_PIECE)  # type: ignore[union-attr]
                    is_whole &= bool(piece)
                    key.data.sendall(piece)
            for each in (client, service):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {client, service}
