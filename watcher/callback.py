"""A watcher that systemd started, outside its caller's control group: it has inherited nothing, and calls its caller.

The caller listens at a socket in the user's runtime directory. There it sees that the call comes from the unit that it
asked for, and gives what a child would have inherited: the pipe, which is this connection, a pidfd, an environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from typing import Any

from .host_identity import start_ticks


class NotTheCaller(Exception):
    """Someone else answers, or the caller can't be seen from here."""


def call(order: dict[str, Any]) -> socket.socket | None:
    """Call the caller of an order; None if it is gone.

    Raises:
        NotTheCaller: If another process answers.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(order["address"])
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        # It is for one call. A caller that died in the meantime can't remove it any more.
        with contextlib.suppress(OSError):
            os.unlink(order["address"])  # noqa: PTH108 - pathlib costs 5 ms here
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.geteuid() or pid != order["pid"] or start_ticks(pid) != order["start_ticks"]:
        # In another PID namespace a pid is another process's, and whoever judges by it is wrong.
        raise NotTheCaller("the caller is another user's, or in another PID namespace")
    return connection


def take(connection: socket.socket, order: dict[str, Any]) -> bool:
    """Take from the caller what a child would have inherited, into an order; False if it is gone."""
    data, passed, _, _ = socket.recv_fds(connection, 65536, 1, socket.MSG_CMSG_CLOEXEC)
    while data:
        if len(data) >= 4 and len(data) - 4 >= struct.unpack("!i", data[:4])[0]:
            # All that the user manager gave it goes: a key may stand in it.
            os.environ.clear()
            os.environ.update(json.loads(data[4:]))
            order["connection"], order["pidfd"] = connection.detach(), passed[0] if passed else None
            return True
        more = connection.recv(65536)
        if not more:
            break
        data += more
    return False
