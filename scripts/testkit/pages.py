"""The documentation's pages: their blocks of code, how one is run as a program, and the command lines in them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

BEFORE = """\
import qx_supervisor.service
from qx_supervisor import local
class Service(local.Service):
    def stop(self): ...
def start():
    service = Service({pid}, {port})
    service.reset()
    return service
local.start = start
qx_supervisor.service.accounts.default_service = Service({pid}, {port}).service
"""
"""The same for a program, and for the processes that import it."""


def assert_runs(program: Path, *starter: str, seconds: float = DEADLINE) -> None:
    """Run a program in a session of its own, to its end: it must exit 0."""
    output = program.with_suffix(".txt")
    command = [*starter, sys.executable, str(program)]
    with (
        output.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as running,
    ):
        try:
            code = running.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # and what it has started
    assert code == 0, output.read_text()


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
