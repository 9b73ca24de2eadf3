"""`qx-supervisor demo`."""

from __future__ import annotations

import click


@click.command("demo")
def demo_command() -> None:
    """Run a circuit, then kill a driver and see its job cancelled; on this machine alone."""
    from ..demo import show

    show()
