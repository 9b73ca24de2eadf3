"""What a job may take of this machine, and what it is refused for. Pure.

The service shares the machine with the programs that use it. So it refuses what would take too much of it, and says
which bound that is and how to raise it; IBM's own bounds are others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 2**30

_MOST_QUBITS = 10
_MOST_OPERATIONS = 5_000
_MOST_SAMPLING = 200_000.0
# Up to these, a simulation holds up the service for some tenths of a second: the simulator keeps Python's lock.


@dataclass(frozen=True)
class Demand:
    """What a job takes.

    Attributes:
        executions: Shots, over all circuits and sets of parameter values.
        qubits: How many qubits are entangled with one another, as far as the circuit's gates can entangle them.
        memory: Bytes.
        operations: Operations of all circuits, for each set of parameter values.
        sampling: Bits that are sampled; those of much entangled qubits, which take longer, count more.
        method: The simulator's method for a heavy job, by its name in Aer.
    """

    executions: int
    qubits: int
    memory: float
    operations: float
    sampling: float
    method: str

    @property
    def is_heavy(self) -> bool:
        """Whether its simulation would hold up the service."""
        return self.qubits > _MOST_QUBITS or self.operations > _MOST_OPERATIONS or self.sampling > _MOST_SAMPLING


@dataclass(frozen=True)
class Bounds:
    """What a job may take.

    Attributes:
        shots: Shots, over all circuits and sets of parameter values.
        qubits: Qubits that are entangled with one another.
        memory: Bytes.
    """

    shots: int = 1_000_000
    qubits: int = 24
    memory: int = 2 * GIB

    def __post_init__(self) -> None:
        """Refuse what bounds nothing.

        Raises:
            ValueError: One of them is below 1.
        """
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"max_{name} must be a whole number of at least 1, not {value!r}")

    def refusal_of_shots(self, executions: int) -> str:
        """Why a job with this many shots is refused, and how it would not be; or ""."""
        if executions <= self.shots:
            return ""
        return _refusal("runs", f"{self.shots:,} shots a job", f"{executions:,}", f"--max-shots {executions}")

    def refusal(self, demand: Demand) -> str:
        """Why a job is refused, and how it would not be; or ""."""
        if demand.qubits > self.qubits:
            option = f"--max-qubits {demand.qubits}"
            bound = f"{self.qubits} qubits entangled with one another"
            return _refusal("simulates", bound, str(demand.qubits), option)
        if demand.memory > self.memory:
            return _refusal(
                "gives", f"{gibibytes(self.memory)} to a job", f"up to {gibibytes(demand.memory)}", self._more(demand)
            )
        return self.refusal_of_shots(demand.executions)

    def out_of_memory(self, how: str = "more") -> str:
        """Why a job failed that took more memory than was expected, and more than it may."""
        bound, option = f"{gibibytes(self.memory)} to a job", f"--max-memory {2 * self.memory / GIB:g}"
        return _refusal("gives", bound, how, option)

    @staticmethod
    def _more(demand: Demand) -> str:
        return f"--max-memory {math.ceil(demand.memory / GIB * 10) / 10:g}"


def _refusal(does: str, bound: str, needed: str, option: str) -> str:
    return (
        f"The embedded service {does} at most {bound}, and this one needs {needed}; make it smaller, or start a "
        f"service that allows more: qx-supervisor local stop, and then qx-supervisor local start {option}"
    )


def gibibytes(amount: float) -> str:
    """An amount of memory in words."""
    return f"{amount / GIB:.2g} GiB" if amount < 1000 * GIB else f"{amount / GIB:.0e} GiB"
