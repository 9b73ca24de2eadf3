"""The cell of a notebook that is being executed, and the cards that are shown in it.

A card is an output that IPython publishes under an id, so that any thread can update it. Two rules of Jupyter matter:

- A front end adds an output to the cell whose execution request is the message's parent. In a thread that is the
  request that came last, which may be another cell's. So a card is shown by the thread that executes its cell, at once.
- An update is for all outputs with its id, wherever they are. Front ends find them by the id alone; nbclient, which
  executes notebooks for nbconvert and papermill, reads no messages but those of the cell that is being executed. So an
  update has whatever parent the thread has that makes it.
"""

from __future__ import annotations

import secrets
import sys
import weakref
from typing import Any

from . import forks

Bundle = dict[str, str]
"""One thing in several forms, by their MIME types."""


def in_notebook() -> bool:
    """Whether this program is a notebook's kernel."""
    return getattr(_shell(), "kernel", None) is not None


def executing() -> str | None:
    """The id of the request whose cell is being executed, or was last; None outside of a notebook."""
    if not in_notebook():
        return None
    shell = _shell()
    header = getattr(shell.display_pub, "parent_header", None) or {}
    return str(header.get("msg_id") or f"cell {shell.execution_count}")


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return getattr(ipython, "get_ipython", lambda: None)()  # absent while the module is being imported


class Card:
    """An output that is kept up to date. Safe to use from any thread, but for `show`.

    Attributes:
        cells: The executions in whose outputs it is.
    """

    def __init__(self) -> None:
        self._id = secrets.token_hex(16)
        self.cells: set[str] = set()

    @property
    def is_here(self) -> bool:
        """Whether it is among the outputs of the cell that is being executed."""
        return executing() in self.cells

    def show(self, bundle: Bundle) -> None:
        """Add it to the outputs of the cell that this thread executes."""
        from IPython.display import display

        display(bundle, raw=True, display_id=self._id)
        self.cells.add(str(executing()))

    def update(self, bundle: Bundle) -> None:
        """Show something else, wherever it is."""
        from IPython.display import update_display

        update_display(bundle, raw=True, display_id=self._id)


_shown: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()
_changing = forks.make_lock()


def note(outcome: object, cells: set[str]) -> None:
    """Note that a result, or an error, is on a card in these cells already."""
    with _changing:
        _shown.setdefault(outcome, set()).update(cells)


def leave_to_ipython_unless_shown(outcome: object) -> None:
    """For `_ipython_display_`: a result, or an error, whose card is in this very cell is not shown a second time.

    A cell that ends in `run(...)` would have both the panel and what it returns.

    Raises:
        NotImplementedError: It is not there: IPython displays the object as any other, by its `_repr_html_`.
    """
    try:
        with _changing:
            cells = _shown.get(outcome, set())
    except TypeError:  # what `Ok` holds may be anything
        cells = set()
    if executing() not in cells:
        raise NotImplementedError


forks.reset_in_child(_shown.clear)
