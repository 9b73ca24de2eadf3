"""Every setting that users make in the environment: its name, its meaning, its default, and how it is read.

A mistake is named before anything is submitted. `docs/commands.md` lists the settings for users, and the doctor prints
those that are set. Two places read the environment themselves: `watcher.ledger.file`, which both processes use, and
`injected`, which runs in any Python.
"""

from __future__ import annotations

import os
from typing import Literal

from .errors import WatcherError
from .watcher import protocol

DAY = 86400.0

STATE_DIR = "QX_STATE_DIR"
LOG_LEVEL = "QX_LOG_LEVEL"
SWEEP_WINDOW = "QX_SWEEP_WINDOW"
LEDGER = "QX_LEDGER"
LEASE_SECONDS = "QX_LEASE_SECONDS"
PLACEMENT = "QX_WATCHER_PLACEMENT"
KEEP_ON_EXIT = "QX_KEEP_ON_EXIT"
ON_UNPROTECTED = "QX_ON_UNPROTECTED"

MEANINGS = {
    STATE_DIR: "where the ledger is",
    LOG_LEVEL: "what is logged to stderr",
    SWEEP_WINDOW: "how long a dead driver's late jobs are looked for, in seconds",
    LEDGER: "the shared ledger",
    LEASE_SECONDS: "how long a lease lasts without renewal, in seconds",
    PLACEMENT: "where the watcher is: here, or in a unit of its own (systemd)",
    KEEP_ON_EXIT: "of exec: jobs are kept after exit 0",
    ON_UNPROTECTED: "of exec: what to do where there can be no watcher",
}

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

LEDGER_SCHEMES = ("postgresql://", "postgres://")


def log_level() -> str:
    """Return the asked-for level of the log, as it was written but in capitals; "" if none was."""
    return os.environ.get(LOG_LEVEL, "").strip().upper()


def sweep_window() -> float:
    """Return the sweep window (`protocol.SWEEP_WINDOW`), in seconds.

    Raises:
        WatcherError: If `QX_SWEEP_WINDOW` is no number of seconds.
    """
    return _seconds(SWEEP_WINDOW, protocol.SWEEP_WINDOW)


def lease_seconds() -> float:
    """Return how long a lease lasts without renewal, in seconds.

    Raises:
        WatcherError: If `QX_LEASE_SECONDS` is no number of seconds.
    """
    return _seconds(LEASE_SECONDS, 30.0)


def ledger_url() -> str:
    """Return the shared ledger's URL, which may contain a password; "" if there is none.

    Raises:
        WatcherError: If it can't be one. The message quotes nothing of it.
    """
    url = os.environ.get(LEDGER, "").strip()  # a secret mounted as a file may end with a newline
    if url and not url.startswith(LEDGER_SCHEMES):
        raise WatcherError("config", f"{LEDGER} must begin with postgresql://")
    return url


def placement() -> Literal["here", "systemd"]:
    """Return where to start watchers.

    Raises:
        WatcherError: If `QX_WATCHER_PLACEMENT` is something else.
    """
    match os.environ.get(PLACEMENT) or "here":
        case "here":
            return "here"
        case "systemd":
            return "systemd"
        case other:
            raise WatcherError("config", f"{PLACEMENT} is {other!r}; it may be here (as if unset) or systemd")


def keeps_on_exit() -> bool:
    """Return whether jobs in flight are kept after the driver's exit 0."""
    return bool(os.environ.get(KEEP_ON_EXIT))


def submits_unprotected() -> bool:
    """Return whether `exec` submits a job that can't be guarded."""
    return os.environ.get(ON_UNPROTECTED) == "warn"


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < DAY:
        raise WatcherError("config", f"{name} is {text!r}; it must be a number of seconds, such as {default:g}")
    return seconds
