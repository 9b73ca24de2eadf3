"""The documentation's pages: their blocks of code, how they are run as programs, and the command lines in them."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .processes import DEADLINE

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))]

FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        """Its page and line."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["language"], found["code"])


BLOCKS = [block for page in PAGES for block in blocks(page)]


def assert_runs(program: Path, *starter: str, seconds: float = 4 * DEADLINE, **variables: str) -> str:
    """Run a program in a session of its own, to its end: it must exit 0. Returns what it has written."""
    output = program.with_suffix(".txt")
    command = [*starter, sys.executable, str(program)]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": program.parent, "env": {**os.environ, **variables}}
    with (
        output.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **streams) as running,
    ):
        try:
            code = running.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # and what it has started
    written = output.read_text()
    assert code == 0, written
    return written


BESIDE = ("mitiq", "pennylane", "qiskit_addon_cutting", "qiskit_algorithms", "qiskit_machine_learning")
"""Libraries that examples need beside. Each has one example, which imports it first of all."""


def library_of(block: Block) -> str:
    """The library that an example needs beside, or ""."""
    words = block.code.split() if block.language == "python" else []
    first = words[1].partition(".")[0] if len(words) > 1 else ""  # "import x", "from x.y import z"
    return first if first in BESIDE else ""


def as_programs(page: Path) -> dict[str, str]:
    """The programs that a page's Python is, by a name for each: what a reader would type one after the other is one.

    A block that has a `__main__` part is a program of its own, and so is a file of tests. What needs a library beside
    is left out. The lines have the numbers that they have on the page, so a traceback names them.
    """
    programs: dict[str, str] = {}
    typed = ""
    for block in blocks(page):
        if block.language != "python" or library_of(block):
            continue
        is_alone = '__name__ == "__main__"' in block.code or is_tests(block.code)
        before = "" if is_alone else typed
        code = before + "\n" * (block.line - 1 - before.count("\n")) + block.code
        if is_alone:
            programs[f"{page.stem}_{block.line}"] = code
        else:
            typed = code
    if typed:
        programs[page.stem] = typed
    return programs


def is_tests(code: str) -> bool:
    """Whether it is a file of tests."""
    return re.search(r"^def test_", code, re.MULTILINE) is not None


def awaits(code: str) -> bool:
    """Whether it awaits at its top level, as only a notebook's cells may."""
    compiled = compile(code, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return bool(compiled.co_flags & inspect.CO_COROUTINE)


COMMAND = "qx-supervisor"
OPERATORS = {"&&", "||", "|", ";", "&", "(", ")", ";;", "{", "}"}
REDIRECTION = re.compile(r"\d*[<>].*")
KEYWORDS = {"then", "do", "else", "if", "while", "exec", "!"}


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell script, without redirections."""
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in OPERATORS:
                if words:
                    yield words
                words = []
            elif not REDIRECTION.fullmatch(word):
                words.append(word)


def uses(words: list[str]) -> Iterator[list[str]]:
    """The arguments of `qx-supervisor` in a command, also where another one, such as `srun`, starts it."""
    for i, word in enumerate(words):
        if word.rpartition("/")[2] == COMMAND:
            yield words[i + 1 :]
            return
        if " " in word and COMMAND in word:  # sh -c '...'
            for inner in commands_in(word):
                yield from uses(inner)


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse as the command would, and do nothing.

    Raises:
        click.UsageError: If it would refuse them.
    """
    try:
        context = command.make_context(command.name or COMMAND, list(arguments), parent=parent)
    except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return  # --help, --version, and a group by itself
    if isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])  # noqa: SLF001 - no other way
        assert found is not None, name
        parse(found, rest, context)
