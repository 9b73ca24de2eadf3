"""Figures, and the table that they are printed in."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

OURS = "qx_supervisor"


class NotHere(Exception):
    """This machine lacks what it takes to measure something; the text says what."""


@dataclass
class Measure:
    """One thing that was measured, ours and the baselines in the same run.

    Attributes:
        name: What was measured.
        unit: Of the values.
        values: By whose they are: all values, in the order of measurement.
        bar: What is aimed at, in words.
        verdict: How ours compares, in words; ratios first.
        is_met: Whether the bar is met.
    """

    name: str
    unit: str
    values: dict[str, list[float]]
    bar: str = ""
    verdict: str = ""
    is_met: bool | None = None
    notes: list[str] = field(default_factory=list)

    def median(self, whose: str = OURS) -> float:
        """The median of somebody's values."""
        return statistics.median(self.values[whose])

    def tail(self, whose: str = OURS) -> float:
        """The value that 99 % of somebody's do not exceed."""
        values = sorted(self.values[whose])
        return values[min(len(values) - 1, int(0.99 * len(values)))]

    def judge(self, verdict: str, *, is_met: bool) -> Measure:
        """Say how it compares."""
        self.verdict, self.is_met = verdict, is_met
        return self


def shown(value: float) -> str:
    """A figure with three digits that matter."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def lines(measures: list[Measure]) -> list[str]:
    """The table, in Markdown."""
    made = [
        "| measure | whose | tries | median | 99 % | compared | aimed at |",
        "|---|---|---|---|---|---|---|",
    ]
    for measure in measures:
        for whose, values in measure.values.items():
            is_ours = whose == OURS
            mark = {True: "", False: " **missed**", None: ""}[measure.is_met]
            cells = [
                measure.name,
                whose,
                str(len(values)),
                f"{shown(measure.median(whose))} {measure.unit}",
                f"{shown(measure.tail(whose))} {measure.unit}" if len(values) > 1 else "",
                measure.verdict + mark if is_ours else "",
                measure.bar if is_ours else "",
            ]
            made.append(f"| {' | '.join(cells)} |")
    made += ["", *(f"{measure.name}: {note}" for measure in measures for note in measure.notes)]
    return made
