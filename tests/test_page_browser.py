"""The page in a headless Chromium: live, by keyboard, legible, with ten thousand rows, and as drivers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from testkit.browser import LEAST_CONTRAST, contrasts
from testkit.drivers import RUN, assert_cancelled_once, kill_both
from testkit.ledgers import make_row
from testkit.processes import DEADLINE, until
from testkit.watchers import wait_for_watchers, wait_until_written

from qx_supervisor import local
from qx_supervisor.page import Address, Page, Token, ledgers
from qx_supervisor.watcher.facts import End, Figures
from qx_supervisor.watcher.host_identity import HostIdentity
from qx_supervisor.watcher.ledger import Ledger, standing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.long

SECRET = "sentinel-of-the-page-0123456789"

ROWS = 10_000

LOOK = """() => [...document.querySelectorAll("#table > tbody > tr")]
    .map(row => [...row.cells].map(cell => cell.textContent))"""

HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""

ATTACK = """async url => {
  const tried = async (path, init) => {
    try { return (await fetch(url + path, {credentials: "include", ...init})).type; } catch { return "refused"; }
  };
  const json = {"Content-Type": "application/json"}, text = {"Content-Type": "text/plain"}, body = '{"job": "d1a2"}';
  const told = [
    await tried("api/view", {}),
    await tried("api/cancel", {method: "POST", headers: json, body}),
    await tried("api/cancel", {method: "POST", headers: text, body, mode: "no-cors"}),
  ];
  told.push(await new Promise(resolve => {
    const script = document.createElement("script");
    script.src = url + "page.js";
    script.onload = () => resolve("loaded");
    script.onerror = () => resolve("refused");
    document.head.append(script);
  }));
  told.push(await new Promise(resolve => {
    const frame = document.createElement("iframe");
    frame.src = url;
    frame.onload = () => { try { resolve(frame.contentDocument ? "read" : "refused") } catch { resolve("refused") } };
    document.body.append(frame);
  }));
  return told;
}"""
"""What a page of another origin tries."""

TABS = ("runs", "drivers", "hosts", "leases", "budgets", "deaths")


class Shown:
    """A tab of the browser with the page, and what it has asked for and complained of.

    Attributes:
        tab: The tab.
        asked: The URLs.
        complaints: What is on its console, and errors of its script.
    """

    def __init__(self, browser: Browser, scheme: str = "light") -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        self.context.set_default_timeout(DEADLINE * 1000)
        self.tab: Tab = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url: str) -> Tab:
        self.tab.goto(url)
        return self.tab

    def rows(self) -> list[list[str]]:
        """The cells of the table."""
        found: list[list[str]] = self.tab.evaluate(LOOK)
        return found

    def wait(self, is_so: Callable[[list[list[str]]], object]) -> list[list[str]]:
        return until(self.rows, is_so)

    def focused(self) -> str:
        """The text of what has the focus, and its id."""
        found: str = self.tab.evaluate(
            "() => `${document.activeElement.id} ${document.activeElement.textContent}`.trim()"
        )
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)


class Delayed:
    """Holds the answers to what a tab asks for, so that keys are faster.

    Args:
        shown: The tab.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._held: list[Route] = []
        self._holds = False
        shown.tab.route("**/api/view?*", self._answer)

    def _answer(self, route: Route) -> None:
        if self._holds:
            self._held.append(route)
        else:
            route.continue_()

    @contextlib.contextmanager
    def answers(self, let: Callable[[Route], object] = lambda route: route.continue_()) -> Iterator[None]:
        """What is done meanwhile is done before the answer, which then comes, or what `let` makes of it."""
        self._holds = True
        yield
        until(lambda: self._shown.tab.evaluate("1") and self._held, bool)
        self._holds = False
        while self._held:
            let(self._held.pop(0))


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Shown]]:
    """Opens tabs. At the end each has asked nobody but the page, and complained of nothing."""
    made: list[Shown] = []

    def begin(scheme: str = "light") -> Shown:
        made.append(Shown(browser, scheme))
        return made[-1]

    yield begin
    for each in made:
        places = {urlsplit(url).hostname for url in each.asked}
        each.context.close()
        assert places <= {"127.0.0.1"}
        assert each.complaints == []


