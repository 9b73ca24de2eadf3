"""Checks of this machine: each finding says what is wrong, and what to do.

`finding`    the result of a check
`machine`    versions, kernel, state directory, container, settings
`hosts`      the shared ledger
`account`    the account, the connection to the service, the clock
`kill_test`  a driver that is really killed, on the embedded service
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import account, hosts, kill_test, machine
from .finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]


def examine(*, with_drill: bool = True, say: Callable[[str], object] = lambda _: None) -> Iterator[Finding]:
    """Run all checks.

    Args:
        with_drill: Include the kill test.
        say: Called before a check that takes a while, with a message.
    """
    yield from machine.check()
    yield from hosts.check()
    say("looking at the account, and asking its service")
    yield from account.check()
    if with_drill:
        say("starting a driver and killing it, on an embedded service; that takes some seconds")
        yield from kill_test.check()
