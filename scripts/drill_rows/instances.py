"""An account with two instances that have a backend of the same name, and runs on both at the same moment."""

from __future__ import annotations

from . import code
from .attempt import Try
from .kills import CANCELLED
from .lane import INSTANCES
from .row import Row


def _submitted(one: Try) -> None:
    """Start a driver that submits to both, and see where its jobs are once their ids are known."""
    driver = one.start(code.TWO_INSTANCES.format(instances=INSTANCES))
    asked = dict(word.split("=") for word in driver.line("all "))
    found = {job: one.ibm.job(job).instance for job in asked}
    assert found == asked, f"asked for {asked}, and made at {found}"


def _results(one: Try) -> None:
    _submitted(one)
    with one.let_go():
        one.driver.end()


def _killed(one: Try) -> None:
    _submitted(one)
    one.sleep(0.3)
    one.kill()


ROWS = [
    Row(
        "eight runs at once at two instances",
        "each is where it was asked for; the results come",
        _results,
        2,
        outcome="result",
    ),
    Row("eight runs at once at two instances; SIGKILL", f"{CANCELLED} each, where they are", _killed, 2),
]
