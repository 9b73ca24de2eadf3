"""A run that `submit` has begun: it can be waited for, awaited, cancelled and detached."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NoReturn

from . import interrupts, threads
from .descriptors import is_writable
from .errors import CancelOutcome, QxError
from .flight import Flight
from .panel.plain import write
from .result import RunResult
from .status import Status


class Run:
    """A run that was begun by `submit`. It belongs to the process that began it."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._process = os.getpid()
        self._began = time.monotonic()

    def _repr_html_(self) -> str:
        from .panel.notebook import as_html
        from .panel.view import View

        flight = self._flight
        view = View("its cancel() cancels")
        view.see(flight.status)
        view.began, view.changed = self._began, flight.since
        if flight.outcome.done():
            view.end(flight.outcome.exception() or flight.outcome.result())
            view.ended = flight.since
        return as_html(view)

    def __reduce__(self) -> NoReturn:
        raise QxError(
            "a Run belongs to the process that began it, and can't be pickled; return its job_id, or its result()"
        )

    def __repr__(self) -> str:
        return f"Run(state={self._flight.status.state!r}, job_id={self._flight.job_id!r})"

    @property
    def job_id(self) -> str | None:
        """The job at IBM Quantum, or None while it has no id."""
        return self._mine().job_id

    def status(self) -> Status:
        """The latest status."""
        return self._mine().status

    def done(self) -> bool:
        """Whether the run is over."""
        return self._mine().is_over

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
            "confirmed", "handed over", "nothing to cancel" or "unconfirmed", as in `Interrupted`; "kept" where its
            key is another driver's by now.
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

    def _mine(self) -> Flight:
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
