"""The terminal's panel: a block for one run, a table for several, and a permanent summary of what has ended.

All runs of the process share the screen; each has its own `Terminal`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import forks, text_width
from ..pub_results import Bar, expectation_lines, histogram
from ..result import RunResult
from ..status import Status
from ..text_width import cut_end, cut_middle
from . import batch, notices
from .batch import Batch
from .plain import Plain
from .screen import screen
from .view import View, duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

_MARKS = {"good": "✔", "bad": "✘", "warning": "✘", "plain": "…"}
_STYLE = {"good": "green", "bad": "red", "warning": "yellow", "plain": "cyan"}
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BAR_WIDTH = 32
_SHOWN_BITS = 11  # at either end of a long bit string
_NARROW = 60  # columns below which words are left out
_BETWEEN = " · "
_SHORTEST_NAME, _SHORTEST_ID = 24, 8  # of a line: a name is cut to so much before the job's id is, and that to so much

_open: dict[Terminal, View] = {}
_changing = forks.make_lock()
_frame = itertools.count()


class Terminal:
    """Shows a run on the terminal, or as lines if another process draws there."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._together = batch.of(view)
        self._lines: Plain | None = None

    def show(self, status: Status) -> None:
        """Show a new status."""
        if self._lines is not None:
            self._lines.show(status)
            return
        with _changing:
            if not screen.start(_draw):
                self._lines = Plain(self._view)
            else:
                _open[self] = self._view
        if self._lines is not None:
            self._lines.show(status)
        else:
            self._view.see(status)
            screen.wake()

    def tick(self) -> None:
        """Write a heartbeat; the screen updates by itself."""
        if self._lines is not None:
            self._lines.tick()

    def close(self, outcome: RunResult | BaseException) -> None:
        """Print the summary."""
        if self._lines is not None:
            self._lines.close(outcome)
            return
        view, together = self._view, self._together
        view.end(outcome)
        with _changing:
            together.end(view)
            if _open.pop(self, None) is None:
                return
            if together.total == 1:
                screen.print_above(summary(view, with_results=view.shows_results))
            elif not (together.is_large and isinstance(outcome, RunResult)):
                screen.print_above(ended(view))
            if together.is_large and together.is_over:
                screen.print_above(batch_summary(together))
            if not _open:
                _say_notices()
                screen.stop()
        screen.settle()


def _say_notices() -> None:
    from rich.text import Text

    for text in notices.take():
        screen.print_above(Text(f"qx: {text}", style="yellow"))


def _draw(room: int) -> RenderableType | None:
    _say_notices()
    with _changing:
        shown = list(_open.values())
    if not shown:
        return None
    together = batch.of(shown[0])
    return block(shown[0], room) if together.total == 1 else table(shown, room, together)


