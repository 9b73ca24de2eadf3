"""`run`, `try_run` and `submit`: what users call, and the loop in which `run` waits.

The loop has one wait, which a status, the outcome and a signal end. All that may block is done by other threads, so
that a signal is always answered at once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Any, Literal, NoReturn, ParamSpec

from . import interrupts, threads
from .descriptors import is_writable
from .errors import CancelOutcome, ConfigError, Interrupted, QxError, RunError, interrupted
from .flight import CANCEL_SECONDS, HAND_OVER_SECONDS, Flight
from .panel import Panel, PanelName, Silent, close_panel, open_panel
from .panel.plain import write
from .request import Request, check
from .result import Err, Ok, RunResult
from .status import Status

logger = logging.getLogger("qx_supervisor")

TICK = 0.5
"""Seconds between two looks of a panel's at the clock."""

Pubs = Any
OnStatus = Callable[[Status], Any]
P = ParamSpec("P")


def run(
    pubs: Pubs,
    backend: Any = None,
    *,
    service: Any = None,
    primitive: Any = "sampler",
    shots: int | None = None,
    options: Any = None,
    optimization_level: int = 1,
    seed_transpiler: int | None = None,
    on_status: OnStatus | None = None,
    panel: PanelName = "auto",
    timeout: float | None = None,
    poll_interval: float | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    on_unprotected: Literal["raise", "warn"] = "raise",
    key: str | None = None,
    grace: float = 0.0,
    keep_on_sigterm: bool = False,
) -> RunResult:
    """Run circuits on IBM Quantum and wait for the result; whatever ends this process, its job is cancelled.

    On SIGINT, SIGTERM or SIGHUP the job is cancelled, that is confirmed, and `Interrupted` is raised. That needs the
    main thread, where alone Python handles signals; elsewhere `run` works without. If this process dies, its watcher,
    another process, cancels the job.

    Args:
        pubs: A circuit, a list of circuits, or PUBs: `(circuit, parameter values, shots)` for a sampler,
            `(circuit, observables, parameter values, precision)` for an estimator. Circuits that the backend can't
            execute as they stand are transpiled.
        backend: A backend's name or object, or an open `Session` or `Batch`. None: the least busy backend that is
            wide enough. A local backend (`FakeSherbrooke()`, `AerSimulator()`) runs in Qiskit's local testing mode.
        service: A `QiskitRuntimeService`. None: the one of `backend` or `primitive`, if they are objects, or the user's
            saved account. One that is another than theirs is refused.
        primitive: "sampler", "estimator", or a primitive object with options (and a backend) of its own.
        shots: How often each circuit is executed. None: the primitive's default.
        options: Options for the primitive that is made here, as Qiskit takes them.
        optimization_level: The transpiler's, 0 to 3.
        seed_transpiler: The transpiler's seed.
        on_status: Called with every `Status`, in this thread. What it raises is logged by type and ends nothing.
        panel: Where the status is shown. "auto": a panel on the terminal or in the notebook, else lines on stderr.
            "terminal", "notebook": that one where it can be shown, else lines. "plain": lines. None: nowhere.
        timeout: Seconds from the call after which the job is cancelled. None: queues may take days.
        poll_interval: Seconds between two readings of the job's state, at least 0.1. None: 0.5 at first (0.1 in a
            session), and more while the job waits on.
        tags: Tags for the job, 5 at most, of at most 86 characters each.
        max_execution_time: Seconds of QPU time after which IBM Quantum itself ends the job.
        on_unprotected: What to do if no watcher can protect the run: "raise" a `WatcherError` before anything is
            submitted, or "warn" and submit.
        key: A name for this submission, by which a program that was killed and started again takes its job up: what
            was submitted with the same key is waited for, or its result fetched, and nothing is submitted. Only where
            its job was cancelled or failed, a new one is. A key is for one submission, and for one driver at a time.
        grace: Seconds that the job with a key is left alone after this process's death, for it to come back; then the
            watcher cancels. 0: at once.
        keep_on_sigterm: On SIGTERM, leave the job to its grace instead of cancelling it: for machines that are taken
            away and given back.

    Returns:
        The result: Qiskit's `PrimitiveResult` with `counts`, `job_id` and more within reach. Where `pubs` is a list, be
        it of one, `counts` and the like are lists too.

    Raises:
        ConfigError: The call can't be carried out; nothing was submitted.
        WatcherError: No watcher; nothing was submitted.
        SubmitError: The submission failed.
        JobFailed: The job failed.
        JobCancelled: Someone else cancelled the job.
        RunTimeout: `timeout` passed.
        RunError: Anything else, by its `stage`.
        Interrupted: A signal came.
    """
    given = {name: value for name, value in locals().items() if name != "panel"}
    request = check(given)
    # Signals are handled in the main thread alone, and not where they are ignored.
    is_main = threading.current_thread() is threading.main_thread()
    interruptible = is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    return _run(request, open_panel(panel, interruptible=interruptible))


