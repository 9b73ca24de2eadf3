"""The search for the job of a POST that nobody answered.

No answer says nothing about the job. The POST may never have arrived, or the job may be queued already; sent again
without a look, it would be there twice. So the job is looked for by its tag, and once found it is the run's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..backoff import LOST_ANSWER, Backoff, look_until
from ..poller import ask
from ..settings import sweep_window
from ..watcher import remote

LOOK_SECONDS = 30.0
"""How long the job is looked for before the POST is sent again. One that turns up later is a duplicate, which the
watcher cancels: it goes on sweeping."""


def find_job(
    there: remote.Remote,
    tag: str,
    earlier: Collection[str],
    say: Callable[[Any, str, str], None],
    sleep: Callable[[float], None],
) -> str:
    """Look for the job that a POST has made, until it is there, or none is to be expected any more.

    Args:
        there: The instance.
        tag: The tag that no other run's jobs have.
        earlier: Jobs under the tag that are not meant.
        say: Tells the user.
        sleep: Waits; it raises what ends the run.

    Returns:
        The job's id, or "".
    """
    backoff = Backoff("submit", None, say)

    def look() -> dict[str, remote.JobState]:
        # However long an answer takes: only a list says that there is none.
        found = backoff.until_answered(lambda: ask(there, lambda: there.tagged(tag)), sleep)
        return {job: state for job, state in found.items() if job not in earlier}

    end = time.monotonic() + min(LOOK_SECONDS, sweep_window())
    return _best_of(look_until(end, look, LOST_ANSWER, sleep))


def _best_of(jobs: Mapping[str, remote.JobState]) -> str:
    """Of the jobs that a run has made, the one to go on with; "" of none. The others are duplicates."""

    def rank(job: str) -> tuple[bool, bool, bool, str]:
        state = jobs[job]
        is_running = state.status.lower() == "running"
        return not state.is_completed, not is_running, state.is_final, str(state.reply.get("created") or "")

    return min(jobs, key=rank, default="")
