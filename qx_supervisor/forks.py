"""What a forked child resets: one registry for all modules.

A child that is forked has its parent's objects, and none of its parent's threads. It must not write to its parent's
connections, cancel its parent's jobs, or wait for a lock that one of those threads held at the moment of the fork. Each
module with state of its own registers here what its child resets. The resets run in the order of registration, which
is that of imports: a module's reset may count on those of the modules it imports.

`interrupts` has its own hook beside this one, because it also acts in the parent, before and after each fork.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable

_resets: list[Callable[[], object]] = []


def reset_in_child(reset: Callable[[], object]) -> None:
    """Have every forked child call `reset` before its own code runs."""
    _resets.append(reset)


def make_lock() -> threading.Lock:
    """Return a lock that is free in a forked child, whichever thread held it at the fork."""
    lock = threading.Lock()
    reset_in_child(lock._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001 - as the standard library does
    return lock


def _reset_all() -> None:
    for reset in _resets:
        try:
            reset()
        except Exception:  # noqa: BLE001 - the other resets matter all the same
            traceback.print_exc()


if hasattr(os, "register_at_fork"):  # else nothing forks here
    os.register_at_fork(after_in_child=_reset_all)
