"""Processes whose clock is off, by libfaketime. The monotonic clock is left alone, as on a host with a wrong date."""

from __future__ import annotations

import sys
from pathlib import Path


def _library() -> Path | None:
    return next(Path("/").glob("usr/lib*/*/faketime/libfaketime.so.1"), None)


def obstacle() -> str:
    """Why no clock can be wrong here, or ""."""
    return "" if _library() else "libfaketime is not installed (Debian: apt-get install faketime)"


def environment(hours: int) -> dict[str, str]:
    """What shows a process a clock that is so many hours ahead, from its first instruction."""
    return {"LD_PRELOAD": str(_library()), "FAKETIME": f"{hours:+d}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def interpreter(hours: int, folder: Path) -> Path:
    """Make a Python with that clock, for the watchers: they don't inherit a driver's variables.

    Args:
        hours: How far the clock is ahead.
        folder: Where it is put.
    """
    made = folder / f"python{hours:+d}h"
    settings = " ".join(f"{name}='{value}'" for name, value in environment(hours).items())
    made.write_text(f"#!/bin/sh\nexec env {settings} {sys.executable} \"$@\"\n")
    made.chmod(0o700)
    return made


def prelude(hours: int, python: Path) -> str:
    """The lines that keep a program to that clock, and have its watcher go by it too.

    Args:
        hours: How far the clock is ahead.
        python: What `interpreter` made.
    """
    shown = f"os.environ.update({environment(hours)!r})\nsys.executable = {str(python)!r}\n"
    return f'{shown}say("clock", time.time())\n'


def is_wrong_for(pid: int) -> bool:
    """Whether a process has a clock of its own."""
    return "libfaketime" in Path(f"/proc/{pid}/maps").read_text()
