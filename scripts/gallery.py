"""The documentation's gallery: every module in scripts/pictures/ draws its pictures, and a page shows them.

A module has a function `draw(folder: Path) -> list[Path]`, which writes pictures to a folder and returns them. The
first line of its docstring is the heading on the page, and the rest is the text.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pictures
from testkit.browser import Missing
from testkit.pages import DOCS

PAGE = DOCS / "gallery.md"

HEAD = """\
# Gallery

<!-- scripts/gallery writes this page: change the modules in scripts/pictures/ instead. -->

What you see of `qx_supervisor`. `scripts/gallery` draws these pictures with the code that draws the real thing, from
runs on the [embedded service](testing.md).
"""


def names() -> list[str]:
    """The modules that draw."""
    return sorted(found.name for found in pkgutil.iter_modules(pictures.__path__))


def page(drawn: Mapping[str, Sequence[Path]]) -> str:
    """The page that shows the pictures.

    Args:
        drawn: What each module has drawn.
    """
    parts = [HEAD]
    for name, paths in drawn.items():
        heading, _, text = (importlib.import_module(f"pictures.{name}").__doc__ or name).partition("\n")
        parts.append(f"## {heading.rstrip('.')}\n")
        if text.strip():
            parts.append(f"{text.strip()}\n")
        parts += [f"![{heading.rstrip('.')}: {path.stem.replace('-', ' ')}](_static/{path.name})\n" for path in paths]
    return "\n".join(parts)


def main(chosen: Sequence[str]) -> None:
    """Draw.

    Args:
        chosen: The modules that draw; none: all, and the page is written.
    """
    known = names()
    if unknown := sorted(set(chosen) - set(known)):
        sys.exit(f"there is no picture {unknown[0]!r}; choose from {', '.join(known)}")
    try:
        drawn = {name: importlib.import_module(f"pictures.{name}").draw(DOCS / "_static") for name in chosen or known}
    except Missing as missing:
        sys.exit(f"{missing}; then start scripts/gallery again")
    for paths in drawn.values():
        print(*(path.relative_to(DOCS.parent) for path in paths), sep="\n")
    if not chosen:
        PAGE.write_text(page(drawn))


if __name__ == "__main__":
    main(sys.argv[1:])
