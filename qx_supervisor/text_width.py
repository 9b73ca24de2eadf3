"""Text in so many places of a terminal: how many it takes, and how it is cut short.

What names something for people is cut in its middle: the names of many often begin alike, and differ at their end, as
"vqe step 17" and "vqe step 18".
"""

from __future__ import annotations

from collections.abc import Iterable

CUT = "…"

JOINER = "\u200d"
"""Makes one character of the two that it is between."""


def one_line(text: str) -> str:
    """Text in one line, without what a terminal would obey: a program's own words, or a service's, can be anything."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def width(text: str) -> int:
    """How many places a terminal has for it."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut_end(text: str, places: int) -> str:
    """A text in so many places, at least one, without its end where that is too few."""
    return text if width(text) <= places else _beginning(text, places - 1).rstrip() + CUT


def cut_middle(text: str, places: int) -> str:
    """A text in so many places, at least one, without its middle where that is too few."""
    if width(text) <= places:
        return text
    end = "".join(reversed(_within(reversed(_characters(text)), places // 2)))
    return _beginning(text, places - 1 - width(end)) + CUT + end


def _beginning(text: str, places: int) -> str:
    return "".join(_within(_characters(text), places))


def _within(characters: Iterable[str], places: int) -> list[str]:
    """The first characters, as many as there is room for."""
    kept = []
    for each in characters:
        places -= width(each)
        if places < 0:
            break
        kept.append(each)
    return kept


def _characters(text: str) -> list[str]:
    """What is seen as one character each: a letter with the accents that follow it, emoji that are joined."""
    if text.isascii():
        return list(text)
    found: list[str] = []
    for each in text:
        if found and (width(each) == 0 or found[-1].endswith(JOINER)):
            found[-1] += each
        else:
            found.append(each)
    return found
