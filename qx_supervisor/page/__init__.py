"""The page: what a ledger knows, in a browser, as it changes. It needs the extra `page`.

`address`  where it listens, and the names under which browsers may come
`access`   the token, who has given it, and what it permits
`gate`     what every request must pass: its host, its origin, its token
`filters`  which runs are asked for, as the address of the page says
`entry`    a run as the page has it
`deaths`   which drivers have died, and what became of their runs
`totals`   what many runs have in common: counts, plots, drivers, hosts, leases
`ledgers`  what is read of a ledger, and no more of it than has changed
`reader`   the thread that reads
`stream`   who is told that something has changed
`app`      the answers to requests
`server`   the start and the end

All but the last five are pure. The page decides nothing, and writes to no ledger; with a token it hands the id of a job
to whoever started it, to be cancelled.
"""

from .access import Cancel, Token
from .address import Address
from .server import Page

__all__ = ["Address", "Cancel", "Page", "Token"]
