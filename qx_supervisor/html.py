"""HTML for notebooks: cards that are legible in light and dark themes, and stay true when nothing updates them.

All text is escaped here. A card says when it was made, since it may be looked at when its program is long gone: in a
saved notebook, after a reload, in a page that nbconvert has made. Nothing in it moves.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping

LIGHT = {
    "bg": "#ffffff",
    "fg": "#1f2328",
    "muted": "#59636e",
    "good": "#1a7f37",
    "bad": "#c21c2c",
    "warning": "#8a5a00",
    "plain": "#0860ca",
}
"""Colours on light backgrounds: the card's, that of text, of text that matters less, and by tone. Each pair of a text's
and the background's has a contrast of at least 4.5 to 1, as WCAG 2.2 (1.4.3) asks."""

DARK = {
    "bg": "#111111",
    "fg": "#f0f3f6",
    "muted": "#9ea7b3",
    "good": "#4ac26b",
    "bad": "#ff7b72",
    "warning": "#e0a82e",
    "plain": "#6cb0ff",
}
"""The same on dark ones."""


def _colours(scheme: Mapping[str, str]) -> str:
    return "".join(f"--qx-{name}:{value};" for name, value in scheme.items())


# The front end's theme is named by JupyterLab and nbconvert's pages in an attribute, by VS Code in a class; elsewhere
# the browser's preference counts. A front end that takes the style sheet away, such as JupyterLab for a notebook that
# it does not trust, leaves its own colours for all of it.
STYLE = (
    f"<style>.qx-supervisor{{{_colours(LIGHT)}color:var(--qx-fg);background:var(--qx-bg)}}"
    f"@media (prefers-color-scheme:dark){{.qx-supervisor{{{_colours(DARK)}}}}}"
    f':is([data-jp-theme-light="true"],.vscode-light) .qx-supervisor{{{_colours(LIGHT)}}}'
    f':is([data-jp-theme-light="false"],.vscode-dark) .qx-supervisor{{{_colours(DARK)}}}'
    # Not inherited: in a page without a doctype, tables have colours of their own.
    ".qx-supervisor :is(table,td,code,a){color:var(--qx-fg)!important;background:transparent!important}"
    ".qx-supervisor code{padding:0!important}"  # JupyterLab's would indent ids
    ".qx-supervisor a{text-decoration:underline}"
    ".qx-supervisor .qx-muted{color:var(--qx-muted)!important}</style>"
)


def text(value: object) -> str:
    """Escape any value."""
    return html.escape(str(value))


def link(url: str, value: object) -> str:
    """A value as a link or, without an https URL, as text."""
    if not url.startswith("https://"):
        return f"<code>{text(value)}</code>"
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener"><code>{text(value)}</code></a>'


def muted(content: str) -> str:
    """HTML that matters less."""
    return f'<span class="qx-muted">{content}</span>'


def as_of_now() -> str:
    """The words that say when a card was true, with the date: it may be read on another day."""
    return time.strftime("as of %H:%M:%S, %Y-%m-%d")


def card(
    tone: str,
    title: str,
    rows: Iterable[tuple[str, str]],
    more: str = "",
    *,
    detail: str = "",
) -> str:
    """A box with a title, the present time, and a table.

    Args:
        tone: "good", "bad", "warning" or "plain".
        title: HTML.
        rows: Names, as text, and values, as HTML.
        more: HTML below the table.
        detail: HTML beside the title.
    """
    cell = "text-align:left;vertical-align:top;background:transparent;border:0;padding:1px"
    body = "".join(
        f'<tr style="background:transparent"><td class="qx-muted" style="{cell} 14px 1px 0">{text(name)}</td>'
        f'<td style="{cell} 0">{value}</td></tr>'
        for name, value in rows
    )
    beside = f" · {detail}" if detail else ""
    return (
        f'{STYLE}<div class="qx-supervisor" style="border-left:4px solid var(--qx-{tone},currentColor);'
        'padding:4px 12px;margin:4px 0;font-size:13px;line-height:1.5">'
        f'<div><strong style="color:var(--qx-{tone},inherit)">{title}</strong> {muted(as_of_now() + beside)}</div>'
        f'<table style="border-collapse:collapse;margin:2px 0;border:0">{body}</table>{more}</div>'
    )


def table(rows: Iterable[Mapping[str, tuple[str, str]]]) -> str:
    """A table with a head.

    Args:
        rows: For each column's name a tone, or "", and HTML. All have the same columns.
    """
    rows = list(rows)
    cell = "text-align:left;background:transparent;border:0;padding:1px 14px 1px 0;white-space:nowrap"
    head = "".join(f'<td class="qx-muted" style="{cell}">{text(name)}</td>' for name in (rows[0] if rows else ()))
    body = "".join(
        '<tr style="background:transparent">'
        + "".join(
            f'<td style="{cell}">'
            + (f'<span style="color:var(--qx-{tone},inherit)">{value}</span>' if tone else value)
            + "</td>"
            for tone, value in row.values()
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:2px 0;border:0">'
        f'<tr style="background:transparent">{head}</tr>{body}</table></div>'
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
        f'background:var(--qx-plain,currentColor)"></div></div></td><td style="{cell}">{text(label)}</td></tr>'
        for name, length, label in rows
    )
    below = f"<div>{muted(text(more))}</div>" if more else ""
    return f'<table style="border-collapse:collapse;margin:2px 0;border:0">{body}</table>{below}'
