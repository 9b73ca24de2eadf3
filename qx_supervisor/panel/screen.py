"""The bottom of the terminal: what is drawn there again and again, below what the program itself writes.

`rich` renders, but its live display can't be used: it sends what the program prints to stdout through stderr, and holds
text back until its newline, so a `tqdm` bar would not move. Here the program's writes pass through `Screen.pass_on`,
which erases the drawing, writes the text unchanged, and has it drawn again below.

A thread draws, on a non-blocking descriptor of its own: no run, signal or exit may wait for a terminal that was stopped
with Ctrl-S.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from .. import forks
from ..descriptors import is_writable
from ..watcher import system
from .streams import Redirection, is_terminal, original

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

logger = logging.getLogger("qx_supervisor")

SHORTEST_PAUSE = 0.1
"""Seconds between two drawings, at least."""

LONGEST_PAUSE = 0.5
"""Seconds after which it is drawn again without news, because the panel shows elapsed time."""

LARGEST_SHARE = 0.05
"""The share of the time that may be spent on drawing: a table of a thousand runs takes a while."""

STOPPED_AFTER = 1.5
"""Seconds by which the thread is late only if the process was stopped, or something else kept the interpreter."""

SETTLE_TIMEOUT = 0.5
"""Seconds that the end of a run, or of the program, waits until the terminal has taken the summary."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_CURSOR_STAYS = {"m", "K", None}  # colours, erasing in the line, links
_CURSOR_MOVES = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1a\x1c-\x1f]")  # tabs, backspaces

Content = Callable[[int], "RenderableType | None"]
"""Returns what to draw in at most n lines; None for nothing."""


