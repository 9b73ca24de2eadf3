"""The service fails, on every route that a run or a cancel needs, in every way that the embedded one can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from testkit.processes import DEADLINE

from . import code
from .attempt import Try
from .kills import CANCELLED, POST
from .row import Row

Fault = dict[str, Any]

WAYS: dict[str, Fault] = {
    "503 three times": {"status": 503, "times": 3},
    "429 twice, Retry-After 1": {"status": 429, "retry_after": 1, "times": 2},
    "1 s late": {"delay_seconds": 1.0},
    "connection dropped twice": {"drop_connection": True, "times": 2},
    "answer lost twice": {"drop_connection": True, "phase": "after", "times": 2},
}

RESULT = "never asked to stop; the result comes"
NONE_BESIDE = "the result comes; other jobs of the run are cancelled, each by one request"
IN_SPITE = "cancelled in spite of it"


def submit(one: Try, fault: Fault, program: str = code.DRIVE) -> None:
    """Have the POST go wrong; the driver has its result all the same."""
    with one.lane.alone():
        one.faults({**POST, **fault})
        driver = one.start(program)
        kept = one.queued()
        one.faults()
    # Held until then: in the service's hands a job is over in milliseconds, and can't be a duplicate that is cancelled.
    for job in one.made():
        if job != kept:
            one.ibm.wait_job(job, "Cancelled", timeout=DEADLINE)
    with one.let_go():
        driver.end()


def _poll(one: Try, fault: Fault) -> None:
    driver = one.start()
    job = one.queued()
    method, path = "GET", f"/api/v1/jobs/{job}"
    cursor = one.ibm.cursor()
    one.faults({"method": method, "path": path, **fault})
    one.ibm.wait_for(method, path, after=cursor, count=fault.get("times", 1), timeout=DEADLINE)
    with one.let_go():
        driver.end()


def _results(one: Try, fault: Fault) -> None:
    driver = one.start()
    job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}/results", "method": "GET", **fault})
    with one.let_go():
        driver.end()


def _cancel(one: Try, fault: Fault) -> None:
    one.start()
    job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}/cancel", "method": "POST", **fault})
    one.sleep(0.3)
    one.kill()
    one.ibm.wait_job(job, "Cancelled", timeout=DEADLINE)


def _list(one: Try, fault: Fault) -> None:
    one.lane.wait_for_watchers()  # the fault is for this one's
    with one.lane.alone():
        one.faults({**POST, "delay_seconds": 0.3})
        one.start()
        one.post_arrives()
    one.faults({"path": "/api/v1/jobs", "method": "GET", **fault})
    one.kill()
    one.lane.wait_for_watchers()


def _token_expired(one: Try) -> None:
    one.start()
    one.queued()
    one.sleep(0.3)
    with one.lane.alone():
        one.ibm.expire_tokens()
        one.kill()
        # The control notices by its next poll; a submission with the old token would be refused.
        one.ibm.wait_job(one.made()[0], "Cancelled", timeout=DEADLINE)


def _killed_while_submission_is_retried(one: Try) -> None:
    with one.lane.alone():
        one.faults({**POST, "status": 503, "phase": "after", "times": 3})
        one.start()
        one.post_arrives()
        one.sleep(4.0)
        one.kill()
        one.faults()


def _killed_while_polls_fail(one: Try) -> None:
    one.start()
    job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}", "method": "GET", "status": 503, "times": 1000})
    one.driver.line("connection lost, retrying")
    one.sleep(1.0)
    one.kill()
    one.ibm.wait_for("GET", f"/api/v1/jobs/{job}", after=one.ibm.cursor(), timeout=DEADLINE)
    one.faults()


def _each(route: str, attempt: Any, expected: str, ways: Iterable[str] = WAYS, **settings: Any) -> list[Row]:
    def by(way: str) -> Row:
        return Row(f"{route}: {way}", expected, lambda one: attempt(one, WAYS[way]), **settings)

    return [by(way) for way in ways]


MADE = {"status": 503, "phase": "after", "times": 2}

ROWS = [
    *_each("submit", submit, RESULT, ("503 three times", "429 twice, Retry-After 1", "1 s late"), outcome="result"),
    Row(
        "submit: 503 twice, each after a job was made",
        NONE_BESIDE,
        lambda one: submit(one, MADE),
        2,
        outcome="result",
    ),
    Row(
        "SIGKILL while a submission is retried, each try makes a job",
        f"all are {CANCELLED} each",
        _killed_while_submission_is_retried,
        3,
    ),
    Row("SIGKILL while polls fail", CANCELLED, _killed_while_polls_fail, 2),
    *_each("poll", _poll, RESULT, outcome="result"),
    *_each("results", _results, RESULT, outcome="result"),
    *_each("SIGKILL; cancel", _cancel, IN_SPITE, requests="some"),
    *_each("SIGKILL, POST in flight; list", _list, f"found by its tag, and {CANCELLED}"),
    Row("SIGKILL; token expired at the cancel", IN_SPITE, _token_expired, 2, requests="some"),
]
