"""`qx-supervisor cancel --all|--label|--tag|--session`: which jobs it means, what it asks, and what it leaves alone."""

from __future__ import annotations

import json
import os
import sys

import pytest
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Session
from testkit.circuits import BACKEND, bell
from testkit.client import Sampler
from testkit.drivers import RUN
from testkit.processes import until
from testkit.terminals import Terminal

from qx_supervisor.cli import cancel
from qx_supervisor.watcher import ledger

JOBS = "/api/v1/jobs"


@pytest.fixture
def submitted(here, service):
    """Submits jobs of nobody that is guarded, with Qiskit alone."""
    backend = service.backend(BACKEND)
    circuit = generate_preset_pass_manager(0, backend).run(bell())
    here.hold("queued")

    def submit(*tags, mode=None):
        sampler = Sampler(mode=mode or backend)
        sampler.options.environment.job_tags = list(tags)
        return sampler.run([circuit], shots=1).job_id()

    return submit


def asked_to_cancel(here):
    return {job.id for job in here.jobs() if job.cancel_requests}


@pytest.mark.long
def test_all_of_the_account_whoever_submitted_them(here, fork, submitted, call):
    """The list names each job, and the program that guards it; elsewhere than on a terminal --yes must be said."""
    others = submitted("mine")
    driver = fork(RUN.replace("shots=64", "shots=64, label='vqe step 17'"))
    job = driver.queued()
    code, lines, said = call("cancel", "--all", "--local")
    assert (code, lines) == (2, [])
    assert "there is no terminal; add --yes" in said
    assert asked_to_cancel(here) == set()
    code, lines, _ = call("cancel", "--all", "--local", "--yes", "--json")
    assert code == 0
    told = [json.loads(line) for line in lines]
    assert {each["job_id"]: each["outcome"] for each in told} == {others: "cancelled", job: "cancelled"}
    assert {each.id: each.cancel_requests for each in here.jobs()} == {others: 1, job: 1}
    assert driver.end() != 0  # it is told that somebody has cancelled its job
    code, lines, said = call("cancel", "--all", "--local", "--yes")
    assert (code, lines) == (0, [])
    assert "there is no unfinished job of this account" in said


@pytest.mark.long
def test_on_a_terminal_it_lists_and_asks(here, fork, submitted, state):
    others = submitted("night", "mine")
    driver = fork(RUN.replace("shots=64", "shots=64, label='vqe step 17'"))
    job = driver.queued()
    until(lambda: known_jobs(state), lambda jobs: job in jobs)
    command = [sys.executable, "-m", "qx_supervisor", "cancel", "--all", "--local"]
    for answer, code in (("n\n", 1), ("\n", 1), ("y\n", 0)):
        shown = Terminal(command, columns=140)
        try:
            text = shown.until("[y/N]")
            assert "Cancel these 2 unfinished jobs of this account, 1 of them of programs that run?" in text
            [row] = [line for line in text.splitlines() if job in line]
            assert "vqe step 17" in row
            assert f"{os.uname().nodename}:{driver.pid} (live)" in row
            [row] = [line for line in text.splitlines() if others in line]
            assert "night,mine" in row
            assert "(live)" not in row
            assert asked_to_cancel(here) == set()
            shown.type(answer)
            assert shown.end() == code
            if code:
                assert "nothing was done" in shown.text
        finally:
            shown.close()
    assert asked_to_cancel(here) == {job, others}
    driver.end()


def test_the_question_says_whose_programs_run():
    assert [cancel._whose(live, of) for live, of in ((0, 3), (1, 1), (1, 3), (3, 3))] == [
        "",
        ", of a program that runs",
        ", 1 of them of programs that run",
        ", all of programs that run",
    ]


def known_jobs(state):
    with ledger.Ledger.open(state) as book:
        return {job for row in book.rows(ledger.UNFINISHED) for job in row.jobs}


@pytest.mark.long
def test_with_a_tag_in_a_session_and_no_other(here, service, submitted, call):
    session = Session(service.backend(BACKEND))
    inside, tagged = submitted(mode=session), submitted("night")
    both = submitted("night", mode=session)
    code, lines, _ = call("cancel", "--tag", "night", "--session", session.session_id, "--local", "--yes")
    assert (code, lines) == (0, [f"cancelled    {both}"])
    assert asked_to_cancel(here) == {both}
    assert call("cancel", "--session", session.session_id, "--local", "--yes")[1] == [f"cancelled    {inside}"]
    assert call("cancel", "--tag", "night", "--local", "--yes")[1] == [f"cancelled    {tagged}"]
    assert call("cancel", "--tag", "nigh", "--local", "--yes")[1] == []