@pytest.fixture
def serve() -> Iterator[Callable[..., Page]]:
    """Serve the page of this machine, in this process."""
    made: list[Page] = []

    def begin(token: Token | None = None, address: str = "127.0.0.1:0", **how: Any) -> Page:
        made.append(Page(Address.parse(address), token))
        made[-1].start(ledgers.ThisMachine(), **how)
        return made[-1]

    yield begin
    for page in made:
        page.stop()


def fill(state: Path, rows: int) -> None:
    """Runs of a week, of many drivers on many hosts; some in flight, some ended by a death, one with a wicked label."""
    chance, now = random.Random(7), time.time()
    with Ledger.open(state) as book, book.batch(durable=False):
        for i in range(rows):
            host = HostIdentity("n" * 32, f"node{i % 40:02}", f"boot{i % 40}", 7)
            began = now - 6 * 86400 * (1 - i / rows)
            row = make_row(
                f"{i:032x}",
                host_identity=host,
                pid=1000 + i // 25,
                start_ticks=10 * i // 25,
                watcher_pid=5,
                program=f"vqe{i % 5}.py",
                command=f"python vqe{i % 5}.py --seed {i}",
                label="<img src=x onerror=alert(1)>" if i == rows - 1 else f"step {i % 100}",
                backend=("ibm_brisbane", "ibm_kyiv", "ibm_fez")[i % 3],
                primitive="sampler",
                jobs={f"d{i:019x}": ""},
                began_at=began,
                answered=True,
                key=f"key-{i}" if i % 50 == 0 else None,
                fingerprint="f",
                holder=f"h{i}" if i % 50 == 0 else "",
            )
            book.write(row)
            if i >= rows - 40:
                continue  # in flight
            kind = chance.choices(["finished", "failed", "signal", "watcher"], [80, 5, 5, 10])[0]
            outcome = kind if kind in ("finished", "failed") else "cancelled"
            by: Any = {"signal": "signal", "watcher": "watcher"}.get(kind, "")
            holder = row.holder
            book.job_outcome(
                row.run, f"d{i:019x}", "cancelled" if outcome == "cancelled" else "finished", holder=holder
            )
            figures = Figures(charged=chance.random() * 4, ran=began + 60, ended=began + 70)
            book.job_figures(row.run, f"d{i:019x}", figures)
            end = End(
                outcome,
                by,
                signal.SIGTERM if by == "signal" else None,
                "the circuit is too deep" if kind == "failed" else "",
            )
            book.finish(row.run, "cancelled" if by == "watcher" else "done", end=end, holder=holder)
        book._database.execute("UPDATE runs SET ended_at = began_at + 80 WHERE ended_at IS NOT NULL")
    with Ledger.open(state) as book:
        book.set_budget(standing(36_000.0, "month", "", ""))
        book.set_budget(standing(60.0, "day", "", "step 3"))


# Live ---------------------------------------------------------------------------------------------------------------


def test_a_driver_that_is_killed(
    ibm: local.Service, fork: Any, serve: Callable[..., Page], show: Callable[..., Shown]
) -> None:
    """It comes, dies and is dealt with before one's eyes: nothing is reloaded."""
    ibm.hold("queued")
    shown = show()
    tab = shown.open(serve().address.url)
    until(tab.locator("#caption").inner_text, lambda said: "No run is known" in said)
    driver = fork(RUN)
    job = driver.queued()
    [row] = shown.wait(lambda rows: rows and job in rows[0])
    assert row[1] == "live"
    assert tab.locator("#live").inner_text() == "live"
    driver.kill()
    [row] = shown.wait(lambda rows: rows[0][1] == "cancelled")
    assert row[2] == "watcher"
    shown.press("6")
    [row] = shown.wait(lambda rows: rows and rows[0][-1] == "resolved" and rows[0][7])
    assert row[2:6] == ["was killed (SIGKILL)", *row[3:5], "1 cancelled"]
    assert row[0] == f"{os.uname().nodename}:{driver.pid}"
    assert sum(url.endswith("/page.js") for url in shown.asked) == 1
    wait_for_watchers(driver)
    assert_cancelled_once(ibm, job)


