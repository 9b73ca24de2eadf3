"""What the ledger raises."""


class LedgerError(Exception):
    """The ledger can't be used. The message is one sentence for the user: which file, why, and what helps."""
