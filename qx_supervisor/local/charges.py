"""What jobs cost: QPU seconds by a rule, which a test sets, and the bound at which the service ends a job.

localqpu charges nothing and knows no maximum execution time. Here, as at IBM, a job is charged the QPU time that it
has taken when it ends, however it ends, and is cancelled with the code 1305 when it has taken all that it may. The
jobs of a session are charged like others; IBM charges the session's wall clock instead.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

LONGEST = 10_800.0
"""QPU seconds that IBM allows any job."""

TOO_LONG = 1305
"""IBM's reason code of a job that has taken all that it may."""

_DEFAULT_SHOTS = 4096  # of a sampler's options


@dataclass(frozen=True)
class Rule:
    """What jobs cost.

    Attributes:
        fixed: QPU seconds that a job takes.
        per_shot: QPU seconds that it takes for each shot besides.
        estimate: The estimate, as a multiple of what the job will take; None: no estimate is given.
        speed: QPU seconds that pass per second in a running job. None: they pass only when a test has them pass, and
            those that are left at the job's end, at once.
        pending: Seconds after a job's end for which its charge is pending; None: for ever.
    """

    fixed: float = 0.0
    per_shot: float = 0.0
    estimate: float | None = None
    speed: float | None = None
    pending: float | None = 0.0

    def __post_init__(self) -> None:
        """Refuse what is not a number of at least 0."""
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")

    def need(self, params: dict[str, Any]) -> float:
        """The QPU seconds that a job with these parameters takes."""
        return self.fixed + self.per_shot * shots_of(params)


def bound_of(cost: object) -> float:
    """The QPU seconds that a job may take, by the field of its submission that has its maximum execution time.

    Raises:
        ValueError: The field is not a whole number of at least 1.
    """
    if cost is None:
        return LONGEST
    if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
        raise ValueError(f"Key: 'ProgramRunParams.Cost' Error: {cost!r} is not a whole number of at least 1.")
    return min(float(cost), LONGEST)


def shots_of(params: Any) -> int:
    """The shots of a job, over all its circuits and sets of values; 0 if its parameters can't be read."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        program = params.get("quantum_program")
        if program is not None:
            return int(program["shots"]) * sum(sets_of_values(item) for item in program["items"])
        default = (params.get("options") or {}).get("default_shots") or _DEFAULT_SHOTS
        return sum(int((len(pub) > 2 and pub[2]) or default) for pub in params["pubs"])
    return 0


def sets_of_values(item: dict[str, Any]) -> int:
    """The sets of parameter values with which the circuit of an item of the program ``executor`` is executed."""
    if item["item_type"] == "samplex":
        return math.prod(item["shape"])
    return math.prod(item["circuit_arguments"]["shape"][:-1])
