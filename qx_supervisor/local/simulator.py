"""A process that simulates one job, and may take no more memory than the job.

The service starts it for what would hold up its own threads, as the simulator keeps Python's lock while it computes. It
has a lower priority than the user's programs, is ended when its job is cancelled, and does not outlive the service.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys

import psutil

from ..watcher import system
from .bounds import Bounds

_NICENESS = 10
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main(*, service: int, shots: int, qubits: int, memory: int) -> None:
    """Simulate the job that is on standard input, and write its outcome to standard output.

    Args:
        service: The process that has started this one.
        shots: What the job may take, as in `Bounds`.
        qubits: The same.
        memory: The same. Of this process it is what it may have beyond what it has once Qiskit is loaded.
    """
    import resource  # Windows has none

    _end_with(service)
    os.nice(_NICENESS)
    from .simulation import Task, compute_within

    task = Task(**json.load(sys.stdin))
    most = psutil.Process().memory_info().vms + memory
    with contextlib.suppress(ValueError):  # macOS takes no such limit; there the estimate is the only one
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    json.dump(vars(compute_within(task, Bounds(shots, qubits, memory))), sys.stdout)


def _end_with(service: int) -> None:
    """Be killed when the service ends: there is no other way to be told while the simulator has Python's lock.

    On other systems than Linux a simulation whose service has died goes on to its end.
    """
    if system.HAS_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != service:  # it has ended already
        sys.exit(1)
