"""The page: who may ask for what, and what is answered. What a browser makes of it is in `test_page_browser.py`."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import itertools
import json
import os
import re
import secrets
import signal
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from testkit.drivers import RUN, Driver, assert_cancelled_once, kill_both
from testkit.ledgers import make_row
from testkit.postgres import Server
from testkit.processes import DEADLINE, until
from testkit.watchers import wait_for_watchers, wait_until_written

from qx_supervisor import ConfigError, local
from qx_supervisor.cli import main
from qx_supervisor.page import Address, Page, Token, access, deaths, gate, ledgers, stream, totals
from qx_supervisor.page.address import DEFAULT, is_expected, name_in
from qx_supervisor.page.entry import Entry
from qx_supervisor.page.filters import Filter, page_of
from qx_supervisor.page.gate import HEADERS
from qx_supervisor.watcher import log_file, system
from qx_supervisor.watcher.events import Event
from qx_supervisor.watcher.facts import End, Figures
from qx_supervisor.watcher.host_identity import HostIdentity
from qx_supervisor.watcher.ledger import Ledger, ReservationWish, Row, Store, standing
from qx_supervisor.watcher.ledger.postgres import SharedLedger

SECRET = "sentinel-of-the-page-0123456789"

NOW = 1_800_000_000.0

HERE = HostIdentity("m" * 32, "node7", "boot", 7)


def a_row(run: str, **values: Any) -> Row:
    given: dict[str, Any] = {
        "host_identity": HERE,
        "pid": 42,
        "start_ticks": 420,
        "program": "driver.py",
        "label": "vqe",
        "backend": "ibm_brisbane",
        "created_at": NOW - 100,
        "updated_at": NOW - 50,
    }
    return make_row(run, **given | values)


def final(run: str, outcome: str = "finished", by: str = "", **values: Any) -> Entry:
    state = "cancelled" if by in ("watcher", "reap", "reaper") else "done"
    return Entry.of(a_row(run, state=state, outcome=outcome, ended_by=by, ended_at=NOW - 50, **values), "final")


# Where it listens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted", "private", "url"),
    [
        ("127.0.0.1:8470", Address("127.0.0.1", 8470), True, "http://127.0.0.1:8470/"),
        ("127.9.9.9:1", Address("127.9.9.9", 1), True, "http://127.9.9.9:1/"),
        ("localhost:0", Address("127.0.0.1", 0), True, "http://127.0.0.1:0/"),
        ("[::1]:8470", Address("::1", 8470), True, "http://[::1]:8470/"),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False, "http://localhost:80/"),
        ("[::]:80", Address("::", 80), False, "http://localhost:80/"),
        ("10.1.2.3:65535", Address("10.1.2.3", 65535), False, "http://10.1.2.3:65535/"),
        ("unix:/run/qx", Address(path="/run/qx"), True, "unix:/run/qx"),
    ],
)
def test_addresses(text: str, wanted: Address, private: bool, url: str) -> None:
    found = Address.parse(text)
    assert (found, found.is_private, found.url) == (wanted, private, url)


def test_by_default_it_is_on_this_machine_alone() -> None:
    assert Address.parse(DEFAULT).is_private


@pytest.mark.parametrize(
    "text",
    ["", "8470", ":8470", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:8470", "[::1]", "[g::1]:1",
     "example.org:80", "http://127.0.0.1:80/", "127.0.0.1:80/x", "unix:", "unix:relative", f"unix:/{'x' * 107}"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as|choose one") as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("authority", "name", "expected"),
    [
        ("127.0.0.1:8470", "127.0.0.1", True),
        ("localhost", "localhost", True),
        ("LocalHost:9000", "localhost", True),  # through ssh -L, from another port
        ("[::1]:8470", "::1", True),
        ("10.0.0.7:80", "10.0.0.7", True),  # nobody can resolve an address anew
        ("node7:8470", "node7", True),
        ("Node7.:8470", "node7", True),
        ("evil.example:8470", "evil.example", False),
        ("localhost.evil.example", "localhost.evil.example", False),
        ("127.0.0.1.evil.example:1", "127.0.0.1.evil.example", False),
        ("node7.evil.example", "node7.evil.example", False),
        ("", "", False),
        ("a b", "", False),
        ("evil.example@127.0.0.1", "", False),
        ("127.0.0.1:8470, evil.example", "", False),
    ],
)
def test_names(authority: str, name: str, expected: bool) -> None:
    assert name_in(authority) == name
    assert is_expected(name, frozenset({"node7"})) is expected


# The token ----------------------------------------------------------------------------------------------------------


def test_a_token_of_the_environment_does_not_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_PAGE_TOKEN", f"{SECRET}\n")
    token = access.read(None)
    assert "QX_PAGE_TOKEN" not in os.environ
    assert token is not None
    assert token.is_right(SECRET)
    assert not token.is_right(SECRET[:-1])
    assert not token.is_right("")
    assert SECRET not in f"{token!r} {vars(token)}"
    assert access.read(None) is None


def test_a_token_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_PAGE_TOKEN", "another-one-of-the-environment")
    file = tmp_path / "token"
    file.write_text(f"  {SECRET}\n")
    file.chmod(0o640)
    token = access.read(str(file))
    assert token is not None
    assert token.is_right(SECRET)
    assert not token.is_right("another-one-of-the-environment")


def test_tokens_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence that says what helps, and quotes nothing of it."""
    file = tmp_path / "token"
    file.write_text(SECRET)
    file.chmod(0o604)
    for path, words in ((file, "chmod 600"), (tmp_path / "none", "No such file"), (tmp_path, "is not a file")):
        if path == tmp_path:
            path.chmod(0o700)
        with pytest.raises(ConfigError, match=words):
            access.read(str(path))
    for bad in ("short", "fifteen-letters", f"{SECRET} {SECRET}", f"{SECRET}é"):
        monkeypatch.setenv("QX_PAGE_TOKEN", bad)
        with pytest.raises(ConfigError, match="at least 16 characters; make one") as caught:
            access.read(None)
        assert bad not in str(caught.value)


