"""Where a run shows its status: on a terminal, in a notebook, as lines of a log, or nowhere."""

from __future__ import annotations

import os
import sys
from typing import Literal, Protocol, runtime_checkable

from .. import interrupts
from ..errors import ConfigError
from ..result import RunResult
from ..status import Status
from . import notices
from .plain import Plain
from .view import View

PanelName = Literal["auto", "terminal", "notebook", "plain"] | None


@runtime_checkable
class Panel(Protocol):
    """Something that shows one run. Everything is called by one thread at a time."""

    def show(self, status: Status) -> None:
        """Show a change."""

    def tick(self) -> None:
        """Called about twice a second while the run goes on."""

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show how it ended, for good."""


class Silent:
    """Shows nothing."""

    def show(self, status: Status) -> None:
        """Show nothing."""

    def tick(self) -> None:
        """Show nothing."""

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show nothing."""


def open_panel(name: PanelName | Panel, *, interruptible: bool = False, results: bool = True) -> Panel:
    """The panel of a name.

    Args:
        name: "auto": a terminal panel where stderr is a terminal that can show one, a notebook panel in a notebook,
            else plain lines. "terminal", "notebook": that one where it can be shown, else plain lines. "plain". None:
            nothing is shown. A panel that is open already: that one.
        interruptible: Whether a signal cancels the run: then it says so.
        results: Whether the summary shows the counts, or expectation values.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name is None:
        return Silent()
    if isinstance(name, Panel):
        return name
    if name not in ("auto", "terminal", "notebook", "plain"):
        raise ConfigError("config", f'panel must be "auto", "terminal", "notebook", "plain" or None, not {name!r}')
    panel = _open(name, interruptible=interruptible, results=results)
    notices.follow(panel)
    return panel


def close_panel(panel: Panel, outcome: RunResult | BaseException) -> None:
    """Show how it ended, for good.

    Args:
        panel: The panel.
        outcome: The result, or the error.
    """
    panel.close(outcome)
    notices.leave(panel)


def _open(name: str, *, interruptible: bool, results: bool) -> Panel:
    if name in ("auto", "notebook") and _in_notebook():
        from .notebook import Notebook

        return Notebook(View("interrupting the kernel cancels" if interruptible else "", results))
    view = View("Ctrl-C cancels" if interruptible else "", results)
    # Who goes on at a prompt types where a panel would be drawn.
    types = not interruptible and interrupts.is_interactive()
    if name in ("auto", "terminal") and not types and _on_terminal():
        from .terminal import Terminal

        return Terminal(view)
    return Plain(view)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()  # a module that is half imported has none
    return getattr(shell, "kernel", None) is not None


def _on_terminal() -> bool:
    # Several processes that draw on one terminal would overwrite each other.
    if interrupts.is_worker():
        return False
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    # A live display of the user's own, by rich, has put something of its own in place of stderr.
    if type(sys.stderr).__module__.startswith("rich."):
        return False
    try:
        return sys.stderr.isatty() and "utf" in (sys.stderr.encoding or "").lower()
    except (AttributeError, ValueError):
        return False  # none, or a closed one
