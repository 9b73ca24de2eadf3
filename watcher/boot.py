"""Starts the watcher: run by absolute path, in a clean interpreter (`python -I -S`), never imported.

The order of its steps matters. First comes the double fork, while this interpreter is small and has one thread: the
driver's child ends at once, so that the watcher is no child of the driver (killing the process tree misses it), and no
zombie stays. Then a session of its own, the signals, and neither core dumps nor access to its memory, which holds an
API key. Only then the imports, from where the driver has its packages: the folder of this file as `watcher`, whatever
else has that name, and the driver's psutil, multiprocess, requests and ibm_cloud_sdk_core at the end of the path.

The driver starts it with INT, TERM and HUP blocked; they are unblocked once they are ignored.

A watcher that systemd starts, outside the driver's control group, is nobody's child, and does not fork: systemd ends a
service with its first process. Its order has the driver's address instead of descriptors.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys

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
        if "connection" in order:
            _refuse(order["connection"], f"{type(error).__name__}: {error}")
        os._exit(1)
    watch(order)


def _prepare(order: Order) -> Callable[[Order], None]:
    if os.getsid(0) != os.getpid():  # else systemd has made it a leader already
        os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    os.chdir("/")
    os.umask(0o077)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "address" not in order:
        _make_undumpable()

    import importlib.util

    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 5 ms here
    # multiprocess works without dill, and requests without the libraries that guess encodings, which are always named
    # here. Leaving them out saves a third of the time and memory that the start takes.
    for unneeded in ("dill", "chardet", "charset_normalizer"):
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
        from watcher.loop import watch

        return watch

    from watcher import callback

    driver = callback.call(order)
    if driver is None:
        os._exit(0)
    order["connection"] = driver.fileno()
    from watcher.loop import watch  # meanwhile the driver, which may be busy, accepts the call

    if not callback.receive(driver, order):
        os._exit(0)
    _make_undumpable()  # only now: if /proc hides such processes, the driver could not have seen who calls
    return watch


def _make_undumpable() -> None:
    """Forbid debuggers, and /proc/PID/mem to this process's own user (prctl(2), PR_SET_DUMPABLE)."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0)


def _refuse(connection: int, reason: str) -> None:
    """Send a `Nack` without the packages that may be missing: the frame is `multiprocess.connection`'s."""
    message = json.dumps({"kind": "nack", "seq": 0, "reason": reason}).encode()
    os.write(connection, struct.pack("!i", len(message)) + message)


if __name__ == "__main__":
    main()
