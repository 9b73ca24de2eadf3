"""A program does its part while a run goes on: it lets go, cancels from a callback, and sees a service that refuses."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from testkit.circuits import bell

from qx_supervisor import JobCancelled, Status, local, submit
from qx_supervisor.link import link

JOB = "/api/v1/jobs/*"


@pytest.mark.parametrize("when", ["chosen", "submitting"])
def test_detached_before_the_post(ibm, fork, when):
    """Whatever happens to the program, nothing cancels a job that was let go; also if that was before it was made."""
    ibm.hold("queued")
    driver = fork(
        f"""
        made, gate = [], threading.Event()
        def let_go(status):
            if status.state == "{when}":
                gate.wait()
                made[0].detach()
            tell(status)
        made.append(submit(isa(), backend(), on_status=let_go))
        gate.set()
        signal.pause()
        """
    )
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    watcher.wait(60)
    [left] = ibm.jobs()
    assert (left.id, left.status, left.cancel_requests) == (job, "Queued", 0)


@pytest.mark.parametrize("at", ["submitting", "submitted", "queued", "cancelling, confirming"])
def test_cancelled_by_its_own_on_status(ibm: local.Service, service: Any, at: str) -> None:
    ibm.hold("queued")
    runs: list[Any] = []
    begun, queued = threading.Event(), threading.Event()

    def cancel(status: Status) -> None:
        begun.wait()
        if status.state == "queued":
            queued.set()
        if status.state == at:
            runs[0].cancel()

    runs.append(submit(bell(), "ibm_brisbane", service=service, on_status=cancel))
    begun.set()
    if at.startswith("cancelling"):
        assert queued.wait(60)
        assert runs[0].cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        runs[0].result(60)
    # While it is told that the POST is about to leave, it may leave.
    assert [job.cancel_requests for job in ibm.jobs()] in ([1], [] if at == "submitting" else [1])
    assert runs[0]._flight.core.run_id not in link._runs


@pytest.mark.parametrize("status", [302, 401, 403, 404, 451])
def test_a_refusal_that_passes_ends_nothing(ibm: local.Service, service: Any, status: int) -> None:
    ibm.scenario({"http_faults": [{"method": "GET", "path": JOB, "status": status, "times": 3}]})
    run = submit(bell(), "ibm_brisbane", service=service, shots=16)
    assert sum(run.result(60).counts.values()) == 16
    assert [job.cancel_requests for job in ibm.jobs()] == [0]


def test_a_token_service_that_answers_nonsense_ends_nothing(
    ibm: local.Service, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ibm.hold("queued")
    queued, asked = threading.Event(), threading.Event()

    def note(status: Status) -> None:
        if status.state == "queued":
            queued.set()

    run = submit(bell(), "ibm_brisbane", service=service, shots=16, on_status=note)
    assert queued.wait(60)
    manager = run._flight.core.place.client._session.auth.tm
    answer = manager.request_token

    def nonsense() -> Any:
        if asked.is_set():
            return answer()
        asked.set()
        return {}

    monkeypatch.setattr(manager, "request_token", nonsense)
    manager.expire_time = 0
    assert asked.wait(60)
    ibm.hold(None)
    assert sum(run.result(60).counts.values()) == 16
    assert [job.cancel_requests for job in ibm.jobs()] == [0]


def test_a_run_goes_on_where_no_more_threads_can_be_had(ibm: local.Service, fork: Any) -> None:
    """As in Python 3.12.0 to 3.12.2 when the main thread has ended: what was left behind is then not looked for."""
    driver = fork(
        """
        import types
        reaping = sys.modules["qx_supervisor.reap"]  # by its name there is the function
        def refuse():
            say("refused")
            raise RuntimeError("can't create new thread at interpreter shutdown")
        none = types.SimpleNamespace(start=refuse)
        reaping.threading = types.SimpleNamespace(Thread=lambda **_: none)
        say("result", sum(run(isa(), backend(), shots=16, panel=None).counts.values()))
        """
    )
    driver.line("refused")
    assert driver.line("result ") == ["16"]
    assert driver.end() == 0, driver.errors
    assert [job.cancel_requests for job in ibm.jobs()] == [0]
