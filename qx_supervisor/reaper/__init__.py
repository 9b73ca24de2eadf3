"""The reaper: cancels what drivers left behind that were lost with their host, or cut off, by the ledger of many hosts.

`work`      what it does: claim, look once more, cancel, record
`counts`    what it has done, and what it saw
`metrics`   the same for Prometheus
"""

from .counts import Counts
from .work import Reaper

__all__ = ["Counts", "Reaper"]
