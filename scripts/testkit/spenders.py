"""Drivers that share a budget, die at random moments, and are started again; and what they were charged in all."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

from qx_supervisor import local

from .drivers import Driver
from .processes import ends, wait_for_end
from .watchers import wait_for_watchers, watchers_of

SECONDS = 8
"""The budget of a round."""

PROGRAM = """
import random
os.environ["QX_BUDGET"], os.environ["QX_BUDGET_ID"] = "{seconds}", "{name}"
os.environ["QX_SWEEP_WINDOW"] = "3"
chance = random.Random("{seed}")
begun = []
say("spending")
for number in range(chance.randint(2, 6)):
    bound = chance.choice((None, 1, 2, 3, 5))
    common = dict(shots=chance.randint(1, 6), panel=None, max_execution_time=bound, tags=["{name}"])
    try:
        if chance.random() < 0.5:
            begun.append(submit({circuit}, backend(), **common))
        else:
            run({circuit}, backend(), **common)
    except RunError as error:
        say("failed", type(error).__name__, error.reason)
for each in begun:
    try:
        each.result()
    except RunError as error:
        say("failed", type(error).__name__, error.reason)
say("over")
"""
"""A driver that runs two to six jobs of one to six seconds, side by side or one after the other."""

JOBS = "/api/v1/jobs"
UNLIMITED = {"usage": {"limit_seconds": 10**9, "consumed_seconds": 0}}
"""Of a scenario: hundreds of tries take more than an instance has."""

FAULTS: tuple[list[dict[str, Any]], ...] = (
    [],
    [],
    [{"method": "POST", "path": JOBS, "status": 500, "phase": "after", "times": 1}],
    [{"method": "POST", "path": JOBS, "status": 502, "phase": "before", "times": 1}],
    [{"method": "POST", "path": JOBS, "drop_connection": True, "phase": "after", "times": 1}],
    [{"method": "POST", "path": JOBS, "delay_seconds": 0.3, "phase": "after", "times": 2}],
    [{"method": "GET", "path": f"{JOBS}/*/metrics", "status": 500, "times": 3}],
)
"""What may go wrong in a round, one of these: a POST that makes a second job, one that is not answered, and so on."""


def spend(
    chance: random.Random,
    ibm: local.Service,
    name: str,
    start: Callable[[str, int], Driver],
    *,
    circuit: str = "isa()",
    hosts: int = 1,
) -> float:
    """Let drivers come and go until each was given its chance; returns what their jobs were charged.

    Args:
        chance: What is left to chance.
        ibm: The service.
        name: The budget's name, and the tag of all its jobs.
        start: Starts a program on a host, by its number.
        circuit: What a program runs.
        hosts: How many hosts there are.
    """
    ibm.charge(per_shot=1.0, estimate=chance.choice((None, 1.0)), speed=chance.choice((5.0, 20.0, None)))
    ibm.scenario({"http_faults": chance.choice(FAULTS), **UNLIMITED})
    ibm.hold(chance.choice((None, None, "running")))
    drivers: list[Driver] = []
    for number in range(chance.randint(2, 4)):
        program = PROGRAM.format(seconds=SECONDS, name=name, seed=chance.random(), circuit=circuit)
        drivers.append(start(program, number % hosts))
        drivers[-1].line("spending")
        if chance.random() < 0.5:  # else the next one begins beside it
            time.sleep(chance.uniform(0.0, 2.0))  # the moment of its death is left to chance
            _end(drivers[-1], chance)
    ibm.hold(None)
    ibm.spend(100.0)  # what runs takes all that it may
    for driver in drivers:
        if not ends(driver.pidfd, 5.0):
            driver.send(signal.SIGKILL)
        driver.end()
        wait_for_watchers(driver)
    ibm.spend(100.0)
    return charged(ibm, name)


def described(ibm: local.Service, jobs: list[local.Job]) -> str:
    """Jobs, with the requests that made them and those about them; times are in ms since the first of these."""
    about = [entry for entry in ibm.journal() if any(job.id in (entry.job_id or entry.path) for job in jobs)]
    begin = min((entry.arrived for entry in about), default=0)

    def ms(moment: int | None) -> str:
        return "-" if moment is None else f"{(moment - begin) / 1e6:.0f}"

    parts = [
        f"{job.id} {job.status}, {job.qpu_seconds:g} of {job.max_execution_time} s, "
        f"{ms(job.created)} to {ms(job.ended)}, tags {' '.join(job.tags)}"
        for job in jobs
    ]
    parts += [f"{ms(entry.arrived)} {entry.method} {entry.path} {entry.status}" for entry in about]
    return "; ".join(parts)


def charged(ibm: local.Service, name: str) -> float:
    """What all jobs under a tag were charged, those that nobody knows of too."""
    return sum(job.qpu_seconds for job in ibm.jobs() if name in job.tags)


def _end(driver: Driver, chance: random.Random) -> None:
    match chance.choice(("kill", "kill", "kill both", "terminate", "stay")):
        case "kill":
            driver.kill()
        case "kill both":
            driver.send(signal.SIGSTOP)  # else it would start another one
            for watcher in watchers_of(driver):
                watcher.send_signal(signal.SIGKILL)
                wait_for_end(watcher)
            driver.kill()
        case "terminate":
            driver.send(signal.SIGTERM)
