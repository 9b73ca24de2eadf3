"""What the PUB results of a job hold, in short: counts, a histogram, expectation values; also as HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import html

if TYPE_CHECKING:
    from qiskit.primitives import PubResult

LARGE = 200_000
"""Shots, over all parameter sets, above which no histogram is made: counting them takes too long."""

BARS = 8
"""The number of outcomes that a histogram shows."""


def is_estimate(pub: PubResult) -> bool:
    """Whether a PUB result is an estimator's. A sampler's register may have any name, "evs" too."""
    data: Any = getattr(pub, "data", ())  # an executor's item has none
    return "evs" in data and "stds" in data and not hasattr(data["evs"], "get_counts")


def counts_of(pub: PubResult) -> dict[str, int]:
    """How often each bit string was measured in a PUB.

    Raises:
        AttributeError: As `RunResult.counts` does.
    """
    if is_estimate(pub):
        raise AttributeError("an estimator's result has no counts; see expectation_values")
    if not hasattr(pub, "join_data"):
        raise AttributeError(f"a {type(pub).__name__} has no counts; see primitive_result")
    # A register without bits has nothing to count, and Qiskit can't join it to the others.
    names = [name for name in pub.data if getattr(pub.data[name], "num_bits", 1)]
    joined: Any = pub.join_data(names) if names else None
    if not hasattr(joined, "get_counts"):
        raise AttributeError("this result holds no bits to count; see result[0].data")
    return dict(joined.get_counts())


@dataclass(frozen=True)
class Bar:
    """One outcome in a histogram.

    Attributes:
        name: The bit string.
        count: How often it was measured.
        share: Its share of all shots, 0 to 1.
        length: Its count relative to the longest bar, 0 to 1.
    """

    name: str
    count: int
    share: float
    length: float


def histogram(pubs: Iterable[PubResult]) -> tuple[list[Bar], str]:
    """The most frequent outcomes of a sampler's first PUB, and what is not shown, in words.

    Returns:
        No bars if the results are not a sampler's.
    """
    pubs = list(pubs)
    try:
        counts = {} if _is_large(pubs[0]) else counts_of(pubs[0])
    except Exception:  # noqa: BLE001 - an estimator's result, or bits in a form of the user's own
        return [], ""
    more = f"PUB 0 of {len(pubs)}" if len(pubs) > 1 else ""
    total, longest = sum(counts.values()), max(counts.values(), default=0)
    if not total:
        return [], more
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar(name, n, n / total, n / longest) for name, n in ranked[:BARS]]
    if len(ranked) > BARS:
        rest = total - sum(bar.count for bar in bars)
        others = f"{len(ranked) - BARS} other outcomes, {100 * rest / total:.1f} %"
        more = f"{others} ({more})" if more else others
    return sorted(bars, key=lambda bar: bar.name), more


def _is_large(pub: PubResult) -> bool:
    return sum(int(getattr(each, "num_shots", 0)) * int(getattr(each, "size", 1)) for each in pub.data.values()) > LARGE


def expectation_lines(pubs: Iterable[PubResult]) -> list[str]:
    """An estimator's first expectation values with their standard errors, one a line; none for a sampler."""
    import numpy as np

    pubs = list(pubs)
    lines: list[str] = []
    for number, pub in enumerate(pubs):
        if not is_estimate(pub):
            return []
        errors = np.asarray(pub.data["stds"])
        for index, value in np.ndenumerate(np.asarray(pub.data["evs"])):
            place = f"[{number}]" if len(pubs) > 1 else ""
            place += f"[{', '.join(map(str, index))}]" if index else ""
            lines.append(f"⟨O{place}⟩ = {value:.6g} ± {errors[index]:.2g}")
            if len(lines) > BARS:
                return [*lines[:BARS], "…"]
    return lines


def as_html(pubs: Iterable[PubResult]) -> str:
    """The histogram or the expectation values."""
    pubs = list(pubs)
    bars, more = histogram(pubs)
    if bars:
        return html.bars([(bar.name, bar.length, f"{bar.count}  ({100 * bar.share:.1f} %)") for bar in bars], more)
    return "".join(f"<div>{html.text(line)}</div>" for line in expectation_lines(pubs))
