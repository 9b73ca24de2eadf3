"""The directive `command-reference`: the output of `--help` for `qx-supervisor` and each of its commands."""

from __future__ import annotations

from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from qx_supervisor.cli import main

NAME = "qx-supervisor"
WIDTH = 90


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a command's context and those of its subcommands, depth first."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            if not found.hidden:
                yield from contexts(found, each, context)


class CommandReference(SphinxDirective):
    """Adds a section for each command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        made: list[nodes.Node] = []
        for context in contexts(main, NAME):
            identifier = nodes.make_id(context.command_path)
            section = nodes.section("", ids=[identifier], names=[nodes.fully_normalize_name(context.command_path)])
            section += nodes.title("", "", nodes.literal("", context.command_path))
            text = context.get_help()
            section += nodes.literal_block(text, text, language="text", classes=["no-copybutton"])
            made.append(section)
        return made


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
