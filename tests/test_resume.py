"""A run with a key: its driver is killed, comes back, and takes its job up again. No key is executed twice."""

from __future__ import annotations

import os
import shutil
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testkit.circuits import bell
from testkit.drivers import Driver, end, kill_both
from testkit.processes import until, wait_for_end
from testkit.watchers import wait_for_watchers, wait_until_written

from qx_supervisor import local, reap, run
from qx_supervisor.tags import key_tag
from qx_supervisor.watcher.ledger import Ledger

JOBS = "/api/v1/jobs"

HELD_BEFORE_ARMING = """
from qx_supervisor.flight.submission import Submission
Submission.announce = lambda *_: (say("held"), signal.pause())
"""


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers that wait for a driver see soon that it came back."""
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")


def keyed(key: str = "step", grace: float = 60, pubs: str = "isa()", **more: Any) -> str:
    """The code of a driver with a key."""
    arguments = {"shots": 64, "key": key, "grace": grace, **more}
    rest = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f"""
try:
    result = run({pubs}, backend(), on_status=tell{rest})
    say("result", result.job_id, sum(result.counts.values()))
except ConfigError as error:
    say("refused", error.reason)
"""


def refusal(driver: Driver) -> str:
    """Why a driver's key was refused."""
    said = " ".join(driver.line("refused "))
    assert driver.end() == 0
    return said


def posts(ibm: local.Service) -> int:
    """How many submissions reached the service."""
    return len(ibm.journal(method="POST", path=JOBS))


def finish(ibm: local.Service, driver: Driver) -> str:
    """The job whose result a driver got."""
    job, shots = driver.line("result ")
    assert shots == "64"
    assert end(driver) == 0, driver.errors  # its watcher too: it writes to the ledger until then
    assert ibm.job(job).status == "Completed"
    return job


def lose(driver: Driver) -> None:
    """Driver and watcher die together, when the ledger has the job."""
    wait_until_written(driver, answered=False)
    kill_both(driver)


WHEN_TOLD = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
say("ready")
signal.sigwait({signal.SIGUSR1})
"""


def taking_over(first: Driver, before: str = "pass") -> str:
    """The code of a driver that kills the first one by itself, right before it asks for the key: no time is lost."""
    return f"""
import select
from qx_supervisor import resume
def ask(*arguments, claim=resume.claim):
    say("asks")
    {before}
    first = os.pidfd_open({first.pid})
    os.kill({first.pid}, signal.SIGKILL)
    select.select([first], [], [])
    os.close(first)
    return claim(*arguments)
resume.claim = ask
"""


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.short_only("queued")
@pytest.mark.client
def test_a_driver_that_comes_back_takes_its_job_up(ibm, fork, where):
    ibm.hold(where)
    first = fork(keyed())
    job = first.line(f"{where} ")[0]
    watcher = first.watcher()
    first.kill()
    second = fork(keyed())
    assert second.line("taken up again ")[0] == job
    wait_for_end(watcher)  # it has seen that the job is another's
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert posts(ibm) == 1
    assert ibm.job(job).cancel_requests == 0


def test_a_job_that_is_taken_up_may_run_no_longer_than_if_its_driver_had_lived(ibm, fork):
    """The time for which it has run is the service's to tell: it was started by another process, maybe of another
    host."""
    ibm.hold("running")
    first = fork(keyed())
    job = first.line("running ")[0]
    first.kill()
    code = """
import types
from qx_supervisor import service as qiskit
from qx_supervisor.flight import time_limits
clock = qiskit.server_clock
qiskit.server_clock = lambda *arguments: clock(*arguments) + 3000
time_limits.time = types.SimpleNamespace(time=lambda: time.time() + 3000)
try:
    run(isa(), backend(), on_status=tell, shots=64, key="step", grace=60, running_timeout=3000)
except RunTimeout as error:
    say("ended", error.job_id, error)
