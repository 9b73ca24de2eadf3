"""A watcher that systemd starts, outside the driver's control group, inherits nothing. It calls the driver.

The driver listens on a socket in the user's runtime directory. There it checks that the call comes from the unit that
it asked for, and passes on what a child would have inherited: the connection (this one), a pidfd and an environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct

from . import sockets
from .host_identity import start_ticks
from .protocol import Order


class NotTheDriver(Exception):
    """Another process answers, or the driver can't be seen from here."""


def call(order: Order) -> socket.socket | None:
    """Call the driver of a start order; None if it is gone.

    Raises:
        NotTheDriver: If another process answers.
    """
    address = order["address"]
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    finally:
        # It is for one call. A driver that died in the meantime can't remove it any more.
        with contextlib.suppress(OSError):
            os.unlink(address)  # noqa: PTH108 - pathlib costs 5 ms here
    pid, uid = sockets.other_end(connection)
    if uid != os.geteuid() or pid != order["pid"] or start_ticks(pid) != order["start_ticks"]:
        # In another PID namespace the pid is another process's, whose death would be taken for the driver's.
        raise NotTheDriver("the driver is another user's, or in another PID namespace")
    return connection


def receive(connection: socket.socket, order: Order) -> bool:
    """Receive from the driver what a child would have inherited, into a start order; False if the driver is gone."""
    data, passed = sockets.receive_with_descriptors(connection, 65536, 2)
    while data:
        if len(data) >= 4 and len(data) - 4 >= struct.unpack("!i", data[:4])[0]:
            # The environment that the user manager gave it goes: it may hold a key.
            os.environ.clear()
            os.environ.update(json.loads(data[4:]))
            order["connection"] = connection.detach()
            order["pidfd"], order["lock"] = (*passed, None, None)[:2]
            return True
        more = connection.recv(65536)
        if not more:
            break
        data += more
    return False
