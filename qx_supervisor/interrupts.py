"""Handles signals during a run.

The handler only writes a byte to a pipe; the loop of `run` does the rest. `signal.set_wakeup_fd` would do that too, but
asyncio and Jupyter kernels use it. The handlers are installed for the duration of the run, in the main thread only, and
the previous ones are always restored. A signal that was ignored (`nohup`) stays ignored, and a handler that was not
installed by Python stays in place.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections import deque
from types import FrameType, TracebackType
from typing import Any

from .descriptors import is_readable
from .errors import Interrupted
from .watcher.wake import Wake

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

WAIT_LIMIT = 0.5
"""Seconds of the longest wait: a signal that the kernel delivers to another thread does not wake the main thread."""


_entered: list[Interrupts] = []
_masked = threading.local()

# For children that are forked during a run: without this, `Process.terminate()` would not end them. Signals are blocked
# until the child has restored its handlers, because CPython discards signals that its C handler has noted before.


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Interrupts:
    """A wake-up pipe, and the signals that arrive while the context is entered.

    `wake()` may be called in any thread, `wait()` only in the owner's.
    """

    def __init__(self) -> None:
        self._pipe: Wake | None = Wake()
        self._arrived: deque[int] = deque()
        self._previous: dict[int, Any] = {}
        self._closing = threading.Lock()

    def __enter__(self) -> Interrupts:
        _entered.append(self)
        try:
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    previous = signal.getsignal(number)
                    if previous is not None and previous is not signal.SIG_IGN:
                        self._previous[number] = previous
                        signal.signal(number, self._handle)
        except BaseException:  # a previous handler raises, for a signal that arrives just now
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
                pipe, self._pipe = self._pipe, None
                if pipe is not None:
                    pipe.close()
            self._redeliver()

    def restore(self, numbers: list[int]) -> None:
        """Restore all previous handlers, even if one of them raises at once."""
        if not numbers:
            return
        number, *others = numbers
        try:
            if signal.getsignal(number) == self._handle:  # otherwise the program has installed its own, which stays
                signal.signal(number, self._previous[number])
        finally:
            self.restore(others)

    def forget(self) -> None:
        """In a forked child, which has its own signals."""
        self._closing = threading.Lock()  # a thread of the parent's may have held it
        if self._pipe is not None:
            self._pipe.close()  # the parent's
        self._pipe = Wake()
        self._arrived.clear()
        self.restore(list(self._previous))
        self._redeliver()  # signals that the child has received since the fork

    def _redeliver(self) -> None:
        """Raise signals again that the loop did not process, for the restored handlers."""
        if self._arrived:
            try:
                signal.raise_signal(self._arrived.popleft())
            finally:
                self._redeliver()  # even if a handler raises

    def _handle(self, number: int, frame: FrameType | None) -> None:
        pipe = self._pipe
        if pipe is None:  # called by a handler that was installed during the run and has outlived it
            _call(self._previous[number], number, frame)
            return
        # No lock: the handler may run while this very thread holds it.
        self._arrived.append(number)
        with contextlib.suppress(OSError):
            pipe.set()

    def wake(self) -> None:
        """Wake the owner from `wait()`."""
        with self._closing:
            if self._pipe is not None:
                self._pipe.set()

    def wait(self, seconds: float) -> None:
        """Wait for a signal or a `wake()`, at most `seconds` or `WAIT_LIMIT`."""
        assert self._pipe is not None
        if is_readable(self._pipe.fileno(), max(0.0, min(seconds, WAIT_LIMIT))):
            self._pipe.clear()

    def next_signal(self) -> int | None:
        """The next signal that arrived, or None."""
        return self._arrived.popleft() if self._arrived else None

    def call_users_handler(self, number: int) -> None:
        """Call the user's previous handler, if there is one.

        Raises:
            BaseException: What the handler raises.
        """
        previous = self._previous.get(number)
        # Python's default handler counts as the user's if it handles another signal: SIGTERM as a KeyboardInterrupt.
        is_default = previous is signal.default_int_handler and number == signal.SIGINT
        if callable(previous) and not is_default and not _is_of_asyncio(previous):
            previous(number, None)

    def had_default(self, number: int) -> bool:
        """Whether the signal had its default action, which ends the process at once."""
        return self._previous.get(number) is signal.SIG_DFL


def _call(handler: Any, number: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    elif handler is signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _is_of_asyncio(handler: Any) -> bool:
    """Asyncio's handlers only wake the loop, or cancel the main task, which `Interrupted` ends anyway."""
    function = getattr(handler, "func", handler)  # a partial, in asyncio.Runner
    return str(getattr(function, "__module__", "")).partition(".")[0] == "asyncio"


def is_interactive() -> bool:
    """Whether this is a Python prompt or a notebook, which swallow `SystemExit`."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return True
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is not None


def is_worker() -> bool:
    """Whether `multiprocessing` started this process. Its pools swallow `SystemExit` and go on."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


# The exit after an uncaught Ctrl-C ----------------------------------------------------------------------------------

_next_hook: Any = None


def die_by_signal_if_uncaught() -> None:
    """Make an uncaught `Interrupted` after SIGINT end the process by SIGINT.

    CPython does so for `KeyboardInterrupt` only, and exits with 1 for its subclasses, so a shell loop around the driver
    would go on. Takes effect once per process.
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
    # The interpreter's steps at exit (`_shutdown` joins threads), then what it does for a KeyboardInterrupt. Another
    # Ctrl-C ends only the current step.
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
