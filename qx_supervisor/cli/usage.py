"""`qx-supervisor usage`."""

from __future__ import annotations

import datetime
import re
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .. import settings
from ..errors import QxError
from ..watcher import ledger
from . import hosts, output, table
from .group import debug_option, json_option

if TYPE_CHECKING:
    from ..usage import By, Usage

EPILOG = """\b
JOBS       how many
ESTIMATED  QPU seconds that they were expected to take
CHARGED    QPU seconds charged
DEATHS     those of them for jobs that were cancelled because their
           program died
UNKNOWN    jobs whose charge nobody has learned yet
PRICE      what that costs, if QX_PRICE says what a second does,
           such as "1.60 USD"
On a terminal a bar shows what was charged, and ░ what deaths cost.

\b
--json prints an object for each line, without the total:
  day, backend, label, program or key
             what its jobs have in common; null: they have none
  jobs, uncharged
             how many; and of how many the charge is not known
  qpu_seconds_estimated, qpu_seconds, qpu_seconds_after_death
             estimated; charged; of that, as under DEATHS
  price, currency
             what was charged in money; null without QX_PRICE"""

SINCE = re.compile(r"(\d+)([hdw])")
UNITS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}

BARS = "▏▎▍▌▋▊▉█"
LONGEST_BAR = 40


def _since(context: click.Context, _parameter: click.Parameter, given: str | None) -> float | None:
    """Read --since, in seconds since the epoch."""
    if given is None:
        return None
    if (found := SINCE.fullmatch(given)) is not None:
        return time.time() - int(found[1]) * UNITS[found[2]]
    try:
        return datetime.datetime.fromisoformat(given).timestamp()
    except (ValueError, OverflowError):
        raise click.UsageError(
            f"--since is an age such as 12h, 7d or 4w, or a date such as 2026-01-31, not {given!r}", context
        ) from None


@click.command("usage", epilog=EPILOG)
@click.option(
    "--by",
    type=click.Choice(["day", "backend", "label", "program", "key"]),
    default="day",
    show_default=True,
    help="What the jobs of a line have in common.",
)
@click.option("--since", callback=_since, metavar="AGE|DATE", help="Only jobs that ran since: 12h, 7d, 2026-01-31.")
@click.option("--all-hosts", is_flag=True, help="Jobs of all hosts that write to one ledger.")
@hosts.ledger_option
@json_option
@debug_option
def usage_command(by: By, since: float | None, all_hosts: bool, ledger_url: str | None, as_json: bool) -> None:
    """Add up what jobs have cost.

    It reads the ledger only, and needs no account. The ledger keeps a run for 30 days after its end. For charges that
    nobody has learned yet, `qx-supervisor reap` asks the service.
    """
    from ..usage import add_up, total

    hosts.use(ledger_url)
    price = settings.price()
    groups = add_up(_rows(all_hosts=all_hosts), by, since)
    if as_json:
        for name, usage in groups.items():
            output.record(**{by: name or None}, **_fields(usage, price))
        return
    if not groups:
        output.say("no job is known" if since is None else "no job is known that ran since then")
        return
    whole = total(groups.values())
    lines = [{by.upper(): name, **_cells(usage, price)} for name, usage in groups.items()]
    lines.append({by.upper(): "total", **_cells(whole, price)})
    header = [by.upper(), "JOBS", "ESTIMATED", "CHARGED", "DEATHS", "UNKNOWN", *(["PRICE"] if price else [])]
    shown = list(table.lines(header, lines, 0, ()))
    if sys.stdout.isatty():
        longest = max(len(line) for line in shown)
        width = min(LONGEST_BAR, shutil.get_terminal_size().columns - longest - 2)
        most = max(usage.charged for usage in groups.values())
        bars = ["", *(_bar(usage, most, width) for usage in groups.values()), ""]
        shown = [f"{line:{longest}}  {bar}".rstrip() for line, bar in zip(shown, bars, strict=True)]
    for line in shown:
        output.line(line)


def _rows(*, all_hosts: bool) -> list[ledger.Row]:
    if not all_hosts:
        with ledger.Ledger.open(ledger.state_directory()) as book:
            return book.rows()
    from ..shared_ledger import opened

    try:
        with opened() as shared:
            return shared.rows()
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None


def _cells(usage: Usage, price: tuple[float, str] | None) -> dict[str, str]:
    cells = {
        "JOBS": str(usage.jobs),
        "ESTIMATED": _seconds(usage.estimated),
        "CHARGED": _seconds(usage.charged),
        "DEATHS": _seconds(usage.after_death),
        "UNKNOWN": str(usage.uncharged or ""),
    }
    return cells if price is None else {**cells, "PRICE": f"{usage.charged * price[0]:.2f} {price[1]}"}


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds else ""


def _fields(usage: Usage, price: tuple[float, str] | None) -> dict[str, Any]:
    return {
        "jobs": usage.jobs,
        "uncharged": usage.uncharged,
        "qpu_seconds_estimated": usage.estimated,
        "qpu_seconds": usage.charged,
        "qpu_seconds_after_death": usage.after_death,
        "price": None if price is None else round(usage.charged * price[0], 6),
        "currency": None if price is None else price[1],
    }


def _bar(usage: Usage, most: float, width: int) -> str:
    """A bar of blocks and eighths of blocks, for its share of the most; what deaths cost is its shaded end."""
    if width <= 0 or not most:
        return ""
    length = usage.charged / most * width
    deaths = round(usage.after_death / most * width)
    whole, eighths = divmod(round((length - deaths) * 8), 8)
    return "█" * max(0, whole) + (BARS[eighths - 1] if eighths and not deaths else "") + "░" * deaths