"""
    second = fork(code)
    assert second.line("taken up again ")[0] == job
    assert second.line("ended ")[0] == job
    assert end(second) == 0
    assert (ibm.job(job).status, ibm.job(job).cancel_requests, posts(ibm)) == ("Cancelled", 1, 1)


@pytest.mark.long
@pytest.mark.client
def test_a_job_that_finished_meanwhile_is_fetched(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    first.kill()
    ibm.hold(None)
    ibm.wait_job(job, "Completed")
    assert finish(ibm, fork(keyed())) == job
    assert posts(ibm) == 1
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.client
def test_the_same_key_gives_the_same_result_ever_after(ibm, fork):
    job = finish(ibm, fork(keyed()))
    code = """
    seen = []
    def again(key):
        return run(isa(), backend(), shots=64, key=key, on_status=seen.append)
    say("again", again("step").job_id, seen[-1].taken_up, "taken up again" in [status.state for status in seen])
    say("submitted", submit(isa(), backend(), shots=64, key="step").result(60).job_id)
    say("another", again("another").job_id, seen[-1].taken_up)
    """
    second = fork(code)
    assert second.line("again ") == [job, "True", "True"]
    assert second.line("submitted ") == [job]
    other, taken_up = second.line("another ")
    assert other != job
    assert taken_up == "False"
    assert second.end() == 0
    assert posts(ibm) == 2


@pytest.mark.parametrize(
    "call",
    [
        'run(bell(), service().backend("ibm_brisbane"), shots=64, on_status=tell, key="step", grace=60)',
        'run(bell(), service=service(), shots=64, on_status=tell, key="step", grace=60)',
        'run(bell(), Batch(service().backend("ibm_brisbane")), shots=64, on_status=tell, key="step", grace=60)',
        "run(isa, primitive=Sampler(mode=backend), shots=64, on_status=tell, key='step', grace=60)",
    ],
    ids=["backend", "least busy", "batch", "primitive"],
)
@pytest.mark.long
def test_however_the_backend_is_named(ibm, fork, call):
    ibm.hold("queued")
    code = f"""
from qiskit import transpile
from qiskit_ibm_runtime import Batch
backend = service().backend("ibm_brisbane")
isa = transpile(bell(), backend, seed_transpiler=1)
result = {call}
say("result", result.job_id, sum(result.counts.values()))
"""
    first = fork(code)
    job = first.queued()
    first.kill()
    second = fork(code)
    assert second.line("taken up again ")[0] == job
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert posts(ibm) == 1


@pytest.mark.long
def test_an_estimator(ibm, fork):
    ibm.hold("queued")
    code = """
from qiskit.quantum_info import SparsePauliOp
circuit = bell()
circuit.remove_final_measurements()
pub = (circuit, SparsePauliOp(["ZZ", "XX"]))
result = run([pub], "ibm_brisbane", service=service(), primitive="estimator", on_status=tell, key="step", grace=60)
say("result", result.job_id, 64, result[0].data.evs)
"""
    first = fork(code)
    job = first.queued()
    first.kill()
    second = fork(code)
    assert second.line("taken up again ")[0] == job
    ibm.hold(None)
    second.line(f"result {job} 64 ")
    assert second.end() == 0, second.errors
    assert posts(ibm) == 1


def test_after_the_grace_the_watcher_cancels_and_the_next_driver_submits_anew(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(grace=0.5))
    job = first.queued()
    first.kill()
    wait_for_watchers(first)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    ibm.hold(None)
    second = finish(ibm, fork(keyed(grace=0.5)))
    assert second != job
    assert posts(ibm) == 2
    assert {key_tag("step") in entry.tags for entry in ibm.journal(method="POST", path=JOBS)} == {True}


def test_without_a_grace_it_is_cancelled_at_once(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(grace=0))
    job = first.queued()
    first.kill()
    wait_for_watchers(first)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)


@pytest.mark.long
def test_the_grace_of_the_dead_does_not_run_out_on_the_one_who_came_back(ibm, fork, monkeypatch):
    monkeypatch.setenv("QX_LEASE_SECONDS", "60")  # the first watcher looks when the grace has passed, and not before
    ibm.hold("queued")
    first = fork(keyed(grace=3))
    job = first.queued()
    watcher = first.watcher()
    second = fork(taking_over(first) + keyed(grace=3))
    assert second.line("taken up again ")[0] == job
    wait_for_end(watcher)
    assert ibm.job(job).cancel_requests == 0
    ibm.hold(None)
    assert finish(ibm, second) == job


@pytest.mark.long
def test_the_driver_that_came_back_is_killed_too(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    first.kill()
    second = fork(keyed())
    assert second.line("taken up again ")[0] == job
    second.kill()
    third = fork(keyed(grace=0.2))
    assert third.line("taken up again ")[0] == job
    third.kill()
    for driver in (first, second, third):
        wait_for_watchers(driver)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    assert posts(ibm) == 1


@pytest.mark.client
def test_killed_while_the_submission_is_on_its_way(ibm, fork):
    """Its job turns up after the second driver has begun to look for it."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": JOBS, "method": "POST", "delay_seconds": 1.0}]})  # half of the window
    first = fork(WHEN_TOLD + keyed())
    first.line("ready")
    second = fork(taking_over(first, f'ibm.wait_for("POST", "{JOBS}")') + keyed())
    second.line("asks")
    first.send(signal.SIGUSR1)
    job = second.line("taken up again ")[0]
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert [each.id for each in ibm.jobs()] == [job]


