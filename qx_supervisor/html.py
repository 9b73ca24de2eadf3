"""HTML for notebooks, legible on light and dark backgrounds.

All text is escaped here. The only colours are accents that are legible on both; the rest is the notebook's.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

ACCENT = {"good": "#24a148", "bad": "#e5484d", "warning": "#c08000", "plain": "#4589ff"}
"""Colours by tone."""


def text(value: object) -> str:
    """Escape any value."""
    return html.escape(str(value))


def link(url: str, value: object) -> str:
    """A value as a link or, without an https URL, as text."""
    if not url.startswith("https://"):
        return f"<code>{text(value)}</code>"
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener"><code>{text(value)}</code></a>'


def card(tone: str, title: str, rows: Iterable[tuple[str, str]], more: str = "") -> str:
    """A box with a title and a table.

    Args:
        tone: "good", "bad", "warning" or "plain".
        title: HTML.
        rows: Names, as text, and values, as HTML.
        more: HTML below the table.
    """
    cell = "text-align:left;vertical-align:top;background:transparent;border:0"
    body = "".join(
        f'<tr style="background:transparent"><td style="{cell};padding:1px 14px 1px 0;opacity:.65">{text(name)}</td>'
        f'<td style="{cell};padding:1px 0">{value}</td></tr>'
        for name, value in rows
    )
    return (
        f'<div class="qx-supervisor" style="border-left:4px solid {ACCENT[tone]};padding:4px 12px;margin:4px 0;'
        'font-size:13px;line-height:1.5">'
        f'<div><strong style="color:{ACCENT[tone]}">{title}</strong></div>'
        f'<table style="border-collapse:collapse;margin:2px 0;border:0">{body}</table>{more}</div>'
    )


def bars(rows: Iterable[tuple[str, float, str]], more: str = "") -> str:
    """A histogram.

    Args:
        rows: Names, lengths from 0 to 1, and text beside the bars.
        more: Text below the bars.
    """
    cell = "text-align:left;background:transparent;border:0;padding:1px 10px 1px 0"
    body = "".join(
        f'<tr style="background:transparent"><td style="{cell}"><code>{text(name)}</code></td>'
        f'<td style="{cell}"><div style="width:240px"><div style="width:{100 * length:.1f}%;min-width:1px;height:10px;'
        f'background:{ACCENT["plain"]}"></div></div></td><td style="{cell}">{text(label)}</td></tr>'
        for name, length, label in rows
    )
    below = f'<div style="opacity:.65">{text(more)}</div>' if more else ""
    return f'<table style="border-collapse:collapse;margin:2px 0;border:0">{body}</table>{below}'
