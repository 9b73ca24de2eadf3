"""What commands write: results to stdout, one per line, and messages to stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from typing import Any

import click

from ..run_fields import time_of

__all__ = ["close", "line", "note", "record", "say", "time_of"]


def line(text: str = "") -> None:
    """Write a line of a result.

    If stdout is closed, as by `| head`, this and all further output is discarded. The command still runs to its end,
    and sets its exit code.
    """
    try:
        click.echo(text)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        close()


def record(**fields: Any) -> None:
    """Write a result as one JSON object on a line of its own."""
    line(json.dumps({name: _plain(value) for name, value in fields.items()}))


def say(text: str) -> None:
    """Write a message to stderr."""
    try:
        click.echo(f"qx-supervisor: {text}", err=True)
    except OSError:
        pass  # a terminal that has hung up, a closed pipe


def note(text: str) -> None:
    """Write a line to stderr that belongs to a question."""
    try:
        click.echo(text, err=True)
    except OSError:
        pass


def close() -> None:
    """Discard everything that is still to be written to stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _plain(value: Any) -> Any:
    """Convert to what JSON can represent: lists for arrays, null for NaN and infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
