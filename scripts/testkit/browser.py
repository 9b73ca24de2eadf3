"""A headless Chromium, and the contrast of what it shows.

Playwright drives the browser of the system: on Debian, the package `chromium`. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")

LEAST_CONTRAST = 4.5
"""What WCAG 2.2 asks for text of ordinary size (success criterion 1.4.3)."""


class Missing(Exception):
    """There is no browser, or nothing to drive it with; the message says what to install."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser.

    Raises:
        Missing: There is none here.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise Missing("Playwright is missing: pip install '.[browser]'") from None
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise Missing("Chromium is missing (on Debian: apt-get install chromium)")
    # The sandbox needs rights that a container's root has not; nothing is opened but pages of our own.
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Contrast:
    """A piece of text on a page, and the contrast that it has.

    Attributes:
        text: Its beginning.
        colour: Its colour, as the browser computes it.
        background: What is behind it, as far as that has a colour.
        ratio: The contrast, from 1 to 21.
    """

    text: str
    colour: str
    background: str
    ratio: float


def contrasts(page: Page, selector: str = "body") -> list[Contrast]:
    """The contrast of every piece of visible text in the elements that a selector finds."""
    found: list[dict[str, Any]] = page.evaluate(_CONTRASTS, selector)
    return [Contrast(**each) for each in found]


# Colours are drawn on a canvas of one pixel, which knows every notation; transparent ones lie over what is behind them.
_CONTRASTS = """selector => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, bottom) => [0, 1, 2].map(i => top[i] * top[3] + bottom[i] * (1 - top[3]));
  const luminance = colour => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const css = colour => `rgb(${colour.slice(0, 3).map(Math.round).join(", ")})`;
  const seen = [];
  for (const root of document.querySelectorAll(selector)) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.textContent.trim();
      const element = walker.currentNode.parentElement;
      if (!text || !element.checkVisibility({checkOpacity: false, checkVisibilityCSS: true})
          || ["STYLE", "SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
      const line = [];
      let opacity = 1;
      for (let each = element; each; each = each.parentElement) line.push(each);
      let back = matchMedia("(prefers-color-scheme: dark)").matches
        && getComputedStyle(document.documentElement).colorScheme.includes("dark") ? [18, 18, 18] : [255, 255, 255];
      for (const each of line.reverse()) {
        const style = getComputedStyle(each);
        opacity *= parseFloat(style.opacity);
        back = over(rgba(style.backgroundColor), back);
      }
      const colour = rgba(getComputedStyle(element).color);
      colour[3] *= opacity;
      const front = over(colour, back);
      const [high, low] = [luminance(front), luminance(back)].sort((a, b) => b - a);
      const ratio = (high + 0.05) / (low + 0.05);
      seen.push({text: text.slice(0, 40), colour: css(front), background: css(back), ratio});
    }
  }
  return seen;
}"""
