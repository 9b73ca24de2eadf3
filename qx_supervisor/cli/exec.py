"""`qx-supervisor exec`: run an unchanged program and guard every job that it submits."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import settings
from . import account, hosts
from .group import debug_option

INJECTED = Path(__file__).resolve().parent.parent / "injected"
"""The folder from which Python imports our `sitecustomize` when it starts."""

_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
_TAKES_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
_LEADERS = {"env", "nohup", "nice", "ionice", "time", "timeout", "setsid", "stdbuf", "taskset", "chrt", "numactl"}
_SHEBANG = 256  # bytes of the first line that the kernel reads


class NotExecutable(click.ClickException):
    """The command can't be started; the exit code is a shell's."""

    exit_code = 126


class NotFound(click.ClickException):
    """There is no such command; the exit code is a shell's."""

    exit_code = 127


EPILOG = """\b
The exit code is the program's. If the program does not start, it is 127 if
there is no such command, 126 if the file is not executable, and 2 if its jobs
could not be guarded."""


@click.command("exec", epilog=EPILOG, context_settings={"allow_interspersed_args": False}, no_args_is_help=True)
@debug_option
@hosts.ledger_option
@click.option("--keep-on-exit", is_flag=True, help="Keep the unfinished jobs of a process that exits with status 0.")
@click.option(
    "--on-unprotected",
    type=click.Choice(["raise", "warn"]),
    default="raise",
    show_default=True,
    help="If a submission can't be guarded: raise an error and submit nothing, or submit and warn.",
)
@click.option("--label", metavar="TEXT", help="Words for its jobs, which ps and the log show.")
@click.option("--local", is_flag=True, help="Have it use this machine's embedded service, whatever account it names.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="[--] COMMAND...")
def exec_command(
    ledger_url: str | None, label: str | None, local: bool, command: tuple[str, ...], **options: Any
) -> None:
    """Run a Qiskit program unchanged, and guard its jobs.

    \b
      qx-supervisor exec -- python driver.py --shots 4096
      qx-supervisor exec -- jupyter lab
      qx-supervisor exec --local -- python driver.py

    The program replaces this process: it has the same pid, gets the signals, and sets the exit code. When a process
    ends, for whatever reason, the unfinished jobs that it submitted are cancelled. This includes child processes. A
    process that ends by itself names these jobs on stderr. Does not work with python -I, -E or -S.
    """  # noqa: D301 - click's mark for a paragraph that must not be wrapped
    from ..about import check_label

    hosts.use(ledger_url)
    program = _find(command[0])
    option = unguardable(command) or _in_shebang(program)
    if option:
        raise click.UsageError(
            f"python {option} keeps out what guards the jobs; leave {option} away, or call qx_supervisor.run in the "
            "program itself"
        )
    if os.pathsep in str(INJECTED):
        raise click.ClickException(
            f"PYTHONPATH can't hold {INJECTED}; install qx-supervisor in a folder without a colon"
        )
    if local:
        account.find_or_start()  # here, where what is missing for it ends the command with a sentence
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would inherit that
        signal.signal(number, signal.SIG_DFL)
    its_environment = environment(os.environ, label=check_label(label), local=local, **options)
    try:
        os.execve(program, command, its_environment)  # noqa: S606 - the user's own command
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a shell would run it as a shell script
            reason = f"{command[0]} is no program; name what runs it: qx-supervisor exec -- python {command[0]}"
        else:
            reason = f"{command[0]} can't be started: {error.strerror}"
        raise NotExecutable(reason) from None


def environment(
    base: os._Environ[str] | dict[str, str],
    *,
    keep_on_exit: bool,
    on_unprotected: str,
    label: str = "",
    local: bool = False,
) -> dict[str, str]:
    """Return the program's environment, in which each Python finds our `sitecustomize` first."""
    made = {**base, settings.ON_UNPROTECTED: on_unprotected}
    others = [entry for entry in base.get("PYTHONPATH", "").split(os.pathsep) if entry != str(INJECTED)]
    # An empty PYTHONPATH means none, but an empty entry in it means the working directory.
    made["PYTHONPATH"] = os.pathsep.join([str(INJECTED), *(others if any(others) else [])])
    made.pop(settings.KEEP_ON_EXIT, None)  # it belongs to an outer `exec`
    if keep_on_exit:
        made[settings.KEEP_ON_EXIT] = "1"
    if label:
        made[settings.LABEL] = label
    if local:
        made[settings.LOCAL] = "1"
    made.setdefault(settings.LOG_LEVEL, "WARNING")  # the program does not configure our logger
    return made


def unguardable(command: Sequence[str]) -> str:
    """Return the Python option that disables our `sitecustomize`, such as "-I", or ""."""
    words = list(command)
    if Path(words[0]).name in _LEADERS:
        while words and not _is_python(words[0]):
            words.pop(0)
    if not words or not _is_python(words[0]):
        return ""
    arguments = iter(words[1:])
    for word in arguments:
        if word in _TAKES_VALUE:
            next(arguments, None)
        elif not word.startswith("-") or word in ("-", "--"):
            break
        elif not word.startswith("--"):
            for letter in word[1:]:
                if letter in "IES":
                    return f"-{letter}"
                if letter in "cmWX":  # the rest is its value
                    break
            if re.match(r"-[^WX]*[cm]", word):
                break
    return ""


def _is_python(word: str) -> bool:
    return _PYTHON.fullmatch(Path(word).name) is not None


def _in_shebang(program: str) -> str:
    """Return such an option from a script's shebang line, or ""."""
    try:
        with Path(program).open("rb") as file:
            first = file.read(_SHEBANG).partition(b"\n")[0]
    except OSError:
        return ""
    if not first.startswith(b"#!"):
        return ""
    words = first[2:].decode(errors="replace").split()
    return unguardable(words) if words else ""


def _find(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    path = Path(name)
    if path.is_file() and path.suffix == ".py":
        raise NotExecutable(f"{name} is not executable; try: qx-supervisor exec -- python {name}")
    if path.exists() and os.sep in name:
        raise NotExecutable(f"{name} is not executable; see chmod +x")
    raise NotFound(f"{name} is not found; see whether it is installed and on PATH")
