"""How `wait` shows a job: a panel on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Protocol

from .. import panel
from ..errors import QxError, RunTimeout
from ..guarded import Guarded, Guards, read
from ..panel.view import View
from ..queue_info import QueueInfo
from ..result import RunResult
from ..status import Status
from ..watcher import ledger, remote
from ..watcher.facts import moment
from . import output

HINT = "Ctrl-C leaves it running"


class Shows(Protocol):
    """Shows a job that is waited for."""

    wants_details: bool
    """Whether its place in the queue, and who guards it, is shown: that takes further requests."""

    is_drawn: bool
    """Whether it has its place on the panel, which then tells of its end."""

    def begin(self) -> None:
        """Begin to show it."""

    def see(self, state: remote.JobState, info: QueueInfo, guard: Guarded | None, url: str) -> None:
        """Show the job's state, which has been read."""

    def say(self, _stage: object, state: str, detail: str) -> None:
        """Show an obstacle, or that it is gone."""

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show how the wait ended."""


class Lines:
    """Writes a line for each change.

    Args:
        job_id: The job.
    """

    wants_details = is_drawn = False

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._said = ""

    def begin(self) -> None:
        """Write nothing: there is no state yet."""

    def see(self, state: remote.JobState, _info: QueueInfo, _guard: Guarded | None, _url: str) -> None:
        """Write a line if the state is a new one."""
        if state.status != self._said and not state.is_final:
            self._said = state.status
            output.say(f"job {self._job_id}: {state.status.lower()}")

    def say(self, _stage: object, state: str, detail: str) -> None:
        """Write a line about an obstacle."""
        output.say(f"job {self._job_id}: {state}{f' ({detail})' if detail else ''}")

    def close(self, outcome: RunResult | BaseException) -> None:
        """Write nothing: the command says how it ended."""


class JobView(View):
    """A job of whatever program, in words."""

    guard: Guarded | None = None

    @property
    def state(self) -> str:
        """The state, or how the wait ended."""
        return "goes on" if self.goes_on else super().state

    @property
    def tone(self) -> str:
        """How the state is coloured."""
        return "plain" if self.goes_on else super().tone

    @property
    def goes_on(self) -> bool:
        """Whether only the wait has ended: by Ctrl-C, or its --timeout."""
        return isinstance(self.outcome, KeyboardInterrupt | RunTimeout)

    def protection(self) -> str:
        """Who guards it."""
        guard = self.guard
        if guard is None:
            return "no program that is known here guards it"
        if not guard.is_live:
            return f"its program is gone: {guard.driver} ({guard.liveness})"
        watched = f", watched by pid {guard.row.watcher_pid}" if guard.row.watcher_pid is not None else ""
        return f"{guard.driver}{watched}"


class OnPanel:
    """Shows it on the terminal's panel.

    Args:
        job_id: The job.
    """

    wants_details = True

    def __init__(self, job_id: str) -> None:
        self._view = JobView(HINT, shows_results=False)
        self._panel = panel.open_panel("terminal", interruptible=True, view=self._view)
        self._status = Status("poll", "looking for the job", job_id)
        self._drawing = threading.Lock()
        self._is_open = True
        self.is_drawn = False

    def begin(self) -> None:
        """Show that the job is looked for."""
        self._draw(self._status)
        self.is_drawn = True

    def see(self, state: remote.JobState, info: QueueInfo, guard: Guarded | None, url: str) -> None:
        """Show the job's state."""
        created = moment(state.reply.get("created"))
        if created is not None:  # since then it has been on its way, whenever the wait began
            self._view.began = self._view.clock() - max(0.0, time.time() - created)
        self._view.guard = guard
        if state.is_final:
            return
        self._show(
            Status(
                "poll",
                state.status.lower(),
                self._status.job_id,
                str(state.reply.get("backend") or ""),
                shots=guard.row.shots if guard else None,
                label=guard.row.label if guard else "",
                queue_position=info.queue_position,
                estimated_start=info.estimated_start,
                qpu_seconds_estimated=info.qpu_seconds_estimated,
                qpu_seconds=info.qpu_seconds,
                url=url,
            )
        )

    def say(self, _stage: object, state: str, detail: str) -> None:
        """Show an obstacle."""
        known = self._status
        self._draw(
            Status(
                "poll", state, known.job_id, known.backend, detail, shots=known.shots, url=known.url, label=known.label
            )
        )

    def close(self, outcome: RunResult | BaseException) -> None:
        """Show the summary."""
        with self._drawing:
            if self._is_open:
                self._is_open = False
                panel.close_panel(self._panel, outcome)

    def _show(self, status: Status) -> None:
        self._status = status
        self._draw(status)

    def _draw(self, status: Status) -> None:
        with self._drawing:
            if self._is_open:  # after a Ctrl-C the job's thread goes on for a moment
                self._panel.show(status)


class KnownGuards:
    """Who guards jobs, read from the ledger again now and then."""

    PAUSE = 2.0
    """Seconds between two readings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known = Guards(())
        self._due = 0.0

    def of(self, state: remote.JobState, job_id: str) -> Guarded | None:
        """Who guards a job; nobody, if the ledger can't be read."""
        with self._lock:
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + self.PAUSE
                with contextlib.suppress(ledger.LedgerError, QxError):  # what was known is better than nothing
                    self._known = read()
        return self._known.of_state(job_id, state)


def is_on_terminal() -> bool:
    """Whether the panel can be shown."""
    return panel.is_on_terminal()
