"""Runs a command, and says what it took: wall time, and the CPU time of all that it started.

Watchers and services are nobody's children in the end, so nobody's account has them. For the time of the command this
process is the one that such orphans fall to (prctl(2), PR_SET_CHILD_SUBREAPER), and it reaps them.

Arguments: the command. The exit status is the command's.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NAME = 15


def main() -> int:
    """Run it; returns the exit status."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # It kills no orphan, and is named so: drivers warn of supervisors that may.
    library.prctl(PR_SET_NAME, b"init", 0, 0, 0)
    began, before = time.monotonic(), _spent()  # this process may have been another program before, with children
    command = subprocess.Popen(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the command too, which decides
    signal.signal(signal.SIGTERM, lambda *_: command.terminate())
    status = None
    while status is None:
        pid, ended = os.wait()
        if pid == command.pid:
            status = command.returncode = os.waitstatus_to_exitcode(ended)
    wall, cpu = time.monotonic() - began, _spent() - before
    print(f"took {wall:.0f} s, and {cpu:.0f} s of CPU with all processes that it started", flush=True)
    return 128 - status if status < 0 else status


def _spent() -> float:
    """CPU seconds of all children that have been waited for, and theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    sys.exit(main())
