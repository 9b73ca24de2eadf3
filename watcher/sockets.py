"""What sockets can do on this system, under one name each."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Sequence

from . import system

NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0) if system.HAS_LINUX else 0
"""So that a closed connection is an error and no SIGPIPE. Where there is no such flag, see `spare_from_signal`."""

_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0) if system.HAS_LINUX else 0

_SO_NOSIGPIPE = 0x1022  # sys/socket.h of macOS

_LINUX_CREDENTIALS = struct.Struct("3i")  # unix(7), SO_PEERCRED: pid, user, group

_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2  # sys/un.h of macOS
_XUCRED_SIZE, _XUCRED_USER_AT = 76, 4  # sys/ucred.h of macOS


def spare_from_signal(connection: socket.socket) -> None:
    """Have what is written to a closed connection raise no SIGPIPE, for which a program may have any disposition."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)


def receive_with_descriptors(connection: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive data and the descriptors that were passed with it, which no program that is executed inherits.

    Args:
        connection: A Unix socket.
        size: The most bytes.
        most: The most descriptors.

    Raises:
        OSError: As `socket.recvmsg` does.
    """
    data, passed, _, _ = socket.recv_fds(connection, size, most, _CLOSE_ON_EXEC)
    if not _CLOSE_ON_EXEC:
        for descriptor in passed:
            os.set_inheritable(descriptor, False)
    return data, passed


def send_with_descriptors(connection: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Send data and some descriptors, with no SIGPIPE (`socket.send_fds` takes flags, and drops them).

    Raises:
        OSError: If the connection broke.
    """
    spare_from_signal(connection)
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = connection.sendmsg([data], passed, NO_SIGNAL)
    connection.sendall(data[sent:], NO_SIGNAL)


def other_end(connection: socket.socket) -> tuple[int, int]:
    """The pid and the user of the process at the other end of a Unix socket, as the kernel knows them.

    Raises:
        OSError: If the kernel does not tell.
    """
    if sys.platform == "darwin":
        pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, struct.calcsize("i"))
        user = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE)
        return struct.unpack("i", pid)[0], struct.unpack_from("I", user, _XUCRED_USER_AT)[0]
    if not hasattr(socket, "SO_PEERCRED"):
        raise OSError("this system does not tell who is at the other end of a socket")
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_CREDENTIALS.size)
    pid_there, user_there, _ = _LINUX_CREDENTIALS.unpack(told)
    return pid_there, user_there
