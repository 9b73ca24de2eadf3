"""Columns of text: one line a row, cells two spaces apart, as `docker ps` prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .. import text_width
from ..text_width import cut_end, cut_middle

GAP = "  "
LEAST = 6
"""Columns are not made narrower than that."""

LEGIBLE = {"BACKEND": 8, "HOST": 10, "JOB": 20, "LABEL": 12, "PROGRAM": 16}
"""Nor narrower than that, while another column can give: so much still tells one from another."""

NAMES = frozenset({"HOST", "KEY", "LABEL"})
"""Columns that are cut in the middle: users' own words, and hosts with a process id."""


def lines(
    header: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    width: int,
    gives: Sequence[str],
    drops: Sequence[str] = (),
) -> Iterator[str]:
    """Lay out a table.

    Args:
        header: The columns' names.
        rows: The cells of each row, by column; one that is missing or empty is shown as "-".
        width: How many characters a line may have; 0: any number.
        gives: The columns that are made narrower where that is too little, in turn.
        drops: Those that are left out, in turn, where the others would not be legible.
    """
    cells = {name: [text_width.one_line(row.get(name, "")) or "-" for row in rows] for name in header}
    widths = {name: max([len(name), *map(text_width.width, found)]) for name, found in cells.items()}

    def needed(name: str) -> int:
        return min(widths[name], max(LEGIBLE.get(name, LEAST), len(name))) if name in gives else widths[name]

    for name in drops:
        if width and sum(len(GAP) + needed(each) for each in widths) - len(GAP) > width:
            widths.pop(name, None)
    excess = sum(widths.values()) + len(GAP) * (len(widths) - 1) - width if width else 0
    for least in (LEGIBLE, {}):
        for name in filter(widths.__contains__, gives):
            given = min(max(excess, 0), max(widths[name] - max(least.get(name, LEAST), len(name)), 0))
            widths[name] -= given
            excess -= given
    for row in (
        {name: name for name in header},
        *({name: cells[name][i] for name in widths} for i in range(len(rows))),
    ):
        yield GAP.join(_fitted(row[name], places, is_name=name in NAMES) for name, places in widths.items()).rstrip()


def chosen(header: Sequence[str], ranked: Mapping[str, int], width: int) -> list[str]:
    """The columns that there is room for, whatever is in them: a table that is drawn again and again keeps its columns.

    Args:
        header: The columns' names.
        ranked: The width that each column needs, the most important one first.
        width: How many characters a line may have.
    """
    left = width
    found: set[str] = set()
    for name, needed in ranked.items():
        left -= needed + (len(GAP) if found else 0)
        if found and left < 0:
            break
        found.add(name)
    return [name for name in header if name in found]


def _fitted(text: str, width: int, *, is_name: bool) -> str:
    text = cut_middle(text, width) if is_name else cut_end(text, width)
    return text + " " * (width - text_width.width(text))
