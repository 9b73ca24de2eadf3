"""A run that `submit` has begun, or `attach`: it can be waited for, awaited, cancelled and detached."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn

from . import cells, interrupts, threads
from .descriptors import is_writable
from .errors import CancelOutcome, QxError
from .flight import AnyFlight, Flight
from .listeners import StatusListeners, StatusQueue
from .panel import CANCELS, Panel, Silent
from .panel.plain import write
from .result import RunResult
from .status import Status

if TYPE_CHECKING:
    from .panel.notebook import Live
    from .panel.view import View

logger = logging.getLogger("qx_supervisor")


class Run:
    """A run that was begun by `submit`, or attached by `attach`. It belongs to the process that began it.

    In a notebook it is shown as a card, which is kept up to date until the run is over.
    """

    def __init__(self, flight: AnyFlight, panel: Panel | None = None) -> None:
        self._flight = flight
        self._process = os.getpid()
        self._began = time.monotonic()
        self._is_silent = panel is None or isinstance(panel, Silent)
        self._live: Live | None = getattr(panel, "live", None)

    def _ipython_display_(self) -> None:
        """Show a card that is kept up to date, once in a cell.

        Raises:
            NotImplementedError: There is nothing to keep up to date: IPython shows the run as any other object.
        """
        if self._live is not None and self._live.is_here:
            return
        if not cells.in_notebook() or self._flight.outcome.done() or os.getpid() != self._process:
            raise NotImplementedError
        if self._live is None:
            self._live = self._follow(None)
        self._live.show_here()

    def _show_where_awaited(self) -> None:
        """Show a card in the cell that awaits the run, unless something shows the run already."""
        is_shown = not self._is_silent or self._live is not None
        if is_shown or not cells.in_notebook() or self._flight.outcome.done() or os.getpid() != self._process:
            return
        from .panel.notebook import awaited_card

        try:
            self._live = self._follow(awaited_card())
            if self._live.is_here:
                self._live.update(now=True)
            else:
                self._live.show_here()
        except Exception as error:  # a fault in showing the run must not end it
            logger.warning("the panel raised %s; the run goes on unseen", type(error).__name__, exc_info=error)

    def _follow(self, live: Live | None) -> Live:
        """Have a card follow the run, from now to its end."""
        from .panel.notebook import Notebook

        flight, panel = self._flight, Notebook(self._view(), live)
        listeners = StatusListeners(None, panel)
        queue = StatusQueue(listeners)
        flight.listen(queue.status, queue.end)

        def end_if_not_told(outcome: Future[RunResult]) -> None:
            if not listeners.is_over:  # it was about to end when we began to listen
                listeners.close(outcome)

        flight.outcome.add_done_callback(lambda outcome: queue.put(lambda: end_if_not_told(outcome)))
        queue.begin_to_tick()
        return panel.live

    def _repr_html_(self) -> str:
        from .panel.notebook import as_html

        return as_html(self._view())

    def _view(self) -> View:
        from .panel.view import View

        flight = self._flight
        view = View(CANCELS)
        view.see(flight.status)
        view.began, view.changed = self._began, flight.since
        if flight.outcome.done():
            view.end(flight.outcome.exception() or flight.outcome.result())
            view.ended = flight.since
        return view

    def __reduce__(self) -> NoReturn:
        raise QxError(
            "a Run belongs to the process that began it, and can't be pickled; return its job_id, or its result()"
        )

    def __repr__(self) -> str:
        status = self._flight.status
        label = f", label={status.label!r}" if status.label else ""
        return f"Run(state={status.state!r}, job_id={self._flight.job_id!r}{label})"

    @property
    def job_id(self) -> str | None:
        """The job at IBM Quantum, or None while it has no id. With `retries` the latest, with `split` the first."""
        return self._mine().job_id

    @property
    def job_ids(self) -> tuple[str, ...]:
        """Its jobs that have an id; only with `split` there are several."""
        return self._mine().job_ids

    @property
    def failed_job_ids(self) -> tuple[str, ...]:
        """The jobs that failed and were submitted again, for `retries`."""
        return self._mine().failed_job_ids

    @property
    def qpu_seconds(self) -> float | None:
        """The QPU time charged for the job, in seconds; None while that is pending, or not known."""
        return self._mine().cost.charged

    @property
    def qpu_seconds_estimated(self) -> float | None:
        """The QPU time that IBM Quantum expects of the job, in seconds; None if it has not said."""
        return self._mine().cost.estimated

    def status(self) -> Status:
        """The latest status."""
        return self._mine().status

    def done(self) -> bool:
        """Whether the run is over."""
        return self._mine().is_over

    def running(self) -> bool:
        """Whether the job is being executed, or its results are being fetched, as far as is known here."""
        return self._mine().is_running

    def wait_for_job(self) -> str:
        """Wait until the job has an id: then IBM Quantum has it.

        Returns:
            The id. On a local backend there is none before the result, which is waited for.

        Raises:
            RunError: If nothing was submitted.
        """
        flight = self._mine()
        while not flight.wait_for_job(interrupts.WAIT_LIMIT):
            pass
        return flight.job_id or self.result().job_id

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the result.

        Args:
            timeout: Seconds to wait, or None. When they pass, the job goes on.

        Raises:
            RunError: As `run` does.
            TimeoutError: If it is not over by then.
        """
        outcome = self._mine().outcome
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = interrupts.WAIT_LIMIT if end is None else end - time.monotonic()
            try:
                outcome.exception(max(0.0, min(left, interrupts.WAIT_LIMIT)))
                return self._flight.result()
            except TimeoutError:
                if outcome.done():
                    return self._flight.result()
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"the run is not over after {timeout:g} s; its job goes on") from None

    def cancel(self) -> CancelOutcome:
        """Cancel the job, and wait up to ten seconds for the proof.

        A job may complete all the same, also after IBM Quantum has accepted the cancel: then `result()` gives its
        result.

        Returns:
            As in `Interrupted`: "confirmed" if the job is final, also if it was over before; "handed over" if the
            watcher goes on with it; "nothing to cancel" if there was no job; "unconfirmed" if neither the service nor
            the watcher says so; "kept" where its key is another driver's by now. Called again, the same.
        """
        return self._mine().abandon(wants_result=True)

    def detach(self) -> None:
        """Let the job go on by itself: whatever happens to this process, nothing cancels it any more.

        A run whose job has no id yet is let go as soon as there is one.
        """
        self._mine().detach()

    def add_done_callback(self, fn: Callable[[Run], Any]) -> None:
        """Have `fn(run)` called when the run is over, in another thread; at once if it is over."""
        self._mine().outcome.add_done_callback(lambda _: fn(self))

    def __await__(self) -> Generator[Any, None, RunResult]:
        """Wait for the result without blocking the event loop. Cancelling the task cancels the job."""
        return self._wait().__await__()

    async def _wait(self) -> RunResult:
        import asyncio  # 40 ms, which only those who await need to spend

        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell(_: Any) -> None:
            try:
                loop.call_soon_threadsafe(over.set)
            except RuntimeError:
                pass  # the loop is closed; nobody waits there any more

        def end() -> None:
            try:
                self._flight.abandon(wants_result=True)
            finally:
                tell(None)  # not when there is a result: that of a job that completed all the same may take a while

        def look() -> None:
            # A signal wakes no loop by itself: that of a notebook's kernel would see Ctrl-C at its next message only.
            alarms.append(loop.call_later(interrupts.WAIT_LIMIT, look))

        self._show_where_awaited()
        alarms = deque([loop.call_later(interrupts.WAIT_LIMIT, look)], maxlen=1)
        self._mine().outcome.add_done_callback(tell)
        try:
            await over.wait()
        except asyncio.CancelledError:
            # In a forked child that leaves the loop every task is cancelled, and the job is the parent's.
            if not self._flight.is_detached and os.getpid() == self._process:
                # The job is cancelled, and confirmed, before the task ends, but not at the cost of a second Ctrl-C.
                threads.ending.do(end)
                await over.wait()
            raise
        finally:
            alarms[0].cancel()
        return self._flight.result()

    def _mine(self) -> AnyFlight:
        if os.getpid() != self._process:
            raise QxError(
                f"this Run belongs to process {self._process}, which began it, not to this child; call submit() here"
            )
        return self._flight


@functools.cache
def say_at_exit() -> None:
    """Have the end of the interpreter name the jobs that it ends."""
    atexit.register(_say_what_ends)


def _say_what_ends() -> None:
    """The interpreter ends, and what is in flight with it: a script whose last line is a `submit` would never know."""
    left = [flight for flight in threads.runs() if isinstance(flight, Flight) and not flight.is_detached]
    if not left or "qx_supervisor.adopt" in sys.modules:  # `qx-supervisor exec` says so itself
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if not is_writable(sys.stderr.fileno(), 0):
            return  # a terminal that was stopped: the end of the program does not wait for it
    what = "a run that is" if len(left) == 1 else f"{len(left)} runs that are"
    jobs = [flight.job_id for flight in left if flight.job_id]
    which = f" (job {', '.join(jobs)})" if jobs else ""
    write(
        f"qx: the program ends, and with it {what} not over{which}: cancelled. Wait with .result(), or have it go on "
        "with .detach()\n"
    )
