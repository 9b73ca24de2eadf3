"""Starts the watcher: run as a script in a clean interpreter (`python -I -S`), never imported.

The order of its steps matters. First comes the double fork, while this interpreter is small and has one thread: the
driver's child ends at once, so that the watcher is no child of the driver (killing the process tree misses it), and no
zombie stays. Then it is hidden from what is meant for the driver: the OOM killer, and tools that end programs by the
name `python` or by a path in their command line. Then the signals, and neither core dumps nor access to its memory,
which holds an API key. Only then the imports, from where the driver has its packages: the folder of this file as
`watcher`, whatever else has that name, and the driver's psutil and requests at the end of the path. A session of its
own comes last, for until it works its driver must be able to end it.

The driver starts it with INT, TERM and HUP blocked; they are unblocked once they are ignored.

Renaming, the OOM killer's score and the guard of the memory are Linux's own; where that is missing they are left out.

A watcher that systemd starts, outside the driver's control group, is nobody's child, and does not fork: systemd ends a
service with its first process. Its order has the driver's address instead of descriptors.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys

NAME = "qx-watcher"
"""The name of a watcher's process; at most 15 characters."""

_HAS_LINUX = sys.platform.startswith("linux") and not os.environ.get("QX_PORTABLE")
"""As `system` has it, which can't be imported yet."""

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import Order


def main() -> None:
    """Become the watcher that the order in `sys.argv[1]` asks for."""
    order: Order = json.loads(sys.argv[1])
    if "address" not in order and os.fork():
        os._exit(0)
    try:
        watch = _prepare(order)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the driver waits for an answer
        reason = f"{type(error).__name__}: {error}"
        if "connection" in order:
            _refuse(order["connection"], reason)
        elif "door" in order:
            _refuse_all(order["door"]["listener"], reason)
        os._exit(1)
    watch(order)


def _prepare(order: Order) -> Callable[[Order], None]:
    if _HAS_LINUX:
        _be_spared_by_the_oom_killer()
        _rename(order.get("title", NAME))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    os.chdir("/")
    if "address" in order:
        _close_stdin()
    os.umask(0o077)
    _forbid_core_dumps()
    if "address" not in order:
        _make_undumpable()

    import importlib.util

    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 5 ms here
    # requests works without the libraries that guess encodings, which are always named here.
    for unneeded in ("chardet", "charset_normalizer"):
        sys.modules[unneeded] = None  # type: ignore[assignment]
    sys.path.extend(path for path in order["path"] if path not in sys.path)
    spec = importlib.util.spec_from_file_location(
        "watcher",
        os.path.join(folder, "__init__.py"),  # noqa: PTH118
        submodule_search_locations=[folder],
    )
    package = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["watcher"] = package
    spec.loader.exec_module(package)  # type: ignore[union-attr]
    if "address" not in order:
        from watcher.watch import watch

        os.setsid()  # till now it is in the session of the driver's child, whom the driver ends if no hello comes
        return watch

    from watcher import callback

    if os.getsid(0) != os.getpid():  # else systemd has made it a leader already
        os.setsid()
    driver = callback.call(order)
    if driver is None:
        os._exit(0)
    order["connection"] = driver.fileno()
    from watcher.watch import watch  # meanwhile the driver, which may be busy, accepts the call

    if not callback.receive(driver, order):
        os._exit(0)
    _make_undumpable()  # only now: if /proc hides such processes, the driver could not have seen who calls
    return watch


def _be_spared_by_the_oom_killer() -> None:
    """Have another process chosen where memory runs out: this one is small, and needed when the driver is killed.

    Only -1000 keeps it from being killed with its whole control group too, where that has `memory.oom.group`
    (Kubernetes, systemd's OOMPolicy=kill); it takes CAP_SYS_RESOURCE. Without that, a score that the driver was given
    or has raised, up to 1000, can be lowered as far as it was set by someone who has it, mostly to 0.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123 - pathlib costs 5 ms here
            score = int(file.read())
            for lower in (-1000, *range(0, score, 100)):
                try:
                    os.pwrite(file.fileno(), b"%d" % lower, 0)
                except PermissionError:
                    continue
                return
    except (OSError, ValueError):
        return  # it watches all the same


def _forbid_core_dumps() -> None:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):  # as by a filter of system calls (SystemCallFilter=~@resources)
        pass  # what is not dumpable dumps no core either


def _rename(title: str) -> None:
    """Change this process's name, and its command line, to a title; as far as this system lets it."""
    import ctypes

    try:
        with open("/proc/self/comm", "w") as file:  # noqa: PTH123 - pathlib costs 5 ms here
            file.write(NAME)
        with open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123
            shown = len(file.read())
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])  # proc(5): arg_start, arg_end
    except (OSError, ValueError):
        return
    if shown == end - start:  # else it is emulated, and there is no telling what these addresses are
        # Where the last byte is not NUL any more, Linux shows what is before the first NUL (fs/proc/base.c).
        data = title.encode()[: shown - 2] + b"\0"
        ctypes.memset(start, 1, shown)
        ctypes.memmove(start, data, len(data))


def _close_stdin() -> None:
    """Have nothing at stdin, from where systemd has given the order."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)


def _make_undumpable() -> None:
    """Forbid debuggers, and /proc/PID/mem to this process's own user (prctl(2), PR_SET_DUMPABLE)."""
    if not _HAS_LINUX:
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0)


def _refuse(connection: int, reason: str) -> None:
    """Send a `Nack` without the packages that may be missing: the frame is `multiprocess.connection`'s."""
    message = json.dumps({"kind": "nack", "seq": 0, "reason": reason}).encode()
    os.write(connection, struct.pack("!i", len(message)) + message)


def _refuse_all(listener: int, reason: str) -> None:
    """Refuse every driver that has come already."""
    import socket

    listening = socket.socket(fileno=listener)
    listening.settimeout(1.0)  # whoever has started this process is about to come
    try:
        while True:
            _refuse(listening.accept()[0].detach(), reason)
    except OSError:
        pass


if __name__ == "__main__":
    main()
