"""Run jobs on IBM Quantum from long-running programs; whatever kills the program, its jobs are cancelled.

from qx_supervisor import run
result = run(circuit, "ibm_brisbane", shots=4096)
"""

from . import logs
from .errors import (
    ConfigError,
    Interrupted,
    JobCancelled,
    JobFailed,
    QxError,
    RunError,
    RunTimeout,
    SubmitError,
    WatcherError,
)
from .guard import guard
from .reap import Reaped, reap
from .result import Err, Ok, RunResult
from .run import run, submit, try_run
from .status import Status
from .submitted import Run

__all__ = [
    "ConfigError",
    "Err",
    "Interrupted",
    "JobCancelled",
    "JobFailed",
    "Ok",
    "QxError",
    "Reaped",
    "Run",
    "RunError",
    "RunResult",
    "RunTimeout",
    "Status",
    "SubmitError",
    "WatcherError",
    "guard",
    "reap",
    "run",
    "submit",
    "try_run",
]

logs.set_up()
