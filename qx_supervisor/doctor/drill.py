"""A driver killed for real."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from .finding import Finding


def check() -> Iterator[Finding]:
    """Kill a driver on the embedded service, and see its job cancelled."""
    if importlib.util.find_spec("localqpu") is None:
        yield Finding(
            "kill -9 drill",
            "warning",
            "not done: the embedded service is not installed",
            "pip install '.[local]' in a checkout of qx_supervisor",
        )
        return
    from .. import local
    from ..drill import DrillError, drill

    try:
        with local.start(linger=local.LINGER) as ibm:
            drilled = drill(ibm, is_quiet=True)
    except (DrillError, local.ServiceError) as error:
        yield Finding("kill -9 drill", "fault", str(error), "look at what qx-supervisor demo shows")
        return
    if drilled.status != "Cancelled" or drilled.cancel_requests != 1:
        text = f"the killed driver's job is {drilled.status}, after {drilled.cancel_requests} cancel requests"
        yield Finding("kill -9 drill", "fault", text, "please report it, with the output of this command")
        return
    text = f"a driver was killed; {drilled.milliseconds:.0f} ms later the service was asked to cancel its job, and did"
    yield Finding("kill -9 drill", "ok", text)
