"""The terminal's panel: a block for one run, a table for several, and a permanent summary of each.

All runs of the process share the screen; each has its own `Terminal`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from .. import forks
from ..pub_results import expectation_lines, histogram
from ..result import RunResult
from ..status import Status
from . import notices
from .plain import Plain
from .screen import screen
from .view import View, duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_STYLE = {"good": "green", "bad": "red", "warning": "yellow", "plain": "cyan"}
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BAR_WIDTH = 32
_SHOWN_BITS = 11  # at either end of a long bit string

_open: dict[Terminal, View] = {}
_changing = forks.make_lock()
_frame = itertools.count()


class Terminal:
    """Shows a run on the terminal, or as lines if another process draws there."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._is_one_of_many = False
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
                if len(_open) > 1:
                    for each in _open:
                        each._is_one_of_many = True  # noqa: SLF001 - the same class
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
        self._view.end(outcome)
        with _changing:
            if _open.pop(self, None) is None:
                return
            shows_results = self._view.shows_results and not self._is_one_of_many
            screen.print_above(summary(self._view, with_results=shows_results))
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
        shown = list(_open.items())
    if not shown:
        return None
    is_one = len(shown) == 1 and not shown[0][0]._is_one_of_many  # noqa: SLF001 - the class is ours
    return block(shown[0][1]) if is_one else table([view for _, view in shown], room)


def block(view: View) -> RenderableType:
    """A run in progress."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    style = _STYLE[view.tone]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    spinner = _SPINNER[next(_frame) % len(_SPINNER)]
    state = Text.assemble((f"{spinner} {view.state}", f"bold {style}"))
    if view.detail:
        state.append(f"  {view.detail}", style="dim")
    grid.add_row("state", state)
    grid.add_row("time", view.times())
    if view.job_id:
        grid.add_row("job", _job(view))
        if view.state not in ("running", "fetching results"):
            grid.add_row("queue", view.queue())
    if view.shots():
        grid.add_row("shots", view.shots().removesuffix(" shots"))
    if view.job_id:
        grid.add_row("QPU", view.cost())
    protection = view.protection()
    alarm = "bold red" if protection == "NOT WATCHED" else ""
    last = Text.assemble((protection, alarm))
    hint = "again leaves that to the watcher" if view.hint and "cancelling" in view.state else view.hint
    if hint:
        last.append(f" · {hint}", style="dim")
    grid.add_row("guard", last)
    title = Text(view.backend or "IBM Quantum", style="bold")
    return Panel(grid, title=title, title_align="left", border_style=style, expand=False)


def table(views: list[View], lines: int) -> RenderableType:
    """Several runs in at most `lines` lines, those that need attention first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    blocked = sorted({view.detail for view in views if view.state == "queued" and view.detail})[:2]
    room = max(1, lines - 3 - 2 * len(blocked))  # each may need two lines
    ranked = sorted(views, key=lambda view: (view.tone != "warning", view.began))
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    rows = [_row(view) for view in ranked[:room]]
    common: list[str] = []
    for name, values in (("backend", {view.backend for view in views}), ("shots", {view.shots() for view in views})):
        values.discard("")  # not known yet
        if len(values) <= 1 and len(views) > 1:  # what all have in common goes below the table
            common += values
            for row in rows:
                del row[name]
    for name in rows[0]:
        longest = max(len(str(row[name])) for row in rows)
        grid.add_column(name, no_wrap=True, min_width=longest if name in ("job", "state") else None)
    for row in rows:
        grid.add_row(*row.values())
    counts = Counter(view.state for view in views)
    foot = [", ".join(f"{n} {state}" for state, n in counts.most_common()), *common]
    if len(views) > room:
        foot.append(f"{len(views) - room} not shown")
    watchers = sorted({view.status.watcher for view in views if view.status and view.status.watcher})
    watched = f" · watched by pid {', '.join(map(str, watchers))}" if watchers else ""
    unwatched = sum(view.protection() == "NOT WATCHED" for view in views)
    watched += f" · {unwatched} NOT WATCHED" if unwatched else ""
    hint = next((f" · {view.hint}" for view in views if view.hint), "")
    last = Text(f"{len(views)} runs: {' · '.join(foot)}{watched}{hint}", style="dim")
    return Group(grid, *(Text(why, style=_STYLE["warning"]) for why in blocked), last)


def _row(view: View) -> dict[str, str | Text]:
    from rich.text import Text

    now = view.clock()
    return {
        "state": Text(view.state, style=_STYLE[view.tone]),
        "job": _job(view),
        "backend": Text(view.backend or "–"),
        "shots": view.shots().removesuffix(" shots") or "–",
        "time": duration(now - view.began),
        "in state": duration(now - view.changed),
        "queue": view.position(),
        "start": view.start(),
        "QPU": view.cost().removesuffix(", charge pending").removeprefix("charge ").removesuffix("imated"),
    }


def summary(view: View, *, with_results: bool) -> RenderableType:
    """A run that has ended."""
    from rich.console import Group
    from rich.text import Text

    style = _STYLE[view.tone]
    mark = "✔" if view.tone == "good" else "✘"
    line = Text.assemble((f"{mark} {view.state}", f"bold {style}"))
    if view.job_id:
        line.append(" · job ", style="dim")
        line.append_text(_job(view))
    for part in filter(None, (view.backend, view.shots())):
        line.append(f" · {part}", style="dim")
    rows: list[RenderableType] = [line, Text(f"  {view.bill()}", style="dim")]
    if view.reason():
        rows.append(Text(f"  {view.reason()}", style=style))
    if with_results and isinstance(view.outcome, RunResult):
        rows.extend(_results(view.outcome))
    return Group(*rows)


def _results(result: RunResult) -> list[RenderableType]:
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    bars, more = histogram(result)
    rows: list[RenderableType] = []
    if bars:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(width=_BAR_WIDTH)
        grid.add_column(justify="right")
        grid.add_column(justify="right", style="dim")
        for bar in bars:
            drawn = Bar(1.0, 0.0, bar.length, width=_BAR_WIDTH, color="cyan")
            grid.add_row(Text(f"  {_short(bar.name)}"), drawn, str(bar.count), f"{100 * bar.share:.1f} %")
        rows.append(grid)
    rows.extend(Text(f"  {line}") for line in expectation_lines(result))
    if more:
        rows.append(Text(f"  {more}", style="dim"))
    return rows


def _short(bits: str) -> str:
    """Abbreviate a bit string, so that the counts beside it have room."""
    return bits if len(bits) <= 2 * _SHOWN_BITS + 1 else f"{bits[:_SHOWN_BITS]}…{bits[-_SHOWN_BITS:]}"


def _job(view: View) -> Text:
    from rich.text import Text

    return Text(view.job_id or "–", style=f"link {view.url}" if view.url else "")


forks.reset_in_child(_open.clear)
