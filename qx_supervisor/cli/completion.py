"""`qx-supervisor completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import output
from .group import debug_option

EPILOG = """\b
For bash, in ~/.bashrc:  eval "$(qx-supervisor completion bash)"
For zsh, in ~/.zshrc:    eval "$(qx-supervisor completion zsh)"
For fish, once:
  qx-supervisor completion fish > ~/.config/fish/completions/qx-supervisor.fish"""


@click.command("completion", epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@debug_option
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    from . import NAME

    found = get_completion_class(shell)
    assert found is not None
    variable = f"_{NAME}_COMPLETE".replace("-", "_").upper()
    output.line(found(context.find_root().command, {}, NAME, variable).source())
