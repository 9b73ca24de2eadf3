"""The driver's log: one description of an event, in the forms that an administrator asks for, and each line once."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from testkit.circuits import BACKEND, ones

from qx_supervisor import logs, submit
from qx_supervisor.watcher.events import Event, from_object, moment

HEAD = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"run=(?P<run>\S+) job=(?P<job>\S+) label=(?P<label>-|\S+|\"[^\"]*\"): (?P<message>.*)"
)


def test_both_forms_say_the_same() -> None:
    event = Event("status", "INFO", "queued", "4f1c" * 8, "d1", "vqe step 17", {"state": "queued"}, 1e9 + 0.25)
    assert event.as_text() == f'{moment(1e9 + 0.25)} INFO run=4f1c4f1c job=d1 label="vqe step 17": queued'
    assert json.loads(event.as_json()) == {
        "time": moment(1e9 + 0.25),
        "level": "INFO",
        "event": "status",
        "message": "queued",
        "run": "4f1c" * 8,
        "job": "d1",
        "label": "vqe step 17",
        "state": "queued",
    }
    assert from_object(json.loads(event.as_json())) == event
    assert HEAD.fullmatch(event.as_text())


@pytest.mark.parametrize("label", ["a\nb", 'say "x"', "\x1b[31m", "\x9b31m", "ü"])
def test_a_label_makes_no_second_line(label: str) -> None:
    event = Event("status", "INFO", "queued", label=label)
    assert event.as_text().isprintable()
    assert Event("status", "INFO", "queued", job=label).as_text().isprintable()  # what a log file has, from anybody
    assert "\n" not in event.as_json()


def test_every_line_of_a_traceback_says_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logs.logger.makeRecord("qx_supervisor", 40, "f", 1, "a fault", (), sys.exc_info(), extra={"job": "d1"})
    lines = logs.Formatter("text").format(record).splitlines()
    assert len(lines) > 3
    assert {match["job"] for line in lines if (match := HEAD.fullmatch(line))} == {"d1"}
    assert all(HEAD.fullmatch(line) for line in lines)
    [line] = logs.Formatter("json").format(record).splitlines()
    assert "ValueError" in json.loads(line)["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_line_is_written_once_whatever_the_program_has_set_up(form: str, tmp_path: Any) -> None:
    """Its own terminal would show it again; its file would lack it."""
    file = tmp_path / "own.log"
    code = f"""
import logging, qx_supervisor
logging.basicConfig(level=logging.DEBUG, format="own %(message)s")
logging.getLogger().addHandler(logging.FileHandler({str(file)!r}))
logging.getLogger("qx_supervisor").warning("heard")
logging.getLogger("qx_supervisor.reaper").warning("heard, too")
logging.getLogger("other").warning("theirs")
"""
    environment = {"QX_LOG_LEVEL": "info", "QX_LOG_FORMAT": form, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[2] == "own theirs"
    if form == "json":
        assert [json.loads(line)["message"] for line in lines[:2]] == ["heard", "heard, too"]
    else:
        assert [HEAD.fullmatch(line)["message"] for line in lines[:2]] == ["heard", "heard, too"]
    assert file.read_text().splitlines() == ["heard", "heard, too", "theirs"]


@pytest.mark.parametrize(
    ("level", "form", "said"),
    [
        ("", "json", ["heard"]),
        ("", "", []),
        ("warning", "text", []),
        ("info", "xml", ["QX_LOG_FORMAT is 'xml'; give one of text, json", "heard"]),
        ("LOUD", "", ["QX_LOG_LEVEL is 'LOUD'; give one of DEBUG, INFO, WARNING, ERROR, CRITICAL"]),
    ],
)
def test_the_environment_says_what_is_logged(level: str, form: str, said: list[str]) -> None:
    code = "import logging, qx_supervisor; logging.getLogger('qx_supervisor').info('heard')"
    environment = {"QX_LOG_LEVEL": level, "QX_LOG_FORMAT": form, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    if form == "json":
        assert [json.loads(line)["message"] for line in lines] == said
    else:
        assert [HEAD.fullmatch(line)["message"] for line in lines] == said
    assert done.stdout == ""


@pytest.mark.long
def test_every_line_of_a_run_says_which_and_sigterm_is_named(ibm, start, monkeypatch) -> None:
    monkeypatch.setenv("QX_LOG_FORMAT", "json")
    ibm.hold("queued")
    driver = start("run(bell(), 'ibm_brisbane', service=service(), shots=16, panel=None, on_status=tell)")
    job = driver.line("queued ")[0]
    signal.pidfd_send_signal(driver.pidfd, signal.SIGTERM)
    assert driver.end() == 128 + signal.SIGTERM
    found = [json.loads(line) for line in driver.errors.decode().splitlines() if line.startswith("{")]
    [run] = {each["run"] for each in found if each["event"] in ("status", "signal")}
    assert len(run) == 32
    states = [each["state"] for each in found if each["event"] == "status"]
    assert states[-2:] == ["cancelling, confirming", "cancelled"]
    [named] = [each for each in found if each["event"] == "signal"]
    assert (named["message"], named["signal"]) == ("SIGTERM received; cancelling", "SIGTERM")
    assert (named["job"], named["level"]) == (job, "WARNING")
    assert all(each["job"] == job for each in found[found.index(named) :] if each["event"] == "status")


def test_a_program_that_sets_up_logging_gets_records(service, ibm, caplog) -> None:
    with caplog.at_level(logging.INFO, "qx_supervisor"):
        held = submit(ones(), BACKEND, service=service)
        held.result()
    told = [record for record in caplog.records if getattr(record, "event", "") == "status"]
    assert {record.run for record in told} == {held._flight.core.run_id}
    assert told[-1].job == held.job_id
    assert told[-1].fields["state"] == "done"
    assert {record.module for record in told} == {"core"}  # and not the module of the logger