def test_browsers_are_remembered_for_a_while() -> None:
    now = [0.0]
    token = Token(SECRET, lambda: now[0])
    first = token.begin_session()
    assert token.is_session(first)
    assert not token.is_session("")
    assert first not in str(vars(token))
    token.end_session(first)
    assert not token.is_session(first)
    others = [token.begin_session() for _ in range(access.MOST_SESSIONS + 1)]
    assert [token.is_session(each) for each in others] == [False, *[True] * access.MOST_SESSIONS]
    now[0] = access.SESSION_SECONDS
    assert not token.is_session(others[-1])


def test_guessing_ends_soon() -> None:
    now = [0.0]
    token = Token(SECRET, lambda: now[0])
    for _ in range(access.MOST_WRONG):
        assert not token.is_closed
        assert not token.is_right("a guess")
    assert token.is_closed
    assert not token.is_right(SECRET)  # not even that, or a guesser would learn it
    now[0] = access.WRONG_SECONDS
    assert token.is_right(SECRET)


# What is asked for --------------------------------------------------------------------------------------------------


def test_filters() -> None:
    live = Entry.of(a_row("r1", jobs={"d1a2": ""}, began_at=NOW - 40 * 86400, key="step-1"), "live")
    done = final("r2", began_at=NOW - 3600, label="night run")
    killed = final("r3", "cancelled", "watcher", began_at=NOW - 5 * 86400, pid=43)
    old = final("r4", began_at=NOW - 20 * 86400)
    old = replace(old, row=replace(old.row, ended_at=NOW - 19 * 86400))
    everything = [live, done, killed, old]

    def chosen(**query: str) -> list[str]:
        return [entry.row.run for entry in Filter.of(query).chosen(everything, NOW)]

    assert chosen() == ["r1", "r2", "r3"]  # what is not over is shown, however old
    assert chosen(since="30d") == ["r1", "r2", "r3", "r4"]
    assert chosen(since="2h") == ["r1", "r2", "r3"]  # the third ended just now
    assert chosen(state="live") == chosen(state="open") == ["r1"]
    assert chosen(state="finished,cancelled") == ["r2", "r3"]
    assert chosen(by="watcher,reap") == ["r3"]
    assert chosen(label="night run") == ["r2"]
    assert chosen(host="node7", backend="ibm_brisbane", program="driver.py", pid="43") == ["r3"]
    assert chosen(host="node") == []
    assert chosen(q="STEP-1 d1a") == ["r1"]
    assert chosen(q="step-1 night") == []
    assert chosen(tab="deaths", page="2", run="r1") == ["r1", "r2", "r3"]  # that is for others


@pytest.mark.parametrize(
    "query",
    [{"since": "yesterday"}, {"since": "0d"}, {"since": "7"}, {"state": "alive"}, {"state": "live,dead"}, {"by": "me"},
     {"q": "x" * 201}, {"host": "x" * 201}],
)  # fmt: skip
def test_filters_that_make_no_sense(query: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"in the address (is|are)") as caught:
        Filter.of(query)
    assert "\n" not in str(caught.value)


def test_pages() -> None:
    lines = list(range(450))
    assert [totals.page(lines, number)["rows"][0] for number in (1, 2, 3, 9)] == [0, 200, 400, 400]
    assert totals.page([], 4) == {"rows": [], "total": 0, "page": 1, "pages": 1}
    assert page_of({"page": "12"}) == 12
    for bad in ("0", "-1", "x", "1.5", "9999999"):
        with pytest.raises(ConfigError, match="number from 1"):
            page_of({"page": bad})


# What is added up ---------------------------------------------------------------------------------------------------


def a_line(event: str, at: float, **fields: Any) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at))
    return {"time": moment, "event": event, "message": "…", "host": "node7", "driver": 42, **fields}


def test_deaths() -> None:
    charged = {"figures": {"j1": Figures(charged=2.5)}}
    entries = [
        final("r1", "cancelled", "watcher", jobs={"j1": "cancelled", "j2": "finished"}, **charged),
        final("r2", "cancelled", "watcher", jobs={"j3": "cancelled"}),
        final("r3"),  # of the same driver, over before
        final("r4", "cancelled", "signal", pid=50),  # it cancelled by itself
        Entry.of(a_row("r5", pid=51, jobs={"j5": ""}, let_go_at=NOW - 20), "orphan"),
        Entry.of(a_row("r6", pid=52, jobs={"j6": ""}), "live"),
        final(
            "r7", "cancelled", "reaper", pid=53, host_identity=replace(HERE, host="node8"), jobs={}, let_go_at=NOW - 70
        ),
    ]
    lines = [
        a_line("driver died", NOW - 9 * 86400, wait_status=11),  # another one's, that had the pid before
        a_line("driver died", NOW - 60, wait_status=9),
        a_line("job cancelled", NOW - 60, job="j1"),
        a_line("all resolved", NOW - 59, wait_status=9, seconds=0.25),
    ]
    orphan, killed, far = deaths.find(entries, lines)
    assert (killed.pid, killed.how, killed.at, killed.by, killed.state) == (
        42,
        "was killed (SIGKILL)",
        NOW - 60,
        "watcher",
        "resolved",
    )
    assert (killed.runs, killed.jobs) == ({"r1", "r2"}, Counter(cancelled=2, finished=1))
    assert (killed.charged, killed.seconds) == (2.5, 0.25)
    assert (orphan.pid, orphan.how, orphan.state, orphan.seconds, orphan.at) == (51, "", "orphan", None, NOW - 20)
    assert (far.host, far.by, far.how, far.at, far.charged) == ("node8", "reaper", "", NOW - 70, None)


