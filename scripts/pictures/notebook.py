"""The card in a notebook.

A run that is queued, and the same run done, in a light and in a dark theme. A card says as of when it is true: it is
still there when nobody updates it any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from testkit.browser import chromium

from qx_supervisor.panel.notebook import as_html

from .panel import views

PAGE = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><style>
body {{ margin: 0; padding: 14px; font-family: sans-serif; background: {background} }}
</style>{cards}"""

SCHEMES: dict[Literal["light", "dark"], str] = {"light": "#ffffff", "dark": "#111111"}
"""The backgrounds of JupyterLab's themes."""


def draw(folder: Path) -> list[Path]:
    """Draw the cards."""
    cards = "".join(as_html(view) for view in views("interrupting it cancels the job"))
    made = []
    with chromium() as browser:
        for scheme, background in SCHEMES.items():
            page = browser.new_page(color_scheme=scheme, viewport={"width": 640, "height": 100}, device_scale_factor=2)
            page.set_content(PAGE.format(background=background, cards=cards))
            made.append(folder / f"notebook-{scheme}.png")
            page.screenshot(path=made[-1], full_page=True)
    return made