@pytest.mark.long
def test_killed_before_the_answer_came(ibm, fork):
    ibm.hold("queued")
    fault = {"path": JOBS, "method": "POST", "phase": "after", "delay_seconds": 30.0, "times": 1}
    ibm.scenario({"http_faults": [fault]})
    first = fork(keyed())
    [entry] = ibm.wait_for("POST", JOBS)
    while not ibm.jobs():
        pass
    first.kill()
    second = fork(keyed())
    job = second.line("taken up again ")[0]
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert [each.id for each in ibm.jobs()] == [job]
    assert entry.tags


@pytest.mark.long
def test_killed_before_it_submitted_anything(ibm, fork):
    """It had said that it would: nothing turns up while one could, and then one is submitted."""
    code = """
    from qx_supervisor.flight.submission import Submission
    def stop(self):
        say("armed")
        signal.pause()
    Submission.begin_post = stop
    """
    first = fork(code + keyed())
    first.line("armed")
    second = fork(taking_over(first) + keyed())
    second.line("looking for an earlier job")
    finish(ibm, second)
    assert posts(ibm) == 1


@pytest.mark.long
def test_killed_before_it_armed(ibm, fork):
    """Nothing can turn up, and nothing is waited for."""
    first = fork(HELD_BEFORE_ARMING + keyed())
    first.line("held")
    first.kill()
    second = fork(keyed())
    finish(ibm, second)
    assert posts(ibm) == 1
    assert not [line for line in second.lines if line.startswith("looking")]


@pytest.mark.long
def test_a_retried_submission_leaves_one_job(ibm, fork):
    ibm.hold("queued")
    fault = {"path": JOBS, "method": "POST", "phase": "after", "status": 503, "times": 1}
    ibm.scenario({"http_faults": [fault]})
    first = fork(keyed())
    first.queued()
    lose(first)
    second = fork(keyed())
    job = second.line("taken up again ")[0]
    made = [each.id for each in ibm.jobs()]
    assert len(made) == 2
    other = next(each for each in made if each != job)
    ibm.wait_job(other, "Cancelled")
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.parametrize("other", [{"shots": 65}, {"pubs": "[isa(), isa()]"}, {"optimization_level": 2}], ids=str)
@pytest.mark.short_only("*shots*")
def test_a_key_that_stands_for_something_else_is_refused(ibm, fork, other):
    job = finish(ibm, fork(keyed()))
    said = refusal(fork(keyed(**other)))
    assert said.startswith(f"nothing was submitted: the key 'step' stands for another submission (job {job})")
    assert posts(ibm) == 1


@pytest.mark.long
def test_what_was_never_submitted_may_change(ibm, fork):
    first = fork(HELD_BEFORE_ARMING + keyed())
    first.line("held")
    first.kill()
    finish(ibm, fork(keyed(shots=64, pubs="isa().copy()")))
    assert posts(ibm) == 1


def test_a_key_that_a_live_driver_holds_is_refused(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    said = refusal(fork(keyed()))
    assert f"the key 'step' is held by process {first.pid} on {os.uname().nodename}, which lives" in said
    assert ibm.job(job).cancel_requests == 0
    ibm.hold(None)
    assert finish(ibm, first) == job
    assert posts(ibm) == 1


@pytest.mark.long
def test_a_key_that_this_process_holds_is_refused(ibm, fork):
    ibm.hold("queued")
    code = """
    mine = submit(isa(), backend(), shots=64, key="step")
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    """
    driver = fork(textwrap.dedent(code) + keyed() + "ibm.hold(None)\nsay('result', mine.result(60).job_id, 64)")
    assert f"process {driver.pid} (this process)" in " ".join(driver.line("refused "))
    finish(ibm, driver)
    assert posts(ibm) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.short_only("2")
def test_an_interrupt_cancels_as_ever(ibm, fork, number):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    first.send(number)
    end(first)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    ibm.hold(None)
    assert finish(ibm, fork(keyed())) != job


def test_sigterm_can_keep_the_job(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(keep_on_sigterm=True))
    job = first.queued()
    first.send(signal.SIGTERM)
    assert first.line("kept ")[0] == job
    assert first.end() == 128 + signal.SIGTERM
    second = fork(keyed(keep_on_sigterm=True))
    assert second.line("taken up again ")[0] == job
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_what_sigterm_kept_is_cancelled_after_its_grace(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(grace=0.5, keep_on_sigterm=True))
    job = first.queued()
    first.send(signal.SIGTERM)
    end(first)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)