def test_driver_and_watcher_that_are_killed(
    ibm: local.Service, fork: Any, serve: Callable[..., Page], show: Callable[..., Shown]
) -> None:
    """Nobody writes that down; it is seen all the same. Then somebody reaps."""
    from qx_supervisor import reap

    ibm.hold("queued")
    shown = show()
    shown.open(f"{serve().address.url}?tab=drivers")
    driver = fork(RUN)
    job = driver.queued()
    shown.wait(lambda rows: rows and rows[0][1] == "live")
    wait_until_written(driver)
    kill_both(driver)
    shown.wait(lambda rows: rows[0][1] == "orphan")
    assert shown.tab.locator("#counts .bad dt").all_inner_texts() == ["orphans"]
    reap(ibm.service())
    shown.wait(lambda rows: rows[0][1] == "over")
    assert_cancelled_once(ibm, job)


def test_the_server_ends_and_comes_back(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    first = serve()
    shown = show()
    tab = shown.open(first.address.url)
    tab.locator("#live[data-state=live]").wait_for()
    first.stop()
    tab.locator("#live[data-state=lost]").wait_for()
    with Ledger.open(state) as book:
        book.write(make_row("r1"))
    serve(address=str(first.address))
    tab.locator("#live[data-state=live]").wait_for()
    shown.wait(lambda rows: len(rows) == 1)
    assert tab.locator("#trouble").is_hidden()
    shown.complaints[:] = [
        each for each in shown.complaints if "ERR_CONNECTION_REFUSED" not in each and "ERR_INCOMPLETE" not in each
    ]


def test_a_tab_that_nobody_looks_at_asks_for_nothing(
    serve: Callable[..., Page], show: Callable[..., Shown], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qx_supervisor.page import stream

    made: list[stream.Listeners] = []
    init = stream.Listeners.__init__
    monkeypatch.setattr(stream.Listeners, "__init__", lambda self, reader: (made.append(self), init(self, reader))[1])
    shown = show()
    tab = shown.open(serve().address.url)
    tab.locator("#live[data-state=live]").wait_for()
    assert len(made[0]) == 1
    tab.evaluate(HIDE, True)
    until(lambda: len(made[0]), lambda number: number == 0)
    assert tab.locator("#live").inner_text() == "paused"
    asked = len(shown.asked)
    with Ledger.open(state) as book:
        book.write(make_row("r1"))
    tab.evaluate("() => new Promise(resolve => setTimeout(resolve, 2500))")  # twice as long as a look takes
    assert len(shown.asked) == asked
    tab.evaluate(HIDE, False)
    shown.wait(lambda rows: len(rows) == 1)


# By keyboard --------------------------------------------------------------------------------------------------------


def test_everything_by_keyboard(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    fill(state, 450)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 200)
    shown.press("Tab")
    assert shown.focused() == "Skip to the table"
    shown.press("/")
    tab.keyboard.type("node07")
    shown.wait(lambda rows: rows and all("node07" in row[6] for row in rows) and len(rows) < 20)
    assert urlsplit(tab.url).query == "q=node07"
    shown.press("Enter")
    first = shown.rows()[0][0]
    assert shown.focused() == first
    shown.press("j")
    assert shown.focused() == shown.rows()[1][0]
    shown.press("ArrowDown", "k", "k", "k")
    assert shown.focused() == first
    shown.press("G")
    assert shown.focused() == shown.rows()[-1][0]
    shown.press("g", "Enter")
    tab.locator("#details").wait_for()
    assert first in shown.focused()
    assert f"&run={first}" in tab.url or f"run={first}" in tab.url
    shown.press("Escape")
    tab.locator("#details").wait_for(state="hidden")
    assert shown.focused() == first
    shown.press("/", "Control+a", "Delete", "Escape")
    shown.wait(lambda rows: len(rows) == 200)
    shown.press("n")
    tab.get_by_text("Page 2 of 3").wait_for()
    assert "page=2" in tab.url
    shown.press("n")
    shown.wait(lambda rows: len(rows) == 50)
    shown.press("n", "p")
    tab.get_by_text("Page 2 of 3").wait_for()
    for number, name in enumerate(TABS, 1):
        shown.press(str(number))
        tab.locator(f"#tab-{name}[aria-selected=true]").wait_for()
        assert tab.locator("[role=tab][tabindex='0']").get_attribute("id") == f"tab-{name}"
    shown.press("ArrowRight")
    tab.locator("#tab-runs[aria-selected=true]").wait_for()
    shown.press("?")
    tab.locator("#help").wait_for()
    shown.press("Escape")
    tab.locator("#help").wait_for(state="hidden")


def test_keys_that_are_faster_than_the_answer(
    serve: Callable[..., Page], show: Callable[..., Shown], state: Path
) -> None:
    """They mean the rows that are asked for, not those that are on the screen still."""
    fill(state, 450)
    shown = show()
    tab = shown.open(serve().address.url + "?tab=drivers")
    shown.wait(lambda rows: rows and len(rows[0]) == 9)
    delayed = Delayed(shown)

    def press(*keys: str) -> None:
        """All of them before the answer to the first."""
        with delayed.answers():
            with tab.expect_request("**/api/view?*"):
                shown.press(keys[0])
            shown.press(*keys[1:])

    press("1", "j", "j", "Enter")
    tab.locator("#details").wait_for()
    second = shown.rows()[1][0]
    assert second in shown.focused()
    assert "tab=" not in tab.url
    shown.press("Escape")
    tab.locator("#details").wait_for(state="hidden")
    press("n", "n", "j", "Enter")  # the second waits for the first, and what follows for both
    tab.get_by_text("Page 3 of 3").wait_for()
    tab.locator("#details").wait_for()
    assert shown.rows()[0][0] in shown.focused()
    shown.press("Escape")
    tab.locator("#details").wait_for(state="hidden")
    press("2", "j", "1", "Escape")  # who goes on elsewhere means none of the rows
    shown.wait(lambda rows: rows and len(rows[0]) == 11)
    assert shown.focused() == "tab-runs Runs"


def test_keys_after_enter_in_the_filter_are_for_the_rows_that_it_finds(
    serve: Callable[..., Page], show: Callable[..., Shown], state: Path
) -> None:
    fill(state, 450)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 200)
    delayed = Delayed(shown)
    search = tab.locator("input[name=q]")
    shown.press("/")
    with delayed.answers():
        tab.keyboard.type("node07")
        shown.press("Enter", "j", "j")
    found = shown.wait(lambda rows: rows and all("node07" in row[6] for row in rows))
    assert shown.focused() == found[2][0]
    assert search.input_value() == "node07"
    shown.press("/")
    with delayed.answers():
        tab.keyboard.type("nothing of this")
        shown.press("Enter", "j")
    tab.get_by_text("Nothing matches the search and the filters").wait_for()
    assert search.evaluate("field => field === document.activeElement")  # there is no row: it is to be corrected
    assert search.input_value() == "nothing of this"


def test_a_click_leads_away_from_the_rows(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    """The answer to a key from before it does not take the focus; clicks that turn over pages wait for each other."""
    fill(state, 450)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 200)
    delayed = Delayed(shown)
    search, later = tab.locator("input[name=q]"), tab.locator("#later")
    with delayed.answers():
        shown.press("n", "j")
        search.click()
    tab.get_by_text("Page 2 of 3").wait_for()
    assert search.evaluate("field => field === document.activeElement")
    shown.press("Escape", "p")
    tab.get_by_text("Page 1 of 3").wait_for()
    with delayed.answers():
        shown.press("n")
        later.click()
    tab.get_by_text("Page 3 of 3").wait_for()


def test_keys_do_not_act_on_rows_of_something_else(
    serve: Callable[..., Page], show: Callable[..., Shown], state: Path
) -> None:
    """The answer did not come, so the rows are those from before."""
    fill(state, 60)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 60)
    with Delayed(shown).answers(lambda route: route.fulfill(status=500, json={"error": "a fault of the test's"})):
        shown.press("2")
    tab.get_by_text("a fault of the test's").wait_for()
    shown.complaints.clear()  # the browser says that it was answered 500
    shown.press("j", "j")
    assert len(shown.rows()[0]) == 11
    assert shown.focused() == "tab-drivers Drivers"
    shown.press("2")
    shown.wait(lambda rows: rows and len(rows[0]) == 9)
    assert shown.focused() == "tab-drivers Drivers", "what those keys meant is not made up for"
    shown.press("j")
    assert shown.focused() == shown.rows()[0][0]


