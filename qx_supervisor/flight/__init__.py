"""The work of one run: transpile → submit → poll → fetch, told as status events.

`machine` decides; it is pure. The other modules do what it orders:

`core`          what they share: the request, the machine, the target, the status
`preparation`   all before the POST: target, account, key, circuits, primitive
`attachment`    all before the polling of a job that is there already
`outages`       work before the POST, while nobody answers
`submission`    the POST, and what becomes of it
`lost_answer`   the search for the job of a POST that nobody answered
`polling`       the job's state, and what is shown beside it
`conclusion`    the results, or why there are none
`time_limits`   how long it may take, and its job may run
`failures`      the words of a run that fails
`flight`        the whole, and its end

A run of several jobs is made of flights:

`several`       what such runs have in common
`retried`       a job that is submitted again when it has failed; `tries` decides, and is pure
`split`         parts that are joined; `parts` decides, and is pure
`together`      what the parts share: the target and the batch
"""

from __future__ import annotations

from collections.abc import Callable

from ..request import Request
from ..status import Status
from .flight import CANCEL_SECONDS, HAND_OVER_SECONDS, Flight
from .outcome import Then
from .retried import RetriedFlight
from .several import Several
from .split import SplitFlight

__all__ = ["CANCEL_SECONDS", "HAND_OVER_SECONDS", "AnyFlight", "Flight", "Several", "SplitFlight", "flight_of"]

AnyFlight = Flight | RetriedFlight | SplitFlight
"""A run at work, of one job or of several."""


def flight_of(
    request: Request,
    tell: Callable[[Status], None],
    then: Then = lambda _, work: work(),
    *,
    asks_details: bool = False,
) -> AnyFlight:
    """What carries out a call; for the arguments see `Flight`."""
    if request.parts > 1:
        return SplitFlight(request, tell, then, asks_details=asks_details)
    if request.retries:
        return RetriedFlight(request, tell, then, asks_details=asks_details)
    return Flight(request, tell, then, asks_details=asks_details)
