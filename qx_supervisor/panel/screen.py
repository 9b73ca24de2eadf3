"""The bottom of the terminal, where what changes is drawn again and again, below what the program itself writes.

`rich` renders. The drawing is ours, because its live display sends what the program prints to stdout through stderr,
and holds back what has no newline yet: a `tqdm` bar would not move. Here, what is written to stdout or stderr while
something is drawn goes first through `_Through`, which takes the drawing away, lets the text pass as it is, and has
it drawn again below.

A thread of its own draws, on a descriptor of its own that never blocks. A terminal that was stopped with Ctrl-S takes
nothing, and neither a run, nor a signal, nor the end of the program may have to wait until it goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from ..descriptors import is_writable

if TYPE_CHECKING:
    from rich.console import RenderableType

logger = logging.getLogger("qx_supervisor")

SHORTEST_PAUSE = 0.1
"""Seconds between two drawings."""

LONGEST_PAUSE = 0.5
"""After which it is drawn anew though nothing has happened: the clock goes on."""

SHARE = 0.05
"""Of the time, at most, that is spent on drawing: a table of a thousand runs takes a while."""

LATE = 1.5
"""Seconds by which the thread is late only if the process was stopped, or the interpreter was not to be had."""

PATIENCE = 0.5
"""Seconds that the end of a run, or of the program, waits until the terminal has taken what is to stay."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_HARMLESS = {"m", "K", None}  # colours, erasing in the line, links: the cursor stays where the text leaves it
_MOVES = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1a\x1c-\x1f]")  # tabs, backspaces

Content = Callable[[int], "RenderableType | None"]
"""Gives what is to be drawn in so many lines, or None for nothing."""