def test_what_has_the_focus_is_seen(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    """Every stop of the Tab key has an outline of at least two pixels, and none is off the screen or without a name."""
    fill(state, 60)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 60)
    stops = []
    look = """() => {
      const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
      return [element.tagName, (element.ariaLabel || element.labels?.[0]?.textContent || element.textContent).trim(),
              style.outlineStyle, parseFloat(style.outlineWidth), box.width * box.height > 0 && box.right > 0];
    }"""
    for _ in range(40):
        shown.press("Tab")
        stops.append(tab.evaluate(look))
    assert {stop[0] for stop in stops} >= {"A", "BUTTON", "INPUT", "SELECT", "SUMMARY"}
    assert [stop for stop in stops if not (stop[1] and stop[2] == "solid" and stop[3] >= 2 and stop[4])] == []


def test_what_a_screen_reader_is_told(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    fill(state, 450)
    shown = show()
    tab = shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 200)
    assert tab.get_by_role("heading", level=1).inner_text() == "qx_supervisor"
    assert tab.get_by_role("search", name="Filter").count() == 1
    assert tab.get_by_role("tab", selected=True).inner_text() == "Runs"
    assert tab.get_by_role("tabpanel", name="Runs").count() == 1
    assert tab.get_by_role("table", name=re.compile("450 runs, 1 to 200")).count() == 1
    assert tab.get_by_role("columnheader", name="State").count() == 1
    assert tab.get_by_role("img", name=re.compile(r"Runs: 450 in all")).count() == 1
    assert tab.get_by_role("navigation", name="Pages").count() == 1
    for control in tab.locator("button:visible, input:visible, select:visible, summary:visible").all():
        assert control.evaluate("element => (element.labels?.[0] || element).textContent.trim()")
    assert tab.evaluate("() => document.documentElement.lang") == "en"
    ids = tab.evaluate("() => [...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))


# Legible ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(serve: Callable[..., Page], show: Callable[..., Shown], state: Path, scheme: str) -> None:
    """Of all text, in every table, the dialogs, the details, the login."""
    fill(state, 300)
    shown = show(scheme)
    url = serve().address.url
    tab = shown.open(url)
    weak = []

    def check(where: str) -> None:
        tab.wait_for_load_state()  # with its style sheet
        found = contrasts(tab)
        assert len(found) >= 5
        weak.extend((where, each) for each in found if each.ratio < LEAST_CONTRAST)

    for name in TABS:
        tab.goto(f"{url}?tab={name}")
        tab.locator(f"#tab-{name}[aria-selected=true]").wait_for()
        check(name)
    tab.goto(f"{url}?q=nothing-of-this")
    tab.get_by_text("Nothing matches the search and the filters").wait_for()
    check("nothing")
    tab.goto(f"{url}?since=yesterday")
    tab.locator("#trouble").wait_for()
    check("trouble")
    shown.complaints.clear()  # the browser says that it was answered 400
    tab.goto(url)
    shown.wait(lambda rows: len(rows) == 200)
    shown.press("j", "Enter")
    tab.locator("#details").wait_for()
    check("details")
    shown.press("Escape", "?")
    check("help")
    tab.goto(serve(Token(SECRET)).address.url)
    tab.get_by_label("Token").fill("wrong")
    tab.keyboard.press("Enter")
    tab.get_by_role("alert").wait_for()
    check("login")
    shown.complaints.clear()  # and here 401
    assert weak == []


def test_narrow_screens(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    """The table scrolls in its box; the page does not."""
    fill(state, 100)
    shown = show()
    shown.tab.set_viewport_size({"width": 360, "height": 700})
    shown.open(serve().address.url)
    shown.wait(lambda rows: len(rows) == 100)
    assert shown.tab.evaluate("() => document.documentElement.scrollWidth") <= 360


# What is asked for --------------------------------------------------------------------------------------------------


def test_filters_are_in_the_address(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    """So that they can be shared, and the way back works."""
    fill(state, 450)
    url = serve().address.url
    shown = show()
    tab = shown.open(url)
    shown.wait(lambda rows: len(rows) == 200)
    tab.get_by_label("State").select_option("failed")
    failed = shown.wait(lambda rows: rows and all(row[1] == "failed" for row in rows))
    tab.get_by_label("Host").select_option(failed[0][6].partition(":")[0])
    few = shown.wait(lambda rows: rows and len({row[6].partition(":")[0] for row in rows}) == 1)
    assert urlsplit(tab.url).query == f"state=failed&host={few[0][6].partition(':')[0]}"
    other = show()
    other.open(tab.url)
    assert other.wait(lambda rows: len(rows) == len(few)) == few
    assert other.tab.get_by_label("State").input_value() == "failed"
    tab.go_back()
    shown.wait(lambda rows: len(rows) == len(failed))
    assert tab.get_by_label("Host").input_value() == ""
    tab.go_back()
    shown.wait(lambda rows: len(rows) == 200)
    tab.go_forward()
    shown.wait(lambda rows: len(rows) == len(failed))
    tab.get_by_role("button", name="Clear").click()
    shown.wait(lambda rows: len(rows) == 200)
    assert urlsplit(tab.url).query == ""
    shown.press("Escape", "2")
    tab.locator("#tab-drivers[aria-selected=true]").wait_for()
    driver = shown.wait(lambda rows: rows and len(rows[0]) == 9)[0]
    tab.locator("#table > tbody > tr").first.click()
    tab.locator("#tab-runs[aria-selected=true]").wait_for()
    rows = shown.wait(lambda rows: rows and len(rows[0]) == 11)
    assert {row[6] for row in rows} == {driver[0]}
    assert tab.get_by_label("Process").input_value() == driver[0].partition(":")[2]


def test_labels_are_text(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    fill(state, 60)
    shown = show()
    tab = shown.open(serve().address.url)
    wicked = "<img src=x onerror=alert(1)>"
    assert shown.wait(lambda rows: len(rows) == 60)[0][4] == wicked
    shown.press("j", "Enter")
    tab.locator("#details").get_by_text(wicked).wait_for()
    tab.goto(f"{tab.url.partition('?')[0]}?label={wicked}")
    shown.wait(lambda rows: len(rows) == 1)
    assert tab.locator("img").count() == 0


def test_another_page_can_read_and_change_nothing(
    serve: Callable[..., Page], browser: Browser, state: Path, tmp_path: Path
) -> None:
    """A page of another origin, in the same browser: it can't fetch, frame, load a script or post."""
    import functools
    import http.server
    import threading

    (tmp_path / "evil.html").write_text("<!doctype html><title>evil</title>")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    evil = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=evil.serve_forever)
    thread.start()
    asked: list[str] = []
    page = serve(Token(SECRET), cancel=lambda job: (asked.append(job), ("cancelled", ""))[1])
    with Ledger.open(state) as book:
        book.write(make_row("r1", jobs={"d1a2": ""}))
    context = browser.new_context()
    try:
        tab = context.new_page()
        tab.goto(page.address.url)
        tab.get_by_label("Token").fill(SECRET)
        tab.keyboard.press("Enter")
        tab.get_by_text("1 run", exact=True).wait_for()  # this browser is logged in
        tab.goto(f"http://127.0.0.1:{evil.server_port}/evil.html")
        assert tab.evaluate(ATTACK, page.address.url) == ["refused"] * 5
    finally:
        context.close()
        evil.shutdown()
        evil.server_close()
        thread.join()
    assert asked == []


# Cancel -------------------------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_on_the_page(
    ibm: local.Service, fork: Any, serve: Callable[..., Page], show: Callable[..., Shown]
) -> None:
    """With the token, and after a question whose default is no."""
    from qx_supervisor.cli.page import canceller

    ibm.hold("queued")
    driver = fork(f"try:\n    {RUN}\nexcept JobCancelled as error:\n    say('lost', error.job_id)")
    job = driver.queued()
    wait_until_written(driver)
    shown = show()
    tab = shown.open(serve(Token(SECRET), cancel=canceller(lambda: [ibm.service()])).address.url + "?state=live")
    assert "/login?state=live" in tab.url
    tab.get_by_label("Token").fill("not the token of it")
    tab.keyboard.press("Enter")
    assert "not the token" in tab.get_by_role("alert").inner_text()
    shown.complaints.clear()  # the browser says that it was answered 401
    tab.get_by_label("Token").fill(SECRET)
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/?state=live")  # else it is the page before that is looked at
    shown.wait(lambda rows: len(rows) == 1)
    assert urlsplit(tab.url).query == "state=live"
    assert tab.evaluate("() => document.cookie") == ""  # it is not the script's to read
    shown.press("j", "Enter")
    button = tab.get_by_role("button", name=f"Cancel job {job} …")
    button.click()
    assert f"Job {job} of" in tab.locator("#ask-text").inner_text()
    shown.press("Enter")  # the default
    tab.locator("#ask").wait_for(state="hidden")
    button.click()
    shown.press("Escape")
    tab.locator("#ask").wait_for(state="hidden")
    assert ibm.job(job).cancel_requests == 0
    button.click()
    tab.get_by_role("button", name="Cancel the job").click()
    tab.get_by_text(f"Job {job}: cancelled, and confirmed.").wait_for()
    assert driver.line("lost ") == [job]
    assert driver.end() == 0
    tab.get_by_role("button", name="Close Esc").click()
    tab.get_by_role("button", name="Log out").click()
    tab.get_by_label("Token").wait_for()
    assert SECRET not in json.dumps(shown.asked)
    wait_for_watchers(driver)
    assert_cancelled_once(ibm, job)


# Ten thousand rows --------------------------------------------------------------------------------------------------


def test_ten_thousand_rows(serve: Callable[..., Page], show: Callable[..., Shown], state: Path) -> None:
    """They are there, found and turned over in the time that one takes to look; `docs/page.md` has figures."""
    fill(state, ROWS)
    url = serve().address.url
    took: dict[str, float] = {}

    def timed(name: str, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        took[name] = round(time.perf_counter() - began, 3)

    shown = show()
    tab = shown.tab

    def opened() -> None:
        tab.goto(url)
        tab.locator("#caption", has_text=f"{ROWS:,} runs").wait_for()

    timed("first, and the ledger is read", opened)
    timed("opened again", opened)
    paint = tab.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000")
    took["first paint"] = round(paint, 3)
    assert len(shown.rows()) == 200
    assert tab.evaluate("() => document.querySelectorAll('*').length") < 6000

    def filtered() -> None:
        tab.get_by_label("State").select_option("failed")
        tab.locator("#table > tbody > tr:first-child .state.failed").wait_for()

    timed("a filter", filtered)
    tab.get_by_role("button", name="Clear").click()
    tab.locator("#caption", has_text=f"{ROWS:,} runs").wait_for()
    shown.press("Escape")

    def searched() -> None:
        shown.press("/")
        tab.keyboard.type("d" + f"{ROWS // 2:019x}")
        tab.locator("#caption", has_text=re.compile("^1 run$")).wait_for()

    timed("a search", searched)
    tab.get_by_role("button", name="Clear").click()
    tab.locator("#caption", has_text=f"{ROWS:,} runs").wait_for()
    shown.press("Escape")

    def turned() -> None:
        shown.press("n")
        tab.locator("#which", has_text="Page 2 of 50").wait_for()

    timed("a page", turned)
    for name in TABS[1:]:

        def switched(name: str = name) -> None:
            shown.press(str(TABS.index(name) + 1))
            tab.locator(f"#tab-{name}[aria-selected=true]").wait_for()

        timed(name, switched)
    sys.stdout.write(f"\nseconds, with {ROWS:,} rows: {json.dumps(took)}\n")
    assert took["first paint"] < 5
    assert max(took.values()) < 30  # on a machine that is busy with other things
