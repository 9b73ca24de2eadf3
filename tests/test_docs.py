"""The documentation: every example runs, every command line parses, and it builds without a warning.

A page's blocks run in order and in one namespace, as a reader would type them. The saved account is the embedded
service of the tests, which is also what they get who start one. Three kinds of block go elsewhere: a program (it has a
`__main__` part) is run by an interpreter of its own, a file of tests by pytest, and what awaits at the top level runs
in an event loop, as a notebook's cell does.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import html
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from testkit.pages import BEFORE, BLOCKS, CHECKOUT, COMMAND, DOCS, PAGES, Block, assert_runs, commands_in, parse, uses
from testkit.processes import DEADLINE

import qx_supervisor
from qx_supervisor import local, threads
from qx_supervisor.cli import main
from qx_supervisor.flight import polling

# What needs an engine is run by `engines/test_examples.py`, where that engine is installed.
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page.name != "engines.md"]


# Python -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(ibm: local.Service, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The saved account is the embedded service, and what is saved goes to a file of the test's."""
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.accounts import management

    class SavedAccount(qiskit_ibm_runtime.QiskitRuntimeService):
        def __new__(cls) -> Any:
            return service

    class Service(local.Service):
        """One for all who start it, as new; a watcher may have to ask it still when an example has ended."""

        def stop(self) -> None: ...

    saved = tmp_path / "qiskit-ibm.json"
    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(saved))
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", SavedAccount)
    monkeypatch.setattr("qx_supervisor.service.accounts.default_service", lambda: service)

    begin = local.start

    def start(**settings: Any) -> local.Service:
        if "instances" in settings:
            return begin(**settings)
        ibm.reset()
        return Service(ibm.pid, ibm.port)

    monkeypatch.setattr(local, "start", start)
    return saved


class Heard:
    """Which tests have passed."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.append(report.nodeid.rpartition("::")[2])


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda page: page.name)
@pytest.mark.long
def test_examples_run(ibm, account, page, tmp_path):
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in PYTHON:
        if block.page == page:
            execute(block, namespace, ibm, tmp_path)
    for left in threads.runs():  # what a page let go is not to be submitted in the next test
        left.outcome.exception(DEADLINE)
    assert [job.status for job in ibm.wait_idle() if not job.is_final] == []


def execute(block: Block, namespace: dict[str, Any], ibm: local.Service, folder: Path) -> None:
    if '__name__ == "__main__"' in block.code:
        program = folder / f"example_{block.line}.py"
        program.write_text(BEFORE.format(pid=ibm.pid, port=ibm.port) + block.code)
        assert_runs(program)
    elif re.search(r"^def test_", block.code, re.MULTILINE):
        # Not by pytest's own `pytester`: at its end it takes back all imports, also those of other tests' modules.
        tests = folder / f"test_example_{block.line}.py"
        tests.write_text(block.code)
        heard = Heard()
        options = ["-p", "no:cacheprovider", "--import-mode", "importlib", "--rootdir", str(folder)]
        assert pytest.main([*options, str(tests)], plugins=[heard]) == 0
        assert heard.passed == re.findall(r"^def (test_\w+)", block.code, re.MULTILINE)
    else:
        # Tracebacks name the page and its line.
        code = compile("\n" * (block.line - 1) + block.code, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)


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
    assert named <= read
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


@pytest.mark.long
def test_the_picture_shows_the_panel_as_it_is(monkeypatch):
    """The one in the README is what the script makes of a run now."""
    monkeypatch.setattr(polling, "COST_SECONDS", DEADLINE)  # "charged" is in it
    spec = importlib.util.spec_from_file_location("picture", CHECKOUT / "scripts" / "picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    made = pictured(picture.on_a_terminal(*picture.views()))
    gc.collect()
    assert "queued" in made
    assert made == pictured((DOCS / "panel.svg").read_text())


def test_links_of_the_readme():
    text = (CHECKOUT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).exists()] == []
