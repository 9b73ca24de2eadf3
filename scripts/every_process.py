"""Runs something in every process that the tests start, before anything else.

A Python of the virtual environment runs it by a .pth file, which `hooked` puts there for the time of a run, and which
does nothing without a variable that the tests inherit. A watcher runs with neither site-packages nor that variable
(`python -I -S -c`), so it is started by way of a file in the folder of the run: whoever starts one runs the same first,
and has its `subprocess.Popen` put that file in the place of `-c`. To replace `sys.executable` by a program that does
the same was rejected: it shows in messages and in every program that a test starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

VARIABLE = "TESTS_RUN_FIRST"
"""Names the folder of the run, to the processes that the tests start. `QX_` begins the settings that are known."""

SCRIPTS = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs each process 5 ms


@contextlib.contextmanager
def hooked(folder: str, call: str) -> Iterator[dict[str, str]]:
    """Have every Python of this environment that has the variable run something first, for the time of a block.

    Args:
        folder: A folder of this run's own.
        call: What is run: a call of a function in one of the modules beside this one, as in `module.function(1)`.

    Yields:
        The environment for the tests.
    """
    import sysconfig
    from pathlib import Path

    module = call.partition(".")[0]
    load = f"import sys\nsys.path.append({SCRIPTS!r})\nimport every_process, {module}\nsys.path.pop()\n"
    starter = Path(folder) / "watcher.py"
    starter.write_text(f"{load}every_process.be_watcher(lambda: {call})\n")
    code = f"{load}{call}\nevery_process.follow_watchers({str(starter)!r})\n"
    # Once only: in a virtual environment Python reads such files twice.
    is_ours = f"os.environ.get({VARIABLE!r}) == {folder!r} and {module!r} not in sys.modules"
    file = Path(sysconfig.get_path("purelib")) / f"{Path(folder).name}.pth"
    file.write_text(f"import os, sys; {is_ours} and exec({code!r}, {{}})\n")
    try:
        yield {**os.environ, VARIABLE: folder}
    finally:
        file.unlink()


def follow_watchers(starter: str) -> None:
    """Have the watchers that this process starts run the same first.

    Args:
        starter: A program that calls `be_watcher`. Its path is in the watcher's command line, so it is none of the
            checkout's.
    """
    import subprocess

    begin: Callable[..., None] = subprocess.Popen.__init__

    def __init__(self: Any, args: Any, *more: Any, **named: Any) -> None:  # noqa: N807 - it replaces one
        if isinstance(args, list) and args[1:3] == ["-I", "-S"] and "-c" in args:
            code = args.index("-c")
            args = [*args[:code], starter, *args[code + 1 :]]
        begin(self, args, *more, **named)

    subprocess.Popen.__init__ = __init__  # type: ignore[method-assign]


def be_watcher(first: Callable[[], object]) -> None:
    """Do what `python -c` does with this process's arguments, after something else."""
    _, code, *arguments = sys.argv
    sys.argv = ["-c", *arguments]
    with contextlib.suppress(Exception):
        first()
    exec(code, {"__name__": "__main__"})
