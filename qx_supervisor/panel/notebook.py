"""The notebook's panel: a card in a cell's output, updated in place, as HTML and as plain text.

A card outlives its program, in the saved notebook. So it says as of when it is true, and holds nothing that moves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .. import cells, forks, html, pub_results
from ..cells import Bundle, Card
from ..result import RunResult
from ..status import Status
from . import batch, notices
from .batch import Batch
from .plain import write
from .view import View, duration

SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two updates without news. Front ends that record the kernel's messages keep every update."""

SHARE = 0.02
"""The pause, as a share of the time that nothing has changed: an hour in the queue is no matter of half seconds."""

ROWS = 20
"""The number of runs that the card of several lists."""


class Live:
    """A card that is kept up to date: of one run, or of several that are awaited in one cell.

    Safe to use from any thread.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._card = Card()
        self._clock = clock
        self._lock = threading.Lock()
        self._views: list[View] = []
        self._together = Batch()
        self._shown_at = self._changed_at = clock()

    @property
    def cells(self) -> set[str]:
        """The executions of cells in whose outputs it is."""
        return self._card.cells

    @property
    def is_here(self) -> bool:
        """Whether it is in the output of the cell that is being executed."""
        return self._card.is_here

    def add(self, view: View) -> None:
        """Show one more run on it."""
        with self._lock:
            self._views.append(view)
            self._together.begin(view)

    def show_here(self) -> None:
        """Show it in the output of the cell that this thread executes."""
        with self._lock:
            self._card.show(self._bundle())

    def update(self, *, now: bool) -> None:
        """Bring it up to date, if it is shown.

        Args:
            now: Whether there is news; else it may wait.
        """
        with self._lock:
            moment = self._clock()
            if now:
                self._changed_at = moment
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, SHARE * (moment - self._changed_at)))
            # News of one of many may wait as well.
            if (not now or len(self._views) > 1) and moment - self._shown_at < pause:
                return
            self._publish(moment)

    def end(self, view: View) -> None:
        """A run on it has ended."""
        with self._lock:
            self._together.end(view)
            if self._together.is_over:
                self._publish(self._clock())

    def _publish(self, moment: float) -> None:
        if self._card.cells:
            self._shown_at = moment
            self._card.update(self._bundle())

    def _bundle(self) -> Bundle:
        if len(self._views) == 1:
            return as_bundle(self._views[0])
        return {"text/html": table(self._views, self._together), "text/plain": _table_as_text(self._together)}


class Notebook:
    """Shows a run on a card.

    Args:
        view: The run.
        live: The card; None: one of its own.
    """

    def __init__(self, view: View, live: Live | None = None) -> None:
        self._view = view
        self.live = live or Live()
        self.live.add(view)

    def show(self, status: Status) -> None:
        """Show a new status."""
        if self._view.outcome is None:
            self.live.update(now=self._view.see(status))

    def tick(self) -> None:
        """Update the elapsed time."""
        for text in notices.take():
            write(f"qx: {text}\n")
        if self._view.outcome is None:
            self.live.update(now=False)

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show the summary."""
        self.tick()
        self._view.end(outcome)
        batch.of(self._view).end(self._view)
        cells.note(outcome, self.live.cells)
        self.live.end(self._view)


_awaited_in: tuple[str, Live] | None = None
_changing = forks.make_lock()


def awaited_card() -> Live:
    """The card of the runs that are awaited in the cell that is being executed; it may have to be shown there yet."""
    global _awaited_in  # noqa: PLW0603 - one cell is executed at a time
    with _changing:
        cell = str(cells.executing())
        if _awaited_in is None or _awaited_in[0] != cell:
            _awaited_in = cell, Live()
        return _awaited_in[1]


def as_bundle(view: View) -> Bundle:
    """A run in both forms."""
    return {"text/html": as_html(view), "text/plain": as_text(view)}


def as_html(view: View) -> str:
    """The card of a run, as HTML."""
    rows = [(name, html.text(value)) for name, value in (("label", view.label), ("key", view.key)) if value]
    if view.backend:
        rows.append(("backend", html.text(view.backend)))
    if view.job_id:
        rows.append(("job", html.link(view.url, view.job_id)))
    elif view.jobs:
        rows.append(("jobs", ", ".join(html.link("", job) for job in view.jobs)))
    if view.pubs():
        rows.append(("PUBs", html.text(view.pubs().removesuffix(" PUBs"))))
    if view.shots():
        rows.append(("shots", html.text(view.shots().removesuffix(" shots"))))
    rows.append(("time", html.text(" · ".join(filter(None, (view.times(), view.timeline()))))))
    more = ""
    if view.outcome is None:
        if view.job_id:
            rows.append(("queue", html.text(view.queue())))
        rows.append(("guard", html.text(view.protection())))
        more = _while_it_lives(view.hint)
    if view.is_billed:
        rows.append(("QPU", html.text(view.cost())))
    if view.quota():
        rows.append(("quota", html.text(view.quota())))
    if view.reason():
        rows.append(("reason", html.text(view.reason())))
    if isinstance(view.outcome, RunResult) and view.shows_results:
        more = pub_results.as_html(view.outcome)
    detail = html.text(view.detail) if view.outcome is None else ""
    return html.card(view.tone, html.text(view.state), rows, more, detail=detail)


def table(views: list[View], together: Batch) -> str:
    """The card of several runs, as HTML: those in progress first."""
    ranked = sorted(views, key=lambda view: (view.outcome is not None, view.tone != "warning", view.began))
    title, *rest = together.words([view for view in views if view.outcome is None])
    if together.is_over:
        title, rest = together.summary(), []
    more = html.table([_row(view) for view in ranked[:ROWS]])
    if len(ranked) > ROWS:
        more += html.muted(f"{len(ranked) - ROWS} not shown")
    hint = next((view.hint for view in views if view.hint), "")
    if not together.is_over:
        more += _while_it_lives(hint)
    tone = "bad" if together.failed else "good" if together.is_over else "plain"
    return html.card(tone, html.text(title), [], more, detail=html.text(" · ".join(rest)))


def _row(view: View) -> dict[str, tuple[str, str]]:
    end = view.clock() if view.ended is None else view.ended
    return {
        "state": (view.tone, html.text(view.state)),
        "job": (
            "",
            html.link(view.url, view.job_id) if view.job_id else f"{len(view.jobs)} jobs" if view.jobs else "–",
        ),
        "label": ("", html.text(view.label or "–")),
        "key": ("", html.text(view.key or "–")),
        "PUBs": ("", html.text(view.pubs().removesuffix(" PUBs") or "1")),
        "time": ("", html.text(duration(end - view.began))),
        "QPU": ("", html.text(view.cost() if view.is_billed else "–")),
    }


def _while_it_lives(hint: str) -> str:
    """What holds while somebody updates the card, said so that it stays true when nobody does."""
    also = f", and {hint}" if hint else ""
    return f"<div>{html.muted(html.text(f'While its kernel lives, it updates this card{also}.'))}</div>"


def as_text(view: View) -> str:
    """A run as one or two lines of text."""
    if view.outcome is not None:
        line = f"{view.summary()} · {html.as_of_now()}"
    else:
        line = f"{view.state} {html.as_of_now()} · {view.times()} · {view.protection()}"
        if view.job_id:
            line += f" · job {view.job_id}"
    return f"{line}\n{view.reason()}" if view.reason() else line


def _table_as_text(together: Batch) -> str:
    parts = [together.summary()] if together.is_over else together.words()
    return " · ".join([*parts, html.as_of_now()])
