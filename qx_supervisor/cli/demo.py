"""`qx-supervisor demo`."""

from __future__ import annotations

import click

from .group import debug_option


@click.command("demo")
@debug_option
def demo_command() -> None:
    """Run a circuit, then kill a driver and watch the clean-up.

    Everything happens on this machine; no account is needed.
    """
    from ..demo import show
    from ..errors import ConfigError

    try:
        show()
    except ImportError as error:
        if error.name != "localqpu":
            raise
        raise ConfigError("config", str(error)) from None
