"""The QPU time that a run reserves before each of its POSTs, and what is raised where too little is left."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Collection

from .budget import Budget
from .errors import BudgetExceeded, WatcherError
from .link import Guarded, link
from .watcher import protocol

LONGEST_JOB = 10_800
"""Seconds of QPU time that IBM Quantum allows any job: a `max_execution_time` beyond that says nothing."""

PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds until a reservation is tried again that waits for a charge; the last one repeats."""

LOOK_EVERY = 3
"""At which of these tries the charges are asked for: mostly somebody else is about to learn them."""

CHARGE_SECONDS = 120.0
"""How long the charges of jobs that are over are waited for: IBM Quantum may settle them minutes later."""


class Reservation:
    """The reservations of one run.

    Args:
        guarded: The run, which its watcher knows.
        budgets: The program's own budgets that it is to count for.
        look_for_charges: Called now and then while charges are waited for; asks for them.
        sleep: Waits; it may raise what ends the run.
        warn: Told if the run goes on although the ledger can't say whether a budget is for it.
        is_protected: Whether a watcher guards the run.

    Attributes:
        budgets: See above.
        seconds: What the job may take, as far as budgets say; None: no budget is for it.
        answer: What the watcher said.
    """

    def __init__(
        self,
        guarded: Guarded,
        budgets: Collection[Budget],
        look_for_charges: Callable[[], object],
        sleep: Callable[[float], object],
        *,
        warn: Callable[[str], object],
        is_protected: bool,
    ) -> None:
        self.budgets = budgets
        self.seconds: int | None = None
        self.answer: protocol.ReserveAnswer | None = None
        self._guarded = guarded
        self._look_for_charges = look_for_charges
        self._sleep = sleep
        self._warn = warn
        self._is_protected = is_protected
        self._is_taken = False
        self._post = ""  # the word for the POST that was reserved for last
        self._is_away = False  # the ledger could not be asked just now

    def take(self, wanted: int | None, say: Callable[[str], object] = lambda _: None) -> int | None:
        """Reserve what the job may take, before its first POST. Called again before that has left, it is reserved once.

        Args:
            wanted: The maximum execution time that it would have without any budget.
            say: Told what is waited for.

        Returns:
            The one that it is to have.

        Raises:
            BudgetExceeded: Not enough is left.
            WatcherError: Whether enough is left can't be known.
        """
        if not self._is_taken:
            self.seconds = self._reserve(
                min(int(wanted or LONGEST_JOB), LONGEST_JOB), 1, say
            )  # NumPy has integers, too
            self._is_taken = True
        return wanted if self.seconds is None else self.seconds

    def take_again(self) -> None:
        """Reserve as much again, before a POST that may make another job than an earlier one has.

        Raises:
            BudgetExceeded: Not enough is left.
            WatcherError: Whether enough is left can't be known.
        """
        if self.seconds is not None:
            self._reserve(self.seconds, self.seconds, lambda _: None)

    def confirm(self, say: Callable[[str], object]) -> None:
        """See that it is still reserved, before a POST leaves that had to wait.

        It is not, if this host was taken for lost meanwhile. A ledger that is away is waited for, as is all else that
        keeps a POST from leaving.

        Args:
            say: Told what is waited for.

        Raises:
            BudgetExceeded: It is not, and not enough is left.
            WatcherError: It is not; or whether it is can't be known.
        """
        if self.seconds is None:
            return
        wanted = self._wanted(self.seconds, self.seconds)
        for attempt in itertools.count():
            try:
                found = self._ask(wanted)
            except WatcherError as error:
                if not self._is_away:
                    raise
                say(error.reason)
                self._sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            else:
                if found is not None and found["is_refused"]:
                    raise exceeded(found, self.seconds)
                return

    def _reserve(self, most: int, least: int, say: Callable[[str], object]) -> int | None:
        self._post = uuid.uuid4().hex
        wanted = self._wanted(most, least)
        end, has_looked = time.monotonic() + CHARGE_SECONDS, False
        for attempt in itertools.count():
            found = self.answer = self._ask(wanted)
            if found is None or not found["is_refused"]:
                break
            if not found["pending"] or time.monotonic() >= end:
                if has_looked or not found["reserved"]:
                    raise exceeded(found, least)
                has_looked = True  # a job that was detached may have ended, of which nobody has asked what it cost
                self._look_for_charges()
                continue
            say(f"{found['pending']:g} s are held by jobs that are over, until their charge is known")
            self._sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            if attempt % LOOK_EVERY == LOOK_EVERY - 1:
                self._look_for_charges()
        return found and found["seconds"]

    def _wanted(self, most: int, least: int) -> protocol.Reserve:
        guarded = self._guarded
        return protocol.Reserve(
            guarded.run,
            guarded.account,
            guarded.about.label,
            self._post,
            most,
            least,
            {budget.name: float(budget.qpu_seconds) for budget in self.budgets},
        )

    def _ask(self, wanted: protocol.Reserve) -> protocol.ReserveAnswer | None:
        found, trouble = None, "no watcher guards this run"
        is_needed, self._is_away = bool(self.budgets), False
        if self._is_protected:
            try:
                found = link.reserve(wanted)
            except WatcherError as error:
                trouble = error.reason
            else:
                if found is not None and not found["trouble"]:
                    return found
                if found is None:
                    trouble = "the watcher is of an earlier release; restart the program"
                elif found["is_refused"]:
                    raise WatcherError("submit", f"nothing was submitted: the ledger says that {found['trouble']}")
                else:
                    trouble = f"the ledger can't be asked ({found['trouble'].rstrip('.')})"
                    is_needed |= found["is_limited"]
                    self._is_away = True
        if is_needed:
            raise WatcherError(
                "submit", f"nothing was submitted, because what is left of its budget is not known: {trouble}"
            )
        if found is not None:
            self._warn(f"if a budget is set for all programs, this run is not held to it: {trouble}")
        return None


def exceeded(found: protocol.ReserveAnswer, least: int) -> BudgetExceeded:
    """The error for a run for which not enough is left."""
    left = max(0.0, found["limit"] - found["spent"] - found["reserved"])
    needs = f", and {least} s are needed for another submission" if least > 1 else ""
    parts = [f"{left:.1f} s are left of {found['words']}{needs}: {found['spent']:.1f} s are spent"]
    if found["reserved"]:
        parts.append(f"{found['reserved']:.1f} s are held for jobs that are not over, or whose charge is not known")
    why = " and ".join(parts)
    if found["largest"]:
        why += " (" + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["largest"].items()) + ")"
    if found["ends_in"] is not None:
        step = f"it begins anew in {_words(found['ends_in'])}"
    elif found["reserved"]:
        step = "give each run a max_execution_time=, since one without holds all that is left, or wait for them"
    else:
        step = "give it more"
    return with_figures(BudgetExceeded("submit", f"nothing was submitted: {why}; {step}"), found)


def with_figures(error: BudgetExceeded, found: protocol.ReserveAnswer | None) -> BudgetExceeded:
    """The error, with the budget as it was before the submission."""
    if found is not None:
        error.limit, error.spent, error.reserved = found["limit"], found["spent"], found["reserved"]
    return error


def _words(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"
