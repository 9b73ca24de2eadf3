"""What is reserved and was charged against budgets, as both ledgers keep it (`budgets` has the rules).

Nothing has to be released: a reservation of a run becomes its charge as soon as the ledger knows that the run is over,
all jobs that it may have made, and what each of them was charged, whoever has written that. Until then it counts in
full. So no death can lose a reservation, nor spend it twice.
"""

# ruff: noqa: S608 - put together from our own words
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Protocol

from .budgets import Balance, Budget, ReservationWish, Reserved, bounds, judge, standing

FINAL_SQL = "state IN ('done', 'cancelled', 'expired')"
# A partial index serves a query only if the query has its condition word for word.

LARGEST = 3
"""How many labels, or programs, are named whose runs count the most."""

KEPT_FOR = 400 * 86400.0
"""Seconds after which what was charged is forgotten: no period is longer."""


class Answer(Protocol):
    """What a database answers."""

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""

    def fetchall(self) -> list[Any]:
        """The rows."""


def tables(prefix: str, text: str, number: str) -> dict[str, list[str]]:
    """The tables of budgets, and what makes each of them where it is missing.

    Times are in seconds of the ledger's clock. A reservation outlives its run's row: a month is longer than that is
    kept.

    Args:
        prefix: What their names begin with.
        text: The dialect's type of text.
        number: The dialect's type of numbers.
    """
    columns = {
        "budgets": f"name {text} PRIMARY KEY NOT NULL, seconds {number} NOT NULL, is_standing integer NOT NULL, "
        f"period {text} NOT NULL, instance {text} NOT NULL, label {text} NOT NULL, created_at {number} NOT NULL",
        "reservations": f"run {text} PRIMARY KEY NOT NULL, instance {text} NOT NULL, label {text} NOT NULL, "
        f"seconds {number} NOT NULL, post {text} NOT NULL, latest integer NOT NULL, made_at {number} NOT NULL, "
        f"charged {number}, charged_at {number}",
        "reserved_for": f"budget {text} NOT NULL, run {text} NOT NULL REFERENCES {prefix}reservations (run) "
        "ON DELETE CASCADE, PRIMARY KEY (budget, run)",
    }
    indices = {
        "budgets": ("standing ON {} (name) WHERE is_standing = 1", "budgets_made ON {} (created_at)"),
        "reservations": (
            "reservations_open ON {} (run) WHERE charged IS NULL",
            "reservations_charged ON {} (charged_at)",
        ),
        "reserved_for": ("reserved_for_run ON {} (run)",),
    }
    return {
        f"{prefix}{name}": [
            f"CREATE TABLE {prefix}{name} ({those})",
            *(f"CREATE INDEX {prefix}{index.format(prefix + name)}" for index in indices[name]),
        ]
        for name, those in columns.items()
    }


