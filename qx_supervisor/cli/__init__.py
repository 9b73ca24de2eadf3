"""The command `qx-supervisor`. Results go to stdout, messages to stderr.

`group`     commands that are imported on demand
`exits`     how a command ends: exit codes, errors as sentences, death by a signal
`output`    lines and JSON objects on stdout, which may be closed at any time
`account`   which account: the saved one, or the embedded service's
`files`     circuits from OpenQASM and QPY files
`results`   a job's result as a table or as JSON
`jobs`      jobs that the user names by their ids
`chosen`    jobs that the user describes: all, or by label, tag or session
`questions` questions on the terminal, before what can't be undone
`waiting`   how `wait` shows a job
`hosts`     the shared ledger

Each other module is one command. None imports Qiskit before it is called, so that `--help` and completion are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import click

from . import exits
from .group import LazyGroup, debug_option

NAME = "qx-supervisor"


class Commands(LazyGroup):
    """All commands; each ends the process with its exit code or signal."""

    places: ClassVar[dict[str, str]] = {
        "run": "run:run_command",
        "exec": "exec:exec_command",
        "ps": "ps:ps_command",
        "top": "top:top_command",
        "budget": "budget:budget_command",
        "usage": "usage:usage_command",
        "log": "log:log_command",
        "status": "status:status_command",
        "wait": "wait:wait_command",
        "cancel": "cancel:cancel_command",
        "sessions": "sessions:sessions_command",
        "backends": "backends:backends_command",
        "reap": "reap:reap_command",
        "reaper": "reaper:reaper_command",
        "login": "login:login_command",
        "page": "page:page_command",
        "doctor": "doctor:doctor_command",
        "demo": "demo:demo_command",
        "local": "local:local_command",
        "completion": "completion:completion_command",
    }

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line, and exit with its status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        words = list(sys.argv[1:] if args is None else args)

        def work() -> object:
            self._main_shell_completion(extra, NAME, complete_var)
            with self.make_context(NAME, words, **extra) as context:
                return self.invoke(context)

        sys.exit(exits.conclude(work))


EPILOG = """\b
Exit codes:
  0  done
  1  the job failed, or the command did
  2  usage error: a bad file or option, no such backend or job
  3  the job was cancelled, though not by this command
  4  authentication: no account, or it is not accepted
  5  the --timeout or --running-timeout expired
  6  a cancel or close could not be confirmed, or a reap left
     something unresolved
After Ctrl-C, SIGTERM and SIGHUP the command dies of that signal."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(package_name=NAME)
@debug_option
def main() -> None:
    """Run jobs on IBM Quantum, and cancel them when the program that submitted them dies."""
