"""Messages over a socket that never block: neither half a message nor a driver that does not read holds up the watcher.

A frame is `multiprocess.connection`'s, which the driver speaks: four bytes of length, and the message.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque

from . import sockets

CHUNK = 65536
"""The most that is read at once."""

LONGEST = 4 * 1024 * 1024
"""The longest message. A longer one is none of a driver's."""

MOST_UNSENT = 1024 * 1024
"""What waits for a driver that does not read. More is dropped: a stopped driver must not stop its watcher."""

MOST_PASSED = 4
"""Descriptors that may come with one piece of what is read. The kernel closes any more."""

_LENGTH = struct.Struct("!i")


class Frames:
    """One end of a connection.

    Args:
        connection: The socket, which does not block from then on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # macOS does not heed MSG_DONTWAIT in send(2)
        self._socket = connection
        self._received = bytearray()
        self._unsent: deque[bytes | memoryview] = deque()
        self._size_unsent = 0
        self.bytes_read = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def read(self) -> bool:
        """Take in some of what has come; returns whether there was anything.

        Raises:
            EOFError: If the other end is closed.
            OSError: If the connection broke, or what comes can't be a message.
        """
        try:
            data = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            raise EOFError
        self.bytes_read += len(data)
        self._received += data
        return True

    def read_with_descriptors(self) -> list[int]:
        """Take in some of what has come; returns the descriptors that came with it.

        Raises:
            EOFError: If the other end is closed.
            OSError: If the connection broke.
        """
        try:
            data, passed = sockets.receive_with_descriptors(self._socket, CHUNK, MOST_PASSED)
        except (BlockingIOError, InterruptedError):
            return []
        self._received += data
        if not data and not passed:
            raise EOFError
        return passed

    def next(self) -> bytes | None:
        """The next message that has come whole, or None.

        Raises:
            OSError: If what comes can't be a message.
        """
        if len(self._received) < _LENGTH.size:
            return None
        [length] = _LENGTH.unpack_from(self._received)
        if not 0 <= length <= LONGEST:
            raise OSError("the length of a message is none")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

    def send(self, message: bytes) -> None:
        """Send a message, now or when there is room; unless too much is waiting already.

        Raises:
            OSError: If the connection broke.
        """
        if self._size_unsent + len(message) <= MOST_UNSENT:
            self._unsent.append(_LENGTH.pack(len(message)) + message)
            self._size_unsent += _LENGTH.size + len(message)
        self.flush()

    def flush(self) -> None:
        """Send what there is room for.

        Raises:
            OSError: If the connection broke.
        """
        while self._unsent:
            first = self._unsent[0]
            try:
                sent = self._socket.send(first, sockets.NO_SIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            self._size_unsent -= sent
            if sent == len(first):
                self._unsent.popleft()
            else:
                self._unsent[0] = memoryview(first)[sent:]

    @property
    def has_unsent(self) -> bool:
        """Whether something waits until the other end reads."""
        return bool(self._unsent)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()
