"""SIGKILL at a random instant of each stage of a run."""

from __future__ import annotations

import signal

from testkit.processes import DEADLINE

from . import code
from .attempt import Try
from .row import Row

CANCELLED = "cancelled, by one request"
BY_EITHER = f"{CANCELLED}, the driver's or the watcher's"
OVER = "the job is over: asked to stop once at most"

POST = {"path": "/api/v1/jobs", "method": "POST"}


def _before_the_intent(one: Try) -> None:
    driver = one.start(code.TRANSPILE_TOO)
    driver.line(one.random.choice(("connecting", "chosen", "transpiling")))
    one.sleep(0.3)
    one.kill()


def _between_intent_and_post(one: Try) -> None:
    one.start(code.PAUSE_AT_INTENT).line("intent")
    one.sleep(0.09)
    one.kill()


def _around_the_post(one: Try) -> None:
    one.start().line("submitting")
    one.sleep(0.015)
    one.kill()


def _post_in_flight(one: Try, phase: str) -> None:
    with one.lane.alone():
        one.faults({**POST, "delay_seconds": 0.4, "phase": phase})
        one.start()
        one.post_arrives()
    one.sleep(0.38)
    one.kill()


def _queued(one: Try) -> None:
    one.start()
    one.queued()
    one.sleep(0.7)
    one.kill()


def _running(one: Try) -> None:
    one.ibm.hold("running")
    one.start().line("running ")
    one.sleep(0.7)
    one.kill()


def _fetching(one: Try) -> None:
    driver = one.start()
    job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}/results", "method": "GET", "delay_seconds": 0.3})
    with one.let_go():
        driver.line("fetching results")
        one.sleep(0.28)
        one.kill()


def _between_result_and_done(one: Try) -> None:
    driver = one.start(code.PAUSE_BEFORE_DONE)
    with one.let_go():
        driver.line("standing-down")
        one.sleep(0.09)
        one.kill()


def _after_the_result(one: Try) -> None:
    driver = one.start(code.LINGER)
    with one.let_go():
        driver.line("result ")
        one.sleep(0.02)
        one.kill()


def _after_detach(one: Try) -> None:
    one.start(code.DETACH).line("detached")
    one.sleep(0.02)
    one.kill()
    one.lane.wait_for_watchers()
    [job] = one.made()
    one.seen.kept.add(job)  # by the service, for whoever asks later
    with one.let_go():
        one.ibm.wait_job(job, timeout=DEADLINE)


def _while_cancelling(one: Try, lag: float) -> None:
    one.ibm.hold("queued", lag)
    one.start()
    one.queued()
    one.gives_up()
    one.signal(signal.SIGTERM)
    one.sleep(0.03 + lag / 2)
    one.kill()


ROWS = [
    Row("SIGKILL before the intent", "nothing was submitted", _before_the_intent, 3),
    Row("SIGKILL between intent and POST", "nothing was submitted", _between_intent_and_post, 3),
    Row("SIGKILL around the POST", f"no job, or {CANCELLED}", _around_the_post, 6),
    Row(
        "SIGKILL, POST in flight",
        f"the job that is made 0 to 0.4 s later is found by its tag, and {CANCELLED}",
        lambda one: _post_in_flight(one, "before"),
        4,
    ),
    Row(
        "SIGKILL, answer on its way",
        f"the job is found by its tag, and {CANCELLED}",
        lambda one: _post_in_flight(one, "after"),
        4,
    ),
    Row("SIGKILL, queued", CANCELLED, _queued, 8),
    Row("SIGKILL, running", CANCELLED, _running, 8),
    Row("SIGKILL, fetching the result", OVER, _fetching, 3),
    Row("SIGKILL between result and done", OVER, _between_result_and_done, 3),
    Row("SIGKILL after the result", "never asked to stop", _after_the_result, 3),
    Row("detach(), then SIGKILL", "never asked to stop; it completes", _after_detach, 2),
    Row("SIGTERM, then SIGKILL", BY_EITHER, lambda one: _while_cancelling(one, 0.0), 4),
    Row(
        "SIGTERM, then SIGKILL; the cancel takes 0.5 s",
        BY_EITHER,
        lambda one: _while_cancelling(one, 0.5),
        3,
    ),
]
