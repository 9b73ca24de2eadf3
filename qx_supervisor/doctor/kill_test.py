"""The kill test."""

from __future__ import annotations

from collections.abc import Iterator

from .. import local
from ..distribution import extra, please_report
from .finding import Finding


def check() -> Iterator[Finding]:
    """Kill a driver on the embedded service, and check that its job is cancelled."""
    if not local.can_start():
        yield Finding(
            "kill -9 drill",
            "warning",
            "not done: the embedded service is not installed",
            extra("local"),
        )
        return
    from ..kill_test import KillTestError, kill_a_driver

    try:
        with local.start(linger=local.LINGER) as ibm:
            tested = kill_a_driver(ibm, is_quiet=True)
    except (KillTestError, local.ServiceError) as error:
        yield Finding("kill -9 drill", "fault", str(error), "look at what qx-supervisor demo shows")
        return
    if tested.status != "Cancelled" or tested.cancel_requests != 1:
        text = f"the killed driver's job is {tested.status}, after {tested.cancel_requests} cancel requests"
        yield Finding("kill -9 drill", "fault", text, f"{please_report()}, with the output of this command")
        return
    text = f"a driver was killed; {tested.milliseconds:.0f} ms later the service was asked to cancel its job, and did"
    yield Finding("kill -9 drill", "ok", text)