@pytest.mark.parametrize("since", [3600.0, 21600.0, 86400.0, 7 * 86400.0, 30 * 86400.0, 9999 * 604800.0])
def test_plots_have_everything_and_not_too_many_bars(since: float) -> None:
    steps = [0.0, 1.0, since / 3, since / 2, since - 1]
    entries = [
        final(f"r{i}", "cancelled", "watcher" if i % 2 else "program", began_at=NOW - step,
              jobs={f"j{i}": "cancelled"}, figures={f"j{i}": Figures(charged=1.0, ran=NOW - step)})
        for i, step in enumerate(steps)
    ]  # fmt: skip
    entries.append(Entry.of(a_row("open", began_at=NOW - 2 * since), "live"))  # it began before
    found = totals.plots(entries, [], since, NOW)
    begins, size = found["begins"], found["size"]
    assert 2 <= len(begins) <= totals.MOST_BARS + 1
    assert begins[-1] <= NOW < begins[-1] + size
    assert begins[0] <= NOW - since + size
    assert {kind: sum(values) for kind, values in found["runs"].items()} == {
        "finished": 0, "failed": 0, "cancelled": 3, "death": 2, "open": 0,
    }  # fmt: skip
    assert (sum(found["charged"]["alive"]), sum(found["charged"]["death"])) == (3.0, 2.0)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has the local time of Berlin, where the clocks were changed on 29 March 2026."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(("days", "step"), [(30, 1), (90, 7)])
@pytest.mark.usefixtures("berlin")
def test_bars_of_days_begin_at_midnight_before_the_clocks_were_changed_too(days: int, step: int) -> None:
    now = time.mktime((2026, 4, 2, 12, 0, 0, 0, 0, -1))
    late = time.mktime((2026, 3, 20, 23, 30, 0, 0, 0, -1))
    found = totals.plots([final("r1", began_at=late)], [], days * totals.DAY, now)
    begins = found["begins"]
    assert {time.strftime("%H:%M", time.localtime(each)) for each in begins} == {"00:00"}
    dates = [date.fromtimestamp(each) for each in begins]
    assert {(later - earlier).days for earlier, later in itertools.pairwise(dates)} == {step}
    assert 0 <= (date(2026, 4, 2) - dates[-1]).days < step
    [i] = [i for i, number in enumerate(found["runs"]["finished"]) if number]
    assert begins[i] <= late < begins[i + 1]


def test_counts_and_groups() -> None:
    gone = {"jobs": {"j1": "cancelled", "j2": "gone"}, "figures": {"j1": Figures(charged=4.0)}}
    entries = [
        Entry.of(a_row("r1", jobs={"j0": ""}, figures={"j0": Figures(estimated=3.0)}), "live"),
        final("r2", "cancelled", "watcher", **gone),
        final("r3", "failed", jobs={"j3": "failed"}, pid=43),
        Entry.of(a_row("r4", pid=44, host_identity=replace(HERE, host="node8"), updated_at=NOW), "orphan"),
    ]
    found = totals.counts(entries, deaths.find(entries, []))
    assert found == {
        "states": {"live": 1, "cancelled": 1, "failed": 1, "orphan": 1},
        "runs": 4, "deaths": 2, "unresolved": 1, "charged": 4.0, "after_death": 4.0, "estimated": 3.0, "uncharged": 1,
    }  # fmt: skip
    drivers = totals.drivers(entries)
    assert [(each["pid"], each["state"], each["runs"], each["open"]) for each in drivers] == [
        (44, "orphan", 1, 1), (42, "live", 2, 1), (43, "over", 1, 0),
    ]  # fmt: skip
    hosts = totals.hosts(entries, deaths.find(entries, []))
    assert [(each["host"], each["drivers"], each["living"], each["deaths"]) for each in hosts] == [
        ("node8", 1, 0, 1), ("node7", 2, 1, 1),
    ]  # fmt: skip
    assert totals.choices(entries)["host"] == ["node7", "node8"]


# What is read -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "shared"])
def source(request: pytest.FixtureRequest, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ledgers.Source]:
    """A ledger as the page reads it."""
    made: ledgers.Source = ledgers.ThisMachine()
    if request.param == "shared":
        monkeypatch.setenv("QX_LEDGER", request.getfixturevalue("shared_url"))
        made = ledgers.AllHosts()
    yield made
    made.close()


@pytest.fixture
def book(source: ledgers.Source, state: Path) -> Iterator[Store]:
    """The same ledger, as a watcher writes it."""
    made: Store
    if isinstance(source, ledgers.AllHosts):
        made = SharedLedger.open(os.environ["QX_LEDGER"])
        made.renew()
    else:
        made = Ledger.open(state)
    with made:
        yield made


def shown(snapshot: ledgers.Snapshot) -> dict[str, tuple[str, dict[str, str], float | None]]:
    return {each.row.run: (each.state, dict(each.row.jobs), each.row.charged) for each in snapshot.entries}


def test_what_is_read_follows_the_ledger(source: ledgers.Source, book: Store) -> None:
    """Each look says what a look at everything says; and it has another version exactly if something is new."""
    assert source.look().entries == ()
    row = make_row("r1", tag="t1", answered=True)
    steps: list[tuple[Callable[[], object], bool]] = [
        (lambda: book.write(row), True),
        (lambda: None, False),
        (lambda: book.write(replace(row, jobs={"j1": ""}), make_row("r2")), True),
        (lambda: book.write(replace(row, jobs={"j1": ""})), False),  # the same once more
        (lambda: book.finish("r2", "done", end=End("failed", "program")), True),
        (lambda: book.write(replace(row, jobs={"j1": ""}, state="pending", detail="no answer")), True),
        (lambda: book.job_outcome("r1", "j1", "cancelled"), True),
        (lambda: book.finish("r1", "cancelled", end=End("cancelled", "watcher")), True),
        (lambda: book.set_budget(standing(60.0, "day", "", "")), True),
    ]
    version = source.look().version
    for number, (step, is_new) in enumerate(steps):
        step()
        source._balances_at = 0.0  # else it is looked at every few seconds
        found = source.look()
        assert (found.version != version) is is_new, number
        version = found.version
        fresh = type(source)()
        assert shown(found) == shown(fresh.look()), number
        fresh.close()
    assert [each.state for each in found.entries] == ["failed", "cancelled"] or len(found.entries) == 2
    assert [each.budget.seconds for each in found.balances] == [60.0]
    # A charge that comes late is seen by the next look at everything.
    book.job_figures("r1", "j1", Figures(charged=1.5))
    source._whole_at = 0.0
    assert shown(source.look())["r1"] == ("cancelled", {"j1": "cancelled"}, 1.5)