@pytest.mark.long
def test_a_service_that_heeds_no_filter(here, submitted, call):
    """A gateway may drop the query: what is cancelled is what the jobs themselves say they are."""
    wanted, other = submitted("night"), submitted("day")
    pages = {"jobs": [{"id": job, "status": "Queued", "state": {"status": "Queued"}} for job in (wanted, other)]}
    body = json.dumps(pages)
    here.scenario({"http_faults": [{"path": JOBS, "method": "GET", "status": 200, "body": body, "times": 1}]})
    code, lines, said = call("cancel", "--tag", "night", "--local", "--yes")
    assert (code, lines) == (0, [])
    assert "no unfinished job with tag night" in said
    assert asked_to_cancel(here) == set()
    assert call("cancel", "--tag", "night", "--local", "--yes")[1] == [f"cancelled    {wanted}"]
    assert asked_to_cancel(here) == {wanted}


@pytest.mark.long
def test_with_a_label_by_the_ledger(here, fork, submitted, call, state):
    others = submitted()
    labelled = fork(RUN.replace("shots=64", "shots=64, label='vqe step 17'"))
    job = labelled.queued()
    assert call("cancel", "--label", "vqe", "--local", "--yes")[1] == []  # the whole label, not a part
    # The watcher writes the id down a moment later; until then the tag of the run tells whose the job is.
    _, lines, said = call("cancel", "--label", "vqe step 17", "--local", "--yes")
    assert lines == [f"cancelled    {job}"]
    assert job not in said  # once is enough
    assert asked_to_cancel(here) == {job}
    labelled.end()
    (state / "ledger.db").chmod(0o600)
    for file in state.glob("ledger*"):
        file.unlink()
    (state / "ledger.db").mkdir()
    code, lines, said = call("cancel", "--label", "vqe step 17", "--local", "--yes")
    assert (code, lines) == (1, [])
    assert "is not a regular file" in said
    code, lines, said = call("cancel", "--all", "--local", "--yes")  # does without the ledger
    assert (code, lines) == (0, [f"cancelled    {others}"])
    assert "which jobs are guarded is not known" in said
    (state / "ledger.db").rmdir()


def test_with_the_label_of_a_run_that_has_let_its_job_go(here, fork, call):
    """Its program has ended, and guards nothing any more: the job goes on, and costs."""
    here.hold("queued")
    driver = fork(
        f"""
        held = {RUN.replace("run(", "submit(").replace("shots=64", "shots=64, label='night'")}
        say("job", held.wait_for_job())
        held.detach()
        """
    )
    [job] = driver.line("job ")
    assert driver.end() == 0
    assert call("cancel", "--label", "day", "--local", "--yes")[1] == []
    assert call("cancel", "--label", "night", "--local", "--yes")[1] == [f"cancelled    {job}"]
    assert asked_to_cancel(here) == {job}


@pytest.mark.parametrize(
    "words, reason",
    [
        ([], "name jobs by their ids, or give --all, --label, --tag or --session"),
        (["--all", "d1a2b3c4d5e6f7"], "not both"),
        (["--all", "--tag", "night"], "--all are all jobs of the account"),
        (["--tag", " "], "--tag is empty"),
        (["--label", ""], "--label is empty"),
        (["--session", "../jobs"], "can't be a session's id; qx-supervisor sessions lists"),
        (["--all", "--local", "--instance", "x", "--yes"], "leave --instance away"),
        (["--tag", "night"], "add --yes"),
    ],
)
@pytest.mark.short_only("words1-*", "words7-*")
def test_wrong_use_asks_nobody(call, here, words, reason):
    before = here.cursor()
    code, lines, said = call(
        "cancel", *words, *(["--yes"] if "add --yes" not in reason and "--yes" not in words else [])
    )
    assert (code, lines) == (2, [])
    assert reason in said
    assert said.count("\n") == 1
    assert here.cursor() == before


@pytest.mark.long
def test_many_at_once_each_by_one_request(here, submitted, call):
    jobs = [submitted("crowd") for _ in range(12)]
    code, lines, _ = call("cancel", "--tag", "crowd", "--local", "--yes")
    assert code == 0
    assert sorted(lines) == sorted(f"cancelled    {job}" for job in jobs)
    assert {job.cancel_requests for job in here.jobs()} == {1}
