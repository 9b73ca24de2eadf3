"""Where a run shows its status."""

from __future__ import annotations

from typing import Literal, Protocol

from ..errors import ConfigError
from ..status import Status
from .plain import Plain

PanelName = Literal["auto", "plain"] | None


class Panel(Protocol):
    """Something that shows one run."""

    def show(self, status: Status) -> None:
        """Show a change."""


class Silent:
    """Shows nothing."""

    def show(self, status: Status) -> None:
        """Show nothing."""


def open_panel(name: PanelName) -> Panel:
    """The panel of a name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name is None:
        return Silent()
    if name in ("auto", "plain"):
        return Plain()
    raise ConfigError("config", f'panel must be "auto", "plain" or None, not {name!r}')
