"""Questions on the terminal, before what can't be undone."""

from __future__ import annotations

import sys

import click

from . import output

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask; needed where there is no terminal.")


def on_terminal() -> bool:
    """Whether somebody can be asked: both what is asked and the answer go by a terminal."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False  # there is no such stream, or it is closed


def check(yes: bool, what: str) -> None:
    """Refuse to go on where nobody can be asked, before anything is done.

    Args:
        yes: Whether `--yes` was given.
        what: What is about to be done: "cancelling jobs that are not named by their ids".

    Raises:
        click.UsageError: Nobody can be asked.
    """
    if not yes and not on_terminal():
        raise click.UsageError(f"{what} asks first, and there is no terminal; add --yes", click.get_current_context())


def ask(question: str, lines: list[str], *, yes: bool) -> bool:
    """Ask whether to go on.

    Args:
        question: The question, without the choice of answers.
        lines: What is shown above it, and also where nothing is asked.
        yes: Whether `--yes` was given: then nothing is asked.

    Returns:
        The answer. A no is told of.
    """
    for line in lines:
        output.note(line)
    if yes:
        return True
    if click.confirm(question, err=True):
        return True
    output.say("nothing was done")
    return False
