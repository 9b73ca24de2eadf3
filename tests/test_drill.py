"""The drill notices what it is there to notice, and a short form of it finds nothing in what is not broken."""

from __future__ import annotations

import json
import subprocess
import time

import drill
import pytest
from drill_rows import clocks, deaths, faults, kills, lane, leases, slow_ends
from drill_rows.attempt import Try
from drill_rows.code import DRIVE, TELL_WATCHERS
from drill_rows.judge import JobSeen, Totals, TrySeen, total
from drill_rows.row import Row
from drill_rows.table import table

from qx_supervisor import local

DIED = 1_000_000_000
SOON = DIED + 2_000_000


def job(status: str, *cancels: int, name: str = "d1", run: str = "qxs-1", ended: int | None = SOON) -> JobSeen:
    return JobSeen(name, run, status, ended, len(cancels), cancels)


def local_job(name: str, tags: list[str]) -> JobSeen:
    found = local.Job(name, "Completed", None, "ibm_brisbane", tags, None, "executor", 1, SOON, 0)
    return lane.job_seen(found, ())


def judged(*jobs: JobSeen, died: int | None = DIED, kept: tuple[str, ...] = (), requests: str = "one") -> Totals:
    totals = Totals()
    totals.add(TrySeen(gave_up=died, held={"d1"}, kept=set(kept), jobs=list(jobs)), requests)
    return totals


def counts(totals: Totals) -> tuple[int, int, int, int]:
    return totals.orphans, totals.duplicates, totals.false_cancels, totals.wrong_requests


class TestJudge:
    @pytest.mark.parametrize(
        "good",
        [
            judged(),  # nothing was submitted
            judged(job("Cancelled", SOON)),
            judged(job("Completed", name="d1"), died=None, kept=("d1",)),
            judged(job("Completed", name="d1"), job("Cancelled", SOON, name="d2"), died=None, kept=("d1",)),
            judged(job("Completed", ended=DIED - 1)),  # over before its driver was
            judged(job("Completed", SOON, ended=DIED - 1)),  # the watcher asked, and was told so
            judged(job("Cancelled", SOON, SOON + 1), requests="some"),
        ],
    )
    def test_what_is_good(self, good):
        assert good.is_good
        assert good.tries == 1

    @pytest.mark.parametrize("status", ["Queued", "Running"])
    def test_an_orphan(self, status):
        assert counts(judged(job(status, ended=None))) == (1, 0, 0, 1)

    def test_an_orphan_that_was_asked_to_stop_and_did_not(self):
        assert counts(judged(job("Running", SOON, ended=None))) == (1, 0, 0, 0)

    def test_an_orphan_that_has_completed_since(self):
        assert counts(judged(job("Completed"))) == (1, 0, 0, 1)

    def test_a_duplicate_of_a_job_whose_driver_lives(self):
        left = judged(job("Completed"), job("Completed", name="d2"), died=None, kept=("d1",))
        assert counts(left) == (0, 1, 0, 0)

    def test_a_key_that_was_executed_twice(self):
        """By two runs that knew nothing of each other: what they have in common is the key's tag."""
        first, second = (local_job(name, ["qxk-1", f"qxs-{name}"]) for name in ("d1", "d2"))
        assert counts(judged(first, second, died=None, kept=("d2",))) == (0, 1, 0, 0)

    def test_two_runs_are_no_duplicates(self):
        kept = judged(job("Completed"), job("Completed", name="d2", run="qxs-2"), died=None, kept=("d1", "d2"))
        assert kept.is_good

    def test_a_cancel_of_a_job_that_its_driver_wanted(self):
        assert counts(judged(job("Cancelled", DIED), died=None, kept=("d1",))) == (0, 0, 1, 0)

    def test_a_cancel_before_the_driver_died(self):
        assert counts(judged(job("Cancelled", DIED - 1))) == (0, 0, 1, 0)

    def test_two_requests(self):
        twice = judged(job("Cancelled", SOON, SOON + 1))
        assert counts(twice) == (0, 0, 0, 1)
        assert twice.requests == [2]

    def test_no_request(self):
        assert counts(judged(job("Cancelled"))) == (0, 0, 0, 1)

    def test_the_time_to_cancel(self):
        assert judged(job("Cancelled", SOON)).latencies == [2.0]

    def test_a_driver_without_a_result(self):
        totals = Totals()
        totals.add(TrySeen(troubles=["the driver has no result"]))
        assert not totals.is_good

    def test_totals_are_sums(self):
        everything = total([judged(job("Cancelled", SOON, SOON + 1)), judged(job("Queued", ended=None))])
        assert (everything.tries, *counts(everything)) == (2, 1, 0, 0, 2)

    def test_the_worst_row_comes_first(self):
        def row(name: str) -> Row:
            return Row(name, "nothing", lambda _: None)

        results = [
            (row("good"), judged(job("Cancelled", SOON)), ""),
            (row("bad"), judged(job("Queued", ended=None)), ""),
            (row("worse"), judged(job("Cancelled", DIED - 1), job("Queued", name="d2", ended=None)), ""),
            (row("elsewhere"), Totals(), "no cgroup is mounted"),
        ]
        lines = [line for line in table(results).splitlines() if line.startswith("|")]
        assert [line.split("|")[1].split()[0] for line in lines[2:]] == ["worse", "bad", "good", "elsewhere"]
        assert "| good | nothing | 1 | 0 | 0 | 0 | 1 | 2.0 | 2.0 |" in lines
        assert "not possible here: no cgroup is mounted" in lines[-1]


