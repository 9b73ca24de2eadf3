"""The ledger tells what became of each run, and who ended it; and what each run was."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from testkit.circuits import ones
from testkit.drivers import RUN, kill_both
from testkit.ledgers import make_row
from testkit.processes import until, wait_for_end
from testkit.terminals import Terminal
from testkit.watchers import wait_until_written

from qx_supervisor import ConfigError, Status, guard, local, reap, run, submit
from qx_supervisor.about import check_label
from qx_supervisor.cli import main, rows, table
from qx_supervisor.watcher.facts import Figures
from qx_supervisor.watcher.ledger import Ledger, Row
from qx_supervisor.watcher.ledger.row import safe_command

Told = tuple[str, str, int | None, str]


def ended(state: Path) -> Row:
    """The only row, once it says how the run has ended."""
    [row] = until(lambda: rows_of(state), lambda found: found and found[0].outcome)
    return row


def rows_of(state: Path) -> list[Row]:
    with Ledger.open(state) as book:
        return book.rows()


def told(row: Row) -> Told:
    return row.outcome, row.ended_by, row.signum, row.reason


# How it ended -------------------------------------------------------------------------------------------------------

STAYS = "\ntime.sleep(3600)"
HELD = "held = submit(isa(), backend(), shots=64, on_status=tell, panel=None{})\n"


@pytest.mark.parametrize(
    ("code", "reason", "end"),
    [
        ("held.result()", None, ("finished", "", None, "")),
        ("held.cancel()", None, ("cancelled", "program", None, "")),
        ("held.detach()", None, ("detached", "program", None, "")),
        ("held.result()", "calibration failed", ("failed", "IBM", None, "calibration failed")),
    ],
    ids=["finished", "cancelled", "detached", "failed"],
)
@pytest.mark.short_only("failed")
def test_what_a_program_came_to(
    ibm: local.Service, fork: Any, state: Path, code: str, reason: str | None, end: Told
) -> None:
    if reason is not None:
        ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": reason}]})
    elif "result" not in code:
        ibm.hold("running")
    driver = fork(
        HELD.format("") + f"while held.job_id is None: time.sleep(0.01)\ntry:\n    {code}\nexcept RunError: pass{STAYS}"
    )
    assert told(ended(state)) == end
    driver.kill()


@pytest.mark.long
def test_a_job_that_someone_else_has_cancelled(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    fork(RUN + STAYS)
    job = ibm.wait_for("POST", "/api/v1/jobs") and until(ibm.jobs, lambda found: found)[0].id
    ibm.service().job(job).cancel()
    assert told(ended(state))[:3] == ("cancelled", "someone else", None)


@pytest.mark.long
def test_a_job_that_ran_too_long(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.scenario({"next_jobs": [{"outcome": "cancelled", "reason": "Ran too long.", "reason_code": 1305}]})
    fork(f"try_run(isa(), backend(), panel=None){STAYS}")
    assert told(ended(state)) == ("cancelled", "IBM", None, "Ran too long.")


@pytest.mark.long
def test_a_run_whose_time_is_up(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    fork(f"try_run(isa(), backend(), panel=None, timeout=2){STAYS}")
    assert told(ended(state)) == ("cancelled", "program", None, "no result within 2 s")


@pytest.mark.long
def test_a_submission_that_is_refused(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "status": 400, "times": 9}]})
    fork(f"try_run(isa(), backend(), panel=None){STAYS}")
    row = ended(state)
    assert (row.outcome, row.ended_by, dict(row.jobs)) == ("failed", "IBM", {})
    assert "400" in row.reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.short_only("SIGINT")
def test_a_signal_is_named(ibm: local.Service, fork: Any, state: Path, number: signal.Signals) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    watcher = driver.watcher()
    driver.send(number)
    driver.end()
    wait_for_end(watcher)
    [row] = rows_of(state)
    assert told(row) == ("cancelled", "signal", number, "")
    assert row.state == "done"  # as the rules of leases have it


@pytest.mark.long
def test_a_signal_is_named_where_the_watcher_has_finished_the_cancel(
    ibm: local.Service, fork: Any, state: Path
) -> None:
    ibm.hold("queued", cancel_lag=1.0)
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.send(signal.SIGTERM)
    ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    driver.kill()
    wait_for_end(watcher)
    assert told(rows_of(state)[0]) == ("cancelled", "signal", signal.SIGTERM, "")


@pytest.mark.long
def test_a_job_that_had_failed_when_its_driver_died(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "calibration failed"}]})
    driver = fork(RUN.replace("on_status=tell", "on_status=tell, poll_interval=3600"))
    job = driver.queued()
    watcher = driver.watcher()
    ibm.hold(None)
    ibm.wait_job(job, "Failed")
    driver.kill()
    wait_for_end(watcher)
    assert told(rows_of(state)[0]) == ("failed", "IBM", None, "calibration failed")


@pytest.mark.long
def test_a_job_that_had_finished_when_driver_and_watcher_died(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    driver = fork(RUN.replace("on_status=tell", "on_status=tell, poll_interval=3600"))
    job = driver.queued()
    wait_until_written(driver)
    kill_both(driver)
    ibm.hold(None)
    ibm.wait_job(job, "Completed")
    assert [each.fate for each in reap(ibm.service())] == ["nothing left"]
    assert told(rows_of(state)[0]) == ("finished", "", None, "")


@pytest.mark.long
def test_a_block_that_an_exception_has_left(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    driver = fork(
        """
        job = Sampler(mode=backend()).run([isa()])
        try:
            with guard(job, label="by hand"):
                raise KeyError
        except KeyError:
            say("left")
        time.sleep(3600)
        """
    )
    driver.line("left")
    row = ended(state)
    assert (told(row), row.label) == (("cancelled", "program", None, "KeyError"), "by hand")


@pytest.mark.long
def test_a_program_under_exec(ibm: local.Service, start: Any, state: Path) -> None:
    code = """
    job = Sampler(mode=backend()).run([isa()])
    job.result()
    say("over")
    time.sleep(3600)
    """
    ibm.tell(qpu_seconds=2.5)
    driver = start(code, wrap=lambda command: [*QX, "exec", "--label", "by exec", "--", *command])
    driver.line("over")
    row = ended(state)
    assert (told(row), row.label, row.backend) == (("finished", "", None, ""), "by exec", "ibm_brisbane")
    assert row.program == "driver0.py"
    watcher = driver.watcher()
    driver.kill()
    wait_for_end(watcher)
    assert rows_of(state)[0].charged == 2.5


# What it was --------------------------------------------------------------------------------------------------------


def test_a_row_says_what_was_submitted(
    ibm: local.Service, fork: Any, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LABEL", "of all")
    ibm.hold("queued")
    given = 'run([isa(), isa()], backend(), shots=64, tags=["mine"], label="vqe step 17", on_status=tell, panel=None)'
    driver = fork(given)
    driver.queued()
    [row] = until(lambda: rows_of(state), lambda found: found and found[0].jobs)
    assert (row.backend, row.primitive, row.pubs, row.shots) == ("ibm_brisbane", "sampler", 2, 64)
    assert (row.label, row.tags) == ("vqe step 17", ("mine",))
    assert row.command
    driver.kill()


def test_a_label_is_in_the_panel_the_log_and_the_statuses(
    ibm: local.Service, service: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Status] = []
    with caplog.at_level("INFO", logger="qx_supervisor"):
        run(ones(), "ibm_brisbane", service=service, panel="plain", label="vqe 17", on_status=seen.append)
    assert {status.label for status in seen} == {"vqe 17"}
    assert all("vqe 17" in record.getMessage() for record in caplog.records if "run " in record.getMessage())
    assert "vqe 17" in capsys.readouterr().err


def test_panels_show_a_label() -> None:
    from rich.console import Console

    from qx_supervisor.panel import notebook, terminal
    from qx_supervisor.panel.view import View

    views = [View() for _ in range(2)]
    for number, view in enumerate(views):
        view.see(Status("poll", "queued", f"j{number}", backend="b", label=f"[step] {number}"))
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(terminal.table(views, 20))
    console.print(terminal.block(views[0]))
    console.print(terminal.summary(views[1], with_results=False))
    shown = console.export_text()
    assert shown.count("[step] 0") == 2
    assert shown.count("[step] 1") == 2
    assert "[step] 0" in notebook.as_html(views[0])


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("", "label must be a string that is not empty, not ''; or leave it away"),
        (17, "label must be a string that is not empty, not 17; or leave it away"),
        ("two\nlines", "some can not be printed: shorten it, or use tags for the rest"),
        ("x" * 101, "label must be one line of 100 printable characters or fewer; this has 101: shorten it"),
    ],
)
def test_a_label_that_can_not_be_is_refused_before_anything_is_submitted(
    ibm: local.Service, service: Any, label: Any, fault: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        submit(ones(), "ibm_brisbane", service=service, label=label)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        guard(object(), label=label)
    assert not ibm.journal(method="POST", path="/api/v1/jobs")


def test_a_label_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_LABEL", " night run ")
    assert (check_label(None), check_label("mine")) == ("night run", "mine")
    monkeypatch.setenv("QX_LABEL", "x" * 101)
    with pytest.raises(ConfigError, match="QX_LABEL must be one line"):
        check_label(None)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["python", "driver.py", "--epochs", "20"], "python driver.py --epochs 20"),
        (["python", "a b.py"], "python 'a b.py'"),
        (["x", "--token", "hush", "y"], "x --token [left out] y"),
        (["x", "--api-key=hush"], "x --api-key=[left out]"),
        (["x", "--password", "--verbose"], "x --password --verbose"),
        (["env", "QISKIT_IBM_TOKEN=hush", "python"], "env QISKIT_IBM_TOKEN=[left out] python"),
        (["x", "postgresql://me:hush@db/qx"], "x postgresql://db/qx"),
        (["x", "https://x.test/?token=hush&a=b"], "x 'https://x.test/?token=[left out]&a=b'"),
        (["python", "-c", "Service(token='hush')"], None),
        (["x", "k" * 44], "x [left out]"),
        (["x", "eyJhbGciOi.eyJzdWIi.sig"], "x [left out]"),
        (["x", "a\nb\ud800"], "x 'a b?'"),
    ],
)
def test_a_command_line_holds_no_secret(arguments: list[str], shown: str | None) -> None:
    found = safe_command(arguments)
    assert "hush" not in found
    assert shown is None or found == shown
    assert len(safe_command(["word"] * 1000)) == 300


# ps -----------------------------------------------------------------------------------------------------------------

QX = [sys.executable, "-m", "qx_supervisor"]


def call(*words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    main(list(words), standalone_mode=False)
    return capsys.readouterr().out.splitlines()


def test_ps_tells_the_state_of_a_driver_that_is_dead_while_its_watcher_works(
    ibm: local.Service, fork: Any, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ibm.hold("queued", cancel_lag=3600.0)
    driver = fork(RUN)
    job = driver.queued()
    wait_until_written(driver)
    watcher = driver.watcher()
    [line] = call("ps", "--json", capsys=capsys)
    assert json.loads(line)["state"] == "live"
    driver.kill()
    ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    _, line = call("ps", capsys=capsys)
    assert line.split()[1:3] == ["ending", job]
    ibm.hold("queued", cancel_lag=0.0)
    ibm.service().job(job).cancel()
    wait_for_end(watcher)
    assert call("ps", capsys=capsys) == []
    [line] = call("ps", "--all", "--json", capsys=capsys)
    assert (json.loads(line)["state"], json.loads(line)["by"]) == ("cancelled", "watcher")


def a_row(**values: Any) -> Row:
    given: dict[str, Any] = {
        "jobs": {"d1a2b3c4e5f6g7h8i9j0": ""},
        "backend": "ibm_brisbane",
        "label": "vqe  step\t17 ☂",
        "tags": ("a", "b"),
        "primitive": "sampler",
        "pubs": 1,
        "shots": 4096,
        "command": "python driver.py",
        "program": "driver.py",
        "began_at": 1000.0,
        "state": "done",
        "outcome": "cancelled",
        "ended_by": "signal",
        "signum": 2,
        "ended_at": 1060.0,
        **values,
    }
    return make_row(**given)


def test_a_row_as_cells() -> None:
    cells = rows.cells(a_row(), "cancelled", 1000.0 + 7300)
    assert (cells["AGE"], cells["BY"], cells["COST"], cells["TAGS"]) == ("2h", "SIGINT (2)", "", "a,b")
    assert cells["HOST"].endswith(f":{os.getpid()}")
    several = a_row(jobs={"j1": "", "j2": ""}, figures={"j1": Figures(estimated=2.0), "j2": Figures(estimated=1.5)})
    assert rows.cells(several, "live", 1005.0)["JOB"] == "j1 +1"
    assert (rows.age(5), rows.cost(several)) == ("5s", "~3.5 s")
    assert rows.cost(a_row(figures={"j": Figures(estimated=2.0, charged=1.25)})) == "1.25 s"
    assert rows.who_ended(a_row(signum=99)) == "signal (99)"


def test_a_row_as_json() -> None:
    job = "d1a2b3c4e5f6g7h8i9j0"
    fields = rows.fields(a_row(), "cancelled")
    assert (fields["signal"], fields["signal_name"], fields["uncharged"]) == (2, "SIGINT", [job])
    assert (fields["began"], fields["queued"], fields["ran"]) == ("1970-01-01T00:16:40Z", None, None)
    assert (fields["ended"], fields["ended_clock"]) == ("1970-01-01T00:17:40Z", "host")
    known = a_row(figures={job: Figures(2.0, 1.0, 1010.0, 1020.0, 1030.0)})
    fields = rows.fields(known, "cancelled")
    assert (fields["queued"], fields["ran"]) == ("1970-01-01T00:16:50Z", "1970-01-01T00:17:00Z")
    assert (fields["ended"], fields["ended_clock"]) == ("1970-01-01T00:17:10Z", "service")
    assert (fields["qpu_seconds_estimated"], fields["qpu_seconds"], fields["uncharged"]) == (2.0, 1.0, [])
    assert rows.state_of(make_row(state="done"), "final") == "done"  # of an earlier release


def test_columns_are_apart_and_fit() -> None:
    cells = [
        {"AGE": "5s", "JOB": "d1a2b3c4e5f6g7h8i9j0", "LABEL": "a very long  label 雨雨雨雨 indeed"},
        {"AGE": "10m"},
    ]
    header, first, second = table.lines(["AGE", "JOB", "LABEL"], cells, 0, ["LABEL"])
    assert re.split("  +", first) == ["5s", "d1a2b3c4e5f6g7h8i9j0", "a very long label 雨雨雨雨 indeed"]
    assert re.split("  +", second) == ["10m", "-", "-"]
    assert header.split() == ["AGE", "JOB", "LABEL"]
    narrow = list(table.lines(["AGE", "JOB", "LABEL"], cells, 40, ["LABEL"]))
    assert narrow[1] == "5s   d1a2b3c4e5f6g7h8i9j0  a very…indeed"  # labels differ at their end
    assert list(table.lines(["AGE"], [], 40, [])) == ["AGE"]


def test_columns_stay_legible_while_another_can_give() -> None:
    names = ["JOB", "BACKEND", "LABEL", "HOST"]
    row = {
        "JOB": "d1a2b3c4e5f6g7h8i9j0",
        "BACKEND": "ibm_brisbane",
        "LABEL": "vqe step 17 of 99",
        "HOST": "login01:12345",
    }

    def at(width: int) -> str:
        return list(table.lines(names, [row], width, ["BACKEND", "HOST", "LABEL", "TAGS"]))[1]

    assert at(68) == "d1a2b3c4e5f6g7h8i9j0  ibm_brisbane  vqe step 17 of 99  login01:12345"
    assert at(61) == "d1a2b3c4e5f6g7h8i9j0  ibm_bri…  vqe step 17 of 99  logi…12345"
    assert at(56) == "d1a2b3c4e5f6g7h8i9j0  ibm_bri…  vqe s… of 99  logi…12345"
    left = list(table.lines(names, [row], 40, ["BACKEND", "HOST", "LABEL"], ["BACKEND", "HOST", "COST"]))
    assert left == ["JOB                   LABEL", "d1a2b3c4e5f6g7h8i9j0  vqe step 17 of 99"[:40]]
    assert at(40) == "d1a2b3c4e5f6g7h8i9j0  ibm_br…  vq… 99  lo…345"  # nothing gives any more


@pytest.mark.parametrize(
    ("width", "columns", "without_labels"),
    [
        (38, "PROGRAM STATE LABEL", "PROGRAM STATE JOB"),
        (78, "PROGRAM STATE JOB SERVICE AGE LABEL", "PROGRAM STATE JOB SERVICE AGE COST"),
        (102, "PROGRAM STATE JOB SERVICE AGE BACKEND COST LABEL", "PROGRAM STATE JOB SERVICE AGE BACKEND COST"),
        (5, "STATE", "STATE"),
    ],
)
def test_the_columns_of_top(width: int, columns: str, without_labels: str) -> None:
    pytest.importorskip("textual", reason="the extra top is not installed")
    from qx_supervisor.cli.top_app import SHOWN, ranked

    assert table.chosen(SHOWN, ranked(width, has_labels=True), width) == columns.split()
    assert table.chosen(SHOWN, ranked(width, has_labels=False), width) == without_labels.split()


@pytest.mark.long
def test_ps_on_a_terminal_fits_and_is_watched(ibm: local.Service, fork: Any, state: Path) -> None:
    ibm.hold("queued")
    driver = fork(RUN.replace("on_status", 'label="' + "long " * 12 + 'label", on_status'))
    job = driver.queued()
    wait_until_written(driver)
    once = Terminal([*QX, "ps"], columns=80)
    assert once.end() == 0
    assert job in once.text
    assert max(len(line) for line in once.text.splitlines()) <= 80
    assert "…" in once.text
    once.close()
    watched = Terminal([*QX, "ps", "--watch"], columns=80)
    watched.until(job)
    driver.kill()
    watched.until(lambda text: job not in text)
    watched.type("\x03")
    assert watched.end() == 0
    watched.close()


def test_watching_is_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    import click

    with pytest.raises(click.UsageError, match="--watch is for a terminal"):
        call("ps", "--watch", capsys=capsys)
