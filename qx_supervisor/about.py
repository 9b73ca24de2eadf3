"""What a run is, for those who read the ledger and the log: its label, and the program that it belongs to."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

from . import settings
from .errors import ConfigError
from .watcher.facts import About
from .watcher.ledger.row import safe_command

LABEL_LENGTH = 100


def check_label(given: object) -> str:
    """The label of a run: the given one, or that of `QX_LABEL`, or "".

    Raises:
        ConfigError: If it can't be one.
    """
    name, label = "label", given
    if given is None:
        name, label = settings.LABEL, os.environ.get(settings.LABEL, "")
        if not label:
            return ""
    if not isinstance(label, str) or not label.strip():
        raise ConfigError("config", f"{name} must be a string that is not empty, not {label!r}; or leave it away")
    if len(label) > LABEL_LENGTH or not label.isprintable():
        raise ConfigError(
            "config",
            f"{name} must be one line of {LABEL_LENGTH} printable characters or fewer; this has {len(label)}"
            f"{'' if label.isprintable() else ', and some can not be printed'}: shorten it, or use tags for the rest",
        )
    return label.strip()


def of_this_program(label: str) -> About:
    """What is known of any run of this program that begins now."""
    return About(label=label, program=_program(), command=_command(), began_at=time.time())


@functools.cache
def _command() -> str:
    return safe_command(sys.orig_argv)


def _program() -> str:
    """The program's name: a module's (`python -m`), or a file's."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name).removesuffix(".__main__")
    return Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
