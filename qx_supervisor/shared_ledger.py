"""The shared ledger on the driver's side: whether one is named, and what is needed to write to it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from . import forks, settings
from .distribution import extra
from .errors import ConfigError, WatcherError
from .watcher.facts import End

if TYPE_CHECKING:
    from .watcher.ledger.postgres import SharedLedger

logger = logging.getLogger("qx_supervisor")

STAND_DOWN_SECONDS = 1.0
"""How long who stands down waits until the database shows that."""

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


class StoodDown(NamedTuple):
    """A run whose driver itself writes down that it was stood down.

    Attributes:
        run: The run.
        holder: Who had the lease on it, if it has a key, or "".
        jobs: The jobs that this process holds.
        end: How the run ended.
        is_over: Whether no other job of the run may be left.
    """

    run: str
    holder: str
    jobs: tuple[str, ...]
    end: End | None
    is_over: bool


class _Writing:
    """The thread that writes what this process has stood down, over one connection for all that waits.

    It ends when nothing is left to write.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = threading.Lock()
        self._owed: list[tuple[Sequence[StoodDown], int, threading.Event]] = []
        self._busy_since: float | None = None  # None: there is no thread

    def write(self, runs: Sequence[StoodDown], level: int, seconds: float) -> None:
        """Write, and wait for that for some seconds; if the database keeps others waiting for as long, for none.

        Args:
            runs: What was stood down.
            level: The level at which a failure is logged.
            seconds: How long to wait.
        """
        written = threading.Event()
        with self._lock:
            self._owed.append((runs, level, written))
            now = time.monotonic()
            is_idle, began = self._busy_since is None, self._busy_since or now
            self._busy_since = began
        if is_idle:
            try:
                threading.Thread(target=self._work, name="qx-shared", daemon=True).start()
            except RuntimeError:  # the interpreter is ending: from Python 3.12 on it starts no thread then
                self._work()
        written.wait(seconds if now - began < seconds else 0.0)

    def _work(self) -> None:
        while True:
            with self._lock:
                owed, self._owed = self._owed, []
                self._busy_since = time.monotonic() if owed else None
            if not owed:
                return
            try:
                with opened() as book:
                    for runs, _, written in owed:
                        for run in runs:
                            book.stand_down(**run._asdict())
                        written.set()
            except Exception as error:  # noqa: BLE001 - whatever it is, those who come next are to be written
                for runs, level, written in owed:
                    if not written.is_set():
                        named = ", ".join(run.run for run in runs)
                        logger.log(level, "the shared ledger does not show that runs are over: %s: %s", named, error)
                        written.set()


_writing = _Writing()
forks.reset_in_child(_writing.reset)


def stand_down(runs: Sequence[StoodDown], *, is_told: bool) -> None:
    """Write that runs were stood down, for want of a watcher, or since it may die too; waits for a second at most.

    Args:
        runs: What was stood down.
        is_told: Whether there is a watcher that will write it as well, when it can.
    """
    if os.environ.get(settings.LEDGER):
        # A second on a loaded machine, in which the database is not asked yet. What fails is told of by `_writing`.
        with contextlib.suppress(Exception):
            from .watcher.ledger import postgres  # noqa: F401
        _writing.write(runs, logging.DEBUG if is_told else logging.WARNING, STAND_DOWN_SECONDS)
