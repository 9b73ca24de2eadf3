"""Runs a full-screen program in a child, and gives the terminal back whatever ends it.

Such a program sets up the terminal for itself: another screen, no echo, no line editing. If it is ended by SIGKILL, or
crashes, nobody undoes that, and the user's shell is left with it. So it runs in a child. The parent waits, passes
signals on, and puts the terminal back once the child is dead; and if the parent is killed, the child is told, and ends
as if the user had left it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from ..watcher.process_handle import ProcessHandle
from . import exits

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
PASSED_ON = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))  # Windows has fewer

BY_SIGNAL = 128
"""What a program's exit code is beyond the number of the signal that has ended it in good order."""

PATIENCE = 5.0
"""Seconds for which the child may go on after a signal, or its parent's death."""

# Leave the other screen, show the cursor, no colours; no reports of the mouse, of the focus and of pastes, and the
# keyboard's ordinary codes (kitty's protocol).
_UNDO = (
    "\x1b[?1049l\x1b[?25h\x1b[0m"
    "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1004l\x1b[?2004l\x1b[?2026l\x1b[?7h\x1b[<u"
)


def run(work: Callable[[], int]) -> int:
    """Run a program that takes over the terminal.

    Args:
        work: The program. At SIGTERM, SIGHUP, SIGINT and SIGQUIT it is to put the terminal back, and to return
            `BY_SIGNAL` and the signal's number.

    Returns:
        Its exit code. If a signal has ended it, this process dies of that, too.
    """
    import termios

    terminal = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2  # where it is drawn
    before = termios.tcgetattr(terminal)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until both have their handlers
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _be_child(parent, work)
    return _Parent(child, terminal, before).wait()


def _be_child(parent: int, work: Callable[[], int]) -> None:
    code = exits.FAILED
    try:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        code = exits.conclude(work)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """End when the parent dies, and write to the terminal even then: a shell may have it back already."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    threading.Thread(target=_outlive_briefly, args=(parent,), name="qx-parent", daemon=True).start()


def _outlive_briefly(parent: int) -> None:
    with contextlib.suppress(ProcessLookupError), contextlib.closing(ProcessHandle(parent)) as handle:
        if os.getppid() == parent:  # else the pid is another process's by now
            handle.ends_within(None)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)  # where the terminal is gone too, the program may never come to its end
    os._exit(BY_SIGNAL + signal.SIGTERM)


class _Parent:
    def __init__(self, child: int, terminal: int, before: list[Any]) -> None:
        self._child = child
        self._terminal = terminal
        self._before = before
        self._handle = ProcessHandle(child)

    def wait(self) -> int:
        """Wait for the child; returns its exit code."""
        earlier = {number: signal.signal(number, self._pass_on) for number in (*PASSED_ON, signal.SIGALRM)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        try:
            while True:
                _, status = os.waitpid(self._child, os.WUNTRACED)
                if not os.WIFSTOPPED(status):
                    break
                # The shell waits for this process, and continues both at once; another may continue this one alone.
                os.kill(os.getpid(), signal.SIGSTOP)
                if psutil.Process(self._child).status() == psutil.STATUS_STOPPED:
                    self._send(signal.SIGCONT)
        finally:
            signal.alarm(0)
            for number, handler in earlier.items():
                signal.signal(number, handler)
            self._handle.close()
        if os.WIFSIGNALED(status):
            self._restore()
            exits.die(os.WTERMSIG(status))
        code = os.WEXITSTATUS(status)
        if code > BY_SIGNAL:
            exits.die(code - BY_SIGNAL)
        return code

    def _pass_on(self, number: int, _frame: object) -> None:
        self._send(signal.SIGKILL if number == signal.SIGALRM else number)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._handle.send(number)

    def _restore(self) -> None:
        import termios

        # From the background this would stop the process: a shell has the terminal back, and has set it up.
        with contextlib.suppress(OSError, termios.error):
            os.write(self._terminal, _UNDO.encode())
            if os.tcgetpgrp(self._terminal) == os.getpgrp():
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
