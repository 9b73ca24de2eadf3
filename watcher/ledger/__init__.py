"""The ledger: what is guarded on this machine, on disk.

A driver and its watcher may both die: a control group is killed, the power fails. Then this is all that is left. The
watcher writes a row for a run before it acknowledges the intent; a later process reads the rows, judges whose driver
is dead, claims those so that no two processes cancel the same, cancels, and writes down what became of them. It never
holds a secret: whoever cancels brings an API key of their own.

The ledger may fail, its disk be full, its file damaged: that is a `LedgerError`, always, and a watcher goes on without
it, less safe and not stopped.

`lease`   who may take up a run that has a key
`row`     what is written of a run, and who may judge it
`file`    where the file is, and that nobody else can write to it
`schema`  the tables, and how an older file becomes a newer one
`store`   reading and writing
`errors`  `LedgerError`, and nothing else is raised
"""

from .errors import LedgerError, UnknownRun
from .file import state_directory
from .lease import LEASE_SECONDS, Ruling, Wish
from .row import FINAL, UNFINISHED, Row, State, Verdict, judge, safe_endpoint
from .store import Ledger

__all__ = [
    "FINAL",
    "LEASE_SECONDS",
    "UNFINISHED",
    "Ledger",
    "LedgerError",
    "Row",
    "Ruling",
    "State",
    "UnknownRun",
    "Verdict",
    "Wish",
    "judge",
    "safe_endpoint",
    "state_directory",
]
