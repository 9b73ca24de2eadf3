"""The timer of `qx-supervisor reap`: `--install-timer` and `--remove-timer`."""

from __future__ import annotations

import os
import re

import click

from . import output

DEFAULT_MINUTES = 5


def minutes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the minutes of a pause that is written as systemd writes it: 5min, 2h.

    Raises:
        click.BadParameter: If it is none, or too long.
    """
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,2}) ?(min|h)", value)
    unit, most = (1, 59) if found and found[2] == "min" else (60, 23)
    if found is None or not 0 < int(found[1]) <= most:
        raise click.BadParameter(f"{value!r} is no pause from 1min to 59min, or from 1h to 23h", ctx, param)
    return int(found[1]) * unit


def change(*, install: bool, every: int | None, local: bool, instance: str | None, ledger_url: str | None) -> None:
    """Install or remove the timer, and say what was done.

    Args:
        install: Whether to install it; else it is removed.
        every: The pause between two runs, or None for the default.
        local: Whether its runs use the embedded service.
        instance: The instance that they use, or None for the saved one.
        ledger_url: The shared ledger that they use, as given on the command line.

    Raises:
        QxError: If that can't be done.
    """
    from .. import reap_timer

    if not install:
        removed = reap_timer.remove()
        for path in removed:
            output.line(f"removed  {path}")
        if not removed:
            output.say("no timer of systemd was installed")
        if not reap_timer.has_manager():
            output.say("if there is a line of the timer's in your crontab, remove it with: crontab -e")
        return
    pause = every or DEFAULT_MINUTES
    options = ["--local"] if local else []
    for name, value in (("--instance", instance), ("--ledger", ledger_url)):
        options += [name, value] if value else []
    if reap_timer.has_manager():
        for path in reap_timer.install(pause, options):
            output.line(f"written  {path}")
        output.line(f"started  {reap_timer.TIMER}, which reaps every {pause} minutes")
        if not reap_timer.lingers():
            output.say("it runs while you are logged in; to have it run always: loginctl enable-linger")
    else:
        output.line(reap_timer.crontab_line(pause, options))
        output.say(
            "no user manager of systemd runs here, and nothing was installed; add this line to your crontab: crontab -e"
        )
    _say_what_it_lacks(local, ledger_url)


def _say_what_it_lacks(local: bool, ledger_url: str | None) -> None:
    from .. import reap_timer, settings
    from ..service import saved_accounts

    if os.environ.get(settings.LEDGER) and not ledger_url:
        output.say(
            f"the timer does not see {settings.LEDGER}, which may hold a password: give --ledger too, with the URL but "
            "without a password, which belongs in ~/.pgpass"
        )
    for name in reap_timer.left_out():
        output.say(f"the timer does not see {name}, which holds a password: add it yourself to what was written")
    if local:
        return
    save = "QiskitRuntimeService.save_account(token=..., instance=...)"
    if os.environ.get("QISKIT_IBM_TOKEN"):
        output.say(f"the timer does not see the key in QISKIT_IBM_TOKEN, it uses the saved account; save it: {save}")
    elif not saved_accounts.file().exists():
        output.say(f"no IBM Quantum account is saved, and the timer can cancel nothing without one; save it: {save}")
