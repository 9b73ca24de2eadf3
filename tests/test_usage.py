"""`qx-supervisor usage`: what jobs have cost, by day, backend, label, program and key."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.drivers import RUN, end
from testkit.ledgers import make_row
from testkit.processes import wait_for_end
from testkit.terminals import Terminal

from qx_supervisor import local
from qx_supervisor.cli import main
from qx_supervisor.page.entry import Entry
from qx_supervisor.page.totals import counts
from qx_supervisor.usage import Usage, add_up, total
from qx_supervisor.watcher.facts import Figures
from qx_supervisor.watcher.ledger import Ledger, Row
from qx_supervisor.watcher.ledger.postgres import SharedLedger

NOON = time.mktime((2026, 11, 20, 12, 0, 0, 0, 0, -1))
DAY = 86400.0

LABELLED = RUN.replace("shots=64", "shots=64, label={label!r}")


def row(run: str, figures: dict[str, Figures], **values: Any) -> Row:
    """A run that is over, with what is known of its jobs."""
    given = {"state": "done", "jobs": dict.fromkeys(figures, "finished"), "created_at": NOON, **values}
    return make_row(run, figures=figures, **given)


ROWS = [
    row("r1", {"j1": Figures(2.0, 3.0, ran=NOON), "j2": Figures(2.0, 1.0, ran=NOON + DAY)}, backend="a", label="vqe"),
    row(
        "r2",
        {"j3": Figures(5.0, 4.5, ended=NOON + DAY)},
        jobs={"j3": "cancelled"},
        backend="b",
        ended_by="watcher",
        key="step",
        program="d.py",
    ),
    row("r3", {"j4": Figures(1.0)}, backend="b"),
    row("r4", {"j5": Figures(7.0)}, backend="b", state="guarded", jobs={"j5": ""}),
    row("r5", {"j6": Figures()}, backend="b", jobs={"j6": "gone"}),
]


def test_jobs_are_added_up_in_groups() -> None:
    assert add_up(ROWS, "day") == {
        "2026-11-20": Usage(jobs=3, estimated=10.0, charged=3.0, uncharged=1),
        "2026-11-21": Usage(jobs=2, estimated=7.0, charged=5.5, after_death=4.5),
    }
    assert add_up(ROWS, "backend") == {
        "b": Usage(jobs=3, estimated=13.0, charged=4.5, after_death=4.5, uncharged=1),
        "a": Usage(jobs=2, estimated=4.0, charged=4.0),
    }
    for by, names in (("label", ["", "vqe"]), ("program", ["d.py", ""]), ("key", ["step", ""])):
        assert list(add_up(ROWS, by)) == names
    assert total(add_up(ROWS, "label").values()) == Usage(5, 17.0, 8.5, 4.5, 1)
    assert add_up(ROWS, "backend", NOON + 1) == {
        "b": Usage(1, 5.0, 4.5, 4.5),
        "a": Usage(1, 2.0, 1.0),
    }
    assert add_up([], "day") == {}


def test_a_job_of_two_runs_counts_once() -> None:
    """One that was detached and attached again, say; the charge is known to the later one, or to the other."""
    known, unknown = Figures(2.0, 9.0, ran=NOON), Figures(2.0, ran=NOON)
    for figures in ((known, known), (known, unknown), (unknown, known)):
        rows = [row("later", {"j": figures[0]}), row("earlier", {"j": figures[1]})]
        assert add_up(rows, "backend") == {"": Usage(jobs=1, estimated=2.0, charged=9.0)}
    found = counts([Entry.of(each, "") for each in rows], [])
    assert (found["charged"], found["uncharged"]) == (9.0, 0)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], str]]:
    """Calls the command in this process: its exit code, its lines on stdout, its stderr."""

    def call(*words: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["usage", *words])
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out.splitlines(), said.err

    return call


def test_what_was_charged_and_what_a_death_cost(ibm: local.Service, fork: Any, state: Path, call: Any) -> None:
    """From the real drivers to the table: one ends well, one is killed while its job runs."""
    ibm.charge(fixed=2.0, per_shot=0.01, estimate=2.0)
    well = fork(LABELLED.format(label="vqe step 17"))
    assert end(well) == 0
    ibm.hold("running")
    killed = fork(RUN)
    job = killed.line("running ")[0]
    watcher = killed.watcher()
    ibm.spend(5.0, job)
    killed.kill()
    wait_for_end(watcher)

    code, lines, said = call("--by", "label", "--json")
    assert (code, said) == (0, "")
    charged = 2.0 + 64 * 0.01
    assert [json.loads(line) for line in lines] == [
        {
            "label": None,
            "jobs": 1,
            "uncharged": 0,
            "qpu_seconds_estimated": pytest.approx(2 * charged),
            "qpu_seconds": pytest.approx(5.0),
            "qpu_seconds_after_death": pytest.approx(5.0),
            "price": None,
            "currency": None,
        },
        {
            "label": "vqe step 17",
            "jobs": 1,
            "uncharged": 0,
            "qpu_seconds_estimated": pytest.approx(2 * charged),
            "qpu_seconds": pytest.approx(charged),
            "qpu_seconds_after_death": 0.0,
            "price": None,
            "currency": None,
        },
    ]
    today = time.strftime("%Y-%m-%d")
    code, lines, said = call()
    assert (code, said) == (0, "")
    assert [line.split() for line in lines] == [
        ["DAY", "JOBS", "ESTIMATED", "CHARGED", "DEATHS", "UNKNOWN"],
        [today, "2", "10.6", "s", "7.6", "s", "5.0", "s", "-"],
        ["total", "2", "10.6", "s", "7.6", "s", "5.0", "s", "-"],
    ]


@pytest.fixture
def written(state: Path) -> Ledger:
    """A ledger with a run of which something is known, and one of which nothing is."""
    with Ledger.open(state) as book:
        for each in (make_row("r1", backend="ibm_a", jobs={"j1": ""}), make_row("r2", jobs={"j2": ""})):
            book.write(each)
        book.job_figures("r1", "j1", Figures(2.0, 10.0))
        book.finish("r1", "done", durable=True)
        book.finish("r2", "done", durable=True)
        return book


@pytest.mark.usefixtures("written")
def test_with_a_price_it_is_money(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_PRICE", "1.60 USD")
    _, lines, _ = call("--by=backend")
    assert lines[1].split() == ["ibm_a", "1", "2.0", "s", "10.0", "s", "-", "-", "16.00", "USD"]
    assert lines[2].split() == ["-", "1", "-", "-", "-", "1", "0.00", "USD"]
    assert lines[3].split()[0] == "total"
    _, lines, _ = call("--by=backend", "--json")
    assert json.loads(lines[0]).items() >= {"price": 16.0, "currency": "USD", "backend": "ibm_a"}.items()
    for wrong in ("1.60", "much USD", "-1 USD", "nan USD"):
        monkeypatch.setenv("QX_PRICE", wrong)
        code, lines, said = call()
        assert (code, lines) == (2, [])
        assert "it must be an amount and a currency, such as 1.60 USD" in said


@pytest.mark.usefixtures("written")
def test_since_when(call: Any) -> None:
    for given in ("1h", "2d", "3w", time.strftime("%Y-%m-%d")):
        _, lines, _ = call("--since", given)
        assert lines[-1].split()[:2] == ["total", "2"]
    code, lines, said = call("--since", "2100-01-01")
    assert (code, lines, said) == (0, [], "qx-supervisor: no job is known that ran since then\n")
    for wrong in ("yesterday", "7", "7m", "-1d"):
        code, _, said = call(f"--since={wrong}")
        assert code == 2
        assert "such as 12h, 7d or 4w, or a date such as 2026-01-31" in said


def test_what_finished_before_a_death_is_not_among_its_costs() -> None:
    """One row has all jobs of a session that is guarded."""
    session = row(
        "r1",
        {"j1": Figures(100.0, 100.0), "j2": Figures(100.0, 3.0)},
        jobs={"j1": "finished", "j2": "cancelled"},
        ended_by="watcher",
    )
    assert total(add_up([session], "label").values()).after_death == 3.0


def test_without_any_job(call: Any) -> None:
    assert call() == (0, [], "qx-supervisor: no job is known\n")
    assert call("--json") == (0, [], "")


def test_on_a_terminal_a_bar_shows_it(state: Path, tmp_path: Path) -> None:
    with Ledger.open(state) as book:
        for run, label, charged, by in (("r1", "big", 10.0, ""), ("r2", "half", 5.0, ""), ("r3", "lost", 2.5, "reap")):
            book.write(make_row(run, label=label, jobs={run: ""}, ended_by=by))
            book.job_figures(run, run, Figures(charged=charged))
    terminal = Terminal([sys.executable, "-m", "qx_supervisor", "usage", "--by", "label"], columns=80)
    try:
        assert terminal.end() == 0
    finally:
        terminal.close()
    _, *lines, whole = (line for line in terminal.text.splitlines() if line)
    assert [(line.split()[0], line.count("█"), line.count("░")) for line in lines] == [
        ("big", most := lines[0].count("█"), 0),
        ("half", most // 2, 0),
        ("lost", 0, round(most / 4)),
    ]
    assert most > 20
    assert not {"█", "░"} & {*whole}


@pytest.mark.long
def test_of_all_hosts(shared_url: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with SharedLedger.open(shared_url) as book:
        book.renew()
        book.write(make_row("r1", backend="ibm_a", jobs={"j1": ""}))
        book.job_figures("r1", "j1", Figures(2.0, 10.0))
    monkeypatch.setenv("QX_LEDGER", shared_url)
    code, lines, said = call("--all-hosts", "--by=backend", "--json")
    assert (code, said) == (0, "")
    assert [(each["backend"], each["qpu_seconds"]) for each in map(json.loads, lines)] == [("ibm_a", 10.0)]
    assert call("--json") == (0, [], "")  # this machine's own ledger has none
