"""Checks the installation and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import select
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import about, node_launch, placement, reap_timer, service, settings, systemd_launch
from ..errors import ConfigError, WatcherError
from ..watcher import ledger, system
from .finding import Finding

PACKAGE = "qx-supervisor"
SHOWN = ("qiskit", "qiskit-ibm-runtime", "psutil")
MIN_FREE = 16 * 1024 * 1024
"""Bytes that should be free on the ledger's disk."""


def check() -> Iterator[Finding]:
    """Run all checks of the machine."""
    yield _versions()
    if not system.why_no_watcher():
        yield _deaths()
    yield from _state_directory()
    if not system.why_no_watcher():
        yield _place()
    yield _exec()
    yield _settings()


def _versions() -> Finding:
    found = {name: _version(name) for name in (PACKAGE, *SHOWN)}
    shown = [f"Python {platform.python_version()}", *(f"{name} {version}" for name, version in found.items())]
    text = ", ".join([*shown, f"{platform.system()} {platform.release()}"])
    if reason := system.why_no_watcher():
        return Finding("versions", "fault", f"{text}; local backends work", reason)
    try:
        service.check_client()
    except ConfigError as error:
        what, _, remedy = error.reason.partition("; ")
        return Finding("versions", "fault", f"{text}: {what}", remedy)
    except ImportError as error:
        return Finding("versions", "fault", f"{text}: {error}", service.install_command())
    if service.is_untried():
        step = f"nothing, if all goes well; else take one that was tried: {service.install_command()}"
        return Finding("versions", "warning", f"{text}; this client is newer than any that was tried", step)
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("versions", "warning", text, "use Python 3.11, 3.12 or 3.13, with which this is tested")
    if not sys.platform.startswith("linux"):
        return Finding(
            "versions",
            "warning",
            f"{text}: this is tested on Linux only, in a mode that does without what only Linux has",
            "see that the kill test passes: it kills a driver on this machine, and counts the cancels",
        )
    return Finding("versions", "ok", text)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _deaths() -> Finding:
    """How the watcher learns of a death."""
    if hasattr(select, "kqueue"):
        return Finding("kqueue", "ok", "the kernel notifies the watcher of a death at once")
    if not system.HAS_LINUX:
        return Finding(
            "deaths",
            "warning",
            "a death is noticed when the driver's connection closes, or by a check once a second",
            f"that is what this system has; {settings.PORTABLE} is to be unset, if it is set",
        )
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
            verdicts = [ledger.judge(row, book.host_identity) for row in book.rows(ledger.UNFINISHED)]
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
    live, ending, left, elsewhere = (verdicts.count(each) for each in ("live", "ending", "orphan", "elsewhere"))
    text = f"{live} live, {ending} ending, {left} left behind, {elsewhere} of other machines or containers"
    timer = reap_timer.state()
    if timer == "running":
        text += f"; {reap_timer.TIMER} reaps what is left behind"
    if timer == "stopped":
        text += f"; {reap_timer.TIMER} is installed, but does not run"
        yield Finding("guarded runs", "warning", text, "start it anew: qx-supervisor reap --install-timer")
    elif left:
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
    match settings.placement():
        case "systemd":
            systemd_launch.check()
        case "node":
            node_launch.folder()


def _label() -> None:
    about.check_label(None)


def _settings() -> Finding:
    found = {name: value for name, value in os.environ.items() if name.startswith("QX_")}
    for secret in {settings.LEDGER, settings.NOTIFY, settings.PAGE_TOKEN} & found.keys():  # some hold a password
        found[secret] = "…"
    known = [
        f"{name}={value} ({settings.MEANINGS[name]})" for name, value in found.items() if name in settings.MEANINGS
    ]
    unknown = sorted(set(found) - set(settings.MEANINGS))
    text = ", ".join(known) or "none of QX_*"
    for read in (
        settings.sweep_window,
        settings.lease_seconds,
        settings.notify,
        settings.uses_local,
        settings.budget,
        _label,
        _placement,
    ):
        try:
            read()
        except (ConfigError, WatcherError) as error:
            return Finding("settings", "fault", f"{text}: with that, nothing would be submitted", error.reason)
    try:
        settings.price()
    except ConfigError as error:
        return Finding("settings", "warning", f"{text}: with that, usage shows nothing", error.reason)
    if unknown:
        text += f"; unknown: {', '.join(unknown)}"
        return Finding("settings", "warning", text, f"there are: {', '.join(settings.MEANINGS)}")
    return Finding("settings", "ok", text)
