"""The log file of all watchers of a user on this host: bounded, and written by several processes at once.

Each line is appended by one write(2), for which the kernel holds the file's lock, so that lines of several watchers do
not mix. Whoever finds the file full renames it, holding a lock (flock(2)) on the very file that has the name: so it is
renamed once. A lock that can't be had soon, because its holder was stopped, costs the renaming, not the line.

Every host has a file of its own: on a network file system neither appending nor locks reach from one to the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from pathlib import Path

LARGEST = 1024 * 1024
"""Bytes of a file that is renamed before more is written."""

KEPT = 4
"""How many earlier files are kept."""

LOCK_SECONDS = 0.5

MOST_TRIES = 100
"""A file that was renamed while its lock was waited for is opened anew; so often at most."""


def path_of(directory: str, host: str) -> str:
    """The path of a host's log file in a state directory."""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", host) or "unnamed"
    return os.path.join(directory, f"watcher-{name}.log")  # noqa: PTH118 - the watcher has no pathlib at this point


def append(path: str, text: str) -> None:
    """Append lines.

    Raises:
        OSError: They can't be written; then nothing of them is.
    """
    data = text.encode(errors="backslashreplace")
    for _ in range(MOST_TRIES):
        descriptor = _opened(path)
        try:
            is_locked = _lock(descriptor)
            if is_locked and not _is_at(path, descriptor):
                continue  # it was renamed meanwhile
            size = os.fstat(descriptor).st_size
            if is_locked and size and size + len(data) > LARGEST:
                _rename(path)
                continue
            written = os.write(descriptor, data)
            if written < len(data):  # the disk is full
                if is_locked:
                    os.ftruncate(descriptor, size)
                raise OSError(f"{path} is cut short")
            return
        finally:
            os.close(descriptor)
    raise OSError(f"{path} is renamed again and again")


def files(directory: Path) -> list[Path]:
    """All log files in a state directory, those of one host from the oldest to the latest."""
    found = [path for path in directory.glob("watcher-*.log*") if _number(path) is not None]
    return sorted(found, key=lambda path: (path.name.rpartition(".log")[0], -(_number(path) or 0)))


def _number(path: Path) -> int | None:
    suffix = path.name.rpartition(".log")[2]
    if not suffix:
        return 0
    return int(suffix[1:]) if re.fullmatch(r"\.[0-9]+", suffix) else None


def _opened(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise OSError(f"{path} is no file of this user's")
    return descriptor


def _lock(descriptor: int) -> bool:
    """Lock a file; returns False if another has the lock for long, or the file system has none."""
    import fcntl

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        except OSError:
            return False
        else:
            return True


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _rename(path: str) -> None:
    for number in range(KEPT - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")  # noqa: PTH105
    os.replace(path, f"{path}.1")  # noqa: PTH105
