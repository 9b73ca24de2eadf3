"""Budgets of QPU time, and what is left of them: the rules, without any database.

Each POST takes a reservation first: so many seconds, and its job is posted with no more than that as its maximum
execution time. A reservation counts in full until it is known what all jobs of its run were charged; from then on the
charge counts. So whatever dies, and whenever, what was charged and what may be charged still is never more than the
budget.

A *standing* budget was set by a command, for all drivers of a ledger, and may be for a period, an instance or a label.
Any other is a program's own, and has a name that no other program's has.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

Period = Literal["", "day", "week", "month"]
"""How often a standing budget begins anew, at midnight UTC, a week's on Monday; "": never."""

PERIODS: tuple[Period, ...] = ("", "day", "week", "month")

SLACK = 1e-6
"""What sums of charges may be off by, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A budget.

    Attributes:
        name: Tells it from all others.
        seconds: Its QPU time, in seconds.
        is_standing: Whether it was set for all drivers of the ledger.
        period: How often it begins anew.
        instance: The CRN of the instance whose jobs it is for; "": of all.
        label: The label of the runs that it is for; "": of all.
        created_at: When it was set.
    """

    name: str
    seconds: float
    is_standing: bool = False
    period: Period = ""
    instance: str = ""
    label: str = ""
    created_at: float = 0.0

    def is_for(self, instance: str, label: str) -> bool:
        """Whether it is for a run in an instance, with a label."""
        return self.instance in ("", instance) and self.label in ("", label)

    @property
    def words(self) -> str:
        """What a message calls it."""
        scope = f" for the label {self.label!r}" if self.label else ""
        scope += f" for the instance {self.instance}" if self.instance else ""
        per = f" per {self.period}" if self.period else ""
        return f"the budget of {self.seconds:g} s{per}{scope}"


def standing(seconds: float, period: Period, instance: str, label: str) -> Budget:
    """A standing budget. There is one for each period, instance and label, and so the name is made of them."""
    word = f"={label}" if label == "any" or label.startswith("=") else label
    name = f"per {period or 'ever'}, instance {instance or 'any'}, label {word or 'any'}"
    return Budget(name=name, seconds=seconds, is_standing=True, period=period, instance=instance, label=label)


def bounds(budget: Budget, now: float) -> tuple[float, float | None]:
    """When the present period of a budget began, and when the next one begins (None: never)."""
    if not budget.is_standing:
        return 0.0, None
    if not budget.period:
        return budget.created_at, None
    import datetime  # a watcher loads no calendar to start

    midnight = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match budget.period:
        case "day":
            began, ends = midnight, midnight + datetime.timedelta(days=1)
        case "week":
            began = midnight - datetime.timedelta(days=midnight.weekday())
            ends = began + datetime.timedelta(days=7)
        case _:
            began = midnight.replace(day=1)
            ends = (began + datetime.timedelta(days=32)).replace(day=1)
    return began.timestamp(), ends.timestamp()


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What has become of a budget in its present period.

    Attributes:
        budget: The budget.
        spent: What was charged, in seconds.
        reserved: What jobs may still be charged that are not over, or whose charge is not known.
        pending: The part of that which is held by runs that are over: only their charge is waited for.
        began: When the period began.
        ends: When the next one begins; None: never.
        largest: The labels, or programs without one, whose runs count the most, with their seconds.
    """

    budget: Budget
    spent: float
    reserved: float
    pending: float = 0.0
    began: float = 0.0
    ends: float | None = None
    largest: tuple[tuple[str, float], ...] = ()

    @property
    def left(self) -> float:
        """What may be reserved, in seconds."""
        return max(0.0, self.budget.seconds - self.spent - self.reserved)


@dataclass(frozen=True, kw_only=True)
class ReservationWish:
    """What a run asks for before a POST.

    Attributes:
        run: The run.
        post: A word for its POST: asked again for the same one, it is told the same.
        instance: The CRN of the instance that the job goes to.
        label: The run's label.
        most: The maximum execution time that it would have otherwise, in seconds.
        least: What is of use to it.
        own: The program's own budgets that it is to count for.
    """

    run: str
    post: str
    instance: str
    label: str
    most: int
    least: int = 1
    own: Collection[Budget] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What it is told.

    Attributes:
        seconds: The maximum execution time that its job may have; None: no budget is for it, or it is refused.
        tightest: The budget that has the least left, as it was before.
        is_over: Whether it is refused because the run is over in the ledger: what it had reserved is free by now.
    """

    seconds: int | None = None
    tightest: Balance | None = None
    is_over: bool = False


def judge(wish: ReservationWish, balances: Collection[Balance]) -> Reserved:
    """What may be reserved, by the budgets that are for a run.

    Whole seconds are, for such is a maximum execution time.
    """
    if not balances:
        return Reserved()
    tightest = min(balances, key=lambda balance: balance.left)
    seconds = min(wish.most, math.floor(tightest.left + SLACK))
    return Reserved(seconds=None if seconds < wish.least else seconds, tightest=tightest)
