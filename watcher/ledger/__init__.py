"""The ledger: what is guarded, on this machine's disk and, if one is named, in a database for many hosts.

A driver and its watcher may both die: a control group is killed, the power fails. Then this is all that remains. The
watcher writes a row for a run before it acknowledges the intent; a later process reads the rows, judges whose driver
is dead, claims those so that no two processes cancel the same, cancels, and writes down what became of them. The ledger
never holds a secret: whoever cancels brings an API key of their own.

The ledger may fail, its disk may be full, its file corrupt: that is always a `LedgerError`, and a watcher goes on
without it, less safe but not stopped.

`rules`     who may take a run, contest and claim it, and what can be said of it
`row`       what is written of a run
`budgets`   how much QPU time may be reserved, and by whom
`columns`   the columns of a run, in both ledgers
`store`     the contract of both ledgers, and what is the same in both
`spending`  what is reserved and was charged against budgets, in both ledgers
`file`      where the local ledger's file is, and that nobody else can write to it
`schema`    its tables, and how an older file becomes a newer one
`sqlite`    the local ledger
`postgres`  the shared ledger
`errors`    `LedgerError` and what is one, and nothing else is raised
"""

from .budgets import PERIODS, Balance, Budget, Period, ReservationWish, Reserved, standing
from .errors import LedgerBusy, LedgerError, RefusedRow
from .file import state_directory
from .row import FINAL, OPEN_OUTCOMES, UNFINISHED, Row, RunState, safe_endpoint
from .rules import KEPT_FOR, LEASE_SECONDS, SWEPT_FOR, Liveness, Ruling, Wish, judge, judge_by_lease
from .sqlite import Ledger
from .store import Store

__all__ = [
    "FINAL",
    "KEPT_FOR",
    "LEASE_SECONDS",
    "OPEN_OUTCOMES",
    "PERIODS",
    "SWEPT_FOR",
    "UNFINISHED",
    "Balance",
    "Budget",
    "Ledger",
    "LedgerBusy",
    "LedgerError",
    "Liveness",
    "Period",
    "RefusedRow",
    "ReservationWish",
    "Reserved",
    "Row",
    "Ruling",
    "RunState",
    "Store",
    "Wish",
    "judge",
    "judge_by_lease",
    "safe_endpoint",
    "standing",
    "state_directory",
]
