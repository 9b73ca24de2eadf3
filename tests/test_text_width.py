"""Text that is cut to a width."""

from __future__ import annotations

import unicodedata

import pytest

from qx_supervisor.text_width import cut_end, cut_middle, width


@pytest.mark.parametrize(
    ("text", "places", "end", "middle"),
    [
        ("vqe step 17", 11, "vqe step 17", "vqe step 17"),
        ("vqe step 17", 10, "vqe step…", "vqe …ep 17"),
        ("vqe step 17", 3, "vq…", "v…7"),
        ("vqe step 17", 2, "v…", "…7"),
        ("vqe step 17", 1, "…", "…"),
        ("雨雨雨 17", 9, "雨雨雨 17", "雨雨雨 17"),
        ("雨雨雨 17", 8, "雨雨雨…", "雨雨… 17"),
        ("雨雨雨雨", 7, "雨雨雨…", "雨雨…雨"),
        ("", 1, "", ""),
    ],
)
def test_cut(text: str, places: int, end: str, middle: str) -> None:
    assert (cut_end(text, places), cut_middle(text, places)) == (end, middle)
    assert width(end) <= places
    assert width(middle) <= places


def test_an_accent_stays_with_its_letter() -> None:
    """Written as two characters, of which the second takes no place, it is cut as where it is written as one."""
    text = "élève étape 17"
    decomposed = unicodedata.normalize("NFD", text)
    assert len(decomposed) > len(text) == width(decomposed)
    for places in range(1, len(text) + 2):
        for cut in cut_end, cut_middle:
            assert cut(decomposed, places) == unicodedata.normalize("NFD", cut(text, places))


def test_emoji_that_are_joined_are_one_character() -> None:
    family = "👩\u200d👩\u200d👧"
    for places in range(1, width(family) + 5):
        for cut in cut_end(family + "17ab", places), cut_middle(family + "17ab", places):
            assert width(cut) <= places
            assert family in cut or not set(family) & set(cut)


def test_a_long_text_is_cut_as_well() -> None:
    long = unicodedata.normalize("NFD", "é") * 5_000
    assert width(cut_middle(long, 9)) == width(cut_end(long, 9)) == 9
