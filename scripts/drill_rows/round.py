"""A round: some tries of one row, side by side where they wait, and what has come of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .attempt import Try
from .judge import Totals
from .lane import Lane, Stopped, job_seen
from .row import Row


def try_row(lane: Lane, row: Row, chances: Sequence[str]) -> Totals:
    """Try a row on a lane, once with each seed."""
    totals = Totals()
    cursor = lane.ibm.cursor()
    lane.ibm.hold("queued")
    tries: list[Try] = []
    waiting: list[tuple[Try, Iterator[float], float]] = []
    with lane.at_row_end:
        with lane.before_look:
            for chance in chances:
                tries.append(one := Try(lane, f"{lane.number}.{lane.next_number()}", chance))
                steps = one.carry_out(row.attempt)
                if steps is not None and (until := one.advance(steps)) is not None:
                    waiting.append((one, steps, until))
                if lane.stopping.is_set():
                    raise Stopped
            while waiting:
                one, steps, until = waiting.pop(0)
                if lane.stopping.wait(max(0.0, until - time.monotonic())):
                    raise Stopped
                if (then := one.advance(steps)) is not None:
                    waiting.append((one, steps, then))
            late = lane.wait_for_watchers()
        if lane.stopping.is_set():
            raise Stopped
        tries[-1].seen.troubles += [*filter(None, [late]), *lane.row_troubles]
        lane.row_troubles.clear()
        _look(lane, tries, cursor)
        for one in tries:
            one.conclude(has_result=row.outcome == "result")
            totals.add(one.seen, row.requests)
    lane.ibm.scenario({})
    lane.ibm.hold(None)
    lane.forget_drivers()
    return totals


def _look(lane: Lane, tries: list[Try], cursor: int) -> None:
    """Fill in what the service has come to know."""
    arrivals: dict[str, list[int]] = {}
    for entry in lane.ibm.journal(cursor, "POST", "/api/v1/jobs/*/cancel"):
        arrivals.setdefault(entry.path.split("/")[4], []).append(entry.arrived)
    by_tag = {one.tag: one for one in tries}
    for job in lane.ibm.jobs():
        owner = next((by_tag[tag] for tag in job.tags if tag in by_tag), None)
        if owner is not None:
            owner.seen.jobs.append(job_seen(job, tuple(arrivals.get(job.id, ()))))
            lane.judged[job.id] = job.cancel_requests
        arrivals.pop(job.id, None)
    if arrivals:
        tries[-1].seen.troubles.append(f"requests to cancel jobs that there are not: {sorted(arrivals)}")
