"""The notebook's panel: one cell output, updated in place, as HTML and as plain text."""

from __future__ import annotations

import time
from typing import Any

from .. import html, pub_results
from ..result import RunResult
from ..status import Status
from . import notices
from .plain import write
from .view import View

SHORTEST_PAUSE = 0.5
"""Seconds between two updates without news. Front ends that record the kernel's messages keep every update."""


class Notebook:
    """Shows a run in a cell's output."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._handle: Any = None
        self._shown_at = 0.0

    def show(self, status: Status) -> None:
        """Show a new status."""
        if self._view.outcome is None:
            self._update(now=self._view.see(status))

    def tick(self) -> None:
        """Update the elapsed time."""
        for text in notices.take():
            write(f"qx: {text}\n")
        if self._view.status is not None and self._view.outcome is None:
            self._update(now=False)

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show the summary."""
        self.tick()
        self._view.end(outcome)
        self._update(now=True)

    def _update(self, *, now: bool) -> None:
        from IPython.display import display

        moment = time.monotonic()
        if not now and moment - self._shown_at < SHORTEST_PAUSE:
            return
        self._shown_at = moment
        shown = _Shown(self._view)
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


class _Shown:
    """A snapshot of the view, as IPython displays it."""

    def __init__(self, view: View) -> None:
        self._html = as_html(view)
        self._text = as_text(view)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self._html, "text/plain": self._text}


def as_html(view: View) -> str:
    """The panel of a run, as HTML."""
    title = html.text(view.state)
    if view.detail and view.outcome is None:
        title += f' <span style="opacity:.65;font-weight:normal">{html.text(view.detail)}</span>'
    rows = [("backend", html.text(view.backend))] if view.backend else []
    if view.job_id:
        rows.append(("job", html.link(view.url, view.job_id)))
    if view.shots():
        rows.append(("shots", html.text(view.shots().removesuffix(" shots"))))
    rows.append(("time", html.text(view.times())))
    if view.outcome is None:
        if view.job_id:
            rows.append(("queue", html.text(view.queue())))
        hint = f" · {view.hint}" if view.hint else ""
        rows.append(("guard", html.text(view.protection() + hint)))
    if view.job_id:
        rows.append(("QPU", html.text(view.cost())))
    if view.reason():
        rows.append(("reason", html.text(view.reason())))
    more = pub_results.as_html(view.outcome) if isinstance(view.outcome, RunResult) and view.shows_results else ""
    return html.card(view.tone, title, rows, more)


def as_text(view: View) -> str:
    """The same, as one or two lines of text."""
    line = view.summary() if view.outcome is not None else f"{view.state} · {view.times()} · {view.protection()}"
    if view.outcome is None and view.job_id:
        line += f" · job {view.job_id}"
    return f"{line}\n{view.reason()}" if view.reason() else line
