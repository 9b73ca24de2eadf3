"""The documentation: every example runs, every command line parses, and it builds without a warning.

A page's Python is a program, as a reader would type it: its blocks in order. A block that has a `__main__` part is one
of its own, a file of tests is run by pytest, and what awaits at the top level is the cell of a notebook. Each is run
unchanged, by an interpreter of its own, with `QX_LOCAL` for an account.
"""

from __future__ import annotations

import ast
import gc
import html
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import gallery
import pytest
from pictures import panel
from testkit.pages import (
    BLOCKS,
    CHECKOUT,
    COMMAND,
    DOCS,
    PAGES,
    as_programs,
    assert_runs,
    awaits,
    commands_in,
    is_tests,
    parse,
    uses,
)
from testkit.processes import DEADLINE, wait_for_end
from testkit.watchers import titles

import qx_supervisor
from qx_supervisor import job_cost, local
from qx_supervisor.cli import main

# What needs an engine or a library is run by `engines/test_*examples.py`, where that is installed.
EXAMPLES = {name: code for page in PAGES if page.name != "engines.md" for name, code in as_programs(page).items()}

NOTEBOOK = """\
import nbformat
from nbclient import NotebookClient
with open("{cell}") as file:
    cells = [nbformat.v4.new_code_cell(file.read())]
NotebookClient(nbformat.v4.new_notebook(cells=cells)).execute()
"""
"""A program that executes code as a notebook's cell, in a kernel."""


# Python -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user who has set `QX_LOCAL`. Programs share the service that the first of them starts."""
    folder = tmp_path_factory.mktemp("machine")
    changes = {"QX_LOCAL": "1", "QX_STATE_DIR": str(folder / "state"), "HOME": str(folder)}
    yield changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QX_STATE_DIR", changes["QX_STATE_DIR"])
        if (running := local.find()) is not None:
            running.stop()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@pytest.mark.long
def test_examples_run(name, machine, tmp_path, monkeypatch):
    """As they are written, by `QX_LOCAL` alone. What they have begun comes to its end, and the service goes on."""
    monkeypatch.setenv("QX_STATE_DIR", machine["QX_STATE_DIR"])
    before = local.find()
    code = EXAMPLES[name]
    program = tmp_path / f"{name}.py"
    if awaits(code):
        (tmp_path / "cell.py").write_text(code)
        program.write_text(NOTEBOOK.format(cell="cell.py"))
        assert_runs(program, **machine)
    elif is_tests(code):
        (tmp_path / f"test_{name}.py").write_text(code)
        program.write_text("import pytest, sys\nsys.exit(pytest.main(['-v', '-p', 'no:cacheprovider']))\n")
        written = assert_runs(program, **machine)
        passed = re.findall(r"::(test_\w+) PASSED", written)
        assert passed == re.findall(r"^def (test_\w+)", code, re.MULTILINE)
    else:
        program.write_text(code)
        assert_runs(program, **machine)
    running = local.find()
    assert running is not None or before is None
    if before is not None:
        assert (running.pid, running.port) == (before.pid, before.port)
    if running is not None:
        running.wait_idle()
    for process, title in list(titles()):
        if title.is_in(machine["QX_STATE_DIR"]):
            process.kill()  # it would go on asking a service that its example has stopped, for a quarter of an hour
            wait_for_end(process)


# Command lines ----------------------------------------------------------------------------------------------------


def mentions() -> Iterator[tuple[str, list[str]]]:
    """Every use of the command in the documentation: in shell blocks, in other files, and in the text."""
    for block in BLOCKS:
        if block.language == "sh":
            for words in commands_in(block.code):
                yield from ((block.name, found) for found in uses(words))
        elif block.language in ("ini", "yaml"):
            for line in block.code.splitlines():
                value = re.sub(r"^\s*(- |\w+\s*[=:]\s*)*", "", line)
                if COMMAND in value:
                    for words in commands_in(value):
                        yield from ((block.name, found) for found in uses(words))
    for page in PAGES:
        for found in re.finditer(r"(?<!`)`([^`\n]*\bqx-supervisor [^`\n]*)`(?!`)", page.read_text()):
            for words in commands_in(found[1]):
                yield from ((f"{page.name}: {found[1]}", each) for each in uses(words))


