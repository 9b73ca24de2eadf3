"""The kernel's word for a death where there are kqueues (macOS, the BSDs): a descriptor, as a pidfd is on Linux.

A kqueue reports the exit of a process that this one may see (NOTE_EXIT, kqueue(2)), when it can't be taken back. It is
made for a pid, so whoever makes one looks afterwards whether the process is the one that was meant. It can't be passed
on to another process, as a pidfd can.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class ExitQueue:
    """Becomes readable when a process exits.

    Args:
        queue: A kqueue that was told to report that.
    """

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._has_exited = False

    def fileno(self) -> int:
        """What becomes readable."""
        number: int = self._queue.fileno()
        return number

    def has_exited(self) -> bool:
        """Whether the process has exited."""
        if not self._has_exited:
            self._has_exited = bool(self._queue.control(None, 1, 0))
        return self._has_exited

    def close(self) -> None:
        """Close it."""
        self._queue.close()


def exit_queue_of(pid: int, is_meant: Callable[[], bool]) -> ExitQueue | None:
    """A queue for the exit of a process; None if there are none, or the process can't be watched or has ended.

    Args:
        pid: The process.
        is_meant: Says, once the queue is made, whether the process with this pid is the one to be watched.
    """
    kqueue: Any = getattr(select, "kqueue", None)
    if kqueue is None:
        return None
    names: Any = select
    try:
        queue = kqueue()
    except OSError:
        return None
    wanted = names.kevent(pid, names.KQ_FILTER_PROC, names.KQ_EV_ADD | names.KQ_EV_ONESHOT, names.KQ_NOTE_EXIT)
    try:
        happened = queue.control([wanted], 0, 0)
    except OSError:  # it has ended, or is another user's
        queue.close()
        return None
    assert not happened
    if not is_meant():
        queue.close()
        return None
    return ExitQueue(queue)
