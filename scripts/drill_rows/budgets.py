"""Drivers that share a budget of QPU time and die at random instants: what they are charged in all never passes it.

Its jobs are judged by their charges alone. They have no try's tag: whether they were cancelled is for other rows.
"""

from __future__ import annotations

from testkit import spenders
from testkit.drivers import Driver

from . import leases
from .attempt import Try
from .row import Row

EXPECTED = f"never charged more than the {spenders.SECONDS} s of the budget"


def _spend(one: Try, *, hosts: int) -> None:
    site = leases.site_of(one, reapers=1) if hosts > 1 else None
    places = [site.host() for _ in range(hosts)] if site is not None else []

    def start(program: str, host: int) -> Driver:
        return one.start(program) if site is None else site.start(one, places[host], program)

    name = f"budget-{one.tag}"
    with one.lane.alone():
        spent = spenders.spend(one.random, one.ibm, name, start, circuit="isa", hosts=hosts)
        one.ibm.charge()
        one.ibm.scenario(spenders.UNLIMITED)
        one.ibm.hold("queued")
    if spent > spenders.SECONDS:
        jobs = [job for job in one.ibm.jobs() if name in job.tags]
        one.seen.troubles.append(f"{spent:.1f} s were charged: {spenders.described(one.ibm, jobs)}")


ROWS = [
    Row("a budget: its drivers are killed at random instants", EXPECTED, lambda one: _spend(one, hosts=1), 4),
    Row(
        "a budget: its drivers on two hosts are killed at random instants",
        EXPECTED,
        lambda one: _spend(one, hosts=2),
        2,
        obstacle=leases.no_hosts,
    ),
]
