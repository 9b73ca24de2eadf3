"""A name that there is not: which ones may have been meant."""

from __future__ import annotations

from collections.abc import Iterable

LEAST_RATIO = 0.65
"""How similar a name must be to be asked for, from 0 to 1."""

WITHIN = 0.1
"""How much less similar than the most similar one another may be, to be asked for too."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask for the names that are like a misspelt one, the most similar first, three at most.

    Returns:
        "did you mean shots?"; "" if none is like it.
    """
    from difflib import SequenceMatcher

    known = list(known)
    head = name.partition("_")[0] + "_"  # "ibm_", with which all names begin, says nothing of which one was meant
    alike = len(head) if all(each.startswith(head) for each in known) else 0
    found = sorted(((SequenceMatcher(a=each[alike:], b=name[alike:]).ratio(), each) for each in known), reverse=True)
    least = max(LEAST_RATIO, found[0][0] - WITHIN) if found else LEAST_RATIO
    near = [each for ratio, each in found[:3] if ratio >= least]
    return f"did you mean {' or '.join(near)}?" if near else ""
