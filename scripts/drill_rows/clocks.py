"""Processes whose time of day is wrong, by a library of our own that is loaded into them before all others (`clock.c`).

libfaketime (0.9.10) was tried: whether it shifts the monotonic clock too or not, Python's sleeps and waits on it fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def obstacle() -> str:
    """Why no clock can be wrong here, or ""."""
    return "" if shutil.which("cc") else "there is no C compiler (Debian: apt-get install gcc libc6-dev)"


class WrongClock:
    """A clock that is wrong.

    Args:
        hours: How far it is ahead.
        folder: Where what shows it is kept.

    Attributes:
        python: A Python that goes by it.
        environment: Variables with which any program goes by it, from its first instruction.
    """

    def __init__(self, hours: int, folder: Path) -> None:
        library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        shown = {"LD_PRELOAD": str(library), "QX_DRILL_SECONDS_AHEAD": str(3600 * hours)}
        self.environment = os.environ | shown
        self.python = folder / "python"
        settings = " ".join(f"{name}='{value}'" for name, value in shown.items())
        self.python.write_text(f'#!/bin/sh\nexec env {settings} {sys.executable} "$@"\n')
        self.python.chmod(0o700)

    def prelude(self) -> str:
        """The lines that have a program's watcher go by it too, which would not inherit it."""
        return f'sys.executable = {str(self.python)!r}\nsay("clock", time.time())\n'

    def is_shown_to(self, pid: int) -> bool:
        """Whether a process goes by it."""
        return self.environment["LD_PRELOAD"] in Path(f"/proc/{pid}/maps").read_text()
