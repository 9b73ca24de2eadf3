"""Runs the tests and says what of `qx_supervisor` and `watcher` they ran, in whatever process it ran.

Measured are the tests' own processes, drivers, what drivers fork or start, the embedded service and the watchers: see
`every_process` and `measured_process`. What dies by a signal that it can't handle, as a driver that a test kills,
counts with what it had run when it last said something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import coverage
import psutil
from every_process import VARIABLE, hooked
from measured_process import CHECKOUT, CONFIGURATION, MEASURED

PATIENCE = 60.0
"""Seconds for the last watchers to end: they wait for what their callers may have submitted, and for the service."""

PACKAGES = sysconfig.get_path("purelib")


def main() -> int:
    """Run, and report.

    Returns:
        The exit status: pytest's; if that is 0, 1 where too few lines ran.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/coverage",
        description="Runs the tests, the short ones unless told otherwise, and prints which lines and branches ran.",
        epilog="All other arguments go to pytest, as does all that follows a --.",
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="run the long tests too")
    parser.add_argument("--least", type=float, metavar="PERCENT", help="fail if a smaller part of the lines ran")
    ours, others = parser.parse_known_args()
    if "--" in others:
        others.remove("--")
    chosen = [] if ours.all else ["-m", "not long"]
    workers = ["-n", os.environ.get("QX_TEST_WORKERS") or str(2 * (os.cpu_count() or 1)), "--dist", "loadgroup"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, lambda *_: None)  # a Ctrl-C ends the tests, and what ran so far is reported
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coverage-", ignore_cleanup_errors=True))
        environment = stack.enter_context(hooked(folder, f"measured_process.measure({PACKAGES!r}, {folder!r})"))
        Path(folder).chmod(0o1777)  # drivers of other users save here too
        tests = [sys.executable, "-m", "pytest", *workers, *chosen, *others]
        with subprocess.Popen(tests, cwd=CHECKOUT, env=environment) as process:
            try:
                status = process.wait()
            except BaseException:
                process.send_signal(signal.SIGINT)  # then pytest ends what the tests have started
                raise
        _wait_for_last(folder)
        percent = _report(folder)
    if status == 0 and ours.least is not None and percent < ours.least:
        print(f"Too few: at least {ours.least:g} % of the lines must run", file=sys.stderr)
        return 1
    return status


def _wait_for_last(folder: str) -> None:
    """Wait for those that outlive the tests, such as the watchers of the processes that ran them."""
    end = time.monotonic() + PATIENCE
    while left := [process for process in psutil.process_iter() if _is_measured(process, folder)]:
        if time.monotonic() > end:
            print(f"Not counted, since they run still: {left}", file=sys.stderr)
            return
        psutil.wait_procs(left, timeout=1)


def _is_measured(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.name() == "qx-watcher":  # whose environment is not for us to see
            return process.create_time() > psutil.Process().create_time()
        return process.environ().get(VARIABLE) == folder
    return False


def _report(folder: str) -> float:
    """Print what ran.

    Returns:
        The part of the lines that ran, in percent.
    """
    made = coverage.Coverage(data_file=f"{folder}/data", config_file=CONFIGURATION, include=MEASURED, messages=False)
    try:
        made.combine([folder])
    except coverage.CoverageException as error:  # pytest was asked to run nothing
        print(error, file=sys.stderr)
        return 0.0
    files = [str(file) for pattern in MEASURED for file in Path(pattern).parent.rglob("*.py")]
    made.get_data().touch_files(files)  # those that nothing has imported count too
    made.report(show_missing=True)
    made.json_report(outfile=f"{folder}/report.json")
    totals = json.loads((Path(folder) / "report.json").read_text())["totals"]
    lines = _percent(totals["covered_lines"], totals["num_statements"])
    branches = _percent(totals["covered_branches"], totals["num_branches"])
    print(f"lines    {lines:6.2f} %  {totals['covered_lines']} of {totals['num_statements']}")
    print(f"branches {branches:6.2f} %  {totals['covered_branches']} of {totals['num_branches']}")
    return lines


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 100.0


if __name__ == "__main__":
    sys.exit(main())
