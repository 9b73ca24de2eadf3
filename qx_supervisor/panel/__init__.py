"""Shows the status of a run: on a terminal, in a notebook, as log lines, or not at all."""

from __future__ import annotations

import os
import sys
from typing import Literal, Protocol, runtime_checkable

from .. import cells, interrupts
from ..errors import ConfigError
from ..result import RunResult
from ..status import Status
from ..watcher import system
from . import batch, notices
from .plain import Plain
from .view import View

PanelName = Literal["auto", "terminal", "notebook", "plain"] | None

CANCELS = "Run.cancel() cancels the job"
"""What the card of a submitted run says while its kernel lives."""


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


def open_panel(
    name: PanelName | Panel,
    *,
    interruptible: bool = False,
    submitted: bool = False,
    results: bool = True,
    view: View | None = None,
) -> Panel:
    """Make the panel that a name stands for.

    Args:
        name: "auto": a notebook panel in a notebook, a terminal panel if stderr is a terminal that can show one, else
            plain lines. "terminal" or "notebook": that one if it can be shown, else plain lines. "plain": lines. None:
            nothing is shown. A `Panel` is returned as it is.
        interruptible: Whether a signal cancels the run; the panel says so.
        submitted: Whether the program has a `Run`, by which it cancels; a notebook's card says so.
        results: Whether the summary shows the counts or expectation values, or why there are none.
        view: What is to be shown, instead of a view of a run of this process.

    Raises:
        ConfigError: The name is unknown.
    """
    if name is None:
        return Silent()
    if isinstance(name, type):
        raise ConfigError(
            "config", f"panel must be a panel or a name, not the class {name.__name__}; pass an object of it"
        )
    if isinstance(name, Panel):
        return name
    if name not in ("auto", "terminal", "notebook", "plain"):
        raise ConfigError("config", f'panel must be "auto", "terminal", "notebook", "plain" or None, not {name!r}')
    is_card = name in ("auto", "notebook") and cells.in_notebook()
    if view is None:
        in_a_cell = "interrupting it cancels the job" if interruptible else CANCELS if submitted else ""
        view = View(in_a_cell if is_card else "Ctrl-C cancels" if interruptible else "", results)
    batch.begin(view)
    panel = _card(view) if is_card else _panel(name, view, interruptible=interruptible)
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


def _card(view: View) -> Panel:
    from .notebook import Notebook

    panel = Notebook(view)
    panel.live.show_here()  # by this thread, which executes the cell, and at once
    return panel


def _panel(name: str, view: View, *, interruptible: bool) -> Panel:
    # After `submit` at a prompt, the user types where the panel would be drawn.
    types = not interruptible and interrupts.is_interactive()
    if name in ("auto", "terminal") and not types and is_on_terminal():
        from .terminal import Terminal

        return Terminal(view)
    return Plain(view)


def is_on_terminal() -> bool:
    """Whether stderr is a terminal that can show a panel."""
    # Several processes drawing on one terminal would overwrite each other. Windows' can't be opened and locked.
    if interrupts.is_worker() or system.IS_WINDOWS:
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
