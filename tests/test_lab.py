"""The cards of a notebook in a real JupyterLab, and in the pages that nbconvert makes of it, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from testkit.browser import LEAST_CONTRAST, contrasts
from testkit.processes import DEADLINE

if not all(map(find_spec, ("jupyterlab", "nbconvert"))):
    pytest.skip("JupyterLab or nbconvert is missing: pip install '.[browser]'", allow_module_level=True)

pytestmark = pytest.mark.long

from testkit.lab import Lab  # noqa: E402

PATIENCE = 3000 * DEADLINE
"""Milliseconds: a browser, a server and a kernel start on a machine that may be busy."""

CARD = ".qx-supervisor"
BEGINNING = """
from qiskit import QuantumCircuit
from qx_supervisor import run, submit
from qx_supervisor.local.client import connect
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
service = connect({port}, "local-key")
"""
SUBMIT = 'submit(circuit, "ibm_brisbane", service=service, shots=64, label="vqe step 17")'


@pytest.fixture
def lab(ibm, tmp_path) -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []

    def start(*cells: str) -> Lab:
        made.append(Lab(tmp_path, [BEGINNING.format(port=ibm.port), *cells]))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def page(browser) -> Any:
    """A page that reaches nothing but this machine, and waits as long as the tests do."""
    context = browser.new_context()
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    context.set_default_timeout(PATIENCE)
    return context.new_page()


def until(page: Any, text: str, count: int = 1) -> str:
    """Wait until a card says something; there are so many cards. Returns what it says."""
    page.locator(CARD, has_text=text).first.wait_for()
    assert page.locator(CARD).count() == count
    return str(page.locator(CARD).last.inner_text())


def as_of(page: Any) -> str:
    return str(re.search(r"as of [\d:]+, [\d-]+", page.locator(CARD).first.inner_text())[0])


def assert_legible(page: Any) -> None:
    seen = contrasts(page, CARD)
    assert len(seen) > 5
    assert [each for each in seen if each.ratio < LEAST_CONTRAST] == []


def choose_theme(page: Any, lab: Lab, name: str) -> None:
    lab.command(page, "apputils:change-theme", theme=f"JupyterLab {name}")
    page.locator(f"body[data-jp-theme-name='JupyterLab {name}']").wait_for(state="attached")


def test_the_card_of_a_submitted_run(ibm, lab, page, tmp_path):
    """It is updated when its cell is over, legible in both themes, and history after a reload, a restart, nbconvert."""
    ibm.hold("queued")
    jupyter = lab(SUBMIT)
    jupyter.open(page)
    jupyter.command(page, "notebook:run-all-cells")
    until(page, "queued as of")
    for theme in ("Dark", "Light"):
        choose_theme(page, jupyter, theme)
        assert_legible(page)
    before = as_of(page)
    page.wait_for_function(
        "([card, before]) => !document.querySelector(card).innerText.includes(before)", arg=[CARD, before]
    )
    ibm.hold(None)
    said = until(page, "done as of")
    assert "vqe step 17" in said
    assert "While its kernel lives" not in said

    ibm.hold("queued")
    jupyter.command(page, "notebook:run-all-cells")
    until(page, "queued as of")
    [job] = [job for job in ibm.jobs() if not job.is_final]
    until(page, job.id)
    jupyter.save(page)
    page.reload()
    jupyter.wait_until_ready(page)
    before = as_of(page)
    jupyter.restart_kernel()
    assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1
    said = until(page, "queued as of")
    assert as_of(page) == before, "nobody updates it any more"
    assert "While its kernel lives, it updates this card, and Run.cancel() cancels the job." in said

    import nbconvert  # here: it takes seconds, of every worker that collects the tests

    for theme in ("light", "dark"):
        exported, _ = nbconvert.HTMLExporter(theme=theme).from_filename(jupyter.notebook)
        place = tmp_path / f"{theme}.html"
        place.write_text(exported)
        page.goto(place.as_uri(), wait_until="domcontentloaded")
        assert before in until(page, "queued as of")
        assert_legible(page)


def test_one_card_for_each_run(ibm, lab, page):
    """A cell that ends in what it has run, awaits it, or awaits several, has one card."""
    jupyter = lab(
        SUBMIT.replace("submit", "run"),
        f"await {SUBMIT}",
        f"import asyncio\nawait asyncio.gather({SUBMIT}, {SUBMIT})\nNone",
    )
    jupyter.open(page)
    jupyter.command(page, "notebook:run-all-cells")
    page.locator(CARD, has_text="2 of 2 done").wait_for()
    assert page.locator(CARD).count() == 3
    assert page.locator(CARD, has_text="done as of").count() == 2
    assert_legible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_no_theme_has_the_browsers(browser, scheme):
    """Errors, results and cards in progress are legible where nothing but the browser says what is preferred."""
    from qx_supervisor import ConfigError, html

    page = browser.new_page(color_scheme=scheme)
    cards = [
        html.card(tone, tone, [("name", html.link("https://example.org", "value"))])
        for tone in ("good", "bad", "warning", "plain")
    ]
    cards.append(html.card("plain", "bars", [], html.bars([("00", 1.0, "64")], "more")))
    cards.append(html.card("plain", "table", [], html.table([{"state": ("warning", "lost"), "job": ("", "d1")}])))
    cards.append(ConfigError("config", "why")._repr_html_())
    page.set_content("".join(cards))
    assert_legible(page)
    assert page.evaluate("document.getAnimations().length") == 0, "history does not move"
    assert contrasts(page, CARD)[0].background == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}[scheme]


def test_a_front_end_that_takes_the_style_away_leaves_its_own_colours(browser):
    """As JupyterLab does for a notebook that it does not trust."""
    from qx_supervisor import html

    page = browser.new_page()
    bare = html.card("bad", "title", [("name", "value")]).replace(html.STYLE, "")
    page.set_content(f'<body style="background:#111;color:#eee">{bare}</body>')
    assert {each.colour for each in contrasts(page, CARD)} == {"rgb(238, 238, 238)"}