class Screen:
    """What is drawn on this process's terminal. Thread-safe; only `pass_on` blocks."""

    _console: Console

    def __init__(self) -> None:
        self._is_over = False
        self._reset()
        atexit.register(self._at_exit)

    def _reset(self) -> None:
        # Requests to the thread, guarded by this condition:
        self._changed = threading.Condition()
        self._content: Content | None = None
        self._to_print: deque[RenderableType] = deque()
        self._is_wanted = False
        self._has_news = False
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()  # all requests are done
        # The terminal and all that follows, guarded by this lock:
        self._lock = threading.RLock()
        self._forget_terminal()

    def _forget_terminal(self) -> None:
        self._fd = -1
        self._stream: TextIO | None = None  # None: the screen is not in use
        self._redirection: Redirection | None = None
        self._drawn: list[int] = []  # the widths of the lines of the drawing
        self._pending = b""  # what the terminal has not taken yet
        self._drawn_at = 0.0
        self._expect_wakeup(0.0)
        self._pause = SHORTEST_PAUSE
        self._tail = ""  # what the program has written since its last newline
        self._below_tail = False  # the drawing begins with a newline, since the program's line has none yet
        self._cursor_unknown = False  # the program has moved the cursor: nothing is drawn until it ends a line

    def reset_after_fork(self) -> None:
        """In a forked child: the drawing belongs to the parent."""
        self._restore_streams()
        if self._fd >= 0:
            os.close(self._fd)
        self._reset()

    # Requests to the thread

    def start(self, content: Content) -> bool:
        """Begin to draw, if nothing is drawn yet; returns whether this terminal allows it."""
        with self._changed:
            if self._is_wanted:
                return True
            if self._is_over:
                return False
            is_new = self._thread is None
            if is_new and not self._open():
                return False
            self._content, self._is_wanted = content, True  # before the thread looks
            if is_new:
                thread = threading.Thread(target=self._run, name="qx-panel", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is about to end
                    os.close(self._fd)
                    self._fd, self._is_wanted = -1, False
                    return False
                self._thread = thread
            self._settled.clear()
            self._changed.notify_all()
            return True

    def wake(self) -> None:
        """Draw news soon."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def print_above(self, content: RenderableType) -> None:
        """Write something permanent above the drawing."""
        with self._changed:
            self._to_print.append(content)
            self._settled.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Erase the drawing and restore the program's streams."""
        with self._changed:
            self._is_wanted = False
            self._settled.clear()
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait briefly until all requests are done."""
        if self._thread is not None:
            self._settled.wait(SETTLE_TIMEOUT)

    def _at_exit(self) -> None:
        with self._changed:
            self._is_over, self._is_wanted = True, False
            self._settled.clear()
            self._changed.notify_all()
        self.settle()

    def _open(self) -> bool:
        """Open the terminal and lock it: only one process at a time draws on it."""
        try:
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(_path_of(original(sys.stderr).fileno()), flags)
        except (AttributeError, OSError, ValueError):
            return False
        try:
            if not _is_in_foreground(descriptor):
                raise BlockingIOError
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            return False
        self._fd = descriptor
        return True

    # The thread

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:  # whatever it is, the runs go on
            with self._changed:
                self._is_over, self._is_wanted, self._thread = True, False, None
            self._restore_streams()
            self._settled.set()
            logger.warning("the panel raised %s; nothing is drawn any more", type(error).__name__, exc_info=error)

    def _step(self) -> bool:
        """Do what is requested, then wait for more; returns False at the end of the thread."""
        with self._lock:
            if self._stream is None and self._is_wanted and not self._begin():
                return self._go_on_if_wanted()
            if self._stream is not None and self._was_stopped():
                self._drawn, self._below_tail, self._tail = [], False, ""
                self._write(self._fresh_line())
            self._print_all()
            self._draw()
        with self._changed:
            if self._to_print and not self._pending:
                return True
            is_wanted = self._is_wanted
            if is_wanted and not self._to_print and not self._pending:
                self._settled.set()
        if not is_wanted and (not self._to_print or self._is_over):
            with self._lock:
                is_done = self._finish()
            if is_done:
                return self._go_on_if_wanted()
        with self._changed:
            if self._pending:  # a terminal that was stopped: try again soon
                self._expect_wakeup(SHORTEST_PAUSE)
                self._changed.wait(SHORTEST_PAUSE)
                return True
            if not self._has_news and not self._to_print and self._is_wanted:
                self._expect_wakeup(LONGEST_PAUSE)
                self._changed.wait(LONGEST_PAUSE)
            self._has_news = False
            pause = self._drawn_at + self._pause - time.monotonic()
            if pause > 0:
                self._expect_wakeup(max(pause, self._wakeup - time.monotonic()))
                self._changed.wait_for(lambda: self._to_print or not self._is_wanted, pause)
        return True

    def _go_on_if_wanted(self) -> bool:
        """End the thread, unless `start` was called again meanwhile."""
        with self._changed:
            if self._is_wanted and self._stream is None and self._fd < 0 and not self._open():
                self._is_wanted = False
            if self._is_wanted:
                return True
            self._to_print.clear()
            self._thread = None
            self._settled.set()
            return False

    def _was_stopped(self) -> bool:
        """Whether the process was stopped (Ctrl-Z) and continued: others have written to the terminal since.

        A thread that is late while the process computes was kept waiting by Qiskit, which held the interpreter.
        """
        late, work = time.monotonic() - self._wakeup, time.process_time() - self._work
        self._expect_wakeup(0.0)
        return late > STOPPED_AFTER and work < late / 5

    def _expect_wakeup(self, seconds: float) -> None:
        self._wakeup, self._work = time.monotonic() + seconds, time.process_time()

    # The terminal; called with the lock held

    def _begin(self) -> bool:
        """Take over the terminal; returns whether that is possible."""
        from rich.console import Console

        if self._fd < 0 or sys.stderr is None:
            return False
        for stream in (sys.stdout, sys.stderr):  # an unfinished line may still be in the buffer
            with contextlib.suppress(AttributeError, OSError, ValueError):
                if is_terminal(stream):
                    stream.flush()
        self._stream = original(sys.stderr)
        self._console = Console(file=self._stream, highlight=False, soft_wrap=False)
        self._redirection = Redirection(self.pass_on)
        self._redirection.hide_bars()
        self._write(self._fresh_line())
        self._redirection.begin()
        if self._redirection.bar is not None:
            self._write("\x1b[A")  # back to the bar's line, which the fresh line has ended
            with contextlib.suppress(Exception):
                self._redirection.bar.refresh(nolock=True)
        self._expect_wakeup(0.0)
        return True

    def _fresh_line(self) -> str:
        # The cursor's column is unknown. One blank less than a line has brings it into the next line, unless it was in
        # the first column.
        return " " * (self._width() - 1) + "\r\x1b[K"

    def _finish(self) -> bool:
        """Give the terminal back; returns whether that is done."""
        if self._stream is not None:
            self._write(self._erasure())
            self._drawn, self._below_tail = [], False
            if self._pending and not self._is_over:
                return False
            self._restore_streams()
            if self._redirection is not None:
                self._redirection.show_bars()
        if self._fd >= 0:
            os.close(self._fd)
        self._forget_terminal()
        return True

    def _restore_streams(self) -> None:
        if self._redirection is not None:
            self._redirection.restore()

    def _print_all(self) -> None:
        if self._pending:
            self._write("")
        while self._to_print and not self._pending and self._stream is not None:
            rendered = self._render(self._to_print[0])
            text = self._erasure()
            if self._tail:  # the program's unfinished line moves below
                up = (max(1, _columns(self._tail)) - 1) // self._width()
                text += "\r\x1b[2K" + "\x1b[A\x1b[2K" * up
            self._drawn, self._below_tail, self._cursor_unknown = [], False, False
            self._write(text + rendered + self._tail)
            self._to_print.popleft()

    def _draw(self) -> None:
        if self._pending:
            self._write("")
        if self._stream is None or self._content is None or self._cursor_unknown or self._pending:
            return
        if not self._is_wanted or not os.isatty(self._stream.fileno()):  # it may have become a file
            return
        if not _is_in_foreground(self._fd):
            self._drawn, self._below_tail = [], False  # the shell writes there now
            return
        began = time.monotonic()
        room = max(1, self._console.size.height - 2)
        content = self._content(room)
        text = "".join(self._render(content).splitlines(keepends=True)[:room]) if content is not None else ""
        erasure = self._erasure()
        self._below_tail = bool(self._tail) and bool(text)
        self._drawn = [_columns(line.rstrip("\n")) for line in text.splitlines(keepends=True)]
        self._write(erasure + ("\n" if self._below_tail else "") + text)
        self._drawn_at = time.monotonic()
        self._pause = max(SHORTEST_PAUSE, (self._drawn_at - began) / LARGEST_SHARE)

    def pass_on(self, stream: TextIO, text: str) -> Any:
        """Write a text of the program's to its stream, which may block as on any terminal."""
        try:
            return self._pass_on(stream, text)
        finally:
            self.wake()  # without the lock

    def _pass_on(self, stream: TextIO, text: str) -> Any:
        with self._lock:
            if self._stream is None:
                return stream.write(text)
            if self._drawn or self._pending:
                self._write(self._erasure(), waits=True)
                self._drawn, self._below_tail = [], False
            try:
                return stream.write(text)
            finally:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
                self._track_cursor(text)

    def _width(self) -> int:
        return max(20, int(self._console.size.width))

    def _render(self, content: RenderableType) -> str:
        with self._console.capture() as captured:
            self._console.print(content)
        return str(captured.get())

    def _erasure(self) -> str:
        """Escape sequences that erase the drawing and put the cursor back to where the program left it."""
        if not self._drawn:
            return ""
        width = self._width()  # the window may have become narrower, so that a line takes several rows
        up = sum(max(1, -(-columns // width)) for columns in self._drawn)
        # Line by line: if the whole screen is erased at once, tmux keeps its content in the history.
        text = "\r" + "\x1b[A\x1b[2K" * up
        if self._below_tail:
            column = 0 if self._tail.endswith("\r") else _columns(self._tail) % width
            text += f"\x1b[A\x1b[{column + 1}G"
        return text

    def _track_cursor(self, text: str) -> None:
        line = (self._tail + text).rpartition("\n")[2]
        body = line.rstrip("\r")
        body = body.rpartition("\r")[2]
        columns = _columns(body) if len(body) < 10_000 else 0
        self._tail = (body if columns else body[-1:]) + ("\r" if line.endswith("\r") else "")
        # Tabs, backspaces, a full row and very long lines leave the cursor where `_erasure` can't find it again.
        moves = any(found[1] not in _CURSOR_STAYS for found in _ESCAPES.finditer(text)) or _CURSOR_MOVES.search(line)
        if moves or (line and columns % self._width() == 0 and not line.endswith("\r")):
            self._cursor_unknown = True
        elif text.endswith("\n"):
            self._cursor_unknown = False

    def _write(self, text: str, *, waits: bool = False) -> None:
        self._pending += text.encode(errors="replace")
        while self._pending:
            try:
                self._pending = self._pending[os.write(self._fd, self._pending) :]
            except BlockingIOError:
                if not waits:
                    return
                is_writable(self._fd, 1.0)
            except OSError:
                self._pending = b""  # the terminal has hung up: the run goes on


def _path_of(terminal: int) -> str:
    """A path by which a terminal is opened anew, and not copied with its flags, which the program has too."""
    # By its name only where there is no better way: a container may have a terminal without one.
    return f"/proc/self/fd/{terminal}" if system.HAS_LINUX else os.ttyname(terminal)


def _lock(terminal: int) -> None:
    """Lock a terminal.

    Raises:
        OSError: If another process has the lock.
    """
    import fcntl

    try:
        fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP):  # a system on which terminals have no locks
            raise


def _is_in_foreground(terminal: int) -> bool:
    """Whether this process, and not the shell, has the terminal."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # it is not a controlling terminal


def _columns(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(_ESCAPES.sub("", text))


screen = Screen()
forks.reset_in_child(screen.reset_after_fork)
