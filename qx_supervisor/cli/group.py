"""A group of commands that are imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import click

from . import exits


class LazyGroup(click.Group):
    """Commands by name, each with the place of its object: "module:name" in this package.

    `--help` imports them all, for their first lines; so none imports Qiskit before it is called.
    """

    places: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which they are shown."""
        return [*self.places, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
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
"""For every command: it may stand before its name or after it."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
