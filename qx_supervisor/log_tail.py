"""What watchers have written to the log files of a state directory, as it comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .watcher import events, log_file

SHORTEST = 4
"""How much of a run's id must be given, at least."""

Line = dict[str, Any]


def chosen(what: str | None, lines: list[Line]) -> Callable[[Line], bool]:
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
        self._read: dict[int, int] = {}  # bytes, by the file's inode, for files are renamed

    def new(self) -> Iterator[Line]:
        """What was written since the last call, whole lines only."""
        for path in log_file.files(self._directory):
            try:
                with path.open("rb") as file:
                    inode = os.fstat(file.fileno()).st_ino
                    file.seek(self._read.get(inode, 0))
                    data = file.read()
            except FileNotFoundError:
                continue  # it was renamed just now: the next look finds it
            whole = data[: data.rfind(b"\n") + 1]
            self._read[inode] = self._read.get(inode, 0) + len(whole)
            yield from events.read(iter(whole.decode(errors="replace").splitlines()))
