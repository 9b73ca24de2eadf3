"""One watcher for all drivers of a user on a node that are in the same control group and PID namespace.

Drivers find it by a socket in a folder that only the user can enter. A driver that connects says who it is and passes
a pidfd of itself; what it says is compared with what the kernel says of the other end. From there on it is a caller
like any other.

The socket is made by a driver, under a lock, and inherited: so it takes connections before this process has begun. When
there has been no caller for a while this process leaves. It takes the lock for that, and looks once more whether
somebody is at the door. One that comes in the last moment finds the door closed, and knocks again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

from . import protocol, system
from .caller import Caller
from .callers import Callers
from .driver_process import DriverIdentity, DriverProcess
from .frames import Frames
from .host_identity import start_ticks
from .loop import Loop
from .rendezvous import file_at, locked
from .robust_lock import RobustLock
from .sockets import other_end

ACCEPTED_A_TURN = 16
"""How many connections are taken before others have their turn."""

ORDER_SECONDS = 30.0
"""How long a driver may take to say who it is. A stopped one must not keep its descriptors here for ever."""

LOOK_AGAIN_SECONDS = 1.0
"""After which a watcher tries again that wanted to leave when a driver had the lock, or had no descriptor left."""


class NotWelcome(Exception):
    """A connection that is refused; the text says why."""


class Door:
    """Where drivers come in.

    Args:
        door: Where that is.
        callers: The callers.
    """

    def __init__(self, door: protocol.Door, callers: Callers) -> None:
        self._callers = callers
        self._loop = callers.loop
        self._listener = socket.socket(fileno=door["listener"])
        self._listener.setblocking(False)
        self._listener.listen(4096)  # so that the kernel names this process to those who connect
        self._path = door["socket"]
        self._lock = door["lock"]
        self._linger = door["linger"]
        self._file = file_at(self._path)
        self._coming: dict[Arrival, None] = {}
        self._known: dict[tuple[int, int, str], Caller] = {}  # by the driver and its word for its connections
        self._emptied = 0  # how often the last caller has left
        callers.when_empty = self._empty
        self._open()
        self._empty()

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> bool:
        """Let some in; returns whether anybody was there."""
        for number in range(ACCEPTED_A_TURN):
            try:
                connection = self._listener.accept()[0]
            except BlockingIOError:
                return number > 0
            except OSError:  # no descriptor is left: who comes has to wait
                self._loop.unwatch(self._listener.fileno())
                self._loop.after(LOOK_AGAIN_SECONDS, self._open)
                return True
            arrival = Arrival(connection, self._loop, self._arrived, self._gone)
            self._coming[arrival] = None
            arrival.begin()
        return True

    def _gone(self, arrival: Arrival) -> None:
        self._coming.pop(arrival, None)
        if not self._callers and not self._coming:
            self._empty()

    def _arrived(self, arrival: Arrival, order: protocol.CallerOrder, frames: Frames, driver: DriverProcess) -> None:
        self._coming.pop(arrival, None)
        who = order["pid"], order["start_ticks"], order["word"]
        self._known = {each: caller for each, known in self._known.items() if (caller := _living(known)) is not None}
        self._known[who] = self._callers.add(
            frames,
            driver,
            version=protocol.version_to_speak(order["protocol"]),
            sweep_window=order["sweep_window"],
            earlier=self._known.get(who),
        )

    # Leaving

    def _empty(self) -> None:
        self._emptied += 1
        number = self._emptied
        self._loop.after(0.0 if self._callers.is_dismissed else self._linger, lambda: self._leave(number))

    def _leave(self, number: int) -> None:
        if number != self._emptied or self._callers or self._coming:
            return
        with contextlib.ExitStack() as until_closed:
            try:
                may_leave = until_closed.enter_context(locked(self._lock))
            except FileNotFoundError:
                may_leave = True  # the folder is gone, as after a logout: nobody comes in any more
            except OSError:
                may_leave = False
            if not may_leave:
                self._loop.after(LOOK_AGAIN_SECONDS, lambda: self._leave(number))
                return
            if self._accept():
                return
            if self._file is not None and file_at(self._path) == self._file:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)  # noqa: PTH108
                    os.unlink(self._lock)  # noqa: PTH108
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
        self._loop.stop()


class Arrival:
    """A connection that has not said whose it is.

    Args:
        connection: The connection.
        loop: The watcher's loop.
        arrived: Called with the driver's order, the connection and the driver, if it is welcome.
        gone: Called if it is not, or is closed.
    """

    def __init__(
        self,
        connection: socket.socket,
        loop: Loop,
        arrived: Callable[[Arrival, protocol.CallerOrder, Frames, DriverProcess], object],
        gone: Callable[[Arrival], object],
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._arrived = arrived
        self._gone = gone
        self._frames = Frames(connection)
        self._passed: list[int] = []
        self._is_over = False

    def begin(self) -> None:
        """Wait for what it says."""
        self._loop.watch(self._connection.fileno(), self._is_ready)
        self._loop.after(ORDER_SECONDS, self._refuse)

    def _is_ready(self) -> None:
        try:
            self._passed += self._frames.read_with_descriptors()
            said = self._frames.next()
            if said is None:
                return
            order = protocol.decode_caller_order(said)
            protocol.version_to_speak(order["protocol"])
            _check(order, *other_end(self._connection))
            driver = self._driver(order)
        except (NotWelcome, protocol.ProtocolError) as refusal:
            with contextlib.suppress(OSError):
                self._frames.send(protocol.encode(protocol.Nack(str(refusal)), 0, protocol.OLDEST_VERSION))
            self._refuse()
        except (EOFError, OSError):
            self._refuse()
        else:
            self._end()
            self._arrived(self, order, self._frames, driver)

    def _driver(self, order: protocol.CallerOrder) -> DriverProcess:
        passed = dict(zip(order["passed"], self._passed, strict=False))
        pidfd, memory = passed.get("pidfd"), passed.get("lock")
        if memory is not None:
            self._passed.remove(memory)
        lock = None if memory is None else RobustLock.of_driver(memory)
        driver = DriverProcess(DriverIdentity(order["pid"], order["start_ticks"]), pidfd, lock)
        if pidfd is not None:
            self._passed.remove(pidfd)
        self._close_passed()
        return driver

    def _refuse(self) -> None:
        if not self._is_over:
            self._end()
            self._close_passed()
            self._frames.close()
            self._gone(self)

    def _end(self) -> None:
        self._is_over = True
        self._loop.unwatch(self._connection.fileno())

    def _close_passed(self) -> None:
        for descriptor in self._passed:
            os.close(descriptor)
        self._passed.clear()


def _living(caller: Caller | None) -> Caller | None:
    """A driver's last connection for which there is still something to do."""
    while caller is not None and caller.is_over:
        caller = caller.earlier
    return caller


def _check(order: protocol.CallerOrder, pid: int, uid: int) -> None:
    """Compare what the other end says of itself with what the kernel says of it.

    Raises:
        NotWelcome: If it is another user's, or is not who it says.
    """
    if uid != os.geteuid():
        raise NotWelcome("this watcher is another user's")
    # In another PID namespace its pid would be 0 here, or another process's, whose death would be taken for its own.
    if pid != order["pid"] or start_ticks(pid) not in (order["start_ticks"], None):
        raise NotWelcome("this connection was made by another process")


def serve(door: protocol.Door, callers: Callers) -> None:
    """Be the watcher of all who come, and end the process when nobody has come for a while."""
    system.allow_most_files()  # each driver needs three descriptors and more
    Door(door, callers)
    callers.run()
    callers.leave()
    os._exit(0)
