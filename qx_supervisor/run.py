"""`run`, `try_run`, `submit` and `attach`: what users call, and the loop in which `run` waits.

The loop has one wait, which a status, the outcome and a signal end. All that may block is done by other threads, so
that a signal is always answered at once.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec

from . import calls, interrupts, threads
from .budget import Budget
from .errors import CancelOutcome, ConfigError, Interrupted, QxError, RunError, interrupted
from .flight import CANCEL_SECONDS, HAND_OVER_SECONDS, AnyFlight, Flight, SplitFlight, flight_of
from .listeners import StatusListeners, StatusQueue
from .panel import Panel, PanelName, close_panel, open_panel
from .request import Request, check, check_attached, frozen
from .result import Err, Ok, RunResult
from .status import Status
from .submitted import Run, say_at_exit
from .watcher.seen_process import signal_name

Pubs = Any
OnStatus = Callable[[Status], Any]
P = ParamSpec("P")


@calls.suggests_names()
def run(
    pubs: Pubs,
    backend: Any = None,
    *,
    service: Any = None,
    primitive: Any = "sampler",
    shots: int | None = None,
    options: Any = None,
    optimization_level: int | None = None,
    seed_transpiler: int | None = None,
    on_status: OnStatus | None = None,
    panel: PanelName = "auto",
    timeout: float | None = None,
    running_timeout: float | None = None,
    poll_interval: float | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    on_unprotected: Literal["raise", "warn"] = "raise",
    key: str | None = None,
    grace: float = 0.0,
    keep_on_sigterm: bool = False,
    label: str | None = None,
    budget: Budget | float | None = None,
    initial_layout: Iterable[int] | None = None,
    pass_manager: Any = None,
    precision: float | None = None,
    instance: str | None = None,
    retries: int = 0,
    split: int | None = None,
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
        optimization_level: The transpiler's, 0 to 3. None: 1.
        seed_transpiler: The transpiler's seed.
        on_status: Called with every `Status`, in this thread. What it raises is logged by type and ends nothing.
        panel: Where the status is shown. "auto": a panel on the terminal or in the notebook, else lines on stderr.
            "terminal", "notebook": that one where it can be shown, else lines. "plain": lines. None: nowhere.
        timeout: Seconds from the call after which the job is cancelled, whichever try of `retries` it is. None: queues
            may take days.
        running_timeout: Seconds that the job may run, queue aside, after which it is cancelled. Preparations on
            classical computers are part of that. IBM Quantum holds its QPU time to it too (rounded up to a whole
            second), whatever becomes of this process. A local backend is not held to it.
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
        label: Words for this run, such as "vqe step 17", which the panel, the log and `qx-supervisor ps` show: one line
            of at most 100 characters. None: that of the environment variable `QX_LABEL`, if it is set.
        budget: A budget that this run counts for, beside those whose blocks it is in (`with budget(...)`): its job is
            submitted with a `max_execution_time` of at most what is left. A number: seconds of QPU time for this run
            alone, all its jobs together.
        initial_layout: The physical qubit of each qubit of the circuits, as in `[4, 5, 6]`. Then circuits are
            transpiled even if the backend could execute them as they stand.
        pass_manager: The `PassManager` that transpiles, in place of the preset one of `optimization_level`,
            `seed_transpiler` and `initial_layout`. It can't be combined with `key`.
        precision: The standard error that an estimator is to reach, for PUBs without one of their own. None: the
            primitive's default.
        instance: The instance of the saved account to use, by its CRN or name. None: the saved one.
        retries: How often the job is submitted again if it fails for a reason of IBM Quantum's, and not of the
            circuits' (`JobFailed.is_retryable`), after pauses that grow from ten seconds to five minutes. There is
            never more than one job at a time.
        split: The most PUBs that a job gets. More are submitted as several jobs in a batch, whose results are joined
            in order. If one can't be submitted, or fails, all others are cancelled.

    Returns:
        The result: Qiskit's `PrimitiveResult` with `counts`, `job_id` and more within reach. Where `pubs` is a list, be
        it of one, `counts` and the like are lists too.

    Raises:
        ConfigError: The call can't be carried out; nothing was submitted.
        WatcherError: No watcher; nothing was submitted.
        SubmitError: The submission failed.
        BudgetExceeded: Not enough is left of a budget of QPU time.
        JobFailed: The job failed.
        JobCancelled: Someone else cancelled the job.
        RunTimeout: `timeout` or `running_timeout` passed.
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
    calls.check_names("try_run", arguments, calls.names_of(inspect.signature(run)))
    try:
        return Ok(run(pubs, backend, **arguments))
    except RunError as error:
        return Err(error)


def _takes_what_run_takes(function: Callable[[dict[str, Any]], Run], of: Callable[P, Any]) -> Callable[P, Run]:
    """Give a function the arguments of `run`, except the one that is about signals; its panel is silent by default."""
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
        bound = calls.bind(function.__name__, mine, args, kwargs)
        bound.apply_defaults()
        return function(bound.arguments)

    call.__signature__ = mine  # type: ignore[attr-defined]
    return call


@functools.partial(_takes_what_run_takes, of=run)
def submit(given: dict[str, Any]) -> Run:
    """Begin a run and return at once.

    Takes what `run` takes; `on_status` is called in another thread, for sixteen runs at a time at most, and the panel
    is silent unless one is asked for. In a notebook, a cell that ends in the run, or awaits it, shows a card that is
    kept up to date. Any number of runs share a few threads, connections and requests for their state.
    No signal handlers are installed: after a Ctrl-C the job goes on, guarded, until this process ends.

    Circuits, values, observables and options are taken as they are at the call, and may be changed after it. A pass
    manager, a quantum program, what a noise learner is given, and a primitive object of a class that is not the
    client's are used as they are when it is their turn.

    Returns:
        The run, which can be waited for, awaited, cancelled and let go.

    Raises:
        ConfigError: The call can't be carried out. What is found out later is raised by `Run.result()`.
    """
    panel = given.pop("panel")
    request = frozen(check(given))
    return Run(*_begin(request, panel))


@calls.suggests_names()
def attach(
    job_id: str,
    *,
    service: Any = None,
    instance: str | None = None,
    on_status: OnStatus | None = None,
    panel: PanelName = None,
    timeout: float | None = None,
    running_timeout: float | None = None,
    poll_interval: float | None = None,
    on_unprotected: Literal["raise", "warn"] = "raise",
    label: str | None = None,
) -> Run:
    """Guard a job that is there already, and give its `Run`.

    For a job that was let go with `Run.detach()`, that was submitted with Qiskit alone, or whose program has died: from
    now on it is cancelled if this process dies, and waited for, cancelled or let go like one that `submit` has begun.
    Returns when the watcher guards it; in an event loop, call it with `asyncio.to_thread`. A job that is final needs no
    guard: its result is fetched. The job of a run of this process is given by that run's own `Run`.

    Args:
        job_id: The job's id.
        service: A `QiskitRuntimeService`. None: the user's saved account. All its instances are asked for the job.
        instance: The instance of the saved account to ask, by its CRN or name. None: the saved one.
        on_status: As `submit` takes it.
        panel: As `submit` takes it.
        timeout: Seconds from the call after which the job is cancelled.
        running_timeout: Seconds that the job may run, queue aside, those before the call included. It is this process
            that cancels; IBM Quantum is not told.
        poll_interval: As `run` takes it.
        on_unprotected: What to do if no watcher can protect the run: "raise" a `WatcherError`, or "warn" and go on.
        label: As `run` takes it.

    Returns:
        The run.

    Raises:
        ConfigError: There is no such job at the instances that were asked; another program that lives guards it, or
            its watcher is cancelling it; or it has a key, by which `run` takes it up.
        WatcherError: No watcher can guard it.
        RunError: The service refuses to be asked.
    """
    given = {name: value for name, value in locals().items() if name != "panel"}
    request = check_attached(given)
    known = _run_of(request.attached)
    if known is not None:
        beside = [name for name in ("on_status", "timeout", "running_timeout", "label") if given[name] is not None]
        if beside or isinstance(known, SplitFlight) or panel is not None:
            what = f"omit {beside[0]}=" if beside else "omit panel=" if panel is not None else "wait for that run"
            raise ConfigError("config", f"job {job_id} is one of a run of this process already; {what}", job_id)
        return Run(known)
    flight, shown = _begin(request, panel)
    assert isinstance(flight, Flight)
    try:
        flight.wait_until_attached()
    except BaseException:
        flight.detach()  # it was not this program's before
        flight.abandon(keep=True)
        raise
    return Run(flight, shown)


def _run_of(job_id: str) -> AnyFlight | None:
    """The run of this process that guards a job, as the program began it: not a part, nor a try."""
    runs = [each for each in threads.runs() if isinstance(each, AnyFlight) and job_id in each.job_ids]
    return next((each for each in runs if not each.is_part and not each.is_detached), None)


def _begin(request: Request, panel: PanelName) -> tuple[AnyFlight, Panel]:
    """Begin a run that is not waited for."""
    shown = open_panel(panel, submitted=True)
    ticking: StatusQueue | None = None
    if request.on_status is None and panel is None:
        flight = flight_of(request, lambda _: None)
    else:
        listeners = StatusListeners(request.on_status, shown)
        queue = StatusQueue(listeners)
        flight = flight_of(request, queue.status, queue.end, asks_details=listeners.is_shown)
        ticking = queue if listeners.is_shown else None
    try:
        if ticking is not None:
            ticking.begin_to_tick()
        flight.start(threads.submitting.do)
    except RuntimeError as error:
        flight.abandon()
        failure = _no_thread(error)
        close_panel(shown, failure)
        raise failure from None
    say_at_exit()
    return flight, shown


def _run(request: Request, panel: Panel) -> RunResult:
    interrupts.die_by_signal_if_uncaught()
    listeners = StatusListeners(request.on_status, panel)
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
                listeners.tell(news.popleft())
            listeners.tick()

        flight = flight_of(request, tell, asks_details=listeners.is_shown)
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
                    _say_signal(flight, number, "leaving the job to its grace period" if keep else "cancelling")
                    outcome = _abandon(flight, wakeup, deliver, keep=keep, signum=number)
                    error = interrupted(flight.job_id, number, outcome, flight.job_state, flight.job_ids)
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
        return flight.result()
    if dies_again:
        signal.raise_signal(error.signum)  # a notebook, or a pool, would swallow the SystemExit and stay
    raise error


def _say_signal(flight: AnyFlight, number: int, what: str) -> None:
    name = signal_name(number)
    extra = {"event": "signal", "fields": {"signal": name}, "in_panel": True}  # a panel shows the state that follows
    flight.log.warning("%s received; %s", name, what, extra=extra)


def _no_thread(error: RuntimeError) -> ConfigError:
    if threading.main_thread().is_alive():
        return ConfigError("config", f"nothing was submitted, because no thread could be started: {error}")
    return ConfigError(
        "config",
        "nothing was submitted, because this program's main thread has ended, and no thread can be started then in "
        "Python 3.12.0 to 3.12.2; use a later one, or have it wait for the others: thread.join()",
    )


def _in_a_thread(work: Callable[[], object]) -> None:
    # Not by a pool: whoever waits in `run` has a thread, and need not wait for what others have submitted.
    threading.Thread(target=work, name="qx-run", daemon=True).start()


def _abandon(
    flight: AnyFlight,
    wakeup: interrupts.Interrupts,
    deliver: Callable[[], None],
    *,
    keep: bool = False,
    signum: int = 0,
) -> CancelOutcome:
    """Cancel, or leave the job to its grace period; hand over after ten seconds, or at a second signal."""
    outcome: list[CancelOutcome] = []

    def cancel() -> None:
        outcome.append(flight.abandon(keep=keep, signum=signum))
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
        number = wakeup.next_signal()
        if number is not None:
            _say_signal(flight, number, "handing the cancel over to the watcher")
        if number is not None or left <= 0:
            handed = flight.hurry()
            if handed == "unconfirmed":
                thread.join(HAND_OVER_SECONDS)  # it may be confirmed at this very moment
            return outcome[0] if outcome else handed
        wakeup.wait(left)
    while wakeup.next_signal() is not None:
        pass  # it was meant to hurry a cancel that is over now
    deliver()
    return outcome[0]
