"""Delays the threads of this project in one process, at random: a test that counts on their speed fails.

A thread begins up to a quarter of a second late, and now and then it pauses where it has waited for another one, and
where it lets others go on. Whatever is right stays right: so a busy machine may treat any thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

SWITCH_SECONDS = 0.03
"""How long a thread may compute while others want to. Python's own default is 0.005."""


def delay() -> None:
    """Delay this process's threads from now on."""
    run, wait, leave = threading.Thread.run, threading.Condition.wait, threading.Condition.__exit__

    def run_late(thread: Any) -> None:
        module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
        thread.is_delayed = module.partition(".")[0] in ("qx_supervisor", "watcher")
        _pause(0.5, 0.25)
        run(thread)

    def wait_longer(condition: threading.Condition, timeout: float | None = None) -> bool:
        happened = wait(condition, timeout)
        _pause(0.2, 0.2)
        return happened

    def leave_late(condition: threading.Condition, *error: Any) -> None:
        leave(condition, *error)
        _pause(0.1, 0.1)

    threading.Thread.run = run_late  # type: ignore[method-assign,assignment]
    threading.Condition.wait = wait_longer  # type: ignore[method-assign,assignment]
    threading.Condition.__exit__ = leave_late  # type: ignore[method-assign]
    sys.setswitchinterval(SWITCH_SECONDS)


def _pause(odds: float, most: float) -> None:
    """Pause with some odds, for up to so many seconds, if the thread is one of the project's."""
    thread = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]  # noqa: SLF001 - makes no dummy
    if getattr(thread, "is_delayed", False):
        luck, part = os.urandom(2)
        if luck < 256 * odds:
            time.sleep(most * part / 255)
