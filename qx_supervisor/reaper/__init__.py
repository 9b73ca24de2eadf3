"""The reaper: cancels the jobs of drivers that were lost with their host, or cut off, by the shared ledger.

`work`      what it does: claim, check the claim, cancel, record
`counts`    what it has done, and what it saw
`metrics`   the same for Prometheus
"""

from .counts import Counts
from .work import Reaper

__all__ = ["Counts", "Reaper"]