def test_sigint_cancels_what_sigterm_would_keep(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(keep_on_sigterm=True))
    job = first.queued()
    first.send(signal.SIGINT)
    end(first)
    assert ibm.job(job).status == "Cancelled"


@pytest.mark.long
def test_the_same_process_takes_up_what_it_kept(ibm, fork):
    ibm.hold("queued")
    code = """
    def interrupt(status):
        if status.state == "queued":
            os.kill(os.getpid(), signal.SIGTERM)
    arguments = {"service": service(), "shots": 64, "key": "step", "grace": 60}
    try:
        run(bell(), "ibm_brisbane", keep_on_sigterm=True, on_status=interrupt, **arguments)
    except Interrupted as error:
        say("interrupted", error.job_id, error.cancel, error.code)
    ibm.hold(None)
    say("result", run(bell(), "ibm_brisbane", **arguments).job_id, 64)
    """
    driver = fork(code)
    job, cancel, status = driver.line("interrupted ")
    assert (cancel, int(status)) == ("kept", 128 + signal.SIGTERM)
    assert finish(ibm, driver) == job
    assert posts(ibm) == 1


def test_the_watcher_died_too(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    lose(first)
    second = fork(keyed())
    assert second.line("taken up again ")[0] == job
    ibm.hold(None)
    assert finish(ibm, second) == job
    assert posts(ibm) == 1


@pytest.mark.long
def test_ps_says_that_it_waits(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    first.queued()
    first.kill()
    code = """
    import subprocess
    command = [sys.executable, "-m", "qx_supervisor", "ps", "--json"]
    while True:
        say(subprocess.run(command, capture_output=True).stdout.decode())
    """
    second = fork(code)
    assert f'"pid": {first.pid}, ' in " ".join(second.line('{"state": "waiting", '))
    second.kill()
    third = fork(keyed(grace=0))
    third.line("taken up again ")
    third.kill()


@pytest.mark.long
def test_reap_leaves_a_job_to_its_grace(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    lose(first)
    for _ in range(2):
        [told] = reap(ibm.service())
        assert (told.fate, told.jobs) == ("in grace", (job,))
    assert ibm.job(job).cancel_requests == 0
    second = fork(keyed())
    assert second.line("taken up again ")[0] == job
    assert reap(ibm.service()) == []
    ibm.hold(None)
    assert finish(ibm, second) == job


@pytest.mark.long
def test_reap_cancels_when_the_grace_is_over(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(grace=0.01))
    job = first.queued()
    lose(first)
    fates = []
    while "cancelled" not in fates and len(fates) < 50:
        fates += [told.fate for told in reap(ibm.service())]
    assert ibm.job(job).status == "Cancelled"
    ibm.hold(None)
    assert finish(ibm, fork(keyed(grace=0.01))) != job


def test_a_watcher_that_died_alone_is_replaced_and_the_lease_goes_on(ibm, fork):
    ibm.hold("queued")
    first = fork(keyed(grace=0.2))
    job = first.queued()
    watcher = first.watcher()
    watcher.kill()
    wait_for_end(watcher)
    assert "which lives" in refusal(fork(keyed(grace=0.2)))
    first.kill()
    ibm.wait_job(job, "Cancelled")
    wait_for_watchers(first)
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_a_watcher_that_dies_when_it_has_granted_the_key(ibm, fork):
    """Its word has come, and the run is not entered yet: the next watcher must know of it all the same."""
    ibm.hold("queued")
    first = fork(keyed())
    job = first.queued()
    lose(first)
    dying = """
from qx_supervisor.link import Link
def late(self, question, seconds, _await=Link._await):
    found = _await(self, question, seconds)
    if "answer" in found.content:
        Link._await = _await
        os.kill(question.asked_of.pid, signal.SIGKILL)
        with self._changed:
            self._changed.wait_for(lambda: self._process is not question.asked_of)
    return found
Link._await = late
"""
    second = fork(dying + keyed(grace=0))
    assert second.line("taken up again ")[0] == job
    second.kill()
    ibm.wait_job(job, "Cancelled")
    wait_for_watchers(second)
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_a_failed_job_is_submitted_anew(ibm, fork):
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "The circuit is cursed.", "reason_code": 7001}]})
    first = fork(keyed())
    assert first.end() != 0
    ibm.scenario({})
    finish(ibm, fork(keyed()))
    assert posts(ibm) == 2


