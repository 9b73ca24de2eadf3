"""What tests of the ledger share: rows, a clock to set, and one-file programs that use one."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from qx_supervisor.watcher.host_identity import HostIdentity, start_ticks, this_host
from qx_supervisor.watcher.ledger import Row

A_PLACE = HostIdentity("m" * 32, "host", "boot", 7)


def make_row(run: str = "r1", **values: Any) -> Row:
    """A row of this process's."""
    given: dict[str, Any] = {
        "host_identity": this_host(),
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        **values,
    }
    return Row(run=run, **given)


class Clock:
    """Stands still until `now` is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a child prints. A child that died says so by an end of file."""
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text, f"the child ended with {process.wait()}"
    return text.rstrip("\n")


def tell(process: subprocess.Popen[str], text: str) -> None:
    """Write a line to a child's stdin."""
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()
