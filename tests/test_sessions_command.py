"""`qx-supervisor sessions`, and what the doctor says of one that is left open."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Batch, Session
from testkit.circuits import BACKEND, bell
from testkit.client import Sampler
from testkit.processes import until
from testkit.terminals import Terminal

from qx_supervisor import guarded, open_sessions
from qx_supervisor.doctor import account
from qx_supervisor.guarded import Guards
from qx_supervisor.local.records import USER
from qx_supervisor.service import clients_of, remote_of
from qx_supervisor.watcher import remote

CLOSE = "/api/v1/sessions/*/close"
LIST = "/api/v1/workloads"
JOBS = "/api/v1/jobs"

GUARDED_SESSION = """
from qiskit_ibm_runtime import Session
session = Session(backend())
with guard(session):
    say("session", session.session_id)
    threading.Event().wait()
"""


@pytest.fixture
def opened(here, service):
    """Opens a session, and submits jobs to it with Qiskit alone."""
    backend = service.backend(BACKEND)
    circuit = generate_preset_pass_manager(0, backend).run(bell())

    def open_(jobs=0, kind=Session):
        session = kind(backend)
        return session.session_id, [Sampler(mode=session).run([circuit], shots=1).job_id() for _ in range(jobs)]

    return open_


def driver_name(driver):
    """The name of its program, as the ledger has it."""
    [found] = [run.row.program for run in guarded.read().runs if run.row.pid == driver.pid]
    return found


def objects(lines):
    return {told["session"]: told for told in map(json.loads, lines)}


@pytest.fixture
def several(here, opened, fork):
    """What is open: an idle session, one with jobs, a batch, and one that a program guards; and one that was closed."""
    idle, [done] = opened(1)
    here.wait_job(done, "Completed")
    here.hold("queued")
    busy, jobs = opened(2)
    batch, _ = opened(kind=Batch)
    driver = fork(GUARDED_SESSION)
    [held] = driver.line("session ")
    until(lambda: guarded.read().of_session(held), bool)
    return idle, busy, jobs, batch, held, driver


def test_a_list_of_what_is_open(here, several, service, call):
    """Idle or not, with its jobs, and by whom: the program that the ledger knows, or the user."""
    idle, busy, jobs, batch, held, driver = several
    gone = Session(service.backend(BACKEND))
    gone.close()
    after = here.cursor()
    code, lines, said = call("sessions", "--local", "--json")
    assert (code, said) == (0, "")
    found = objects(lines)
    assert list(found) == [idle, busy, batch, held]
    assert [(each["mode"], each["state"], each["idle"]) for each in found.values()] == [
        ("session", "active", True),
        ("session", "active", False),
        ("batch", "open", True),
        ("session", "open", True),
    ]
    assert found[busy]["queued"] == jobs
    assert found[idle]["idle_since"] >= found[idle]["opened"]
    assert found[batch]["own"] is True
    assert {each["user"] for each in found.values()} == {USER}
    assert [each["pid"] for each in found.values()] == [None, None, None, driver.pid]
    assert found[held]["guard"] == "live"
    # Two lists of workloads, two of the user's own, one of jobs, and each session once.
    asked = [entry.path for entry in here.journal(after)]
    read = [path for path in asked if path.startswith("/api/v1/sessions/")]
    assert (asked.count(LIST), asked.count(JOBS)) == (4, 1)
    assert sorted(read) == sorted(f"/api/v1/sessions/{session}" for session in found)
    driver.kill()


@pytest.mark.long
def test_the_table_of_what_is_open(several, call):
    idle, busy, _, batch, held, driver = several
    header, *rows = call("sessions", "--local")[1]
    assert header.split() == ["SESSION", "KIND", "STATE", "OPEN", "IDLE", "JOBS", "BACKEND", "BY"]
    cells = [re.split(" {2,}", row) for row in rows]
    assert [row[:3] for row in cells] == [
        [idle, "session", "active"],
        [busy, "session", "active"],
        [batch, "batch", "not started"],
        [held, "session", "not started"],
    ]
    assert cells[1][4:] == ["no", "2 queued", BACKEND, USER]
    assert cells[3][5:] == ["0", BACKEND, f"{driver_name(driver)}, {os.uname().nodename}:{driver.pid} (live)"]
    driver.kill()


@pytest.mark.long
def test_none_is_open(here, call):
    assert call("sessions", "--local") == (0, [], "qx-supervisor: no session and no batch is open\n")
    assert call("sessions", "--local", "--json") == (0, [], "")


@pytest.mark.long
def test_a_close_asks_and_says_what_it_drops(here, opened, call):
    here.hold("queued")
    session, jobs = opened(2)
    code, lines, said = call("sessions", "--close", session, "--local")
    assert (code, lines) == (2, [])
    assert "there is no terminal; add --yes" in said
    assert here.journal(method="DELETE") == []
    code, lines, _ = call("sessions", "--close", session, "--local", "--yes", "--json")
    (told,) = map(json.loads, lines)
    assert (code, told["outcome"], told["dropped"], told["running"]) == (0, "closed", jobs, [])
    assert {job.status for job in here.jobs()} == {"Cancelled"}
    assert len(here.journal(method="DELETE", path=CLOSE)) == 1
    assert call("sessions", "--close", session, "--local", "--yes")[1] == [f"closed       {session}"]  # it is already
    assert len(here.journal(method="DELETE", path=CLOSE)) == 1


@pytest.mark.long
def test_a_close_on_a_terminal(here, opened, fork):
    here.hold("running")
    session, [runs] = opened(1)
    here.wait_job(runs, "Running")
    here.hold("queued")
    driver = fork(GUARDED_SESSION)
    [held] = driver.line("session ")
    until(lambda: guarded.read().of_session(held), bool)
    command = [sys.executable, "-m", "qx_supervisor", "sessions", "--local", "--close", session, "--close", held]
    for answer, code in (("n\n", 1), ("y\n", 0)):
        shown = Terminal(command, columns=140)
        try:
            text = shown.until("Close these 2? [y/N]")
            assert f"session {session}, {BACKEND}, active, open for" in text
            assert f"opened by {USER}" in text
            assert f"goes on to its end: 1 running, {runs}" in text
            assert f"its program runs: {driver_name(driver)}, {os.uname().nodename}:{driver.pid}" in text
            assert "no job of yours is in it" in text
            assert here.journal(method="DELETE") == []
            shown.type(answer)
            assert shown.end() == code
        finally:
            shown.close()
    assert here.job(runs).cancel_requests == 0
    assert f"to cancel that: qx-supervisor cancel {runs}" in shown.text
    assert len(here.journal(method="DELETE", path=CLOSE)) == 2
    driver.kill()
    here.hold(None)
    here.wait_idle()


@pytest.mark.long
def test_a_close_that_is_not_confirmed(here, opened, call, monkeypatch):
    monkeypatch.setattr("qx_supervisor.cli.sessions.CLOSE_SECONDS", 0.3)
    session, _ = opened()
    here.scenario({"http_faults": [{"path": CLOSE, "method": "DELETE", "status": 503, "times": 1000}]})
    code, lines, said = call("sessions", "--close", session, "--local", "--yes")
    assert (code, lines) == (6, [f"unconfirmed  {session}"])
    assert "503" in said
    here.scenario({})
    assert call("sessions", "--close", session, "--local", "--yes")[0] == 0


@pytest.mark.long
def test_a_close_that_is_refused_keeps_no_other_open(here, opened, call):
    """As of the session of another user of the account."""
    others, mine = (opened()[0] for _ in range(2))
    refused = {"path": CLOSE.replace("*", others), "method": "DELETE", "status": 403, "times": 1000}
    here.scenario({"http_faults": [refused]})
    code, lines, said = call("sessions", "--close", others, "--close", mine, "--local", "--yes")
    assert (code, lines) == (6, [f"unconfirmed  {others}", f"closed       {mine}"])
    assert "403" in said


@pytest.mark.long
def test_wrong_use_asks_nobody(here, call):
    before = here.cursor()
    for words, reason in (
        (
            ["--close", "../jobs"],
            "'../jobs' can't be a session's id; qx-supervisor sessions lists the ids of those open",
        ),
        (["--yes"], "--yes is for --close"),
        (["--close", "two words"], "'two words' can't be a session's id"),
    ):
        code, lines, said = call("sessions", *words, "--local")
        assert (code, lines) == (2, [])
        assert reason in said
    assert here.cursor() == before
    for words in (["--yes"], []):  # before anybody is to be asked
        code, _, said = call("sessions", "--close", "nowhere-0123", "--local", *words)
        assert code == 2
        assert "there is no session nowhere-0123 in this account; qx-supervisor sessions lists those open" in said


@pytest.mark.long
def test_an_instance_that_does_not_list_workloads(here, opened, call):
    """Then they are those of the jobs, and of the ledger."""
    with_job, _ = opened(1)
    opened()
    here.wait_idle()
    here.scenario({"http_faults": [{"path": LIST, "method": "GET", "status": 403, "times": 1000}]})
    code, lines, said = call("sessions", "--local", "--json")
    assert (code, list(objects(lines))) == (0, [with_job])
    assert "does not list its sessions (GET /workloads" in said
    here.scenario({"http_faults": [{"path": LIST, "method": "GET", "status": 503, "times": 1000}]})
    code, lines, said = call("sessions", "--local", "--json")
    assert (code, lines) == (1, [])  # that is an outage
    assert "try again in a while" in said


@pytest.mark.long
def test_more_sessions_than_a_page_has(here, opened, service, monkeypatch):
    monkeypatch.setattr(remote, "WORKLOADS_PAGE", 2)
    ids = [opened()[0] for _ in range(5)]
    there = remote_of(clients_of(service)[0])
    assert [each.id for each in open_sessions.read(there, Guards(()))] == ids
    assert len([entry for entry in here.journal(path=LIST) if entry.query["mode"] == ["session"]]) == 6  # 3 and 3


# What can't be told of somebody else's


def at(second):
    return f"2026-01-31T12:00:0{second}Z"


@pytest.mark.parametrize(
    "reply, is_idle",
    [
        ({"state": "active", "last_job_started": at(0)}, False),
        ({"state": "active", "last_job_started": at(0), "last_job_completed": at(5)}, True),
        ({"state": "active", "last_job_started": at(9), "last_job_completed": at(5)}, False),
        ({"state": "open"}, True),
        ({"state": "active"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_whether_it_is_idle_without_a_list_of_its_jobs(reply, is_idle):
    found = open_sessions._described("s", reply, {}, Guards(()), is_own=False)
    assert found.is_idle is is_idle
    assert found.is_left_open is (is_idle is True)
    assert open_sessions._described("s", reply, {}, Guards(()), is_own=True).is_idle is True


# The doctor


@pytest.mark.long
def test_the_doctor_names_one_that_is_left_open(here, opened, service, fork, monkeypatch):
    monkeypatch.setattr(account.service.accounts, "default_service", lambda: service)
    assert "sessions" not in {found.check for found in account._service()}
    here.hold("queued")
    opened(1)
    driver = fork(GUARDED_SESSION)
    [held] = driver.line("session ")
    until(lambda: guarded.read().of_session(held), bool)
    [found] = [found for found in account._service() if found.check == "sessions"]
    assert (found.verdict, found.text) == ("ok", "2 open, none left idle by a program that is gone")
    left, _ = opened()
    [found] = [found for found in account._service() if found.check == "sessions"]
    assert found.verdict == "warning"
    assert found.text.startswith(f"session {left} on {BACKEND} is open, and no job in it is unfinished since 0 min")
    assert found.next_step == f"qx-supervisor sessions --close {left}"
    driver.kill()
