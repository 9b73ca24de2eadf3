"""A group of commands that are imported on demand."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import click

from . import exits


class LazyGroup(click.Group):
    """Commands by name, each with its location in this package as "module:name".

    `--help` imports them all for their summaries, so no command may import Qiskit before it is called.
    """

    places: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they are shown."""
        return [*self.places, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name."""
        place = self.places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        command: Any = getattr(importlib.import_module(f".{module}", __package__), name)
        assert isinstance(command, click.Command)
        return command


def _remember(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    exits.tracebacks |= value


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember, help="Show the traceback of an error."
)
"""For every command: it may stand before or after the command's name."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
