"""A submission whose answer was lost: the job that it may have made is looked for by its tag.

No answer is no word on the job. The POST may never have arrived, or the job may be in the queue already; sent again
without a look, it would be there twice. So the job is looked for, and is the run's once it is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .backoff import Backoff
from .launch import sweep_window
from .poller import ask
from .watcher import remote

LOOK_SECONDS = 30.0
"""How long the job is looked for, before the POST is sent again. One that turns up later is a duplicate, and the
watcher, which goes on looking, cancels it."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0  # between two looks


@dataclass
class Posts:
    """What has become of a run's POSTs so far.

    Attributes:
        several: More than one may have left, and each may have made a job.
        lost: One of them got no answer at all.
        found: The job that was found by its tag, or "".
        earlier: Jobs under the tag that were over before the first of them left.
    """

    several: bool = False
    lost: bool = False
    found: str = ""
    earlier: frozenset[str] = frozenset()


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
    patience = Backoff("submit", None, say)
    until = time.monotonic() + min(LOOK_SECONDS, sweep_window())
    pause = _FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= until
        try:
            found = ask(there, lambda: there.tagged(tag))
        except remote.RemoteError as error:  # however long it takes: only a list says that there is none
            sleep(patience.failed(error))
            continue
        patience.answered()
        made = {job: state for job, state in found.items() if job not in earlier}
        if made or is_last:
            return _best_of(made)
        sleep(max(0.0, min(pause, until - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _best_of(jobs: Mapping[str, remote.JobState]) -> str:
    """Of the jobs that a run has made, the one to go on with; "" of none. The others are duplicates."""

    def rank(job: str) -> tuple[bool, bool, bool, str]:
        state = jobs[job]
        is_running = state.status.lower() == "running"
        return not state.is_completed, not is_running, state.is_final, str(state.reply.get("created") or "")

    return min(jobs, key=rank, default="")