class Screen:
    """What is drawn on this process's terminal. Safe to use from any thread; but for `pass_on`, nothing blocks."""

    def __init__(self) -> None:
        self._is_over = False
        self._begin_anew()
        atexit.register(self._end)

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()  # what is wanted, until the thread has seen to it
        self._content: Content | None = None
        self._unsaid: deque[RenderableType] = deque()
        self._is_wanted = False
        self._is_news = False
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()  # all that was wanted is on the terminal
        self._lock = threading.RLock()  # the terminal itself, and all that follows
        self._forget()

    def _forget(self) -> None:
        self._fd = -1
        self._stream: TextIO | None = None
        self._console: Any = None
        self._through: list[tuple[str, _Through]] = []
        self._taken: list[tuple[Any, Any]] = []
        self._handlers: list[tuple[Any, _Through]] = []
        self._hidden: list[Any] = []
        self._rows: list[int] = []  # the widths of the lines that are drawn
        self._owed = b""  # what the terminal has not taken yet
        self._drawn_at = 0.0
        self._expect(0.0)
        self._pause = SHORTEST_PAUSE
        self._tail = ""  # what the program has written since its last newline
        self._gap = False  # the drawing began with a newline, to leave that as it is
        self._lost = False  # the program moves the cursor by itself: nothing can be drawn until it ends a line

    def forked(self) -> None:
        """In a forked child: what is drawn is the parent's."""
        self._restore_streams()
        if self._fd >= 0:
            os.close(self._fd)
        self._begin_anew()

    # What is wanted

    def start(self, content: Content) -> bool:
        """Begin to draw, if that is not done already; returns whether it can be done on this terminal."""
        with self._changed:
            if self._is_wanted:
                return True
            if self._is_over:
                return False
            if self._thread is None:
                if not self._open():
                    return False
                thread = threading.Thread(target=self._serve, name="qx-panel", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is about to end
                    os.close(self._fd)
                    self._fd = -1
                    return False
                self._thread = thread
            self._content, self._is_wanted = content, True
            self._settled.clear()
            self._changed.notify_all()
            return True

    def wake(self) -> None:
        """There is news to draw."""
        with self._changed:
            self._is_news = True
            self._changed.notify_all()

    def say(self, content: RenderableType) -> None:
        """Write something that stays, above what is drawn."""
        with self._changed:
            self._unsaid.append(content)
            self._settled.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Take the drawing away, and leave the streams as they were."""
        with self._changed:
            self._is_wanted = False
            self._settled.clear()
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait a moment until all that was said is on the terminal."""
        if self._thread is not None:
            self._settled.wait(PATIENCE)

    def _end(self) -> None:
        """The interpreter ends."""
        with self._changed:
            self._is_over, self._is_wanted = True, False
            self._settled.clear()
            self._changed.notify_all()
        self.settle()

    def _open(self) -> bool:
        """Have the terminal for ourselves: another process that draws there has it, until it draws no more."""
        stream = _bare(sys.stderr)
        try:
            number = stream.fileno()
            flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(f"/proc/self/fd/{number}", flags)
        except (AttributeError, OSError, ValueError):
            return False
        try:
            if not _is_in_foreground(descriptor):
                raise BlockingIOError
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._fd = descriptor
        return True

    # The thread

    def _serve(self) -> None:
        try:
            while self._serve_once():
                pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the runs go on
            with self._changed:
                self._is_over, self._is_wanted, self._thread = True, False, None
            self._restore_streams()
            self._settled.set()
            logger.warning("the panel raised %s; nothing is drawn any more", type(error).__name__)

    def _serve_once(self) -> bool:
        """Do what is wanted, and wait for more; returns whether there may be more."""
        with self._lock:
            if self._stream is None and self._is_wanted and not self._begin():
                return self._leave()
            if self._was_stopped():
                self._rows, self._gap, self._tail = [], False, ""
                self._write(self._fresh_line())
            self._say_all()
            self._draw()
        with self._changed:
            if self._unsaid and not self._owed:
                return True
            is_wanted = self._is_wanted
            if is_wanted and not self._unsaid and not self._owed:
                self._settled.set()
        if not is_wanted and (not self._unsaid or self._is_over):
            with self._lock:
                is_done = self._finish()
            if is_done:
                return self._leave()
        with self._changed:
            if self._owed:  # a terminal that was stopped: look again in a moment
                self._expect(SHORTEST_PAUSE)
                self._changed.wait(SHORTEST_PAUSE)
                return True
            if not self._is_news and not self._unsaid and self._is_wanted:
                self._expect(LONGEST_PAUSE)
                self._changed.wait(LONGEST_PAUSE)
            self._is_news = False
            left = self._drawn_at + self._pause - time.monotonic()
            if left > 0:
                self._expect(max(left, self._back_at - time.monotonic()))
                self._changed.wait_for(lambda: self._unsaid or not self._is_wanted, left)
        return True

    def _leave(self) -> bool:
        """End the thread, unless it is wanted again; returns whether it is."""
        with self._changed:
            if self._is_wanted and self._stream is None and self._fd < 0 and not self._open():
                self._is_wanted = False
            if self._is_wanted:
                return True
            self._unsaid.clear()
            self._thread = None
            self._settled.set()
            return False

    # The terminal, with the lock held

    def _begin(self) -> bool:
        """Take the terminal over; returns whether that can be done."""
        from rich.console import Console

        if self._fd < 0 or sys.stderr is None:
            return False
        for stream in (sys.stdout, sys.stderr):  # what has no newline yet may not have been written
            with contextlib.suppress(AttributeError, OSError, ValueError):
                if _is_terminal(stream):
                    stream.flush()
        self._stream = _bare(sys.stderr)
        self._console = Console(file=self._stream, highlight=False, soft_wrap=False)
        bars = _bars_on(self._stream, _bare(sys.stdout))
        if len(bars) != 1:
            _hide(bars)
            self._hidden = bars
        self._write(self._fresh_line())
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream) and not isinstance(stream, _Through):
                through = _Through(self, stream)
                setattr(sys, name, through)
                self._through.append((name, through))
        self._take_handlers()
        if len(bars) == 1:
            self._take(bars[0])
        self._expect(0.0)
        return True

    def _fresh_line(self) -> str:
        # Where the cursor is, is not known. As many blanks as fill a line but for one bring it into the next line
        # if it was not at the beginning of one.
        return " " * (self._width() - 1) + "\r\x1b[K"

    def _was_stopped(self) -> bool:
        """Whether the process was stopped, as by Ctrl-Z, and goes on: others have written to the terminal since.

        Else the thread is late only where Qiskit keeps the interpreter to itself, and then it computes.
        """
        late, work = time.monotonic() - self._back_at, time.process_time() - self._work
        self._expect(0.0)
        return late > LATE and work < late / 5

    def _expect(self, seconds: float) -> None:
        """The thread waits for so long at most."""
        self._back_at, self._work = time.monotonic() + seconds, time.process_time()

    def _finish(self) -> bool:
        """Take all away; returns whether that is done."""
        if self._stream is not None:
            self._write(self._taking_away())
            self._rows, self._gap = [], False
            if self._owed and not self._is_over:
                return False
            self._restore_streams()
            _show(self._hidden)
        if self._fd >= 0:
            os.close(self._fd)
        self._forget()
        return True

    def _say_all(self) -> None:
        if self._owed:
            self._write("")
        while self._unsaid and not self._owed and self._stream is not None:
            rendered = self._render(self._unsaid[0])
            text = self._taking_away()
            if self._tail:  # what has no newline yet goes on below
                up = (max(1, _columns(self._tail)) - 1) // self._width()
                text += "\r\x1b[2K" + "\x1b[A\x1b[2K" * up
            self._rows, self._gap, self._lost = [], False, False
            self._write(text + rendered + self._tail)
            self._unsaid.popleft()

    def _draw(self) -> None:
        if self._owed:
            self._write("")
        if self._stream is None or self._content is None or self._lost or self._owed:
            return
        if not self._is_wanted or not os.isatty(self._stream.fileno()):  # it may have become a file
            return
        if not _is_in_foreground(self._fd):
            self._rows, self._gap = [], False  # the shell writes there now
            return
        begun = time.monotonic()
        room = max(1, self._console.size.height - 2)
        content = self._content(room)
        text = "".join(self._render(content).splitlines(keepends=True)[:room]) if content is not None else ""
        take_away = self._taking_away()
        self._gap = bool(self._tail) and bool(text)
        self._rows = [_columns(line.rstrip("\n")) for line in text.splitlines(keepends=True)]
        self._write(take_away + ("\n" if self._gap else "") + text)
        self._drawn_at = time.monotonic()
        self._pause = max(SHORTEST_PAUSE, (self._drawn_at - begun) / SHARE)

    def pass_on(self, stream: TextIO, text: str) -> Any:
        """Let the program write to one of its streams, and wait for that as for any terminal."""
        try:
            return self._pass_on(stream, text)
        finally:
            self.wake()  # without the lock

    def _pass_on(self, stream: TextIO, text: str) -> Any:
        with self._lock:
            if self._stream is None:
                return stream.write(text)
            if self._rows or self._owed:
                self._write(self._taking_away(), waits=True)
                self._rows, self._gap = [], False
            try:
                return stream.write(text)
            finally:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
                self._follow(text)

    def _width(self) -> int:
        return max(20, int(self._console.size.width))

    def _render(self, content: RenderableType) -> str:
        with self._console.capture() as captured:
            self._console.print(content)
        return str(captured.get())

    def _taking_away(self) -> str:
        """What takes the drawing away and brings the cursor to where the program left it."""
        if not self._rows:
            return ""
        width = self._width()  # the window may have become narrower: then its lines take more than one row each
        up = sum(max(1, -(-columns // width)) for columns in self._rows)
        # Line by line: where all of the screen is erased at once, tmux keeps what was there in its history.
        back = "\r" + "\x1b[A\x1b[2K" * up
        if self._gap:
            column = 0 if self._tail.endswith("\r") else _columns(self._tail) % width
            back += f"\x1b[A\x1b[{column + 1}G"
        return back

    def _follow(self, text: str) -> None:
        """Know where the program leaves the cursor."""
        line = (self._tail + text).rpartition("\n")[2]
        body = line.rstrip("\r")
        body = body.rpartition("\r")[2]
        columns = _columns(body) if len(body) < 10_000 else 0
        self._tail = (body if columns else body[-1:]) + ("\r" if line.endswith("\r") else "")
        # To a tab, a backspace, the end of a full row and what is very long we can't come back.
        moves = any(found[1] not in _HARMLESS for found in _ESCAPES.finditer(text)) or _MOVES.search(line)
        if moves or (line and columns % self._width() == 0 and not line.endswith("\r")):
            self._lost = True
        elif text.endswith("\n"):
            self._lost = False

    def _write(self, text: str, *, waits: bool = False) -> None:
        self._owed += text.encode(errors="replace")
        while self._owed:
            try:
                self._owed = self._owed[os.write(self._fd, self._owed) :]
            except BlockingIOError:
                if not waits:
                    return
                is_writable(self._fd, 1.0)
            except OSError:
                self._owed = b""  # the terminal has hung up: the run goes on

    def _restore_streams(self) -> None:
        for bar, write in self._taken:
            with contextlib.suppress(Exception):
                bar.fp.wrapper_setattr("write", write)
        for handler, through in self._handlers:
            if handler.stream is through:
                handler.stream = through.stream
        for name, through in self._through:
            if getattr(sys, name) is through:
                setattr(sys, name, through.stream)
        self._taken, self._handlers, self._through = [], [], []

    def _take_handlers(self) -> None:
        """Have log handlers write through us: they keep the stream that they began with, at the top of a script."""
        loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
        for handler in {each for found in loggers for each in getattr(found, "handlers", ())}:
            for _, through in self._through:
                # Not by `setStream`: its lock may be held by a thread that waits for ours.
                if getattr(handler, "stream", None) is through.stream:
                    handler.stream = through
                    self._handlers.append((handler, through))

    def _take(self, bar: Any) -> None:
        """Have a `tqdm` bar that is there already write through us too: it keeps the stream that it began with."""
        for _, through in self._through:
            if bar.fp == through.stream:
                with contextlib.suppress(Exception):  # no public way leads there
                    self._taken.append((bar, bar.fp.wrapper_getattr("write")))
                    bar.fp.wrapper_setattr("write", through.write)
                    self._write("\x1b[A")  # the blanks have ended its line, and it goes on there
                    bar.refresh(nolock=True)


class _Through:
    """A stream of the program's, which writes through the screen."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self._screen = screen
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> Any:
        return self._screen.pass_on(self.stream, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Any:
        return iter(self.stream)


def _is_in_foreground(terminal: int) -> bool:
    """Whether the terminal is this process's, and not a shell's that has it in the background."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # it is nobody's controlling terminal


def _bare(stream: Any) -> Any:
    """The stream itself: one of ours comes back where the program had put something else in its place."""
    while isinstance(stream, _Through):
        stream = stream.stream
    return stream


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _bars_on(*streams: Any) -> list[Any]:
    """The `tqdm` bars that are on the terminal."""
    tqdm: Any = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    with contextlib.suppress(Exception):  # no public way leads there
        shown = [bar for bar in list(tqdm._instances) if not bar.disable]  # noqa: SLF001
        return [bar for bar in shown if any(bar.fp == each for each in streams)]
    return []


def _hide(bars: list[Any]) -> None:
    for bar in bars:
        with contextlib.suppress(Exception):
            bar.clear(nolock=True)


def _show(bars: list[Any]) -> None:
    for bar in bars:
        with contextlib.suppress(Exception):
            bar.refresh(nolock=True)


def _columns(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(_ESCAPES.sub("", text))


screen = Screen()
os.register_at_fork(after_in_child=screen.forked)