class TestWithoutTheLedger:
    """It was lost; the tags at the service are what is left."""

    @pytest.mark.long
    def test_what_is_done_is_fetched(self, ibm: local.Service, fork: Callable[[str], Driver], state: Path) -> None:
        job = finish(ibm, fork(keyed()))
        shutil.rmtree(state)
        assert finish(ibm, fork(keyed())) == job
        assert posts(ibm) == 1

    @pytest.mark.long
    def test_what_stands_for_something_else_is_refused(
        self, ibm: local.Service, fork: Callable[[str], Driver], state: Path
    ) -> None:
        job = finish(ibm, fork(keyed()))
        shutil.rmtree(state)
        assert f"stands for another submission (job {job})" in refusal(fork(keyed(shots=65)))
        assert posts(ibm) == 1

    def test_what_is_in_flight_is_not_touched(
        self, ibm: local.Service, fork: Callable[[str], Driver], state: Path
    ) -> None:
        ibm.hold("queued")
        first = fork(keyed())
        job = first.queued()
        lose(first)
        shutil.rmtree(state)
        assert f"job {job} of the key 'step' is in flight, and its driver is not known" in refusal(fork(keyed()))
        assert ibm.job(job).cancel_requests == 0
        ibm.hold(None)
        ibm.wait_job(job, "Completed")
        assert finish(ibm, fork(keyed())) == job
        assert posts(ibm) == 1


@pytest.mark.long
def test_an_interrupt_while_the_job_is_looked_for_cancels_it(ibm, fork, monkeypatch):
    """The first driver's job turns up under the second's watcher, and the second was interrupted."""
    monkeypatch.setenv("QX_SWEEP_WINDOW", "10")
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": JOBS, "method": "POST", "delay_seconds": 5.0}]})
    first = fork(WHEN_TOLD + keyed())
    first.line("ready")
    second = fork(taking_over(first, f'ibm.wait_for("POST", "{JOBS}")') + keyed())
    second.line("asks")
    first.send(signal.SIGUSR1)
    second.line("looking for an earlier job")
    second.send(signal.SIGINT)
    second.end()
    [entry] = ibm.wait_for("POST", JOBS, answered=True)
    assert ibm.wait_job(entry.job_id, "Cancelled").cancel_requests == 1
    first.end()


@pytest.mark.long
def test_a_local_backend_needs_no_lease(ibm):
    from qiskit_ibm_runtime.fake_provider import FakeSherbrooke

    assert sum(run(bell(), FakeSherbrooke(), shots=16, key="step").counts.values()) == 16
    assert posts(ibm) == 0


@pytest.mark.long
def test_a_key_that_was_granted_too_late_can_be_asked_for_again(ibm: local.Service, fork: Any, state: Path) -> None:
    """Nobody waited for it any more, so it is let go, and is not held for as long as the driver lives."""
    driver = fork(
        f"""
        import qx_supervisor.link as links
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
        question, wait = links.Link._question, links.Link._await
        asked = []
        def ask(self, message, seconds):
            made = question(self, message, seconds)
            if isinstance(message, links.protocol.TakeLease) and not asked:
                asked.append(made)
            return made
        links.Link._question = ask
        links.Link._await = lambda self, made, seconds: wait(self, made, -1 if made in asked else seconds)
        try:
            run(isa(), backend(), shots=64, key="step", grace=60)
        except WatcherError as error:
            say("late", error.reason)
        signal.sigwait({{signal.SIGUSR1}})
{textwrap.indent(keyed(), " " * 8)}
        """
    )
    assert "did not answer" in " ".join(driver.line("late "))
    with Ledger.open(state) as book:
        until(book.rows, lambda rows: rows and rows[0].let_go_at is not None)
    driver.send(signal.SIGUSR1)
    assert driver.line("result ")[1] == "64"
    assert driver.end() == 0, driver.errors
    assert posts(ibm) == 1
    assert [job.cancel_requests for job in ibm.jobs()] == [0]
