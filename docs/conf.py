"""How Sphinx builds the documentation: `scripts/docs`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for command_reference

project = "qx_supervisor"
author = "The qx_supervisor developers"
project_copyright = f"2026, {author}"
version = release = version_of("qx-supervisor")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_reference",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"qx_supervisor {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# Names in signatures that other projects document (the build fetches no inventories), and our own type aliases, whose
# values the text beside them lists.
nitpick_ignore_regex = [
    ("py:class", r"(collections\.abc|os|types)\.\w+"),
    ("py:class", r"(qiskit\.[\w.]+\.)?PrimitiveResult|QiskitRuntimeService|PubResult"),
    ("py:class", r"CancelOutcome|Fate|OnStatus|PanelName|Pubs|Stage|TypeAliasForwardRef"),
    ("py:class", r"qx_supervisor\.(guard\.Guard|result\.T)"),
]

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def prepare(_app: Sphinx, _what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Adapt a docstring to Sphinx.

    Our docstrings write `name` for code, as comments do. They also leave types to the signatures, but Napoleon would
    take text before a colon in the first line below `Returns:` for a type.
    """
    lines[:] = [CODE.sub(r"``\1``", line) for line in lines]
    for i, line in enumerate(lines):
        if line.strip() == "Returns:":
            lines.insert(i + 1, line.replace("Returns:", "    \\ "))
            break


def setup(app: Sphinx) -> None:
    """Called by Sphinx. The priority puts `prepare` before Napoleon."""
    app.connect("autodoc-process-docstring", prepare, priority=100)
