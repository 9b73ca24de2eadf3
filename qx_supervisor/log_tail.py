"""What watchers have written to the log files of a state directory, as it comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .watcher import events, log_file

SHORTEST = 4
"""How much of a run's id must be given, at least."""

MOST_LINES = 20_000
"""How many lines whoever follows the log keeps in memory, the latest."""

Line = dict[str, Any]


def chosen(what: str | None, lines: Iterable[Line]) -> Callable[[Line], bool]:
    """What tells the lines that are asked for: those about a run or job, and those about its program as a whole."""
    if what is None:
        return lambda _: True
    pid = int(what) if what.isascii() and what.isdecimal() else None

    def is_meant(line: Line) -> bool:
        if what == line.get("job") or (pid is not None and line.get("driver") == pid):
            return True
        return len(what) >= SHORTEST and str(line.get("run") or "").startswith(what)

    meant = [line for line in lines if is_meant(line)]
    programs = {_program(line) for line in meant}
    runs = {line["run"] for line in meant if line.get("run")}

    def is_about_whole(line: Line) -> bool:
        """Whether it is about the run of a job, or the program of a run."""
        run = line.get("run")
        return not line.get("job") and (run in runs if run else _program(line) in programs)

    return lambda line: is_meant(line) or is_about_whole(line)


def _program(line: Line) -> tuple[object, object]:
    return line.get("host"), line.get("driver")


class Tail:
    """What is written to the log files of a state directory.

    Args:
        directory: The state directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Bytes, by the file's inode, for files are renamed, and its first line, for inodes are used again.
        self._read: dict[tuple[int, bytes], int] = {}
        self._found: set[tuple[int, bytes]] = set()

    def new(self) -> Iterator[Line]:
        """What was written since the last call, whole lines only."""
        found = set()
        for path in log_file.files(self._directory):
            try:
                with path.open("rb") as file:
                    first = file.readline()
                    if not first.endswith(b"\n"):
                        continue
                    key = (os.fstat(file.fileno()).st_ino, first)
                    file.seek(self._read.get(key, 0))
                    data = file.read()
            except FileNotFoundError:
                continue  # it was renamed just now: the next look finds it
            whole = data[: data.rfind(b"\n") + 1]
            self._read[key] = self._read.get(key, 0) + len(whole)
            found.add(key)
            yield from events.read(iter(whole.decode(errors="replace").splitlines()))
        # A file that is renamed during a look can be missed by it: only what two looks miss is gone.
        self._read = {key: size for key, size in self._read.items() if key in found or key in self._found}
        self._found = found
