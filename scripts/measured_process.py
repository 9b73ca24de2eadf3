"""Begins to measure coverage in one process, before it does anything else.

What ends by `os._exit`, or becomes another program, saves its data first. So does what says a line on stdout, as
drivers do before a test kills them: what is killed loses the rest. Of coverage's own `[run] patch`, `execv` would begin
a second measurement in the new program, and `subprocess` does not reach the watcher.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs 5 ms
MEASURED = [f"{CHECKOUT}/qx_supervisor/*", f"{CHECKOUT}/watcher/*"]
CONFIGURATION = f"{CHECKOUT}/setup.cfg"
SERVICE = f"{CHECKOUT}/qx_supervisor/local/boot.py"

PATIENCE = 10.0
"""Seconds for which the end of a process waits for a thread that saves."""

LINES = 8
"""Lines on stdout before which a process saves its data, which takes some 30 ms: a driver says no more until its job is
queued, or runs, and one that says thousands is not killed."""


def measure(packages: str, folder: str) -> None:
    """Measure this process from now on.

    Args:
        packages: The folder that has the package coverage.
        folder: Where the data go, to a file of the process's own.
    """
    sys.path.append(packages)
    try:
        import coverage
    finally:
        sys.path.pop()
    # `include`, for with `source` each process would look for all files that it has not run.
    made = coverage.Coverage(
        data_file=f"{folder}/data", data_suffix=True, config_file=CONFIGURATION, include=MEASURED, messages=False
    )
    made.start()

    saving = threading.Lock()
    reset = saving._at_fork_reinit  # type: ignore[attr-defined]  # noqa: SLF001 - as the standard library does
    os.register_at_fork(after_in_child=reset)

    def save(seconds: float = PATIENCE) -> None:
        # By two threads at once the database would crash the process.
        if not saving.acquire(timeout=seconds):
            return
        try:
            # The disk may be full, the folder gone, the process another user's: that is no fault of the test's.
            with contextlib.suppress(Exception):
                made.save()
        finally:
            saving.release()

    atexit.register(save)
    os.write = _before_lines(save, os.write)
    for name in ("_exit", "execv", "execve"):  # all other exec* call these
        setattr(os, name, _after(save, getattr(os, name)))
    if SERVICE in sys.orig_argv:
        _save_at_sigterm(save)


def _after(save: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    def saved(*arguments: Any, **named: Any) -> Any:
        save()
        return call(*arguments, **named)

    return saved


def _before_lines(save: Callable[[float], None], write: Callable[..., int]) -> Callable[..., int]:
    left = iter(range(LINES))

    def saved(descriptor: int, data: Any) -> int:
        if descriptor == 1 and next(left, None) is not None:
            save(0.0)  # unless another thread does
        return write(descriptor, data)

    return saved


def _save_at_sigterm(save: Callable[[], None]) -> None:
    """Save when SIGTERM comes, by which the embedded service ends: it has that signal end it as it starts."""
    handle = signal.signal

    def end(number: int, _: object) -> None:
        save()
        handle(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def replacement(number: int, handler: Any) -> Any:
        return handle(number, end if (number, handler) == (signal.SIGTERM, signal.SIG_DFL) else handler)

    signal.signal = replacement  # type: ignore[assignment]
