"""The command `qx-supervisor`. Results go to stdout, talk to stderr."""

from __future__ import annotations

from typing import ClassVar

import click

from .group import LazyGroup


class Commands(LazyGroup):
    """All commands."""

    places: ClassVar[dict[str, str]] = {
        "ps": "ps:ps_command",
        "reap": "reap:reap_command",
        "local": "local:local_command",
        "demo": "demo:demo_command",
    }


@click.group(cls=Commands)
@click.version_option(package_name="qx-supervisor")
def main() -> None:
    """Jobs on IBM Quantum that do not outlive the program that submitted them."""
