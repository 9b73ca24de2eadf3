"""`qx-supervisor top`."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import click

from ..errors import ConfigError
from . import account, hosts
from .durations import Duration
from .group import debug_option

EPILOG = """\b
Keys:
  up, down, j, k, page up, page down, home, end   choose a run
  d, enter   what is known of it
  c, delete  cancel its jobs, after a question
  r          read the ledger now
  q, Ctrl-C  quit; Ctrl-Z suspends

\b
The columns are those of ps, with PROGRAM instead of HOST; SERVICE is what the
service says of a run's job. States and costs come from the ledger, which is
read once a second. The service is asked for one list of unfinished jobs every
--interval seconds, however many there are, and never with --no-service. A run
that ends while it is shown is shown for five more minutes.

\b
It needs the package textual: pip install 'qx-supervisor[top]'. In a script,
take ps --json."""

MISSING = "top needs the package textual: pip install 'qx-supervisor[top]'; ps --watch shows a list without it"


@click.command("top", epilog=EPILOG)
@click.option("--all-hosts", is_flag=True, help="The runs of all hosts that write to one ledger.")
@click.option(
    "--interval",
    type=Duration(least=1.0),
    default=15.0,
    show_default="15",
    metavar="TIME",
    help="How often the service is asked for a list of jobs.",
)
@click.option("--no-service", is_flag=True, help="Do not ask the service until a job is to be cancelled.")
@account.account_options
@hosts.ledger_option
@debug_option
def top_command(
    *,
    all_hosts: bool,
    interval: float,
    no_service: bool,
    local: bool,
    instance: str | None,
    ledger_url: str | None,
) -> int:
    """Watch the programs and jobs of this machine on a full screen, and cancel some."""
    context = click.get_current_context()
    if os.name != "posix":
        raise click.UsageError("top needs a POSIX terminal, as in WSL 2; take ps --watch", context)
    if importlib.util.find_spec("textual") is None:
        raise ConfigError("config", MISSING)
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("top is for a terminal; in a script, take ps --json", context)
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        raise click.UsageError("this terminal can't show a full screen (TERM); take ps --watch", context)
    account.check(local, instance)
    hosts.use(ledger_url)
    if all_hosts:
        _check_ledger()
    elif local:
        _check_local()
    from . import fullscreen

    return fullscreen.run(
        lambda: _show(all_hosts=all_hosts, interval=interval, asks=not no_service, local=local, instance=instance)
    )


def _check_ledger() -> None:
    """Refuse a shared ledger that can't be read, before the screen is taken over."""
    from ..errors import QxError
    from ..shared_ledger import opened
    from ..watcher import ledger

    try:
        opened().close()
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


def _check_local() -> None:
    from ..errors import QxError

    if account.find() is None:
        raise QxError(account.NO_SERVICE)


def _show(*, all_hosts: bool, interval: float, asks: bool, local: bool, instance: str | None) -> int:
    from .snapshot import LedgerReader, ServiceReader
    from .top_app import Top

    def connect() -> Any:
        return account.connect(local, instance)

    service = ServiceReader(connect)
    place = "all hosts" if all_hosts else os.uname().nodename
    app = Top(LedgerReader(all_hosts=all_hosts), service if asks else None, service, interval=interval, place=place)
    code = app.run(mouse=False)
    return code if code is not None else app.return_code or 0