def try_run(pubs: Pubs, backend: Any = None, **arguments: Any) -> Ok[RunResult] | Err:
    """`run`, with its failure as a value.

    Args:
        pubs: As `run` takes them.
        backend: As `run` takes it.
        **arguments: As `run` takes them.

    Returns:
        `Ok(result)`, or `Err(error)` with a `RunError`.

    Raises:
        Interrupted: As `run` does.
    """
    try:
        return Ok(run(pubs, backend, **arguments))
    except RunError as error:
        return Err(error)


def _takes_what_run_takes(function: Callable[[dict[str, Any]], Run], of: Callable[P, Any]) -> Callable[P, Run]:
    """Give a function the arguments of `run`, but for what needs signals; its panel is silent by default."""
    parameters = inspect.signature(of).parameters.values()
    mine = inspect.Signature(
        [
            parameter.replace(default=None) if parameter.name == "panel" else parameter
            for parameter in parameters
            if parameter.name != "keep_on_sigterm"
        ],
        return_annotation="Run",
    )

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Run:
        try:
            bound = mine.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None
        bound.apply_defaults()
        return function(bound.arguments)

    call.__signature__ = mine  # type: ignore[attr-defined]
    return call


@functools.partial(_takes_what_run_takes, of=run)
def submit(given: dict[str, Any]) -> Run:
    """Begin a run and return at once.

    Takes what `run` takes; `on_status` is called in another thread, for sixteen runs at a time at most, and the panel
    is silent unless one is asked for. Any number of runs share a few threads, connections and requests for their state.
    No signal handlers are installed: after a Ctrl-C the job goes on, guarded, until this process ends.

    Returns:
        The run, which can be waited for, awaited, cancelled and let go.

    Raises:
        ConfigError: The call can't be carried out. What is found out later is raised by `Run.result()`.
    """
    panel = given.pop("panel")
    request = check(given)
    if request.on_status is None and panel is None:
        flight = Flight(request, lambda _: None)
    else:
        listeners = _StatusListeners(request, open_panel(panel))
        queue = _StatusQueue(listeners)
        flight = Flight(request, queue.status, queue.end, asks_details=listeners.is_shown)
        if listeners.is_shown:
            queue.begin_to_tick()
    try:
        flight.start(threads.submitting.do)
    except RuntimeError as error:
        flight.abandon()
        raise _no_thread(error) from None
    _say_at_exit()
    return Run(flight)


@functools.cache
def _say_at_exit() -> None:
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


