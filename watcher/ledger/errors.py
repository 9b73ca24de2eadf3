"""What the ledger raises."""


class LedgerError(Exception):
    """The ledger can't be used. The message is one sentence for the user: which file, why, and what helps."""


class LedgerBusy(LedgerError):
    """Another process has locked it for too long: a moment later it may be free."""


class RefusedRow(LedgerError):
    """A row is refused for what is in it, and would be at every try; others can be written."""
