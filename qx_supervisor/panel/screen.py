"""The bottom of the terminal, where what changes is drawn again and again, below what the program itself writes.

`rich` renders. The drawing is ours, because its live display sends what the program prints to stdout through stderr,
and holds back what has no newline yet: a `tqdm` bar would not move. Here, what is written to stdout or stderr while
something is drawn goes first through `_Through`, which takes the drawing away, lets the text pass as it is, and has
it drawn again below.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

logger = logging.getLogger("qx_supervisor")

SHORTEST_PAUSE = 0.1
"""Seconds between two drawings: a program that prints a thousand lines a second is not slowed down by them."""

SHARE = 0.05
"""Of the time, at most, that is spent on drawing: a table of a thousand runs takes a while."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_HARMLESS = {"m", "K", None}  # colours, erasing in the line, links: the cursor stays where the text leaves it


class Screen:
    """What is drawn on this process's terminal. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._draw: Callable[[], RenderableType | None] | None = None
        self._forget()
        atexit.register(self.stop)

    def _forget(self) -> None:
        self._stream: TextIO | None = None
        self._console: Any = None
        self._through: list[tuple[str, _Through]] = []
        self._taken: list[tuple[Any, Any]] = []
        self._hidden: list[Any] = []
        self._rows: list[int] = []  # the widths of the lines that are drawn
        self._drawn_at = 0.0
        self._pause = SHORTEST_PAUSE
        self._tail = ""  # what the program has written since its last newline
        self._gap = False  # the drawing began with a newline, to leave that as it is
        self._lost = False  # the program moves the cursor by itself: nothing can be drawn until it ends a line

    def forked(self) -> None:
        """In a forked child: what is drawn is the parent's."""
        self._lock = threading.RLock()
        self._restore_streams()
        self._forget()
        self._draw = None

    def start(self, draw: Callable[[], RenderableType | None]) -> None:
        """Begin to draw.

        Args:
            draw: Gives what is to be drawn, or None for nothing.
        """
        with self._lock:
            if self._stream is not None or sys.stderr is None:
                return
            from rich.console import Console

            self._stream, self._draw = sys.stderr, draw
            self._console = Console(file=self._stream, highlight=False, soft_wrap=False)
            bars = _bars_on(self._stream, sys.stdout)
            if len(bars) != 1:
                _hide(bars)
                self._hidden = bars
            # Where the cursor is, is not known. As many blanks as fill a line but for one bring it into the next line
            # if it was not at the beginning of one.
            blanks = " " * (self._width() - 1)
            self._write(f"{blanks}\r\x1b[K")
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if _is_terminal(stream):
                    through = _Through(self, stream)
                    setattr(sys, name, through)
                    self._through.append((name, through))
            if len(bars) == 1:
                self._take(bars[0])
            self.draw()

    def stop(self) -> None:
        """Take the drawing away, and leave the streams as they were."""
        with self._lock:
            if self._stream is None:
                return
            self._erase()
            self._restore_streams()
            _show(self._hidden)
            self._forget()
            self._draw = None

    def draw(self, *, now: bool = True) -> None:
        """Draw anew.

        Args:
            now: Even if that was done a moment ago.
        """
        with self._lock:
            if self._stream is None or self._draw is None or self._lost:
                return
            begun = time.monotonic()
            if not now and begun - self._drawn_at < self._pause:
                return
            try:
                content = self._draw()
                text = self._render(content) if content is not None else ""
            except Exception as error:  # noqa: BLE001 - it would come out of the program's own `print`
                self._draw, text = None, ""
                logger.warning("the panel raised %s; nothing is drawn any more", type(error).__name__)
            take_away = self._taking_away()
            self._gap = bool(self._tail) and bool(text)
            self._rows = [_columns(line) for line in text.splitlines()]
            self._write(take_away + ("\n" if self._gap else "") + text)
            self._drawn_at = time.monotonic()
            self._pause = max(SHORTEST_PAUSE, (self._drawn_at - begun) / SHARE)

    def say(self, content: RenderableType) -> None:
        """Write something that stays, above what is drawn."""
        with self._lock:
            if self._stream is None:
                return
            text = self._taking_away()
            if self._tail:  # what has no newline yet goes on below
                up = (max(1, _columns(self._tail)) - 1) // self._width()
                text += (f"\x1b[{up}A" if up else "") + "\r\x1b[J"
            self._rows, self._gap, self._lost = [], False, False
            self._write(text + self._render(content) + self._tail)
            self.draw(now=False)

    def pass_on(self, stream: TextIO, text: str) -> Any:
        """Let the program write to one of its streams."""
        with self._lock:
            if self._stream is None:
                return stream.write(text)
            self._erase()
            try:
                return stream.write(text)
            finally:
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
                self._follow(text)
                self.draw(now=False)

    # Inside, with the lock held

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
        back = f"\x1b[{up}A\r\x1b[J"
        if self._gap:
            column = 0 if self._tail.endswith("\r") else _columns(self._tail) % width
            back += f"\x1b[A\x1b[{column + 1}G"
        return back

    def _erase(self) -> None:
        text = self._taking_away()
        self._rows, self._gap = [], False
        if text:
            self._write(text)

    def _follow(self, text: str) -> None:
        """Know where the program leaves the cursor."""
        moves = any(found[1] not in _HARMLESS for found in _ESCAPES.finditer(text))
        line = (self._tail + text).rpartition("\n")[2]
        body = line.rstrip("\r")
        self._tail = body.rpartition("\r")[2] + ("\r" if body != line else "")
        if moves:
            self._lost = True
        elif text.endswith("\n"):
            self._lost = False

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the terminal has hung up: the run goes on

    def _restore_streams(self) -> None:
        for bar, write in self._taken:
            with contextlib.suppress(Exception):
                bar.fp.wrapper_setattr("write", write)
        for name, through in self._through:
            if getattr(sys, name) is through:
                setattr(sys, name, through.stream)
        self._taken, self._through = [], []

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