@pytest.mark.parametrize("where, arguments", list(mentions()))
def test_command_lines_parse(where, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if ": " in where and is_a_name(arguments):
        return
    for word in arguments:
        if word.endswith((".qasm", ".qpy", ".py")):
            Path(word).touch()
    parse(main, arguments)


def is_a_name(arguments: list[str]) -> bool:
    """Whether they are a command and nothing else: in the text, a command's name stands for the command."""
    command: click.Command | None = main
    for word in arguments:
        command = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
    return command is not None


def test_a_wrong_command_line_does_not_parse():
    """The check can fail."""
    for wrong in (["pss"], ["ps", "--al"], ["local", "begin"]):
        with pytest.raises(click.UsageError):
            parse(main, wrong)
    line = "cd x && A=/s qx-supervisor ps --all >out; sh -c 'python a.py; qx-supervisor reap' # qx-supervisor no"
    assert [found for words in commands_in(line) for found in uses(words)] == [["ps", "--all"], ["reap"]]


def test_every_command_is_described():
    text = (DOCS / "commands.md").read_text()
    context = click.Context(main)
    missing = [name for name in main.list_commands(context) if not re.search(rf"\b{COMMAND} {name}\b", text)]
    assert missing == []


def test_scripts_exist():
    named = {found for page in PAGES for found in re.findall(r"\bscripts/\w+", page.read_text())}
    assert named
    missing = [name for name in sorted(named) if not os.access(CHECKOUT / name, os.X_OK)]
    assert missing == []


def test_shell_scripts_are_well_formed():
    for block in BLOCKS:
        if block.language == "sh":
            checked = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, ""), block.name


def test_environment_variables_are_the_programs():
    """What the text calls a variable of ours, the program reads; and what users may set is described."""
    read = {found for path in sources() for found in re.findall(r"[\"'](QX_[A-Z_]+)[\"']", path.read_text())}
    named = {found for page in PAGES for found in re.findall(r"\bQX_[A-Z_]+", page.read_text())}
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", (DOCS / "logs.md").read_text(), re.MULTILINE)
    fields = {f"QX_{name.upper()}" for row in rows for name in re.findall(r"[a-z_]+", row)}  # in systemd's journal
    named -= {"QX_TEST_QISKIT"}  # which scripts/test reads
    assert named <= read | fields
    table = set(re.findall(r"^\| `(QX_[A-Z_]+)`", (DOCS / "commands.md").read_text(), re.MULTILINE))
    assert table == read - {"QX_KEEP_ON_EXIT", "QX_ON_UNPROTECTED"}  # which `exec` sets, for its children


# What the program says --------------------------------------------------------------------------------------------


def sources() -> Iterator[Path]:
    for folder in ("qx_supervisor", "watcher"):
        yield from (CHECKOUT / folder).rglob("*.py")


def said() -> str:
    """All that the program may say, one text a line, with … where something is put in."""
    texts = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%(\.\d+f|[sdgr])", "…", node.value))
    return "\n".join(texts)


def first_column(text: str) -> list[str]:
    """The code in the first cells of a page's tables."""
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE)
    return [found for cell in cells for found in re.findall(r"`([^`]+)`", cell)]


def test_messages_are_the_programs():
    everything = said()
    messages = [message for message in first_column((DOCS / "errors.md").read_text()) if "…" in message]
    assert len(messages) > 30
    assert [message for message in messages if not re.search(pattern(message), everything, re.MULTILINE)] == []
    assert not re.search(pattern("the watcher … a novel"), everything, re.MULTILINE)


