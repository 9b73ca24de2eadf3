"""Whether there is a ledger of many hosts, and what is needed to write to it."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from .errors import ConfigError, WatcherError
from .ours import shared_ledger

if TYPE_CHECKING:
    from watcher.ledger.postgres import SharedLedger

SETTING = "QX_LEDGER"

SCHEMES = ("postgresql://", "postgres://")

_PACKAGES = ("psycopg", "typing_extensions")
_FASTER = "psycopg_binary"
"""The part of psycopg in C, with libpq; psycopg can do with a libpq of the system's instead."""


def url() -> str:
    """The shared ledger's URL, which may hold a password; "" where there is none.

    Raises:
        WatcherError: If it can't be one. Its text quotes nothing.
    """
    found = os.environ.get(SETTING, "")
    if found and not found.startswith(SCHEMES):
        raise WatcherError("config", f"{SETTING} must begin with postgresql://")
    return found


def lease_seconds() -> float:
    """How long a lease is held without being renewed."""
    return float(os.environ.get("QX_LEASE_SECONDS", "30"))


def packages() -> tuple[str, ...]:
    """The packages that are needed to write to it; none where there is none.

    Raises:
        WatcherError: If they are not installed.
    """
    if not url():
        return ()
    check_installed()
    return (*_PACKAGES, *([_FASTER] if importlib.util.find_spec(_FASTER) is not None else []))


def check_installed() -> None:
    """Refuse to go on without psycopg.

    Raises:
        WatcherError: If it is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise WatcherError(
            "config", f'{SETTING} needs the package psycopg: pip install "qx-supervisor[postgres]"'
        )


def opened() -> SharedLedger:
    """The shared ledger, to be read.

    Raises:
        ConfigError: If none is named.
        WatcherError: If what it needs is not installed.
        LedgerError: If it can't be had.
    """
    where = url()
    if not where:
        raise ConfigError("config", f"no ledger of many hosts is named; set {SETTING}")
    check_installed()
    return shared_ledger().open(where, may_migrate=False)
