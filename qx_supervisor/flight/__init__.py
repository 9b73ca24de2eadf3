"""The work of one run: transpile → submit → poll → fetch, told as status events.

`machine` decides; it is pure. The other modules do what it orders:

`core`          what they share: the request, the machine, the target, the status
`preparation`   all before the POST: target, account, key, circuits, primitive
`submission`    the POST, and what becomes of it
`lost_answer`   the search for the job of a POST that nobody answered
`polling`       the job's state, and what is shown beside it
`conclusion`    the results, or why there are none
`failures`      the words of a run that fails
`flight`        the whole, and its end
"""

from .flight import CANCEL_SECONDS, HAND_OVER_SECONDS, Flight

__all__ = ["CANCEL_SECONDS", "HAND_OVER_SECONDS", "Flight"]