def test_a_key_that_is_taken_up_again(source: ledgers.Source, book: Store) -> None:
    """What was over is not over any more."""
    from qx_supervisor.watcher.ledger import Wish

    row = make_row("r1", key="k", fingerprint="f", holder="h1", answered=True)
    assert book.take(Wish(row=row)).answer == "granted"
    book.finish("r1", "done", holder="h1", end=End("finished"))
    assert shown(source.look())["r1"][0] == "finished"
    assert book.take(Wish(row=replace(row, run="r2", holder="h2"))).answer == "granted"
    [entry] = source.look().entries
    assert (entry.row.run, entry.state) == ("r1", "live")


def test_a_ledger_that_is_forgotten_is_read_anew(source: ledgers.Source, book: Store) -> None:
    book.write(make_row("r1"))
    version = source.look().version
    source.close()
    source.forget()
    found = source.look()
    assert (len(found.entries), found.version > version) == (1, True)


def test_more_than_is_read(source: ledgers.Source, book: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        book.write(make_row(f"r{number}"))
        book.finish(f"r{number}", "done")
    monkeypatch.setattr(ledgers, "MOST", 3)
    found = source.look()
    assert ({entry.row.run for entry in found.entries}, found.is_cut) == ({"r1", "r2", "r3"}, True)


def test_the_latest_lines_of_the_log_are_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MOST_LINES", 3)
    Ledger.open(str(state)).close()
    source, path = ledgers.ThisMachine(), log_file.path_of(str(state), "node7")
    try:
        for number in range(5):
            line = Event("driver died", "WARNING", f"line {number}", fields={"driver": number}, time=NOW)
            log_file.append(path, line.as_json() + "\n")
            found = source.look()
        assert [line["driver"] for line in found.lines] == [2, 3, 4]
    finally:
        source.close()


def test_renewed_leases_are_news_now_and_then(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are renewed all the time, and nothing else is new."""
    monkeypatch.setenv("QX_LEDGER", shared_url)
    source = ledgers.AllHosts()
    with SharedLedger.open(shared_url) as book:
        book.renew()
        book.write(make_row("r1"))
        before = source.look()
        book.renew()
        after = source.look()
        assert after.version == before.version
        assert after.entries[0].lease is not None
        assert before.entries[0].lease is not None
        assert after.entries[0].lease.until > before.entries[0].lease.until
        book.renew()
        source._news_at = -ledgers.LEASE_NEWS_SECONDS
        assert source.look().version > before.version
    source.close()


def test_a_ledger_that_can_not_be_read(
    source: ledgers.Source, book: Store, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known is shown still, with a sentence; and when it is back, it is read."""
    book.write(make_row("r1"))
    assert len(source.look().entries) == 1
    if isinstance(source, ledgers.AllHosts):
        url = os.environ["QX_LEDGER"]
        monkeypatch.setenv("QX_LEDGER", re.sub(r":\d+/", ":9/", url))
        source.close()
    else:
        state.rename(state.with_name("away"))
        state.write_text("in the way")
        source.close()
    away = source.look()
    assert (len(away.entries), away.trouble.startswith("The ")) == (1, True)
    assert source.look().version == away.version
    if isinstance(source, ledgers.AllHosts):
        monkeypatch.setenv("QX_LEDGER", url)
    else:
        state.unlink()
        state.with_name("away").rename(state)
    back = source.look()
    assert (len(back.entries), back.trouble, back.version > away.version) == (1, "", True)


# Requests -----------------------------------------------------------------------------------------------------------


class Client:
    """A page that runs in this process, and requests to it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.base = page.address.url.rstrip("/")
        self.origin = {"Origin": self.base}

    def get(self, path: str, **headers: str) -> requests.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(self.base + path, headers=headers, timeout=DEADLINE, allow_redirects=False)

    def post(self, path: str, data: Any = None, json: Any = None, **headers: str) -> requests.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(
            self.base + path, data=data, json=json, headers=headers, timeout=DEADLINE, allow_redirects=False
        )


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """Serve a page, in this process."""
    made: list[Page] = []

    def begin(token: Token | None = None, address: str = "127.0.0.1:0", **how: Any) -> Client:
        made.append(Page(Address.parse(address), token, how.pop("names", ())))
        made[-1].start(how.pop("source", None) or ledgers.ThisMachine(), **how)
        return Client(made[-1])

    yield begin
    for page in made:
        page.stop()
        assert page._thread is None or not page._thread.is_alive()


def test_every_answer_has_the_headers(serve: Callable[..., Client]) -> None:
    client = serve()
    for path in ("/", "/page.css", "/page.js", "/icon.svg", "/api/view", "/api/run?run=x", "/nothing", "/api/cancel"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "Server" not in answer.headers
        if not answer.ok:
            assert set(answer.json()) == {"error"}
    assert client.get("/", Host="evil.example").headers["x-frame-options"] == "DENY"


def test_the_page_is_whole() -> None:
    """It loads its own three files, and nothing in them names another place."""
    static = Path(ledgers.__file__).parent / "static"
    html = (static / "page.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {"/icon.svg", "/page.css", "/page.js", "#table"}
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(['\"]?(?!#)", text), file.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|style=|onclick=|<style", text
        ), file.name
    script = (static / "page.js").read_text()
    used = set(re.findall(r'\$\("([\w-]+)"\)', script))
    assert {name for name in used if f'id="{name}"' not in html} == set()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_a_name_that_is_not_ours_is_refused(serve: Callable[..., Client], host: str) -> None:
    """As after DNS rebinding: the browser thinks that it talks to that site."""
    answer = serve().get("/api/view", Host=host)
    assert answer.status_code == 421
    assert "--page-name" in answer.json()["error"]


def test_two_names_at_once_are_refused(serve: Callable[..., Client]) -> None:
    client = serve()
    connection = http.client.HTTPConnection("127.0.0.1", client.page.address.port, timeout=DEADLINE)
    connection.putrequest("GET", "/api/view", skip_host=True)
    connection.putheader("Host", "127.0.0.1")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 421)
    connection.close()


def test_a_name_that_was_given(serve: Callable[..., Client]) -> None:
    client = serve(names=["QX.example.org"])
    assert client.get("/api/view", Host="qx.example.org").status_code == 200
    proxied = {"Host": "qx.example.org", "Origin": "https://qx.example.org"}
    assert client.get("/api/view", **proxied).status_code == 200
    assert client.get("/api/view", Host=os.uname().nodename).status_code == 200
    with pytest.raises(ConfigError, match="--page-name is the name of a host"):
        serve(names=["https://qx.example.org/"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser's
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),  # a link
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server on this machine
        ({"Origin": "file://"}, 403),
        ({"Origin": "http://["}, 403),  # no address at all
    ],
)
def test_origins(serve: Callable[..., Client], headers: dict[str, str], status: int, caplog: Any) -> None:
    answer = serve().get("/api/view", **headers)
    assert answer.status_code == status
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert not caplog.records
    if status == 403:
        assert "another origin" in answer.json()["error"]


def test_without_a_token_nothing_can_be_cancelled(serve: Callable[..., Client]) -> None:
    asked: list[str] = []
    client = serve(cancel=lambda job: asked.append(job) or ("cancelled", ""))
    assert client.get("/api/view").json()["may_cancel"] is False
    answer = client.post("/api/cancel", json={"job": "d1a2"}, **client.origin)
    assert answer.status_code == 403
    assert "QX_PAGE_TOKEN" in answer.json()["error"]
    for path in ("/login", "/logout"):
        assert client.post(path, **client.origin).status_code == 404
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert requests.request(method, f"{client.base}/api/view", timeout=DEADLINE).status_code == 405
    assert asked == []


def test_what_is_left_of_a_budget(serve: Callable[..., Client], state: Path) -> None:
    with Ledger.open(state) as book:
        book.set_budget(standing(300.0, "", "", "vqe"))
        book.write(make_row("r1", label="vqe"))
        book.reserve(ReservationWish(run="r1", post="p1", instance="crn", label="vqe", most=100))
    [row] = serve().get("/api/view?tab=budgets").json()["table"]["rows"]
    assert (row["seconds"], row["label"], row["reserved"], row["left"]) == (300.0, "vqe", 100.0, 200.0)


def test_mistakes_in_the_address(serve: Callable[..., Client]) -> None:
    client = serve()
    for query in ("since=now", "state=alive", "page=0", "tab=nothing"):
        answer = client.get(f"/api/view?{query}")
        assert answer.status_code == 400
        assert re.search(r"in the address (is|are)|in the address is unknown", answer.json()["error"])
    assert client.get("/api/run?run=none").json() == {"error": "the ledger has no such run any more: reload the page"}


def test_with_a_token(serve: Callable[..., Client], state: Path) -> None:
    client = serve(Token(SECRET))
    assert client.get("/?state=live").headers["location"] == "/login?state=live"
    assert client.get("/").headers["location"] == "/login"
    for path in ("/api/view", "/api/events", "/page.js", "/api/run?run=x"):
        assert client.get(path).status_code == 401
    assert client.get("/login").status_code == client.get("/page.css").status_code == 200
    assert client.get("/api/view", Authorization=f"Bearer {SECRET}").status_code == 200
    assert client.get("/api/view", Authorization=f"Bearer {SECRET}x").status_code == 401
    assert client.get("/api/view", Authorization=f"Basic {SECRET}").status_code == 401
    wrong = client.post("/login", {"token": "not the token"}, **client.origin)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    assert 'role="alert"' in wrong.text
    assert client.post("/login", {"token": SECRET}).status_code == 403  # it says not where it comes from
    right = client.post("/login?state=live", {"token": SECRET}, **client.origin)
    assert (right.status_code, right.headers["location"]) == (303, "/?state=live")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "secure" not in cookie.lower()
    assert SECRET not in cookie
    mine = cookie.partition(";")[0]
    assert client.get("/api/view", Cookie=mine).json()["may_cancel"] is False  # nobody said how
    assert client.get("/login", Cookie=mine).headers["location"] == "/"
    assert client.post("/api/cancel", json={"job": "d1"}, Cookie=mine).status_code == 403  # nor does this
    assert client.post("/logout", Cookie=mine, **client.origin).headers["location"] == "/login"
    assert client.get("/api/view", Cookie=mine).status_code == 401
    for _ in range(access.MOST_WRONG):
        last = client.post("/login", {"token": "a guess"}, **client.origin)
    assert (last.status_code, "wait a minute" in last.text) == (429, True)
    assert client.post("/login", {"token": SECRET}, **client.origin).status_code == 429
    script = client.get("/api/view", Authorization=f"Bearer {SECRET}")
    assert (script.status_code, script.json()["error"]) == (429, "too many wrong tokens: wait a minute")


def test_two_pages_of_one_host_have_cookies_of_their_own(serve: Callable[..., Client]) -> None:
    """As at localhost, with ssh -L: to a browser they are one place."""
    with requests.Session() as browser:
        pages = [serve(Token(SECRET)) for _ in range(2)]
        ports = [client.page.address.port for client in pages]

        def answers() -> list[int]:
            return [browser.get(f"{client.base}/api/view", timeout=DEADLINE).status_code for client in pages]

        for client in pages:
            browser.post(f"{client.base}/login", {"token": SECRET}, headers=client.origin, timeout=DEADLINE)
        assert sorted(browser.cookies.keys()) == sorted(f"qx-page-{port}" for port in ports)
        assert answers() == [200, 200]
        browser.post(f"{pages[0].base}/logout", headers=pages[0].origin, timeout=DEADLINE)
        assert browser.cookies.keys() == [f"qx-page-{ports[1]}"]
        assert answers() == [401, 200]


@pytest.mark.parametrize(
    ("host", "scheme", "name"),
    [
        ("localhost:8470", "http", "qx-page-8470"),
        ("[::1]:8471", "http", "qx-page-8471"),
        ("[::1]", "http", "qx-page-80"),
        ("qx.example.org", "https", "qx-page-443"),
    ],
)
def test_the_name_of_the_cookie(host: str, scheme: str, name: str) -> None:
    assert gate.cookie_of({"type": "http", "scheme": scheme, "headers": [(b"host", host.encode())]}) == name


def test_a_cookie_behind_tls_is_for_tls_alone(serve: Callable[..., Client]) -> None:
    client = serve(Token(SECRET), names=["qx.example.org"])
    headers = {"Host": "qx.example.org", "Origin": "https://qx.example.org"}
    assert "secure" in client.post("/login", {"token": SECRET}, **headers).headers["set-cookie"].lower()


def test_what_is_sent_is_bounded(serve: Callable[..., Client]) -> None:
    client = serve(Token(SECRET), cancel=lambda job: ("cancelled", ""))
    bearer = {"Authorization": f"Bearer {SECRET}"}
    assert client.post("/login", {"token": "x" * 5000}, **client.origin).status_code == 400
    assert client.post("/api/cancel", json={"job": "x" * 5000}, **bearer).status_code == 400
    assert client.post("/api/cancel", {"job": "d1"}, **bearer).status_code == 400  # a form, as other sites can send it
    for content in (["d1"], {"id": "d1"}, {"job": ["d1"]}, 7):
        assert client.post("/api/cancel", json=content, **bearer).status_code in (400, 404)


def test_a_cancel_goes_where_it_is_told_to(serve: Callable[..., Client], state: Path) -> None:
    """And only for jobs that are in flight, as far as the ledger knows."""
    with Ledger.open(state) as book:
        book.write(make_row("r1", jobs={"d1a2": "", "d3b4": "cancelled"}), make_row("r2", jobs={"d5c6": ""}))
        book.finish("r2", "done", end=End("finished"))
    asked: list[str] = []

    def cancel(job: str) -> tuple[str, str]:
        asked.append(job)
        if len(asked) > 1:
            raise RuntimeError("the account is closed")
        return "cancelled", "cancelled, and confirmed"

    client = serve(Token(SECRET), cancel=cancel)
    bearer = {"Authorization": f"Bearer {SECRET}"}
    for job in ("d3b4", "d5c6", "d7e8", "", 7):
        assert client.post("/api/cancel", json={"job": job}, **bearer).status_code == 404
    assert client.get("/api/run?run=r1", **bearer).json()["cancel"] == ["d1a2"]
    done = client.post("/api/cancel", json={"job": "d1a2"}, **bearer).json()
    assert done == {"job": "d1a2", "outcome": "cancelled", "sentence": "cancelled, and confirmed"}
    failed = client.post("/api/cancel", json={"job": "d1a2"}, **bearer).json()
    assert failed == {"job": "d1a2", "outcome": "unconfirmed", "sentence": "the account is closed"}
    assert asked == ["d1a2"] * 2


def test_a_fault_of_ours_is_a_sentence(
    serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    client = serve()
    monkeypatch.setattr(totals, "counts", lambda *_: 1 // 0)
    answer = client.get("/api/view")
    assert (answer.status_code, answer.json()["error"].startswith("the page could not answer")) == (500, True)
    until(lambda: caplog.text, lambda text: "ZeroDivisionError" in text)  # it is logged after the answer
    monkeypatch.undo()
    assert client.get("/api/view").status_code == 200
    monkeypatch.setattr(gate, "is_same_origin", lambda *_: 1 // 0)  # before the application is asked
    answer = client.get("/api/view")
    assert (answer.status_code, answer.json()["error"].startswith("the page could not answer")) == (500, True)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


# Sockets ------------------------------------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(self._path)


def test_a_socket_that_only_its_user_can_open(serve: Callable[..., Client], tmp_path: Path) -> None:
    path = tmp_path / "page"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # by a page that was killed
    client = serve(address=f"unix:{path}")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    connection = UnixConnection(path)
    connection.request("GET", "/api/view")
    assert json.loads(connection.getresponse().read())["table"]["total"] == 0
    connection.request("GET", "/api/view", headers={"Host": "evil.example"})
    assert connection.getresponse().read().startswith(b'{"error"')
    connection.close()
    with pytest.raises(ConfigError, match="another process listens there; choose another path"):
        Page(Address.parse(f"unix:{path}"))
    client.page.stop()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(ConfigError, match="which is no socket"):
        Page(Address.parse(f"unix:{path}"))
    with pytest.raises(ConfigError, match="there is no such folder; make it"):
        Page(Address.parse(f"unix:{tmp_path}/none/page"))


# Events -------------------------------------------------------------------------------------------------------------


class Listener:
    """Who listens to a page's events."""

    def __init__(self, client: Client) -> None:
        self.answer = requests.get(f"{client.base}/api/events", stream=True, timeout=DEADLINE)
        self._lines = self.answer.iter_lines(chunk_size=1)

    def next(self, start: str) -> str:
        return next(text for line in self._lines if (text := line.decode()).startswith(start))

    def close(self) -> None:
        self.answer.close()


def test_news_are_told(serve: Callable[..., Client], state: Path) -> None:
    client = serve()
    before = client.get("/api/view").json()["version"]
    listener = Listener(client)
    assert listener.answer.headers["content-type"].startswith("text/event-stream")
    with Ledger.open(state) as book:
        book.write(make_row("r1"))
        while True:
            told = int(listener.next("data: ").removeprefix("data: "))
            if told > before and client.get("/api/view").json()["table"]["total"] == 1:
                break
    listener.close()


def test_nothing_is_read_while_nobody_listens(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a listener that is gone is forgotten."""
    looks: list[int] = []
    source = ledgers.ThisMachine()
    look = source.look
    monkeypatch.setattr(source, "look", lambda: (looks.append(1), look())[1])
    monkeypatch.setattr(stream, "LOOK_SECONDS", 0.02)
    made: list[stream.Listeners] = []
    init = stream.Listeners.__init__
    monkeypatch.setattr(stream.Listeners, "__init__", lambda self, reader: (made.append(self), init(self, reader))[1])
    client = serve(source=source)
    assert looks == []
    listener = Listener(client)
    listener.next("event: change")
    assert len(made[0]) == 1
    listener.close()
    until(lambda: (len(made[0]), made[0]._looking), lambda found: found == (0, None))
    assert looks


def test_many_listeners(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told; one more is refused in a sentence; and the end of the page does not wait for them."""
    monkeypatch.setattr(stream, "MOST", 3)
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.05)
    client = serve()
    listeners = [Listener(client) for _ in range(3)]
    for listener in listeners:
        listener.next("event: change")
        listener.next(": nothing new")
    refused = client.get("/api/events")
    assert (refused.status_code, "too many listen" in refused.json()["error"]) == (503, True)
    began = time.monotonic()
    client.page.stop()
    assert time.monotonic() - began < 2.0
    for listener in listeners:
        with contextlib.suppress(requests.RequestException):
            assert not [line for line in listener._lines if line.startswith(b"event")]
        listener.close()


# Real drivers -------------------------------------------------------------------------------------------------------

SERVE = """
os.dup2(1, 2)
import qx_supervisor.service as services
services.accounts.every_service = lambda: [service()]
services.accounts.default_service = lambda *_: service()
from qx_supervisor.cli import main
main({words!r})
"""
"""The command, whose saved account is the embedded service; what it says on stderr is on stdout."""


class Served(Client):
    """The page of a process of its own."""

    def __init__(self, driver: Driver, url: str) -> None:
        self.driver = driver
        self.base = url.rstrip("/")
        self.origin = {"Origin": self.base}

    def rows(self, tab: str, **query: str) -> list[dict[str, Any]]:
        found = self.get(f"/api/view?{urlencode({'tab': tab} | query)}").json()
        assert "error" not in found, found
        rows: list[dict[str, Any]] = found["table"]["rows"]
        return rows

    def wait(self, tab: str, is_so: Callable[[list[dict[str, Any]]], object]) -> list[dict[str, Any]]:
        """Wait until a table is as it should be; it is looked at when there is news."""
        listener = Listener(self)
        while not is_so(rows := self.rows(tab)):
            listener.next("data: ")
        listener.close()
        return rows

    def end(self) -> None:
        """SIGTERM, and a clean end within the time that a reaper has."""
        began = time.monotonic()
        self.driver.send(signal.SIGTERM)
        assert self.driver.end() == 0, self.driver.lines
        assert time.monotonic() - began < 10


@pytest.fixture
def command(fork: Any) -> Callable[..., Served]:
    """Starts `qx-supervisor page` or `reaper --page`, and waits until it says where the page is."""

    def begin(*words: str, start: Any = fork) -> Served:
        driver = start(SERVE.format(words=list(words)))
        found: list[str] = []
        while not found:
            found = [word for word in driver.line("") if word.startswith("http")]
        return Served(driver, found[0])

    return begin


def test_a_driver_is_killed(ibm: local.Service, fork: Any, command: Callable[..., Served]) -> None:
    """What the page of this machine says of it, from its run to what became of that."""
    ibm.hold("queued")
    page = command("page", "127.0.0.1:0")
    driver = fork(RUN)
    job = driver.queued()
    [row] = page.wait("runs", lambda rows: rows and rows[0]["jobs"])
    assert (row["state"], row["jobs"], row["pid"], row["host"]) == ("live", [job], driver.pid, os.uname().nodename)
    [mine] = page.rows("drivers")
    assert (mine["state"], mine["open"], mine["pid"]) == ("live", 1, driver.pid)
    driver.kill()
    [row] = page.wait("runs", lambda rows: rows[0]["state"] == "cancelled")
    assert row["by"] == "watcher"
    [death] = page.wait("deaths", lambda rows: rows and rows[0]["seconds"] is not None)
    how = "was killed (SIGKILL)" if system.HAS_LINUX else "died"
    assert (death["pid"], death["how"], death["jobs"]) == (driver.pid, how, {"cancelled": 1})
    found = page.get(f"/api/run?run={row['run']}").json()
    assert {"driver died", "job cancelled", "all resolved"} <= {line["event"] for line in found["log"]}
    assert page.get("/api/view").json()["counts"]["deaths"] == 1
    page.end()
    wait_for_watchers(driver)
    assert_cancelled_once(ibm, job)


def test_the_page_of_a_reaper(
    ibm: local.Service, fork: Any, command: Callable[..., Served], shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Driver and watcher die together; the reaper cancels; SIGTERM ends both although somebody listens."""
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    ibm.hold("queued")
    page = command("reaper", "--page", "127.0.0.1:0")
    listener = Listener(page)
    driver = fork(RUN)
    job = driver.queued()
    page.wait("runs", lambda rows: rows and rows[0]["state"] == "live" and rows[0]["jobs"])
    [lease] = page.rows("leases")
    assert (lease["kind"], lease["runs"], lease["pid"]) == ("watcher", 1, driver.watcher().pid)
    wait_until_written(driver)
    kill_both(driver)
    [row] = page.wait("runs", lambda rows: rows[0]["state"] == "cancelled")
    assert (row["by"], row["jobs"]) == ("reaper", [job])
    [death] = page.rows("deaths")
    assert (death["by"], death["state"], death["jobs"]) == ("reaper", "resolved", {"cancelled": 1})
    page.end()
    listener.close()
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_a_reaper_is_not_held_up_by_its_page(
    ibm: local.Service, fork: Any, command: Callable[..., Served], postgres: Server, shared_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The database hangs while the page reads it, listeners stay, and a cancel that is asked for hangs too."""
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_PAGE_TOKEN", SECRET)
    ibm.hold("queued")
    page = command("reaper", "--page", "127.0.0.1:0")
    bearer = {"Authorization": f"Bearer {SECRET}"}
    driver = fork(RUN)
    job = driver.queued()
    until(lambda: page.get("/api/view", **bearer).json()["table"]["rows"], lambda rows: rows and rows[0]["jobs"])
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/*/cancel", "delay_seconds": 60.0}]})
    stuck = socket.create_connection(("127.0.0.1", int(page.base.rpartition(":")[2])), DEADLINE)
    body = json.dumps({"job": job})
    stuck.sendall(
        f"POST /api/cancel HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    postgres.freeze()
    try:
        began = time.monotonic()
        page.driver.send(signal.SIGTERM)
        assert page.driver.end() == 0, page.driver.lines
        assert time.monotonic() - began < 40  # the reaper itself waits for the database for some seconds
        answer = stuck.recv(65536).decode()
        assert "503" in answer.splitlines()[0]
        assert f"the page ends: see what became of job {job}" in answer
        assert not any("Traceback" in line for line in page.driver.lines)
    finally:
        postgres.thaw()
        stuck.close()
    ibm.scenario({})
    ibm.hold(None)
    driver.kill()
    wait_for_watchers(driver)


@pytest.mark.long
def test_a_job_is_cancelled_on_the_page(
    ibm: local.Service, fork: Any, command: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `qx-supervisor cancel`: once, confirmed, and its program is told."""
    monkeypatch.setenv("QX_PAGE_TOKEN", SECRET)
    ibm.hold("queued")
    page = command("page", "127.0.0.1:0")
    bearer = {"Authorization": f"Bearer {SECRET}"}
    assert page.get("/api/view").status_code == 401
    driver, other = (
        fork(f"try:\n    {RUN}\nexcept JobCancelled as error:\n    say('lost', error.job_id)") for _ in range(2)
    )
    job, kept = driver.queued(), other.queued()
    until(
        lambda: page.get("/api/view", **bearer).json()["table"]["rows"],
        lambda rows: sum(bool(row["jobs"]) for row in rows) == 2,
    )
    done = page.post("/api/cancel", json={"job": job}, **bearer).json()
    assert done == {"job": job, "outcome": "cancelled", "sentence": "cancelled, and confirmed"}
    assert driver.line("lost ") == [job]
    assert driver.end() == 0
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    assert (ibm.job(kept).status, ibm.job(kept).cancel_requests) == ("Queued", 0)
    page.end()
    other.kill()
    wait_for_watchers(other)


@pytest.mark.long
def test_no_secret_is_in_an_answer(
    ibm: local.Service, fork: Any, command: Callable[..., Served], postgres: Server, shared_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither the account's key, nor the database's password, nor the page's token: in no answer, and no line."""
    key = f"sentinel-{secrets.token_hex(20)}"
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    monkeypatch.setenv("QX_PAGE_TOKEN", SECRET)
    ibm.hold("queued")
    page = command("reaper", "--page", "127.0.0.1:0")
    bearer = {"Authorization": f"Bearer {SECRET}"}
    driver = fork(RUN.replace("backend()", "'ibm_brisbane', service=service('" + key + "')"))
    job = driver.queued()
    rows = until(lambda: page.get("/api/view", **bearer).json()["table"]["rows"], lambda rows: rows and rows[0]["jobs"])
    answers = [
        page.get(f"/api/view?tab={tab}", **bearer)
        for tab in ("runs", "drivers", "hosts", "leases", "budgets", "deaths")
    ]
    answers += [page.get(f"/api/run?run={rows[0]['run']}", **bearer), page.get("/"), page.get("/login")]
    answers += [page.get("/api/view"), page.get("/api/view", Authorization="Bearer wrong")]
    answers.append(page.post("/login", {"token": f"x{SECRET}"}, **page.origin))
    answers.append(page.post("/api/cancel", json={"job": job}, **bearer))
    assert answers[-1].json()["outcome"] == "cancelled"
    postgres.stop()
    try:
        trouble = until(lambda: page.get("/api/view", **bearer), lambda answer: answer.json()["trouble"])
    finally:
        postgres.start()
    answers.append(trouble)
    page.end()
    driver.kill()
    wait_for_watchers(driver)
    said = [*page.driver.lines, *(f"{answer.headers} {answer.text}" for answer in answers)]
    assert any(job in text for text in said)
    for secret in (key, postgres.password, SECRET, "eyJ"):
        assert [text for text in said if secret in text] == []


# Wrong use ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["page", "here"], "is an IP address and a port, such as 127.0.0.1:8470, or unix:/path, not 'here'"),
        (["page", "0.0.0.0:0"], "0.0.0.0:0 can be reached from other machines: set QX_PAGE_TOKEN or give --token-file"),
        (["page", "example.org:80"], "example.org is no IP address: give one of this machine's"),
        (["page", "192.0.2.1:80", "--token-file", "TOKEN"], "this machine has no such address; 127.0.0.1 is its own"),
        (["page", "--token-file", "none"], "the token can't be read from none: No such file or directory; write one"),
        (["page", "--page-name", "a/b"], "--page-name is the name of a host"),
        (["page", "--all-hosts"], "no shared ledger is named; set QX_LEDGER"),
        (["page", "--local", "--instance", "crn"], "--local has one instance only; leave --instance away"),
        (["page", "127.0.0.1:TAKEN"], "the port is in use; choose another one, or 0 for any that is free"),
        (["reaper", "--token-file", "TOKEN"], "--token-file and --page-name are for a page; give --page too"),
        (["reaper", "--page", "127.0.0.1:0", "--once"], "leave --page away, or see qx-supervisor page"),
    ],
)  # fmt: skip
def test_wrong_use_is_told_in_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TOKEN").write_text(SECRET)
    (tmp_path / "TOKEN").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.replace("TAKEN", str(taken.getsockname()[1])) for word in words]
        with pytest.raises(SystemExit, match=r"^2$"):
            main(words)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert sentence in said.err


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["page"])
    assert "needs the packages starlette and uvicorn: pip install '.[page]'" in capsys.readouterr().err


def test_a_reaper_says_that_the_port_is_taken_before_it_reaps(
    ibm: local.Service, fork: Any, shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEDGER", shared_url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        driver = fork(SERVE.format(words=["reaper", "--page", f"127.0.0.1:{port}"]))
        assert driver.end() == 2
    [line] = driver.lines
    assert line.startswith(f"qx-supervisor: the page can't be served at 127.0.0.1:{port}: the port is in use; choose ")
