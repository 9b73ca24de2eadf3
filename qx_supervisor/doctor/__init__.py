"""Whether all is as it must be on this machine, in words, with what to do where it is not.

`finding`  what a check found
`machine`  the installation and the place: versions, kernel, state directory, container, settings
`hosts`    the ledger of many hosts
`account`  the account, the way to the service, the clock
`drill`    a driver killed for real, on the embedded service
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import account, hosts, kill_test, machine
from .finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]


def examine(*, with_drill: bool = True, say: Callable[[str], object] = lambda _: None) -> Iterator[Finding]:
    """Check one thing after the other.

    Args:
        with_drill: Whether a driver is killed, too.
        say: Called with what takes a while, before it begins.
    """
    yield from machine.check()
    yield from hosts.check()
    say("looking at the account, and asking its service")
    yield from account.check()
    if with_drill:
        say("starting a driver and killing it, on an embedded service; that takes some seconds")
        yield from kill_test.check()
