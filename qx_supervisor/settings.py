"""Every setting that users make in the environment: its name, its meaning, its default, and how it is read.

A mistake is named before anything is submitted. `docs/commands.md` lists the settings for users, and the doctor prints
those that are set. Three places read the environment themselves: `watcher.ledger.file`, which both processes use,
`injected`, which runs in any Python, and `about`, which checks a label wherever it comes from.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from typing import Literal

from .errors import ConfigError, WatcherError
from .watcher import protocol, system

DAY = 86400.0

STATE_DIR = "QX_STATE_DIR"
LABEL = "QX_LABEL"
LOG_LEVEL = "QX_LOG_LEVEL"
LOG_FORMAT = "QX_LOG_FORMAT"
NOTIFY = "QX_NOTIFY"
NOTIFY_AFTER = "QX_NOTIFY_AFTER"
SENDMAIL = "QX_SENDMAIL"
SWEEP_WINDOW = "QX_SWEEP_WINDOW"
LEDGER = "QX_LEDGER"
LEASE_SECONDS = "QX_LEASE_SECONDS"
PLACEMENT = "QX_WATCHER_PLACEMENT"
KEEP_ON_EXIT = "QX_KEEP_ON_EXIT"
ON_UNPROTECTED = "QX_ON_UNPROTECTED"
PRICE = "QX_PRICE"
BUDGET = "QX_BUDGET"
BUDGET_ID = "QX_BUDGET_ID"
PORTABLE = system.PORTABLE
LOCAL_PYTHON = "QX_LOCAL_PYTHON"
LOCAL = "QX_LOCAL"
PAGE_TOKEN = "QX_PAGE_TOKEN"  # noqa: S105 - its name

MEANINGS = {
    STATE_DIR: "where the ledger is",
    LABEL: "the label of runs that have none of their own",
    LOG_LEVEL: "what is logged to stderr",
    LOG_FORMAT: "how that is written: text or json",
    NOTIFY: "who is told of deaths, failures and the ends of long runs",
    NOTIFY_AFTER: "how long a run must have lasted for its end to be told, in seconds",
    SENDMAIL: "the path of sendmail, for notices by mail",
    SWEEP_WINDOW: "how long a dead driver's late jobs are looked for, in seconds",
    LEDGER: "the shared ledger",
    LEASE_SECONDS: "how long a lease lasts without renewal, in seconds",
    PLACEMENT: "where the watcher is: beside each driver, one for all (node), or in a unit of its own (systemd)",
    KEEP_ON_EXIT: "of exec: jobs are kept after exit 0",
    ON_UNPROTECTED: "of exec: what to do where there can be no watcher",
    PRICE: "what a second of QPU time costs",
    BUDGET: "how much QPU time the program may take, in seconds",
    BUDGET_ID: "which processes share that",
    PORTABLE: "a test aid: what only Linux has is not used",
    LOCAL_PYTHON: "the Python that the embedded service runs with",
    LOCAL: "whether the embedded service takes the place of the account",
    PAGE_TOKEN: "what a browser must give to the page, and may cancel jobs with",
}

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

LOG_FORMATS = ("text", "json")

_TARGET = r"https?://[^/\s]+\S*|mailto:[^@\s:,;<>\"]+@[^@\s:,;<>\"]+|exec:/\S+"

LEDGER_SCHEMES = ("postgresql://", "postgres://")


def log_level() -> str:
    """Return the asked-for level of the log, as it was written but in capitals; "" if none was."""
    return os.environ.get(LOG_LEVEL, "").strip().upper()


def log_format() -> str:
    """Return the asked-for form of the log, as it was written but in small letters; "" if none was."""
    return os.environ.get(LOG_FORMAT, "").strip().lower()


def notify() -> protocol.Notify | None:
    """Return who is told how runs end; None if nobody is.

    Raises:
        WatcherError: If something is the matter with it. The message quotes no webhook's URL, which is a secret.
    """
    targets = tuple(os.environ.get(NOTIFY, "").split())
    for number, target in enumerate(targets, 1):
        if not re.fullmatch(_TARGET, target):
            raise WatcherError(
                "config",
                f"target {number} of {NOTIFY} is none: give the URL of a webhook (https://...), mailto:name@host or "
                "exec:/path/of/a/command, several with spaces between them",
            )
    after = _seconds(NOTIFY_AFTER, 60.0)
    sendmail = os.environ.get(SENDMAIL, "")
    if sendmail and not sendmail.startswith("/"):
        raise WatcherError("config", f"{SENDMAIL} is {sendmail!r}; it must be a path that begins with /")
    return protocol.Notify(targets, after, sendmail) if targets else None


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


def placement() -> Literal["beside", "node", "systemd"]:
    """Return where to start watchers.

    Raises:
        WatcherError: If `QX_WATCHER_PLACEMENT` is something else.
    """
    match os.environ.get(PLACEMENT):
        case None | "" | "beside" | "here":  # "here" is an earlier word for it
            return "beside"
        case "node":
            return "node"
        case "systemd":
            return "systemd"
        case other:
            raise WatcherError("config", f"{PLACEMENT} is {other!r}; it may be beside (as if unset), node or systemd")


def keeps_on_exit() -> bool:
    """Return whether jobs in flight are kept after the driver's exit 0."""
    return bool(os.environ.get(KEEP_ON_EXIT))


def budget() -> float | None:
    """Return how much QPU time the program may take, in seconds; None if that is not said.

    Raises:
        ConfigError: If `QX_BUDGET` is no such number.
    """
    text = os.environ.get(BUDGET, "").strip()
    if not text:
        return None
    with contextlib.suppress(ValueError):
        found = float(text)
        if 1 <= found < math.inf:
            return found
    raise ConfigError("config", f"{BUDGET} must be a number of seconds of at least 1, not {text!r}")


def submits_unprotected() -> bool:
    """Return whether `exec` submits a job that can't be guarded."""
    return os.environ.get(ON_UNPROTECTED) == "warn"


def local_python() -> str:
    """Return the Python that the embedded service is to run with, a path or a name; "" for the caller's own."""
    return os.environ.get(LOCAL_PYTHON, "").strip()


def uses_local() -> bool:
    """Return whether the embedded service takes the place of the account.

    Raises:
        ConfigError: If `QX_LOCAL` is neither 1 nor 0.
    """
    match os.environ.get(LOCAL, "").strip():
        case "" | "0":
            return False
        case "1":
            return True
        case other:
            raise ConfigError("config", f"{LOCAL} is {other!r}; it may be 1 (the embedded service) or 0 (as if unset)")


def price() -> tuple[float, str] | None:
    """Return what a second of QPU time costs: an amount and its currency; None if that is not said.

    Raises:
        ConfigError: If `QX_PRICE` is no amount with a currency.
    """
    text = os.environ.get(PRICE, "").strip()
    if not text:
        return None
    amount, _, currency = text.partition(" ")
    with contextlib.suppress(ValueError):
        found = float(amount)
        if 0 <= found < math.inf and currency.strip():
            return found, currency.strip()
    raise ConfigError("config", f"{PRICE} is {text!r}; it must be an amount and a currency, such as 1.60 USD")


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
