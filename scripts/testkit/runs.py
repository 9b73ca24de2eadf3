"""Runs of the test's own process, whose statuses are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qx_supervisor import Status, submit

from .circuits import BACKEND, ones

if TYPE_CHECKING:
    from qiskit_ibm_runtime import QiskitRuntimeService

Acts = dict[str, Callable[[], Any]]
"""What is done at the first status of a state."""


class Running:
    """A run on the embedded service, whose statuses are kept, and at which something is done."""

    def __init__(self, service: QiskitRuntimeService) -> None:
        self.service = service
        self.statuses: list[Status] = []

    def __call__(self, acts: Acts | None = None, **arguments: Any) -> Any:
        """Begin it. `acts` name a state, at whose first status something is done, in the run's own thread."""
        left = dict(acts or {})

        def hear(status: Status) -> None:
            self.statuses.append(status)
            if status.state in left:
                left.pop(status.state)()

        arguments = {"shots": 16, "poll_interval": 0.1, "on_status": hear, **arguments}
        return submit(ones(), BACKEND, service=self.service, **arguments)

    def states(self) -> list[str]:
        """The states that were told, in order."""
        return [status.state for status in self.statuses]

    def status(self, state: str) -> Status:
        """The first status of a state."""
        return next(status for status in self.statuses if status.state == state)
