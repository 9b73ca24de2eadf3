"""Finds the Python interpreter that a watcher runs in, and knows that it is one before it is started.

`sys.executable` may name a program that has Python in it: uWSGI, the host of a plug-in, a frozen application. Started
as an interpreter, that opens another window, or runs its script once more, which starts yet another one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import WatcherError

_NAME = re.compile(r"(python|pypy)[\d.]*[a-z]*(-dbg)?")
"""What an interpreter's file is called: python, python3.11, python3.13t, pypy3."""


def find() -> str:
    """The path of an interpreter of this process's Python.

    Raises:
        WatcherError: If there is none.
    """
    if getattr(sys, "frozen", False):
        raise WatcherError(
            "config",
            "the watcher needs a Python interpreter to run in, and this program is frozen, without one; run the driver "
            "with python itself",
        )
    for path in _places():
        if _NAME.fullmatch(path.name) and path.is_file() and os.access(path, os.X_OK):
            return str(path)
    version = ".".join(map(str, sys.version_info[:2]))
    raise WatcherError(
        "config",
        f"the watcher needs a Python interpreter to run in, and sys.executable names none ({sys.executable!r}: this "
        f"program has Python in it); set sys.executable to a Python {version} before the first run, or run the driver "
        "with python itself",
    )


def _places() -> Iterator[Path]:
    """Where it may be, the best place first."""
    named, base = Path(sys.executable or ""), Path(getattr(sys, "_base_executable", None) or "")
    # That of a virtual environment is a link to another one, or a copy. The other one is found by no path of the
    # project's, and stays when the environment is deleted or built anew.
    is_environments = sys.prefix != sys.base_prefix and named.parent == Path(sys.prefix, "bin")
    yield from (base, named) if is_environments else (named, base)
    version = ".".join(map(str, sys.version_info[:2]))
    yield Path(sys.base_exec_prefix, "bin", f"python{version}{sys.abiflags}")
