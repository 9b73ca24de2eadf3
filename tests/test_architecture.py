"""What is written for contributors names what there is: paths, packages, and no more words than one can learn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
ARCHITECTURE = CHECKOUT / "docs" / "architecture.md"
PAGES = [ARCHITECTURE, CHECKOUT / "CONTRIBUTING.md", CHECKOUT / "SECURITY.md"]
MOST_TERMS = 25

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"[\w.-]+/[\w./-]*|[\w.-]+\.(?:py|md|cfg)")


def paths(text: str) -> list[str]:
    """What stands in backticks and is a path of the repository; of a command line, its first word."""
    words = [span.split()[0] for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)) if span.strip()]
    return [word for word in words if PATH.fullmatch(word) and not word.startswith(".venv/")]


PUBLIC = ("exceptions", "fake_provider")
"""Modules of Qiskit's client that its documentation names."""


def test_what_is_not_public_of_the_client_is_named_in_one_module() -> None:
    """But for the embedded service, which has a client of its own, and the hook of `exec`, which imports nothing."""
    package = CHECKOUT / "qx_supervisor"
    named = {}
    for file in package.rglob("*.py"):
        modules = set(re.findall(r"\bqiskit_ibm_runtime\.([a-z]\w*)", file.read_text())) - {*PUBLIC, "__version__"}
        if modules and file.relative_to(package).parts[0] not in ("local", "injected"):
            named[str(file.relative_to(package))] = modules
    assert list(named) == ["service/internals.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_is_there(page: Path) -> None:
    named = paths(page.read_text())
    assert named
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


def test_a_path_is_told_from_other_words() -> None:
    """The check can fail."""
    text = "`nowhere/a.py`, `b.md`, `scripts/c --all`, `done`, `/proc/1`, `.venv/bin/d`, `a / b`\n```sh\n`e/f`\n```\n"
    assert paths(text) == ["nowhere/a.py", "b.md", "scripts/c"]


def test_the_glossary_is_short() -> None:
    section = ARCHITECTURE.read_text().partition("\n## Glossary\n")[2].partition("\n## ")[0]
    terms = re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", section, re.MULTILINE)[1:]  # without the head
    assert 0 < len(terms) <= MOST_TERMS
    assert len(terms) == len(set(terms)) == section.count("\n| ") - 1


def test_every_package_is_named() -> None:
    named = set(paths(ARCHITECTURE.read_text()))
    packages = [file.parent for top in ("qx_supervisor", "watcher") for file in (CHECKOUT / top).rglob("__init__.py")]
    assert packages
    assert [found for found in (f"{each.relative_to(CHECKOUT)}/" for each in packages) if found not in named] == []
