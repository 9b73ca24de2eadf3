"""Signals while a run is in flight.

The handler only writes a byte to a pipe of ours: the caller loop does the rest. Never `signal.set_wakeup_fd`, which
asyncio and Jupyter kernels need for themselves. Handlers go in for the time of the run, on the main thread only, and
the earlier ones come back whatever happens. A signal that was ignored (`nohup`) stays ignored, and one whose handler
Python does not know stays with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from types import FrameType, TracebackType
from typing import Any

from .errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

WAIT_LIMIT = 0.5
"""No wait is longer, in seconds: a signal that the kernel gave to another thread does not wake the main thread."""


_entered: list[Interrupts] = []
_masked = threading.local()

# What follows is for `Process.terminate()`: it would end no child that was forked while a run is in flight. A signal
# that finds the child before its handlers are back waits until they are: CPython forgets what its own handler noted.


def _before_fork() -> None:
    if _entered:
        _masked.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    before = _masked.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    try:
        for each in reversed(_entered):
            each.forget()
    finally:
        _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Interrupts:
    """The wake-up pipe of one caller loop, and the signals that reach it.

    A context manager. `wake()` may be called from any thread; `wait()` by the owner.
    """

    def __init__(self) -> None:
        self._open_pipe()
        self._arrived: deque[int] = deque()
        self._previous: dict[int, Any] = {}
        self._closing = threading.Lock()

    def _open_pipe(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def __enter__(self) -> Interrupts:
        _entered.append(self)
        try:
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    previous = signal.getsignal(number)
                    if previous is not None and previous is not signal.SIG_IGN:
                        self._previous[number] = previous
                        signal.signal(number, self._arrive)
        except BaseException:  # an earlier handler raises, for a signal that comes just now
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.restore(list(self._previous))
        finally:
            _entered.remove(self)
            with self._closing:
                os.close(self._reader)
                os.close(self._writer)
                self._writer = -1
            self._redeliver()

    def restore(self, numbers: list[int]) -> None:
        """Put the earlier handlers back, all of them, though one that is back may raise at once."""
        if not numbers:
            return
        number, *others = numbers
        try:
            if signal.getsignal(number) == self._arrive:  # else someone has put in another one meanwhile: theirs stays
                signal.signal(number, self._previous[number])
        finally:
            self.restore(others)

    def forget(self) -> None:
        """In a forked child, whose signals are no matter of its parent's run."""
        self._closing = threading.Lock()  # another thread, which is not here, may hold the parent's
        for inherited in (self._reader, self._writer):
            os.close(inherited)  # what is written there is the parent's to read
        self._open_pipe()
        self._arrived.clear()
        self.restore(list(self._previous))
        self._redeliver()  # what came for the child since

    def _redeliver(self) -> None:
        """What came too late for the loop to see belongs to the handlers that are back."""
        if self._arrived:
            try:
                signal.raise_signal(self._arrived.popleft())
            finally:
                self._redeliver()  # also after a handler that raises

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        if self._writer < 0:  # a handler put in during the run, and there still, calls the one that it found: this one
            _lead_on(self._previous[number], number, frame)
            return
        # No lock: the handler may run while this very thread holds it.
        self._arrived.append(number)
        try:
            os.write(self._writer, b"\0")
        except OSError:
            pass  # full: the loop is awake already

    def wake(self) -> None:
        """End the owner's wait."""
        with self._closing:
            if self._writer >= 0:
                try:
                    os.write(self._writer, b"\0")
                except BlockingIOError:
                    pass

    def wait(self, seconds: float) -> None:
        """Wait for a signal or a `wake()`, for so many seconds at most, and never longer than `WAIT_LIMIT`."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if poll.poll(max(0.0, min(seconds, WAIT_LIMIT)) * 1000):
            try:
                os.read(self._reader, 4096)
            except BlockingIOError:
                pass

    def next_signal(self) -> int | None:
        """The next signal that arrived, or None."""
        return self._arrived.popleft() if self._arrived else None

    def call_users_handler(self, number: int) -> None:
        """Call the handler that the user had in place, if it is one of the user's own.

        Raises:
            BaseException: What the handler raises.
        """
        previous = self._previous.get(number)
        # The default one is the user's own where it was put in for another signal: `SIGTERM` as a `KeyboardInterrupt`.
        is_default = previous is signal.default_int_handler and number == signal.SIGINT
        if callable(previous) and not is_default and not _is_asyncios(previous):
            previous(number, None)

    def had_default(self, number: int) -> bool:
        """Whether the signal would have ended the process at once."""
        return self._previous.get(number) is signal.SIG_DFL


def _lead_on(handler: Any, number: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    elif handler is signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _is_asyncios(handler: Any) -> bool:
    """Asyncio's own handlers do nothing but wake the loop, or cancel the main task, which `Interrupted` ends anyway."""
    function = getattr(handler, "func", handler)  # a partial, in asyncio.Runner
    return str(getattr(function, "__module__", "")).partition(".")[0] == "asyncio"


def is_interactive() -> bool:
    """Whether a person sits at a Python prompt or a notebook, which swallow `SystemExit`."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is not None


def is_worker() -> bool:
    """Whether `multiprocessing` started this process: its pools swallow `SystemExit`, and wait for more to do."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


# The end of a program that an uncaught Ctrl-C ends ----------------------------------------------------------------

_next_hook: Any = None


def die_by_signal_if_uncaught() -> None:
    """See to it that an uncaught `Interrupted` after SIGINT ends the process by SIGINT.

    CPython does that for a `KeyboardInterrupt`, and exits with 1 for a subclass of it; then a shell loop around the
    driver would go on. Done once per process, the first time that a run begins.
    """
    global _next_hook  # noqa: PLW0603 - sys.excepthook is global too
    if _next_hook is None:
        _next_hook = sys.excepthook
        sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _next_hook(kind, error, trace)
    if not isinstance(error, Interrupted) or error.signum != signal.SIGINT or is_interactive():
        return
    if threading.current_thread() is not threading.main_thread():
        return
    # What the interpreter would do now, in its order, and then what it does for a KeyboardInterrupt: `_shutdown` is
    # CPython's own way to join the threads at the end. Another Ctrl-C ends only the step that it finds.
    try:
        for step in (threading._shutdown, atexit._run_exitfuncs, _flush):  # type: ignore[attr-defined]  # noqa: SLF001
            with contextlib.suppress(BaseException):
                step()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
