"""The tests' own browser: what it measures."""

from __future__ import annotations

import pytest
from testkit.browser import contrasts

pytestmark = pytest.mark.long


def test_contrast_is_what_wcag_says(browser):
    """Black on white has 21, #767676 is the lightest grey that passes, and what is transparent lies over the rest."""
    page = browser.new_page()
    page.set_content(
        '<body style="background:#fff;color:#000">black<p style="color:#767676">grey</p>'
        '<div style="background:#000"><p style="color:#fff;opacity:.5">half</p></div>'
        "<p hidden>hidden</p><style>p {margin: 0}</style></body>"
    )
    black, grey, half = contrasts(page)
    assert (black.text, black.ratio) == ("black", pytest.approx(21))
    assert (grey.text, grey.ratio) == ("grey", pytest.approx(4.54, abs=0.01))
    assert (half.colour, half.background) == ("rgb(128, 128, 128)", "rgb(0, 0, 0)")