class Run:
    """A run that was begun by `submit`. It belongs to the process that began it."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._process = os.getpid()
        self._began = time.monotonic()
        self._detached = False

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
                return _outcome_of(self._flight)
            except TimeoutError:
                if outcome.done():
                    return _outcome_of(self._flight)
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
        self._detached = True
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
            if not self._detached and os.getpid() == self._process:
                # The job is cancelled, and confirmed, before the task ends, but not at the cost of a second Ctrl-C.
                threads.ending.do(end)
                await over.wait()
            raise
        finally:
            alarms[0].cancel()
        return _outcome_of(self._flight)

    def _mine(self) -> Flight:
        if os.getpid() != self._process:
            raise QxError(
                f"this Run belongs to process {self._process}, which began it, not to this child; call submit() here"
            )
        return self._flight


class _StatusListeners:
    """Hands every status to the user's function and to the panel."""

    def __init__(self, request: Request, panel: Panel) -> None:
        self._on_status = request.on_status
        self._panel = panel
        self.is_shown = not isinstance(panel, Silent)
        self.is_over = False

    def tick(self) -> None:
        """Time goes on."""
        self._show(self._panel.tick)

    def close(self, outcome: Future[RunResult] | RunResult | BaseException) -> None:
        """The run is over."""
        self.is_over = True
        ended = outcome.exception() or outcome.result() if isinstance(outcome, Future) else outcome
        self._show(lambda: close_panel(self._panel, ended))

    def _show(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # noqa: BLE001 - what the run looks like is less than the run
            self._panel = Silent()
            logger.warning("the panel raised %s; the run goes on unseen", type(error).__name__)

    def __call__(self, status: Status) -> None:
        self._show(lambda: self._panel.show(status))
        if self._on_status is not None:
            try:
                self._on_status(status)
            except Exception as error:  # noqa: BLE001 - a fault in watching the run must not end the run
                logger.warning("on_status raised %s; the run goes on", type(error).__name__)


class _StatusQueue:
    """Delivers what happens to a run of `submit`, in order, by a thread that waits for nothing else."""

    def __init__(self, listeners: _StatusListeners) -> None:
        self._listeners = listeners
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_read = False

    def status(self, status: Status) -> None:
        """Tell a status."""
        self.put(lambda: self._listeners(status))

    def end(self, outcome: RunResult | RunError, work: Callable[[], None]) -> None:
        """The run is over: show how, and then let those go on who wait for it."""

        def conclude() -> None:
            self._listeners.close(outcome)
            work()

        self.put(conclude)

    def begin_to_tick(self) -> None:
        """Tell now and then that time goes on, until the run is over."""
        if not self._listeners.is_over:
            if not self._waiting:  # else somebody takes their time, and hears of the time later
                self.put(self._listeners.tick)
            threads.timers.after(2 * TICK, self.begin_to_tick)  # there may be many

    def put(self, work: Callable[[], object]) -> None:
        """Call something, after everything before it."""
        with self._lock:
            self._waiting.append(work)
            if self._is_read:
                return
            self._is_read = True
        threads.telling.do(self._read)

    def _read(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_read = False
                    return
                work = self._waiting.popleft()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - `sys.exit()` in a thread ends no program
                logger.warning("on_status raised %s; the run goes on", type(error).__name__)


def _run(request: Request, panel: Panel) -> RunResult:
    interrupts.die_by_signal_if_uncaught()
    listeners = _StatusListeners(request, panel)
    news: deque[Status] = deque()
    error: Interrupted | None = None
    dies_again = False
    process = os.getpid()
    with interrupts.Interrupts() as wakeup:

        def tell(status: Status) -> None:
            news.append(status)
            wakeup.wake()

        def deliver() -> None:
            while news:
                listeners(news.popleft())
            listeners.tick()

        flight = Flight(request, tell, asks_details=listeners.is_shown)
        try:
            flight.outcome.add_done_callback(lambda _: wakeup.wake())
            try:
                flight.start(_in_a_thread)
            except RuntimeError as raised:
                raise _no_thread(raised) from None
            while True:
                deliver()
                if os.getpid() != process:
                    raise QxError(f"this run belongs to process {process}; its child, forked by on_status, should exit")
                if flight.outcome.done():
                    break  # a signal from now on throws no result away: it goes to the earlier handler
                number = wakeup.next_signal()
                if number is not None:
                    keep = request.keep_on_sigterm and number == signal.SIGTERM
                    outcome = _abandon(flight, wakeup, deliver, keep=keep)
                    error = interrupted(flight.job_id, number, outcome, flight.job_state)
                    swallowed = interrupts.is_interactive() or interrupts.is_worker()
                    dies_again = number != signal.SIGINT and wakeup.had_default(number) and swallowed
                    wakeup.call_users_handler(number)
                    break
                wakeup.wait(interrupts.WAIT_LIMIT)
            deliver()
        except BaseException as raised:
            if error is None:  # else it was abandoned before, and the user's handler raised
                _abandon(flight, wakeup, lambda: None)
            if os.getpid() == process:
                listeners.close(error or raised)
            raise
        listeners.close(error or flight.outcome)
    if error is None:
        return _outcome_of(flight)
    if dies_again:
        signal.raise_signal(error.signum)  # a notebook, or a pool, would swallow the SystemExit and stay
    raise error


def _outcome_of(flight: Flight) -> RunResult:
    """The result. An error is raised as from here: how it came about in our threads helps nobody, its cause may."""
    error = flight.outcome.exception()
    if error is not None:
        raise error.with_traceback(None)
    return flight.outcome.result()


def _no_thread(error: RuntimeError) -> ConfigError:
    if threading.main_thread().is_alive():
        return ConfigError("config", f"nothing was submitted, because no thread could be started: {error}")
    return ConfigError(
        "config",
        "nothing was submitted, because this program's main thread has ended, and no thread can be started then in "
        "Python 3.12.0 to 3.12.2; use a later one, or have it wait for the others: thread.join()",
    )


def _in_a_thread(work: Callable[[], object]) -> None:
    # Not by a crew: whoever waits in `run` has a thread, and need not wait for what others have submitted.
    threading.Thread(target=work, name="qx-run", daemon=True).start()


def _abandon(
    flight: Flight, wakeup: interrupts.Interrupts, deliver: Callable[[], None], *, keep: bool = False
) -> CancelOutcome:
    """Cancel, or leave the job to its grace; hand over after ten seconds, or at a second signal."""
    outcome: list[CancelOutcome] = []

    def cancel() -> None:
        outcome.append(flight.abandon(keep=keep))
        wakeup.wake()

    thread = threading.Thread(target=cancel, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        cancel()  # no thread can be had
    end = time.monotonic() + CANCEL_SECONDS
    while not outcome:
        deliver()
        left = end - time.monotonic()
        if wakeup.next_signal() is not None or left <= 0:
            handed = flight.hurry()
            if handed == "unconfirmed":
                thread.join(HAND_OVER_SECONDS)  # it may be confirmed at this very moment
            return outcome[0] if outcome else handed
        wakeup.wait(left)
    while wakeup.next_signal() is not None:
        pass  # it was to hurry what is over now
    deliver()
    return outcome[0]
