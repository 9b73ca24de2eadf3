"""A descriptor that becomes readable when another thread, or a signal handler, says so.

It is a pipe. Linux has eventfds for this, and other systems have not. Windows can't wait for a pipe, so there it is a
pair of sockets.
"""

from __future__ import annotations

import contextlib
import os
import socket

from . import system


class Wake:
    """Whatever is written to it is one wish to wake up, however often it is written."""

    def __init__(self) -> None:
        self._sockets: tuple[socket.socket, ...] = ()
        if system.IS_WINDOWS:
            self._sockets = socket.socketpair()
            for each in self._sockets:
                each.setblocking(False)
            self._reader, self._writer = (each.fileno() for each in self._sockets)
            return
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """What becomes readable."""
        return self._reader

    def set(self) -> None:
        """Make it readable; from any thread, or from a signal handler.

        Raises:
            OSError: If it is closed.
        """
        with contextlib.suppress(BlockingIOError):  # it is full, so it is readable
            if self._sockets:
                self._sockets[1].send(b"\0")
            else:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Make it unreadable until it is set again."""
        with contextlib.suppress(BlockingIOError):
            if self._sockets:
                self._sockets[0].recv(4096)
            else:
                os.read(self._reader, 4096)

    def close(self) -> None:
        """Close it."""
        if self._sockets:
            for each in self._sockets:
                each.close()
            return
        os.close(self._reader)
        os.close(self._writer)