def kill_both_and_leave_it_at_that(one: Try) -> None:
    one.start(TELL_WATCHERS)
    one.queued()
    deaths._kill_both(one)


def named(*names: str) -> list[Row]:
    found = [row for row in [*kills.ROWS, *deaths.ROWS, *faults.ROWS] if row.name in names]
    assert len(found) == len(names)
    return found


@pytest.mark.long
def test_a_short_drill(monkeypatch, capsys, tmp_path):
    good = named(
        "SIGKILL around the POST",
        "SIGKILL, queued",
        "SIGTERM, then SIGKILL",
        "SIGKILL of the watcher alone",
        "submit: 503 twice, each after a job was made",
        "SIGKILL; cancel: answer lost twice",
    )
    good += [row for row in slow_ends.ROWS if not row.obstacle()]
    broken = Row("nobody reaps", "an orphan", kill_both_and_leave_it_at_that)
    monkeypatch.setattr(drill, "ROWS", [*good, broken])
    report = tmp_path / "report.json"
    assert drill.main(["--tries", "8", "--lanes", "2", "--json", str(report)]) == 1
    rows = json.loads(report.read_text())["rows"]
    assert [row["fault"] for row in rows] == [*(row.name for row in good), broken.name, drill.CONTROL.name]
    for row in rows:
        found = row["tries"], row["orphans"], row["duplicates"], row["false_cancels"], row["wrong_requests"]
        wrong = row["tries"] if row["fault"] == broken.name else 0
        assert found == (max(1, row["tries"]), wrong, 0, 0, wrong), row
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert lines[2].startswith("| nobody reaps (see below) | an orphan |")
    assert "NOT ZERO" in printed.err


LEASES = [
    "a host is lost",
    "a host is cut off, and back when its job is cancelled",
    "the database is killed and started again, reapers running",
    "with a key: three reapers and the driver, started again, race for its lease",
]


@pytest.mark.skipif(bool(leases.no_hosts()), reason=leases.no_hosts())
@pytest.mark.long
def test_a_short_drill_of_hosts(monkeypatch, tmp_path):
    good = [row for row in leases.ROWS if row.name in LEASES]
    monkeypatch.setattr(leases, "LEASE", 5.0)  # no machine is to lose one by being slow
    monkeypatch.setattr(drill, "ROWS", [*good, Row("nobody reaps", "an orphan", lose_a_host_without_reapers)])
    report = tmp_path / "report.json"
    assert drill.main(["--tries", "5", "--lanes", "1", "--json", str(report)]) == 1
    rows = {row["fault"]: row for row in json.loads(report.read_text())["rows"]}
    assert rows.keys() == {*LEASES, "nobody reaps", drill.CONTROL.name}
    for name, row in rows.items():
        found = row["tries"], row["orphans"], row["duplicates"], row["false_cancels"], row["wrong_requests"]
        wrong = row["tries"] if name == "nobody reaps" else 0
        assert found == (max(1, row["tries"]), wrong, 0, 0, wrong), row
        assert bool(row["troubles"]) == bool(wrong), row


def lose_a_host_without_reapers(one: Try) -> None:
    site = leases.site_of(one, reapers=0)
    host = site.host()
    site.start(one, host, DRIVE)
    one.queued()
    leases.lose(one, host)


@pytest.mark.skipif(bool(leases.no_wrong_clock()), reason=leases.no_wrong_clock())
def test_a_wrong_clock_is_wrong(tmp_path):
    said = """
import datetime, threading, time
began = time.monotonic()
time.sleep(0.01)
threading.Event().wait(0.01)
print(time.time(), datetime.datetime.now().timestamp(), began, time.monotonic())
"""
    clock = clocks.WrongClock(-1, tmp_path)
    *shown, began, ended = map(float, subprocess.check_output([clock.python, "-c", said]).split())
    assert all(3500 < time.time() - each < 3700 for each in shown)
    assert 0.02 <= ended - began < 60  # the waits are not shifted
    assert abs(time.monotonic() - ended) < 60


def test_what_is_not_possible_here_is_said(monkeypatch, capsys):
    row = Row("earthquake", "nothing is left", lambda _: None, obstacle=lambda: "the ground is firm")
    monkeypatch.setattr(drill, "ROWS", [row])
    assert drill.main([]) == 0
    assert "| earthquake | not possible here: the ground is firm |" in capsys.readouterr().out
