"""The shared ledger, named on the command line."""

from __future__ import annotations

import os
import re

import click

ledger_option = click.option(
    "--ledger",
    "ledger_url",
    metavar="URL",
    help="The database of a shared ledger, without a password, instead of QX_LEDGER.",
)


def use(ledger_url: str | None) -> None:
    """Have the ledger of an option be this process's, and its children's.

    Args:
        ledger_url: What was given, or None for what `QX_LEDGER` says.

    Raises:
        click.UsageError: If it can't be one, or holds a password.
    """
    from .. import settings

    if ledger_url is None:
        return
    if re.search(r"//[^/?#]*:[^/?#]*@", ledger_url) or "password" in ledger_url:
        raise click.UsageError(f"--ledger takes no password, which all could see here; set {settings.LEDGER} instead")
    if not ledger_url.startswith(settings.LEDGER_SCHEMES):
        raise click.UsageError("--ledger must begin with postgresql://")
    os.environ[settings.LEDGER] = ledger_url
