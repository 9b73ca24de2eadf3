"""Run jobs on IBM Quantum from long-running programs; whatever kills the program, its jobs are cancelled.

from qx_supervisor import run
result = run(circuit, "ibm_brisbane", shots=4096)
"""

import os

from . import distribution, logs, service, settings
from .budget import Budget, budget, share_with_children
from .errors import (
    BudgetExceeded,
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
from .quota import Quota
from .reap import Reaped, reap
from .result import Err, Ok, RunResult
from .run import attach, run, submit, try_run
from .status import Status
from .submitted import Run
from .timeline import Timeline

__all__ = [
    "Budget",
    "BudgetExceeded",
    "ConfigError",
    "Err",
    "Interrupted",
    "JobCancelled",
    "JobFailed",
    "Ok",
    "Quota",
    "QxError",
    "Reaped",
    "Run",
    "RunError",
    "RunResult",
    "RunTimeout",
    "Status",
    "SubmitError",
    "Timeline",
    "WatcherError",
    "attach",
    "budget",
    "guard",
    "reap",
    "run",
    "submit",
    "try_run",
]


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: that takes longer than all the rest of this import may."""
    if name == "__version__":
        return distribution.version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


logs.set_up()
share_with_children()
if settings.LOCAL in os.environ:
    service.embedded.redirect_when_imported()
