"""A connection to PostgreSQL whose answers are waited for so long and no longer, and whose errors hold no secret.

The URL holds a password, and libpq's error for a URL that it can't parse quotes parts of it. So none of its words get
out: a fault is named in our own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from ..errors import LedgerError, RefusedRow

ANSWER_SECONDS = 5.0
"""How long one answer may take. Where the server is stopped, or a cable pulled, nobody closes the connection."""

CONNECT_SECONDS = 3

_DEFAULTS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "qx-supervisor",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# In ms: half of the time above, so that who waits for a lock meanwhile does not give up.
_LOST_SOON: LiteralString = "SET LOCAL idle_in_transaction_session_timeout = 2500"

_STATES = (
    ("28", "the user's name or password is not accepted"),
    ("3D", "there is no database of that name"),
    ("42501", "the user lacks the rights for it"),
    ("25006", "it can only be read: it is a standby"),
    ("25P03", "this process was too slow for it"),
    ("53", "it is out of disk, memory or connections"),
    ("57P", "it is starting or stopping"),
    ("57014", "it ended a statement that took too long"),
    ("42P01", "its tables are missing"),
    ("40", "another transaction was in the way"),
)
"""The beginnings of SQLSTATEs, and what they mean."""

_WORDS = (
    ("refused", "the connection is refused"),
    ("no answer in time|timeout|timed out", "it does not answer"),
    ("password authentication failed", "the user's name or password is not accepted"),
    ("no password", "it wants a password"),
    ("pg_hba", "it does not admit this host or user"),
    ("does not exist", "there is no such database or user"),
    ("starting up|shutting down|recovery", "it is starting or stopping"),
    ("too many clients", "it is out of disk, memory or connections"),
    ("host name|name or service", "its host name is not known"),
    ("unreachable", "the network does not lead to it"),
    ("certificate", "its TLS certificate is not accepted"),
    ("ssl", "TLS failed"),
    ("no such file", "there is no server at that socket"),
    ("closed|lost|terminat|reset", "the connection broke"),
)
"""Words in libpq's errors that have no SQLSTATE, as a regular expression, and what they mean."""


class Away(LedgerError):
    """The database can't be used now."""


class Connection(psycopg.Connection[TupleRow]):
    """A connection whose answers come within `ANSWER_SECONDS`, or which is closed."""

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Do all of a block, or nothing; its locks last half as long at most as an answer may take.

        The server would wait for hours for the next statement of a host that was lost in the middle of it, and all
        others for the locks. It is told with each transaction, since a pooler may give each another connection.
        """
        with super().transaction(savepoint_name, force_rollback) as begun:
            self.execute(_LOST_SOON)
            yield begun

    def wait(self, gen: Any, *args: Any, **named: Any) -> Any:
        """Wait for an answer, for `ANSWER_SECONDS` at most."""
        try:
            return super().wait(_bounded(gen, time.monotonic() + ANSWER_SECONDS), *args, **named)
        except TimeoutError:
            self.close()
            raise psycopg.OperationalError("no answer in time") from None


def _bounded(waiting: Generator[Any, Any, Any], until: float) -> Generator[Any, Any, Any]:
    """What psycopg waits for, but with a deadline."""
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= until:
                raise TimeoutError
            wanted = waiting.send(ready)
    except StopIteration as end:
        return end.value


def connect(url: str) -> Connection:
    """Connect.

    Args:
        url: `postgresql://user:password@host:port/database`, with libpq's parameters.

    Raises:
        LedgerError: If that fails.
    """
    try:
        settings = {**_DEFAULTS, **conninfo_to_dict(url)}
    except psycopg.Error:
        raise LedgerError(
            "The URL of the shared ledger can't be read: in a user's name or a password, each of the characters "
            "/ ? # @ : % and blanks must be percent-encoded."
        ) from None
    with translated():
        # No prepared statements: a pooler in front of the database may give each transaction another connection.
        made = Connection.connect(**settings, autocommit=True, prepare_threshold=None)
        # Whatever is set for the database: who has waited for a lock must see what others have written meanwhile.
        made.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return made


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into a sentence of our own."""
    try:
        yield
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        raise RefusedRow(f"The shared ledger can't be used: {_reason(error)}.") from None
    except psycopg.Error as error:
        raise Away(f"The shared ledger can't be used: {_reason(error)}.") from None
    except (OSError, UnicodeError, ValueError) as error:
        raise Away(f"The shared ledger can't be used ({type(error).__name__}).") from None


def _reason(error: psycopg.Error) -> str:
    if error.sqlstate:
        known = (words for start, words in _STATES if error.sqlstate.startswith(start))
        return next(known, f"it answered with error {error.sqlstate}")
    said = str(error).lower()
    known = (words for sign, words in _WORDS if re.search(sign, said))
    return next(known, f"{type(error).__name__}")
