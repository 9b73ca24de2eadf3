"""What `boot` starts: the watcher of one driver, beside it, or the one of all drivers on this node."""

from __future__ import annotations

import os
import socket

from . import node, protocol
from .callers import Callers
from .driver_process import DriverIdentity, DriverProcess
from .frames import Frames
from .robust_lock import RobustLock


def watch(order: protocol.Order) -> None:
    """Watch whom a start order names, and end the process when nothing is left to do."""
    if "door" in order:
        node.serve(order["door"], Callers(order["state"], order["lease_seconds"]))
    else:
        _watch_one(order)


def _watch_one(order: protocol.Order) -> None:
    connection = Frames(socket.socket(fileno=order["connection"]))
    try:
        version = protocol.version_to_speak(order.get("protocol", 1))
    except protocol.VersionError as error:
        connection.send(protocol.encode(protocol.Nack(str(error)), 0, protocol.OLDEST_VERSION))
        os._exit(1)
    callers = Callers(order["state"], order["lease_seconds"])
    passed = order.get("lock")
    lock = None if passed is None else RobustLock.of_driver(passed)
    driver = DriverProcess(DriverIdentity(order["pid"], order["start_ticks"]), order["pidfd"], lock)
    callers.add(connection, driver, version=version, sweep_window=order["sweep_window"])
    callers.run()
    callers.leave()
    # Threads may wait for a service that does not answer; nobody waits for them.
    os._exit(0)
