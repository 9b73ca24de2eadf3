"""`qx-supervisor budget`: budgets of QPU time for all drivers of a ledger."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from ..errors import QxError
from ..watcher import ledger
from . import hosts, output, table
from .durations import Duration
from .group import debug_option, json_option

EPILOG = """\b
--json prints an object for each budget:
  seconds    its QPU time
  per        "day", "week" or "month" (UTC), or null: it never begins anew
  instance, label
             whose jobs it is for, or null: all
  spent      what was charged since its period began
  reserved   what is held for jobs that are not over, or whose charge is
             not known
  left       what may be submitted
  since      when its period began, such as 2026-01-31T12:00:00Z
  until      when the next one begins, or null"""

SHOWN = ("LIMIT", "PER", "SPENT", "RESERVED", "LEFT", "BACK", "LABEL", "INSTANCE")

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

NONE = "no budget is set; set one: qx-supervisor budget set --seconds 600 --per month"


def _scope(command: Command) -> Command:
    per = click.option(
        "--per",
        type=click.Choice(["day", "week", "month"]),
        help="Begin anew at midnight UTC: every day, on Mondays, or on the first of the month.",
    )
    instance = click.option("--instance", metavar="CRN", help="For the jobs of this instance alone.")
    label = click.option("--label", metavar="TEXT", help="For the runs with this label alone.")
    return per(instance(label(command)))


@click.group("budget", invoke_without_command=True, epilog=EPILOG)
@hosts.ledger_option
@json_option
@debug_option
@click.pass_context
def budget_command(context: click.Context, *, ledger_url: str | None, as_json: bool) -> None:
    """Bound the QPU time of all drivers of this machine.

    With a shared ledger, of all drivers of all hosts that write to it. Each job is submitted with a maximum execution
    time of at most what is left, and holds that much until its charge is known. Without a further command, the budgets
    are listed.
    """
    hosts.use(ledger_url)
    if context.invoked_subcommand is None:
        _show(as_json=as_json)


@budget_command.command("show", epilog=EPILOG)
@hosts.ledger_option
@json_option
@debug_option
def show_command(*, ledger_url: str | None, as_json: bool) -> None:
    """List the budgets, and what is left of each."""
    hosts.use(ledger_url)
    _show(as_json=as_json)


@budget_command.command("set")
@click.option(
    "--seconds", type=Duration(), required=True, metavar="TIME", help="How much QPU time, in seconds or with a unit."
)
@_scope
@hosts.ledger_option
@debug_option
def set_command(
    *, seconds: float, per: ledger.Period | None, instance: str | None, label: str | None, ledger_url: str | None
) -> None:
    """Set a budget, or give it another limit.

    There is one for each period, instance and label. What was charged in its period before counts too. Without --per it
    counts from when it is set first, and never begins anew.
    """
    if not 1 <= seconds < math.inf:
        raise click.UsageError(f"--seconds must be at least 1, the least that a job can be given, not {seconds:g}")
    budget = _budget(seconds, per, instance, label)
    hosts.use(ledger_url)
    _in_ledger(lambda book: book.set_budget(budget))
    output.say(f"{budget.words} is set, for all drivers of {_place()}")


@budget_command.command("remove")
@_scope
@hosts.ledger_option
@debug_option
def remove_command(
    *, per: ledger.Period | None, instance: str | None, label: str | None, ledger_url: str | None
) -> None:
    """Remove the budget of a period, an instance and a label."""
    budget = _budget(1.0, per, instance, label)
    hosts.use(ledger_url)
    if not _in_ledger(lambda book: book.remove_budget(budget)):
        raise QxError("there is no such budget; `qx-supervisor budget` lists those that are set")
    output.say("removed")


def _budget(seconds: float, per: ledger.Period | None, instance: str | None, label: str | None) -> ledger.Budget:
    """A budget, by what was given: an empty word is a mistake, for without it the budget is everybody's."""
    if instance is not None and not instance.startswith("crn:"):
        raise click.UsageError(
            f"--instance takes a CRN, not {instance!r}, for a name may change; "
            "`qx-supervisor backends --json` has the CRNs of your instances",
            click.get_current_context(),
        )
    if label is not None:
        from ..about import check_label

        label = check_label(label)  # as that of a run is written
    return ledger.standing(seconds, per or "", instance or "", label or "")


def _show(*, as_json: bool) -> None:
    balances, now = _in_ledger(lambda book: (book.balances(), book.clock()))
    if as_json:
        for each in balances:
            output.record(
                seconds=each.budget.seconds,
                per=each.budget.period or None,
                instance=each.budget.instance or None,
                label=each.budget.label or None,
                spent=round(each.spent, 3),
                reserved=round(each.reserved, 3),
                left=round(each.left, 3),
                since=output.time_of(each.began),
                until=output.time_of(each.ends),
            )
    elif balances:
        for line in table.lines(SHOWN, [_cells(each, now) for each in balances], 0, ()):
            output.line(line)
    else:
        output.say(NONE)


def _cells(balance: ledger.Balance, now: float) -> dict[str, str]:
    budget = balance.budget
    return {
        "LIMIT": f"{budget.seconds:g} s",
        "PER": budget.period,
        "SPENT": f"{balance.spent:.1f} s",
        "RESERVED": f"{balance.reserved:.1f} s",
        "LEFT": f"{balance.left:.1f} s",
        "BACK": f"in {_words(balance.ends - now)}" if balance.ends is not None else "",
        "LABEL": budget.label,
        "INSTANCE": budget.instance,
    }


def _words(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _place() -> str:
    from .. import settings

    return "all hosts that write to the shared ledger" if settings.ledger_url() else "this machine's ledger"


def _in_ledger(ask: Callable[[ledger.Store], T]) -> T:
    """Ask the ledger that decides: the shared one, if one is named."""
    from .. import settings

    def opened() -> AbstractContextManager[ledger.Store]:
        if not settings.ledger_url():
            return ledger.Ledger.open(ledger.state_directory())
        from ..shared_ledger import check_installed

        check_installed()
        from ..watcher.ledger.postgres import SharedLedger

        # Its tables are made where there are none: a budget may be set before the first driver.
        return SharedLedger.open(settings.ledger_url(), kind="reaper", lease_seconds=settings.lease_seconds())

    try:
        with opened() as book:
            return ask(book)
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None
