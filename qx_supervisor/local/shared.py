"""The service that the programs of a machine share: the first of them starts it, and none stops it."""

from __future__ import annotations

from .handle import Service, ServiceError
from .process import find, start

BACKENDS = ("ibm_brisbane", "ibm_torino", "ibm_fez")
"""What it offers: a chip of each of the last families."""

IDLE = 600.0
"""Seconds without a connection or an unfinished job after which it ends."""

_TRIES = 3  # one may end, or another program may start one, at the very moment


def find_or_start() -> Service:
    """Find the registered service, or start one for all programs of this user.

    One that is started here ends by itself when nobody has used it for ten minutes. Its jobs outlive this program.

    Returns:
        Its handle. The end of a ``with`` block does not stop the service; ``stop()`` does, for all who use it.

    Raises:
        ImportError: There is none, and localqpu is not installed.
        ServiceError: It did not start.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            found = find()
            if found is None:
                return start(register=True, idle=IDLE, backends=BACKENDS)
            found.health()  # it has a connection now, so it does not end in the next minutes
        except ServiceError:
            if not tries_left:
                raise
        else:
            return found
    raise AssertionError("unreachable")
