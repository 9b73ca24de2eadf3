"""Checks the installation and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import placement, settings, systemd_launch
from ..errors import WatcherError
from ..watcher import ledger
from .finding import Finding

PACKAGE = "qx-supervisor"
SHOWN = ("qiskit", "qiskit-ibm-runtime", "psutil")
CLIENT = "0.51"
"""The minor version of qiskit-ibm-runtime whose internals `service` uses."""

MIN_FREE = 16 * 1024 * 1024
"""Bytes that should be free on the ledger's disk."""


def check() -> Iterator[Finding]:
    """Run all checks of the machine."""
    yield _versions()
    yield _pidfd()
    yield from _state_directory()
    yield _place()
    yield _exec()
    yield _settings()


def _versions() -> Finding:
    found = {name: _version(name) for name in (PACKAGE, *SHOWN)}
    shown = [f"Python {platform.python_version()}", *(f"{name} {version}" for name, version in found.items())]
    text = ", ".join([*shown, f"{platform.system()} {platform.release()}"])
    if not sys.platform.startswith("linux"):
        return Finding("versions", "fault", text, "run drivers on Linux; on Windows, WSL 2 will do")
    if not found["qiskit-ibm-runtime"].startswith(f"{CLIENT}."):
        return Finding("versions", "fault", text, f"pip install 'qiskit-ibm-runtime=={CLIENT}.*'")
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("versions", "warning", text, "use Python 3.11, 3.12 or 3.13, with which this is tested")
    return Finding("versions", "ok", text)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        reason = getattr(error, "strerror", None) or "Python was built without it"
        return Finding(
            "pidfd",
            "warning",
            f"the kernel gives no pidfd ({reason}): a death is noticed by a check once a second, and not at once",
            "use Linux 5.3 or later, and a container runtime that allows pidfd_open",
        )
    return Finding("pidfd", "ok", "the kernel notifies the watcher of a death at once")


def _state_directory() -> Iterator[Finding]:
    try:
        directory = ledger.state_directory()
        with ledger.Ledger.open(directory) as book:
            verdicts = [ledger.judge(row, book.place) for row in book.rows(ledger.UNFINISHED)]
            kind = "on a local disk" if book.path.name == "ledger.db" else "on a network file system: a file per host"
        mode, room = directory.stat().st_mode & 0o777, os.statvfs(directory)
    except (ledger.LedgerError, OSError) as error:
        yield Finding(
            "state directory",
            "fault",
            f"{error} If driver and watcher die together, nobody will know of their jobs",
            "set QX_STATE_DIR to a directory of your own",
        )
        return
    text = f"{directory}, mode {mode:04o}, writable, {kind}"
    if room.f_bavail * room.f_frsize < MIN_FREE:
        yield Finding("state directory", "warning", f"{text}; its disk is full", "make room, or set QX_STATE_DIR")
    else:
        yield Finding("state directory", "ok", text)
    live, left, elsewhere = (verdicts.count(verdict) for verdict in ("live", "orphan", "elsewhere"))
    text = f"{live} live, {left} left behind, {elsewhere} of other machines or containers"
    if left:
        yield Finding("guarded runs", "warning", text, "cancel what was left behind: qx-supervisor reap")
    else:
        yield Finding("guarded runs", "ok", text)


def _place() -> Finding:
    warning = placement.here()
    if warning:
        text, _, remedy = warning.rpartition(". ")
        return Finding("place", "warning", text, remedy)
    if _in_container():
        return Finding(
            "place",
            "warning",
            "in a container: when its process 1 ends, driver and watcher die together",
            "let process 1 be a shell that outlives the driver: sh -c 'python driver.py; qx-supervisor reap --wait 60'",
        )
    return Finding("place", "ok", "nothing here is known to kill a watcher along with its driver")


_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container", "/var/run/secrets/kubernetes.io")
"""Files that container runtimes create in their containers."""


def _in_container() -> bool:
    # A pod without a mounted account has none of these files, but every pod has the variable.
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(mark).exists() for mark in _CONTAINER_FILES)


def _exec() -> Finding:
    return Finding(
        "exec",
        "ok",
        "qx-supervisor exec guards what runs as `python driver.py`, in child processes too; not python -I, -E or -S, "
        "which ignore what it sets",
    )


def _placement() -> None:
    if settings.placement() == "systemd":
        systemd_launch.check()


def _settings() -> Finding:
    found = {name: value for name, value in os.environ.items() if name.startswith("QX_")}
    if settings.LEDGER in found:
        found[settings.LEDGER] = "…"  # it contains a password
    known = [
        f"{name}={value} ({settings.MEANINGS[name]})" for name, value in found.items() if name in settings.MEANINGS
    ]
    unknown = sorted(set(found) - set(settings.MEANINGS))
    text = ", ".join(known) or "none of QX_*"
    for read in (settings.sweep_window, settings.lease_seconds, _placement):
        try:
            read()
        except WatcherError as error:
            return Finding("settings", "fault", f"{text}: with that, nothing would be submitted", error.reason)
    if unknown:
        text += f"; unknown: {', '.join(unknown)}"
        return Finding("settings", "warning", text, f"there are: {', '.join(settings.MEANINGS)}")
    return Finding("settings", "ok", text)
