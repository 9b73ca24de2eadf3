"""The shared ledger on the driver's side: whether one is named, and what is needed to write to it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
from typing import TYPE_CHECKING, Literal

from . import settings
from .distribution import extra
from .errors import ConfigError, RunError, WatcherError
from .watcher import ledger
from .watcher.facts import End

if TYPE_CHECKING:
    from .watcher.ledger.postgres import SharedLedger

logger = logging.getLogger("qx_supervisor")

STAND_DOWN_SECONDS = 1.0

_PACKAGES = ("psycopg", "typing_extensions")
_FASTER = "psycopg_binary"
"""The part of psycopg in C, with libpq; psycopg can do with a libpq of the system's instead."""


def packages() -> tuple[str, ...]:
    """The packages that are needed to write to it; none if no shared ledger is named.

    Raises:
        WatcherError: If they are not installed.
    """
    if not settings.ledger_url():
        return ()
    check_installed()
    return (*_PACKAGES, *([_FASTER] if importlib.util.find_spec(_FASTER) is not None else []))


def check_installed() -> None:
    """Check that psycopg is installed.

    Raises:
        WatcherError: If it is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise WatcherError(
            "config",
            f"{settings.LEDGER} needs the package psycopg: {extra('postgres')}",
        )


def check_named() -> str:
    """Check that a shared ledger is named, and can be opened as far as that depends on this machine; returns its URL.

    Raises:
        ConfigError: If none is named.
        WatcherError: If what it needs is not installed.
    """
    url = settings.ledger_url()
    if not url:
        raise ConfigError("config", f"no shared ledger is named; set {settings.LEDGER}")
    check_installed()
    return url


def opened(kind: Literal["watcher", "reaper"] = "watcher") -> SharedLedger:
    """Open the shared ledger; its tables are not made if they are missing.

    Args:
        kind: What this process is.

    Raises:
        ConfigError: If none is named.
        WatcherError: If what it needs is not installed.
        LedgerError: If it can't be opened.
    """
    url = check_named()
    from .watcher.ledger.postgres import SharedLedger

    return SharedLedger.open(url, kind=kind, lease_seconds=settings.lease_seconds(), may_migrate=False)


def stand_down(run: str, jobs: list[str], end: End | None, *, is_over: bool) -> None:
    """Write that a run was stood down, for want of a watcher that could; waits for that for a second at most.

    Args:
        run: The run.
        jobs: The jobs that this process holds.
        end: How the run ended.
        is_over: Whether no other job of the run may be left.
    """

    def write() -> None:
        try:
            with opened() as book:
                book.stand_down(run, jobs, end, is_over=is_over)
        except (ledger.LedgerError, RunError) as error:
            logger.warning("run %s is not written down as over in the shared ledger: %s", run, error)

    if os.environ.get(settings.LEDGER):
        # A second on a loaded machine, in which the database is not asked yet. What fails is told of by `write`.
        with contextlib.suppress(Exception):
            from .watcher.ledger import postgres  # noqa: F401
        writing = threading.Thread(target=write, name="qx-shared", daemon=True)
        writing.start()
        writing.join(STAND_DOWN_SECONDS)
