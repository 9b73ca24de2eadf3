"""`qx-supervisor log`."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import click

from ..errors import QxError
from ..log_tail import MOST_LINES, Line, Tail, chosen
from . import output
from .group import debug_option, json_option

EPILOG = """\b
WHAT is a run's id, or its first characters, four at least; a job's id; or
the process id of a program. Without it everything is shown.

\b
--json prints an object for each line:
  time         such as 2026-01-31T13:00:00.123+01:00
  level        DEBUG, INFO, WARNING, ERROR or CRITICAL
  event        which kind of event it is
  message      a sentence
  run          the run's id, or null
  job          the job's id, or null
  label        the run's label, or null
and what else is known of the event: docs/logs.md has the fields."""

LOOK_SECONDS = 0.5
"""How often --follow looks for more."""


@click.command("log", epilog=EPILOG)
@click.argument("what", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@json_option
@debug_option
def log_command(what: str | None, follow: bool, as_json: bool) -> None:
    """Show what watchers did after programs died: of what, what was cancelled, and how long it took.

    It reads the files that the watchers of this machine write in the state directory, and needs no account.
    """
    from ..watcher import ledger

    directory = ledger.state_directory()
    tail = Tail(directory)
    lines = sorted(tail.new(), key=lambda line: str(line.get("time")))
    wants = chosen(what, lines)
    shown = [line for line in lines if wants(line)]
    for line in shown:
        _show(line, as_json)
    if not shown and not follow:
        raise QxError(_nothing(what, directory))
    latest = deque(lines, maxlen=MOST_LINES)
    while follow:
        time.sleep(LOOK_SECONDS)
        latest += (new := list(tail.new()))
        wants = chosen(what, latest)
        for line in filter(wants, new):
            _show(line, as_json)


def _show(line: Line, as_json: bool) -> None:
    if as_json:
        output.record(**line)
    else:
        from ..watcher.events import from_object

        output.line(from_object(line).as_text())


def _nothing(what: str | None, directory: Path) -> str:
    of = f" of {what}" if what else ""
    return (
        f"nothing is logged{of} in {directory}: watchers log what they do after a program's death; "
        "qx-supervisor ps --all lists all runs"
    )