@dataclass
class Fitted:
    """What is made to fit when the console's width is known."""

    make: Callable[[Console, ConsoleOptions], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.make(console, options)


def block(view: View, lines: int | None = None) -> RenderableType:
    """A run in progress, in at most `lines` lines: on a small screen the least important rows are left out."""
    rows = _block_rows(view)

    def make(console: Console, options: ConsoleOptions) -> RenderableType:
        left = list(rows)
        while True:
            made = _framed(view, left)
            if lines is None or len(left) == 1 or len(console.render_lines(made, options)) <= lines:
                return made
            left.remove(max(left, key=lambda row: row.rank))

    return Fitted(make)


@dataclass(frozen=True)
class _Row:
    """A row of the block; the one with the highest rank is left out first."""

    rank: int
    name: str
    value: Text


def _block_rows(view: View) -> list[_Row]:
    from rich.text import Text

    state = Text.assemble((f"{_SPINNER[next(_frame) % len(_SPINNER)]} {view.state}", f"bold {_STYLE[view.tone]}"))
    if view.detail:
        state.append(f"  {view.detail}", style="dim")
    protection = view.protection()
    guard = Text.assemble((protection, "bold red" if protection == "NOT WATCHED" else ""))
    hint = "again leaves that to the watcher" if view.hint and "cancelling" in view.state else view.hint
    if hint:
        guard.append(f" · {hint}", style="dim")
    rows = [_Row(0, "state", state)]
    rows += [_Row(5, "label", Text(view.label))] if view.label else []
    rows += [_Row(6, "key", Text(view.key))] if view.key else []
    rows.append(_Row(2, "time", Text(view.times())))
    if view.job_id:
        rows.append(_Row(3, "job", _job(view)))
        if view.state not in ("running", "fetching results"):
            rows.append(_Row(4, "queue", Text(view.queue())))
    rows += [_Row(7, "PUBs", Text(view.pubs().removesuffix(" PUBs")))] if view.pubs() else []
    rows += [_Row(9, "shots", Text(view.shots().removesuffix(" shots")))] if view.shots() else []
    rows += [_Row(8, "QPU", Text(view.cost()))] if view.is_billed else []
    rows += [_Row(4, "quota", Text(view.quota(), style=_STYLE["warning"]))] if view.quota() else []
    return [*rows, _Row(1, "guard", guard)]


def _framed(view: View, rows: Sequence[_Row]) -> RenderableType:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(row.name, row.value)
    title = Text(view.backend or "IBM Quantum", style="bold")
    return Panel(grid, title=title, title_align="left", border_style=_STYLE[view.tone], expand=False)


def table(views: Sequence[View], lines: int, together: Batch | None = None) -> RenderableType:
    """Several runs in at most `lines` lines, those that need attention first.

    Args:
        views: The runs in progress.
        lines: The room.
        together: The batch that they belong to; None: they are all of it.
    """
    if together is None:
        together = Batch()
        for view in views:
            together.begin(view)
    ranked = sorted(views, key=lambda view: (view.tone != "warning", view.began))
    rows = [_row(view) for view in ranked[: max(1, lines)]]
    common: list[str] = []
    for name, values in (
        ("label", {view.label for view in views}),
        ("key", {view.key for view in views}),
        ("backend", {view.backend for view in views}),
        ("PUBs", {view.pubs() for view in views}),
        ("shots", {view.shots() for view in views}),
    ):
        values.discard("")  # not known yet
        if len(values) <= 1 and len(views) > 1:  # what all have in common goes below the table
            common += values
            for row in rows:
                del row[name]
    made = _Table(views, rows, common, lines, together)
    return Fitted(made.fit)


@dataclass(frozen=True)
class _Table:
    """A table of runs.

    Attributes:
        views: The runs.
        rows: What is said of each that may find room, those that need attention first.
        common: What is said of all.
        lines: The room.
        together: The batch.
    """

    views: Sequence[View]
    rows: Sequence[dict[str, Text]]
    common: Sequence[str]
    lines: int
    together: Batch

    def fit(self, console: Console, options: ConsoleOptions) -> RenderableType:
        """As many rows and columns as there is room for, above what is said of all."""
        from rich.console import Group
        from rich.table import Table

        def height(count: int) -> int:
            return sum(len(each.wrap(console, options.max_width)) for each in self._below(count))

        count = len(self.rows)
        while count > 1 and 1 + count + height(count) > self.lines:
            count = max(1, min(count - 1, self.lines - 1 - height(count)))
        grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
        widths = _widths(self.rows[:count], options.max_width)
        for name, width in widths.items():
            grid.add_column(name, no_wrap=True, width=width, overflow="ellipsis")
        for row in self.rows[:count]:
            grid.add_row(*(_cut(row[name], width) if name in _NAMES else row[name] for name, width in widths.items()))
        return Group(grid, *self._below(count))

    def _below(self, count: int) -> list[Text]:
        """What is said below a table of so many rows."""
        from rich.text import Text

        views = self.views
        notes = {view.detail for view in views if view.state == "queued" and view.detail}
        notes |= {f"quota: {view.quota()}" for view in views if view.quota()}
        parts = [*self.together.words(), *self.common]
        if count < len(self.views):
            parts.append(f"{len(self.views) - count} not shown")
        watchers = sorted({view.status.watcher for view in views if view.status and view.status.watcher})
        if watchers:
            parts.append(f"watched by pid {', '.join(map(str, watchers))}")
        unwatched = sum(view.protection() == "NOT WATCHED" for view in views)
        parts += [f"{unwatched} NOT WATCHED"] if unwatched else []
        parts += [view.hint for view in views if view.hint][:1]
        warnings = [Text(note, style=_STYLE["warning"]) for note in sorted(notes)[:2]]
        return [*warnings, Text(" · ".join(parts), style="dim")]


_SHORTEST = {"state": 12, "label": 10, "key": 10}
"""Columns that may be cut, and to how much."""

_LONGEST = {"label": 40, "key": 40}

_NAMES = ("label", "key")
"""Columns that are cut in the middle."""


def _cut(name: Text, width: int) -> Text:
    from rich.text import Text

    return Text(cut_middle(name.plain, width))


def _widths(rows: Sequence[dict[str, Text]], room: int) -> dict[str, int]:
    """The columns that there is room for, with their widths. Users know a run by its label, its key, or the job."""
    names = list(rows[0])
    is_named = "label" in names or "key" in names
    first = ["state", "label", "key", "time", "job"] if is_named else ["state", "job", "time"]
    empty = {name for name in names if all(row[name].plain == "–" for row in rows)}
    ranked = sorted(names, key=lambda name: first.index(name) if name in first else len(first) + (name in empty))
    natural = {
        name: min(_LONGEST.get(name, room), max(len(name), *(row[name].cell_len for row in rows))) for name in names
    }
    chosen: dict[str, int] = {}
    left = room
    for name in ranked:
        width = min(natural[name], _SHORTEST.get(name, room))
        gap = 2 if chosen else 0
        if chosen and gap + width > left:
            continue
        chosen[name] = width
        left -= gap + width
    for name in ranked:
        if name in chosen:
            more = max(0, min(natural[name] - chosen[name], left))
            chosen[name] += more
            left -= more
    return {name: chosen[name] for name in names if name in chosen}


def _row(view: View) -> dict[str, Text]:
    from rich.text import Text

    now = view.clock()
    return {
        "state": Text(view.state, style=_STYLE[view.tone]),
        "job": _job(view),
        "label": Text(view.label or "–"),
        "key": Text(view.key or "–"),
        "backend": Text(view.backend or "–"),
        "PUBs": Text(view.pubs().removesuffix(" PUBs") or "–"),
        "shots": Text(view.shots().removesuffix(" shots") or "–"),
        "time": Text(duration(now - view.began)),
        "in state": Text(duration(now - view.changed)),
        "queue": Text(view.position()),
        "start": Text(view.start()),
        "QPU": Text(_charge(view) if view.is_billed else "–"),
    }


def summary(view: View, *, with_results: bool) -> RenderableType:
    """A run that has ended, of which there was one only."""
    from rich.console import Group
    from rich.text import Text

    style = _STYLE[view.tone]
    line = Text.assemble((f"{_mark(view)} {view.state}", f"bold {style}"))
    if view.job_id:
        line.append(" · job ", style="dim")
        line.append_text(_job(view))
    elif view.jobs:
        line.append(f" · {len(view.jobs)} jobs", style="dim")
    for part in filter(None, (view.label, view.key, view.backend, view.size())):
        line.append(f" · {part}", style="dim")
    rows: list[RenderableType] = [line, Text(f"  {view.bill()}", style="dim")]
    if view.reason():
        rows.append(Text(f"  {view.reason()}", style=style))
    if with_results and isinstance(view.outcome, RunResult):
        rows.extend(_results(view.outcome))
    return Group(*rows)


def ended(view: View) -> RenderableType:
    """One of several runs that has ended: one line, and the reason if it has no result."""
    from rich.console import Group
    from rich.text import Text

    rows: list[RenderableType] = [Fitted(lambda _console, options: _end_line(view, options.max_width))]
    if view.reason():
        rows.append(Text(f"  {view.reason()}", style=_STYLE[view.tone]))
    return Group(*rows)


def _end_line(view: View, room: int) -> Text:
    """In one line, what tells a run from the others: its label and key, before the job's id, which may be cut short."""
    from rich.text import Text

    is_narrow = room < _NARROW
    is_plain = is_narrow and view.tone == "good"  # its mark says that
    state = _mark(view) if is_plain else f"{_mark(view)} {view.state}"
    line = Text.assemble((state, f"bold {_STYLE[view.tone]}"), no_wrap=True, overflow="ellipsis")
    names = [each for each in ([view.name] if is_narrow else [view.label, view.key]) if each]
    job = view.job_id if is_narrow or not view.job_id else f"job {view.job_id}"
    job = job or (f"{len(view.jobs)} jobs" if view.jobs else "")
    took = duration((view.ended or view.clock()) - view.began)
    more = [] if is_narrow else [each for each in (_qpu(view), view.pubs()) if each]

    left = room - line.cell_len + 2 * is_plain - _needed([took])
    while more and _needed([*names, job, *more]) > left:
        more.pop()
    left -= _needed(more)
    if names:
        for_job = left - sum(min(_needed([name]), len(_BETWEEN) + _SHORTEST_NAME) for name in names) - len(_BETWEEN)
        job = cut_end(job, for_job) if for_job >= _SHORTEST_ID else ""
        names = _fitted(names, left - _needed([job]))

    shown = [*map(Text, names), *([Text(job, style=_job(view).style)] if job else [])]
    shown += [Text(part, style="dim") for part in (took, *more)]
    for index, part in enumerate(shown):
        line.append(" " if is_plain and not index else _BETWEEN, style="dim").append_text(part)
    return line


def _needed(parts: Sequence[str]) -> int:
    """The room that parts of a line take, each with what is before it."""
    return sum(len(_BETWEEN) + text_width.width(part) for part in parts if part)


def _fitted(names: Sequence[str], room: int) -> list[str]:
    """Names that fit: the first has what it needs, but for half the room at least that the others share."""
    fitted = []
    for index, name in enumerate(names):
        others = _needed(names[index + 1 :])
        places = max(room - others, room // (len(names) - index)) - len(_BETWEEN)
        fitted.append(cut_middle(name, max(_SHORTEST["label"], places)))
        room -= _needed(fitted[-1:])
    return fitted


def batch_summary(together: Batch) -> RenderableType:
    """A batch that is over and too large to tell each of its runs."""
    from rich.text import Text

    tone = "warning" if together.failed else "plain" if together.going_on else "good"
    return Text(f"{_MARKS[tone]} {together.summary()}", style=f"bold {_STYLE[tone]}")


def _mark(view: View) -> str:
    return _MARKS[view.tone]


def _qpu(view: View) -> str:
    return f"QPU {_charge(view)}" if view.is_billed else ""


def _charge(view: View) -> str:
    """The QPU time in as few words as a table has room for."""
    return view.cost().removesuffix(", charge pending").removeprefix("charge ").removesuffix("imated")


def _results(result: RunResult) -> list[RenderableType]:
    from rich.text import Text

    bars, more = histogram(result)
    rows: list[RenderableType] = []
    if bars:
        rows.append(Fitted(lambda _console, options: _bars(bars, options.max_width)))
    rows.extend(Text(f"  {line}") for line in expectation_lines(result))
    if more:
        rows.append(Text(f"  {more}", style="dim"))
    return rows


def _bars(bars: Sequence[Bar], width: int) -> RenderableType:
    from rich import bar as drawing
    from rich.table import Table
    from rich.text import Text

    names = [_short(bar.name, _SHOWN_BITS if width >= _NARROW else 4) for bar in bars]
    counts = [str(bar.count) for bar in bars]
    longest = width - max(map(len, names)) - max(map(len, counts)) - 12
    room = max(4, min(_BAR_WIDTH, longest))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(width=room)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    for bar, name, count in zip(bars, names, counts, strict=True):
        drawn = drawing.Bar(1.0, 0.0, bar.length, width=room, color="cyan")
        grid.add_row(Text(f"  {name}"), drawn, count, f"{100 * bar.share:.1f} %")
    return grid


def _short(bits: str, shown: int) -> str:
    """Abbreviate a bit string, so that the counts beside it have room."""
    return bits if len(bits) <= 2 * shown + 1 else f"{bits[:shown]}…{bits[-shown:]}"


def _job(view: View) -> Text:
    from rich.text import Text

    return Text(view.job_id or "–", style=f"link {view.url}" if view.url else "")


forks.reset_in_child(_open.clear)
