"""How drivers and the watcher of a node find each other: by a socket in a folder of the user's, under a lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def file_at(path: str) -> tuple[int, int] | None:
    """Which file a path names now, or None."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def locked(path: str) -> Iterator[bool]:
    """Hold a lock, unless another process has it; the value says whether this one does.

    A record lock (fcntl(2)), because a driver may fork at any moment: any other lock a child would inherit, and keep.
    """
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        found = os.fstat(descriptor)
        if file_at(path) == (found.st_dev, found.st_ino):
            break
        os.close(descriptor)  # its last holder has removed it
    try:
        yield True
    finally:
        os.close(descriptor)
