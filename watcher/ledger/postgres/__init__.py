"""The shared ledger: one for many hosts, in PostgreSQL.

A machine's own file can't say whether a driver on another host is alive. This one says it by leases. Each watcher has a
row that it renews (`qx_holders`), each run names the watcher that has the lease on it (`qx_runs`), and what was not
renewed in time may be taken: by a driver that was started again, or by a reaper. The clock is the database's: no
host's clock is compared with another's.

Two rules make it safe. A run is written on condition that the writer still has the lease on it, in one statement, so
that one that was cut off can't write over its successor. And a lease is not judged by its end alone: a database that
was away for a while has only leases that have run out, of drivers that are alive. So a reaper goes by what it has seen
itself, for as long as a lease lasts, and the server's own start counts as a renewal.

`connection`  a connection whose answers are waited for so long and no longer, and whose errors hold no secret
`schema`      the tables, and how older ones become newer ones
`statements`  the longer statements
`store`       what differs from the local ledger
"""

from .connection import Away
from .store import Census, Held, Holder, SharedLedger

__all__ = ["Away", "Census", "Held", "Holder", "SharedLedger"]
