"""Runs of several jobs, and jobs that are attached: SIGKILL at a random instant."""

from __future__ import annotations

from . import code
from .attempt import Try
from .kills import CANCELLED
from .row import Row

FAILED = {"outcome": "failed", "reason": "Internal error.", "reason_code": 9999}

SPLIT = "drive([isa, isa, isa], split=1)"

RETRIED = """
from qx_supervisor import backoff
from qx_supervisor.flight import retried
retried.FAILED_JOB = backoff.Pauses(0.2, 0.2)
drive(retries=3)
"""

ATTACHED = f"""
{code.LIVE_RUN}
held.detach()
again = attach(held.job_id, service=service())
say("attached")
signal.pause()
"""


def _split(one: Try) -> None:
    one.start(SPLIT).line(one.random.choice(("connecting", "submitting", "0 of 3 parts done")))
    one.sleep(0.6)
    one.kill()


def _retried(one: Try) -> None:
    with one.lane.alone():
        one.ibm.scenario({"next_jobs": [FAILED]})
        with one.let_go():
            driver = one.start(RETRIED)
            driver.line("failed, submitting again ")
    if one.random.random() < 0.7:
        driver.forget_lines()
        driver.line("submitting ")
    one.sleep(0.4)
    one.kill()


def _attached(one: Try) -> None:
    one.start(ATTACHED).line("attached")
    one.sleep(0.3)
    one.kill()


ROWS = [
    Row("split into three jobs: SIGKILL at a random instant", f"each job is {CANCELLED}", _split, 4),
    Row("submitted again after a failure: SIGKILL at a random instant", f"no job, or {CANCELLED}", _retried, 4),
    Row("attached, then SIGKILL", CANCELLED, _attached, 3),
]
