"""The table, in Markdown."""

from __future__ import annotations

import statistics

from .judge import Totals
from .row import Row

HEAD = (
    "fault",
    "expected",
    "tries",
    "orphans",
    "duplicates left",
    "false cancels",
    "requests per job",
    "median ms",
    "worst ms",
)


def table(results: list[tuple[Row, Totals, str]]) -> str:
    """The table, the worst row first if anything is not zero.

    Args:
        results: Each row with what it came to, or why it could not be tried.
    """
    ordered = sorted(results, key=lambda result: result[1].badness, reverse=True)
    lines = [_cells(HEAD), "|---|---|" + "--:|" * (len(HEAD) - 2)]
    lines += [_cells(_line(*result)) for result in ordered]
    troubles = [f"- {row.name}: {text}" for row, totals, _ in ordered for text in totals.troubles]
    if troubles:
        lines += ["", "What went wrong:", "", *troubles]
    return "\n".join(lines)


def _cells(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _line(row: Row, totals: Totals, obstacle: str) -> tuple[str, ...]:
    if obstacle:
        return (row.name, f"not possible here: {obstacle}", *["-"] * (len(HEAD) - 2))
    low, high = (min(totals.requests), max(totals.requests)) if totals.requests else ("-", "-")
    requests = str(low) if low == high else f"{low}..{high}"
    if totals.wrong_requests:
        requests = f"**{requests}**, wrong for {totals.wrong_requests}"
    counts = (totals.orphans, totals.duplicates, totals.false_cancels)
    median = f"{statistics.median(totals.latencies):.1f}" if totals.latencies else "-"
    worst = f"{max(totals.latencies):.1f}" if totals.latencies else "-"
    return (
        row.name + (" (see below)" if totals.troubles else ""),
        row.expected,
        str(totals.tries),
        *(f"**{count}**" if count else "0" for count in counts),
        requests,
        median,
        worst,
    )
