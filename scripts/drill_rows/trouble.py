"""Ordinary trouble of the service while the driver lives: no job, no result and no payment is lost by it."""

from __future__ import annotations

from testkit.processes import DEADLINE

from . import code
from .attempt import Try
from .faults import NONE_BESIDE, RESULT, Fault, submit
from .kills import POST
from .row import Row

FOUND = "found by its tag; never asked to stop; the result comes"
AGAIN = "sent again, as none was made; the result comes"

PAGE: Fault = {"body": "<html><title>Sign in</title></html>"}
DROPPED: Fault = {"drop_connection": True}
UNANSWERED: Fault = {"drop_connection": True, "delay_seconds": 600.0}
LOST: Fault = {"phase": "after"}

REFUSALS: list[Fault] = [{"status": 401}, {"status": 403, **PAGE}, {"status": 404}, {"status": 451}]
SPOILT: list[Fault] = [
    PAGE,
    {"body": ""},
    {"cut": 40, "phase": "after"},
    {"body": "[]", "content_type": "application/json"},
    *({"status": status} for status in (400, 403, 404, 409, 410, 500)),
    DROPPED,
]
OUTAGES: list[Fault] = [{"status": 429, "times": 2}, {"status": 501}, {**PAGE, "times": 2}, DROPPED]
STEPS = ("/api/v1/backends/*/status", "/api/v1/instances/usage")


def _refused(one: Try) -> None:
    driver = one.start()
    job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}", "method": "GET", "times": 3, **one.random.choice(REFUSALS)})
    driver.line("refused, retrying")
    with one.let_go():
        driver.end()


def _token_refused(one: Try) -> None:
    driver = one.start()
    one.queued()
    with one.lane.alone():
        cursor = one.ibm.cursor()
        one.ibm.auth(reject_tokens=True)
        one.ibm.expire_tokens()
        driver.line("refused, retrying")
        one.ibm.wait_for("POST", "/identity/token", after=cursor, count=3, timeout=DEADLINE)
        one.ibm.auth(reject_tokens=False)
    with one.let_go():
        driver.end()


def _refused_in_a_guard(one: Try) -> None:
    with one.lane.alone():
        driver = one.start(code.GUARDED)
        job = one.queued()
    one.faults({"path": f"/api/v1/jobs/{job}", "method": "GET", "times": 2, **one.random.choice(REFUSALS)})
    driver.line("caught ")
    with one.let_go():
        driver.end()


def _results(one: Try) -> None:
    driver = one.start()
    job = one.queued()
    answers = one.random.sample(SPOILT, 3)
    one.faults(*({"path": f"/api/v1/jobs/{job}/results", "method": "GET", **answer} for answer in answers))
    with one.let_go():
        driver.end()


def _before(one: Try) -> None:
    with one.lane.alone():
        one.faults({"path": one.random.choice(STEPS), "method": "GET", **one.random.choice(OUTAGES)})
        driver = one.start()
        one.queued()
        one.faults()
    with one.let_go():
        driver.end()


def _reserved(one: Try) -> None:
    with one.lane.alone():
        one.faults({**POST, "status": 423, "retry_after": 1, "times": 2})
        driver = one.start()
        driver.line("backend reserved, waiting")
        one.queued()
        one.faults()
    with one.let_go():
        driver.end()


def _post(name: str, expected: str, fault: Fault, program: str = code.DRIVE) -> Row:
    return Row(name, expected, lambda one: submit(one, fault, program), outcome="result")


ROWS = [
    Row("refused while it waits: 401, 403, 404, 451", RESULT, _refused, 2, outcome="result"),
    Row("the token service refuses while it waits", RESULT, _token_refused, outcome="result"),
    Row("refused in a guard around Qiskit's own result()", RESULT, _refused_in_a_guard, 2, outcome="result"),
    Row("results spoilt, or refused, three times", "asked again; the result comes", _results, 2, outcome="result"),
    _post("submit: connection dropped", AGAIN, DROPPED),
    _post("submit: connection dropped, no proxy", AGAIN, DROPPED, code.DIRECT),
    _post("submit: answer lost", FOUND, DROPPED | LOST),
    _post("submit: answer lost, no proxy", FOUND, DROPPED | LOST, code.DIRECT),
    _post("submit: answer never comes", FOUND, UNANSWERED | LOST, code.IMPATIENT + code.DRIVE),
    _post("submit: a login page for an answer", FOUND, PAGE | LOST),
    _post("submit: 501, after a job was made", FOUND, {"status": 501} | LOST),
    _post("submit: 500 six times, each after a job was made", NONE_BESIDE, {"status": 500, "times": 6} | LOST),
    Row("outage before the submission", "waited out; the result comes", _before, 2, outcome="result"),
    Row("the backend is reserved: 423", "waited out; the result comes", _reserved, outcome="result"),
]