def pattern(message: str) -> str:
    return ".*".join(re.escape(part) for part in message.split("…"))


def test_states_are_the_programs():
    """Every state that a run tells is described, and no other."""
    described = set(first_column((DOCS / "progress.md").read_text().partition("## The states")[2]))
    told = {"queued", "running"}  # IBM Quantum's words
    for path in sources():
        told |= set(re.findall(r"say\(\s*(?:\"\w+\"|[\w.]+), \"([^\"]+)\"", path.read_text()))
    told |= {"finished before it could be cancelled", "cancelled"}  # one or the other
    assert described == told


# The build --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as `scripts/docs` builds them."""
    folder = tmp_path_factory.mktemp("docs")
    [line] = [line for line in (CHECKOUT / "scripts/docs").read_text().splitlines() if "-m sphinx" in line]
    arguments = shlex.split(line.replace('"$@"', ""))[1:]
    assert {"-W", "-n", "--keep-going"} <= set(arguments)
    arguments[arguments.index("docs/_build/html")] = str(folder / "html")
    command = [sys.executable, *arguments, "-d", str(folder / "doctrees")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder / "html"


@pytest.mark.long
def test_it_builds_without_a_warning(built):
    """Links between pages, pictures, references and pages that nothing leads to are what Sphinx warns of."""
    assert (built / "index.html").exists()
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages == {path.stem for path in built.glob("*.html")} - {"genindex", "search"}


@pytest.mark.long
def test_the_reference_has_every_public_name(built):
    reference = (built / "reference.html").read_text()
    names = [f"qx_supervisor.{name}" for name in qx_supervisor.__all__]
    names += [f"qx_supervisor.local.{name}" for name in local.__all__]
    assert [name for name in names if f'id="{name}"' not in reference] == []


def pictured(svg: str) -> list[str]:
    """The words of a picture, with a sign for each number and each job."""
    words = " ".join(html.unescape(found) for found in re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    words = re.sub(r"\b[0-9a-f]{20}\b", "ID", re.sub(r"\d{4}-\d\d-\d\d ", "", words.replace("\xa0", " ")))
    drawn = set("─│╭╮╰╯█▏▎▍▌▋▊▉⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")  # lines, bars, and what turns
    return [word for word in re.sub(r"\d+", "N", words).split() if not set(word) <= drawn]


def test_the_first_screen_of_the_readme_shows_the_import_and_the_kill():
    first = "".join((CHECKOUT / "README.md").read_text().splitlines(keepends=True)[:48])
    for words in ("from qx_supervisor import run", "from qx_supervisor.primitives import", "kill -9", "cancelled\n```"):
        assert words in first


@pytest.mark.long
def test_the_picture_shows_the_panel_as_it_is(monkeypatch):
    """The one in the README is what the script makes of a run now."""
    monkeypatch.setattr(job_cost, "WAIT_SECONDS", DEADLINE)  # "charged" is in it
    made = pictured(panel.one_run())
    gc.collect()
    assert "queued" in made
    assert made == pictured((DOCS / "_static" / "panel.svg").read_text())


def test_the_gallery_shows_every_picture():
    """And each module in scripts/pictures has its section there."""
    text = gallery.PAGE.read_text()
    shown = set(re.findall(r"\(_static/([^)]+)\)", text))
    assert shown == {path.name for path in (DOCS / "_static").iterdir() if path.suffix in (".svg", ".png")}
    headings = [importlib.import_module(f"pictures.{name}").__doc__.partition("\n")[0] for name in gallery.names()]
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [each.rstrip(".") for each in headings]
    assert text.startswith(gallery.HEAD)


def test_a_picture_that_there_is_not():
    with pytest.raises(SystemExit, match=r"there is no picture 'nowhere'; choose from notebook, .*panel"):
        gallery.main(["panel", "nowhere"])


def test_links_of_the_readme():
    text = (CHECKOUT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).exists()] == []
