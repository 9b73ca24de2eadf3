"""Starts the watcher: run by absolute path, in a clean interpreter (`python -I -S`), never imported.

The order is the design. First the double fork, while this interpreter is small and has one thread: the driver's child
ends at once, so the watcher is no child of the driver (a kill of the process tree misses it) and leaves no zombie.
Then a session of its own, the signals, no core dump and no look into its memory, which holds an API key. Only then
imports, from where the caller had its packages: the folder of this file as `watcher`, whatever else has that name, and
the caller's psutil, multiprocess, requests and ibm_cloud_sdk_core at the end of the path.

INT, TERM and HUP are blocked when it starts, by the caller's mask, and unblocked once they are ignored.

Started by systemd, outside its caller's control group, it is nobody's child already, and forks not at all: systemd ends
a service with its first process. Its order has the address of its caller, in place of descriptors.
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
    from typing import Any


def main() -> None:
    """Become the watcher that `sys.argv[1]`, a JSON object, describes."""
    order = json.loads(sys.argv[1])
    if "address" not in order and os.fork():
        os._exit(0)
    try:
        watch = _prepare(order)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller waits to hear of it
        if "connection" in order:
            _tell(order["connection"], f"{type(error).__name__}: {error}")
        os._exit(1)
    watch(order)


def _prepare(order: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    if os.getsid(0) != os.getpid():  # systemd has made it a leader already
        os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    os.chdir("/")
    os.umask(0o077)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "address" not in order:
        _forbid_looks()

    import importlib.util

    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 5 ms here
    # multiprocess does without dill where there is none, and requests without what guesses encodings, which here are
    # always named. That is a third of the time and memory that starting takes.
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

    caller = callback.call(order)
    if caller is None:
        os._exit(0)
    order["connection"] = caller.fileno()
    from watcher.loop import watch  # while the caller, which may be busy, comes to answer

    if not callback.take(caller, order):
        os._exit(0)
    _forbid_looks()  # only now: where /proc hides such processes, the caller could not see who calls
    return watch


def _forbid_looks() -> None:
    """Make this process undumpable (prctl(2), PR_SET_DUMPABLE): no debugger, no /proc/PID/mem for its own user."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0)


def _tell(connection: int, reason: str) -> None:
    """Send a `nack` without the packages that may be missing: the frame is `multiprocess.connection`'s."""
    message = json.dumps({"kind": "nack", "seq": 0, "reason": reason}).encode()
    os.write(connection, struct.pack("!i", len(message)) + message)


if __name__ == "__main__":
    main()