class Spending(ABC):
    """The part of a ledger that is about budgets."""

    RUNS: ClassVar[str]
    JOBS: ClassVar[str]
    PREFIX: ClassVar[str]
    SECONDS: ClassVar[str]
    """A moment of a run, in seconds of the Unix clock."""

    @abstractmethod
    def batch(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """Make everything in the block one write, or undo all of it if the block raises."""

    @abstractmethod
    def clock(self) -> float:
        """The ledger's clock, in seconds of the Unix clock."""

    @abstractmethod
    def _execute(self, sql: str, values: Mapping[str, Any], *, durable: bool | None = None) -> Answer:
        """Execute a statement; `durable` is given if it writes."""

    @abstractmethod
    def _encoded(self, value: Any) -> Any:
        """A value as the database takes it."""

    @abstractmethod
    def _lock_budgets(self) -> None:
        """Keep others from reserving until the batch around it ends."""

    # What a run asks

    def reserve(self, wish: ReservationWish) -> tuple[Reserved, bool]:
        """Reserve QPU time for a POST that is about to leave. Durable when it returns.

        Returns:
            What it is told; and whether there is any standing budget, be it for others.
        """
        if not wish.own and not self.standing_budgets():
            return Reserved(), False  # as for most: they need no lock
        with self.batch(durable=True):
            standing = self.standing_budgets()
            own = [self._of_program(each) for each in wish.own]
            mine = [*own, *(each for each in standing if each.is_for(wish.instance, wish.label))]
            if not mine:
                return Reserved(), bool(standing)
            self._lock_budgets()
            if self._ask(f"SELECT 1 FROM {{runs}} WHERE run = :run AND {FINAL_SQL}", run=wish.run):
                return Reserved(is_over=True), bool(standing)  # a reaper took its host for lost
            known = self._ask(
                "SELECT latest FROM {p}reservations WHERE run = :run AND post = :post",
                run=wish.run,
                post=wish.post,
            )
            if known:
                return Reserved(seconds=int(known[0][0])), bool(standing)
            self._settle()
            found = judge(wish, [self.balance(each) for each in mine])
            if found.seconds is not None:
                self._reserve(wish, found.seconds, own)
            return found, bool(standing)

    def _of_program(self, budget: Budget) -> Budget:
        """A program's own budget as it was when it was used first: whoever was given another limit gets this one."""
        found = self._ask(f"SELECT {_BUDGET} FROM {{p}}budgets WHERE name = :name", name=budget.name)
        return _budget(found[0]) if found else budget

    def _reserve(self, wish: ReservationWish, seconds: int, own: Iterable[Budget]) -> None:
        # A run with a key may have an earlier job, which was charged. All are of the label that the run has now.
        self._write(
            "INSERT INTO {p}reservations (run, instance, label, seconds, post, latest, made_at) "
            "VALUES (:run, :instance, :label, :seconds, :post, :seconds, :made) "
            "ON CONFLICT (run) DO UPDATE SET "
            "instance = excluded.instance, label = excluded.label, "
            "seconds = coalesce({p}reservations.charged, {p}reservations.seconds) + excluded.seconds, "
            "post = excluded.post, latest = excluded.latest, charged = NULL, charged_at = NULL, "
            "made_at = excluded.made_at",
            run=wish.run,
            instance=wish.instance,
            label=wish.label,
            seconds=seconds,
            post=wish.post,
            made=self.clock(),
        )
        for budget in own:
            self._write_budget(budget, "NOTHING")
            self._write(
                "INSERT INTO {p}reserved_for (budget, run) VALUES (:budget, :run) ON CONFLICT (budget, run) DO NOTHING",
                budget=budget.name,
                run=wish.run,
            )

    # What is left

    def balance(self, budget: Budget) -> Balance:
        """What has become of a budget; what nobody has settled yet counts as reserved."""
        began, ends = bounds(budget, self.clock())
        if budget.is_standing:
            scope = [f"r.{name} = :{name}" for name in ("instance", "label") if getattr(budget, name)]
        else:
            scope = ["r.run IN (SELECT run FROM {p}reserved_for WHERE budget = :name)"]
        # What is not settled counts in every period. Of a run that the ledger has forgotten, nothing more is learned.
        scope.append(
            "(r.charged_at >= :began OR (r.charged IS NULL AND "
            "(r.made_at >= :began OR EXISTS (SELECT 1 FROM {runs} t WHERE t.run = r.run))))"
        )
        which = f"FROM {{p}}reservations r WHERE {' AND '.join(scope)}"
        values = {"instance": budget.instance, "label": budget.label, "name": budget.name, "began": began}
        # Nothing is said there of the job of a run that was detached: it may be in the queue for days.
        is_over = f"EXISTS (SELECT 1 FROM {{runs}} WHERE run = r.run AND {FINAL_SQL} AND outcome <> 'detached')"
        [(spent, reserved, pending)] = self._ask(
            "SELECT coalesce(sum(r.charged), 0), "
            "coalesce(sum(CASE WHEN r.charged IS NULL THEN r.seconds ELSE 0 END), 0), "
            f"coalesce(sum(CASE WHEN r.charged IS NULL AND {is_over} THEN r.seconds ELSE 0 END), 0) {which}",
            **values,
        )
        largest = self._ask(
            "SELECT coalesce((SELECT CASE WHEN t.label <> '' THEN t.label WHEN t.program <> '' THEN t.program "
            "ELSE t.run END FROM {runs} t WHERE t.run = r.run), r.run), sum(coalesce(r.charged, r.seconds)) "
            f"{which} AND coalesce(r.charged, r.seconds) > 0 GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {LARGEST}",
            **values,
        )
        return Balance(
            budget=budget,
            spent=float(spent),
            reserved=float(reserved),
            pending=float(pending),
            began=began,
            ends=ends,
            largest=tuple((str(name), float(seconds)) for name, seconds in largest),
        )

    def balances(self) -> list[Balance]:
        """What has become of all standing budgets."""
        with self.batch(durable=False):
            self._settle()
            return [self.balance(each) for each in self.standing_budgets()]

    def settle(self) -> None:
        """Have each reservation whose charge is known become that charge."""
        with self.batch(durable=False):
            self._settle()

    def _settle(self) -> None:
        self._lock_budgets()  # two that change the same rows in another order would wait for each other
        # Over, with no job unknown, and no charge. Done without a job: its driver has said that none was made. Others
        # who found nothing in flight may have come after a job that completed: they have not looked for those.
        jobs = "FROM {jobs} j WHERE j.run = {p}reservations.run AND j.outcome <> 'gone'"
        # By IBM Quantum's clock. This ledger's may be ahead, and by it no job has ended before it was reserved for.
        ended, made = f"(SELECT max(j.ended) {jobs})", "{p}reservations.made_at"
        self._write(
            f"UPDATE {{p}}reservations SET charged = (SELECT coalesce(sum(j.charged), 0) {jobs}), "
            f"charged_at = CASE WHEN {ended} < {made} THEN {made} ELSE coalesce({ended}, :moment) END "
            "WHERE charged IS NULL "
            f"AND EXISTS (SELECT 1 FROM {{runs}} t WHERE t.run = {{p}}reservations.run AND {FINAL_SQL} AND (t.answered "
            "OR (t.state = 'done' AND coalesce(t.ended_by, '') NOT IN ('watcher', 'reap', 'reaper') "
            "AND NOT EXISTS (SELECT 1 FROM {jobs} j WHERE j.run = t.run)))) "
            f"AND NOT EXISTS (SELECT 1 {jobs} AND j.charged IS NULL)",
            moment=self.clock(),
        )

    def found_all(self, run: str, jobs: Iterable[str]) -> None:
        """Write all jobs that a run which is over has made: none is unknown any more."""
        with self.batch(durable=False):
            for job in jobs:
                self._write(
                    "INSERT INTO {jobs} (run, job, outcome) VALUES (:run, :job, '') ON CONFLICT (run, job) DO NOTHING",
                    run=run,
                    job=job,
                )
            self._write(f"UPDATE {{runs}} SET answered = :yes WHERE run = :run AND {FINAL_SQL}", run=run, yes=True)

    def _forget_spending(self) -> None:
        """Forget what no period has any more; and let no charge be lost with the row of its run."""
        self._settle()
        before = self.clock() - KEPT_FOR
        self._write("DELETE FROM {p}reservations WHERE charged_at < :before", before=before)
        self._write("DELETE FROM {p}budgets WHERE created_at < :before AND is_standing = 0", before=before)
        # Of a run that was there before any budget was set, and whose charge nobody has learned.
        self._write(
            "DELETE FROM {p}reservations WHERE charged IS NULL AND post = '' "
            "AND NOT EXISTS (SELECT 1 FROM {runs} t WHERE t.run = {p}reservations.run)"
        )

    # Standing budgets

    def standing_budgets(self) -> list[Budget]:
        """The standing budgets."""
        found = self._ask(f"SELECT {_BUDGET} FROM {{p}}budgets WHERE is_standing = 1 ORDER BY name")
        return [_budget(each) for each in found]

    def set_budget(self, budget: Budget) -> None:
        """Set a standing budget, or give it another limit.

        What was charged in its period before counts too.
        """
        with self.batch(durable=True):
            self._lock_budgets()
            self._rename_earlier()
            now = self.clock()
            self._write_budget(budget, "UPDATE SET seconds = excluded.seconds")
            # Those that are in flight were posted without a bound; their charges count, by whichever clock.
            # Of one that is over there may be a job that is not known: until that is looked for, the others count.
            ended = f"coalesce(j.ended, {self.SECONDS.format('t.updated_at')})"
            known = f"(SELECT sum(j.charged) FROM {{jobs}} j WHERE j.run = t.run AND {ended} >= :began)"
            made = f"CASE WHEN {FINAL_SQL} THEN {self.SECONDS.format('created_at')} ELSE :now END"
            self._write(
                "INSERT INTO {p}reservations (run, instance, label, seconds, post, latest, made_at) "
                f"SELECT run, instance, label, coalesce({known}, 0), '', 0, {made} FROM {{runs}} t "
                "WHERE NOT EXISTS (SELECT 1 FROM {p}reservations r WHERE r.run = t.run)",
                now=now,
                began=bounds(replace(budget, created_at=now), now)[0],
            )
            self._settle()

    def remove_budget(self, budget: Budget) -> bool:
        """Remove a standing budget; returns whether there was one."""
        with self.batch(durable=True):
            self._lock_budgets()
            self._rename_earlier()
            removed = self._execute(
                self._sentence("DELETE FROM {p}budgets WHERE name = :name AND is_standing = 1"),
                {"name": self._encoded(budget.name)},
                durable=True,
            )
            return bool(removed.rowcount)

    def _rename_earlier(self) -> None:
        """Give each budget its name; an earlier release took the label "any" and none at all for the same."""
        for each in self.standing_budgets():
            name = standing(each.seconds, each.period, each.instance, each.label).name
            if name != each.name:
                self._write(
                    "UPDATE {p}budgets SET name = :name WHERE name = :earlier "
                    "AND NOT EXISTS (SELECT 1 FROM {p}budgets WHERE name = :name)",
                    name=name,
                    earlier=each.name,
                )

    def _write_budget(self, budget: Budget, otherwise: str) -> None:
        self._write(
            "INSERT INTO {p}budgets (name, seconds, is_standing, period, instance, label, created_at) "
            f"VALUES (:name, :seconds, :standing, :period, :instance, :label, :made) ON CONFLICT (name) DO {otherwise}",
            name=budget.name,
            seconds=budget.seconds,
            standing=int(budget.is_standing),
            period=budget.period,
            instance=budget.instance,
            label=budget.label,
            made=self.clock(),
        )

    # The dialect

    def _sentence(self, sql: str) -> str:
        return sql.format(p=self.PREFIX, runs=self.RUNS, jobs=self.JOBS)

    def _ask(self, sql: str, **values: Any) -> list[Any]:
        return self._execute(self._sentence(sql), self._all_encoded(values)).fetchall()

    def _write(self, sql: str, **values: Any) -> None:
        self._execute(self._sentence(sql), self._all_encoded(values), durable=False)

    def _all_encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._encoded(value) for name, value in values.items()}


_BUDGET = "name, seconds, is_standing, period, instance, label, created_at"


def _budget(row: Collection[Any]) -> Budget:
    name, seconds, is_standing, period, instance, label, created_at = row
    return Budget(
        name=name,
        seconds=float(seconds),
        is_standing=bool(is_standing),
        period=period,
        instance=instance,
        label=label,
        created_at=float(created_at),
    )
