"""The same ledger in PostgreSQL, one for many hosts.

What a machine's own file can't say, whether a driver on another host lives, this one says by leases. Each watcher has a
row that it renews (`qx_holders`), each run names the watcher that holds it (`qx_runs`), and what has not been renewed
in time may be taken: by a driver that came back for it, or by a reaper. The clock is the database's, here and
everywhere: no host's clock is compared with another's.

Two rules make it safe. Whatever is written about a run is written on condition that it is still held, in one statement,
so one that was cut off can't write over its successor. And a lease is not judged by its end alone: a database that was
away for a while holds nothing but leases that have run out, of drivers that live. So a reaper goes by what it has seen
itself, for as long as a lease lasts, and the time of the server's own start counts as a renewal.

`connection`  a connection that never waits for ever, and whose errors hold no secret
`schema`      the tables, and how older ones become newer ones
`statements`  the longer statements
`store`       reading and writing
"""

from .connection import Away
from .store import Census, Held, Holder, SharedLedger

__all__ = ["Away", "Census", "Held", "Holder", "SharedLedger"]
