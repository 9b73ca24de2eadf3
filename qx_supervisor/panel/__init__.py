"""Shows the status of a run: on a terminal, in a notebook, as log lines, or not at all."""

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
    """Shows one run. Its methods are called by one thread at a time."""

    def show(self, status: Status) -> None:
        """Show a new status."""

    def tick(self) -> None:
        """Called about twice a second during the run."""

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show how the run ended."""


class Silent:
    """Shows nothing."""

    def show(self, status: Status) -> None:
        """Show nothing."""

    def tick(self) -> None:
        """Show nothing."""

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show nothing."""


def open_panel(name: PanelName | Panel, *, interruptible: bool = False, results: bool = True) -> Panel:
    """Make the panel that a name stands for.

    Args:
        name: "auto": a notebook panel in a notebook, a terminal panel if stderr is a terminal that can show one, else
            plain lines. "terminal" or "notebook": that one if it can be shown, else plain lines. "plain": lines. None:
            nothing is shown. A `Panel` is returned as it is.
        interruptible: Whether a signal cancels the run; the panel says so.
        results: Whether the summary shows the counts or expectation values.

    Raises:
        ConfigError: The name is unknown.
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
    """Show how a run ended, and no more warnings.

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
    # After `submit` at a prompt, the user types where the panel would be drawn.
    types = not interruptible and interrupts.is_interactive()
    if name in ("auto", "terminal") and not types and _on_terminal():
        from .terminal import Terminal

        return Terminal(view)
    return Plain(view)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()  # absent while the module is being imported
    return getattr(shell, "kernel", None) is not None


def _on_terminal() -> bool:
    # Several processes drawing on one terminal would overwrite each other.
    if interrupts.is_worker():
        return False
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    # A rich live display of the user's has replaced stderr.
    if type(sys.stderr).__module__.startswith("rich."):
        return False
    try:
        return sys.stderr.isatty() and "utf" in (sys.stderr.encoding or "").lower()
    except (AttributeError, ValueError):
        return False  # no stderr, or a closed one
