"""The program's writers to the terminal, redirected while something is drawn there.

They are stdout, stderr, log handlers that hold one of these streams, and a `tqdm` bar. Handlers and bars keep the
stream they were made with, so replacing `sys.stderr` does not reach them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO


class RedirectedStream:
    """A stream of the program's whose writes go through a function."""

    def __init__(self, stream: TextIO, write: Callable[[TextIO, str], Any]) -> None:
        self.stream = stream
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> Any:
        """Write through the function."""
        return self._write(self.stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stream)


class Redirection:
    """Redirects all that the program writes to the terminal, until `restore`.

    Args:
        write: Called with a stream and a text in place of the stream's own `write`.
    """

    def __init__(self, write: Callable[[TextIO, str], Any]) -> None:
        self._write = write
        self._streams: list[tuple[str, RedirectedStream]] = []
        self._handlers: list[tuple[logging.StreamHandler[Any], RedirectedStream]] = []
        self._bars = _bars_on(original(sys.stderr), original(sys.stdout))
        self._bar_write: Any = None
        self.bar: Any = None
        """The `tqdm` bar that is redirected. Of several none is: they are hidden for the time."""

    def hide_bars(self) -> None:
        """Clear the bars, unless there is one only, which goes on."""
        if len(self._bars) != 1:
            for bar in self._bars:
                with contextlib.suppress(Exception):
                    bar.clear(nolock=True)

    def show_bars(self) -> None:
        """Draw the hidden bars again."""
        if len(self._bars) != 1:
            for bar in self._bars:
                with contextlib.suppress(Exception):
                    bar.refresh(nolock=True)

    def begin(self) -> None:
        """Redirect."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if is_terminal(stream) and not isinstance(stream, RedirectedStream):
                redirected = RedirectedStream(stream, self._write)
                setattr(sys, name, redirected)
                self._streams.append((name, redirected))
        loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
        handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
        for _, redirected in self._streams:
            for handler in handlers:
                # Not `setStream`: its lock may be held by a thread that waits for the screen's.
                if getattr(handler, "stream", None) is redirected.stream:
                    handler.stream = redirected
                    self._handlers.append((handler, redirected))
            if len(self._bars) == 1 and self.bar is None and self._bars[0].fp == redirected.stream:
                bar = self._bars[0]
                with contextlib.suppress(Exception):  # tqdm has no public way to do this
                    self._bar_write = bar.fp.wrapper_getattr("write")
                    bar.fp.wrapper_setattr("write", redirected.write)
                    self.bar = bar

    def restore(self) -> None:
        """Undo `begin`, except where the program has replaced a stream since."""
        if self.bar is not None:
            with contextlib.suppress(Exception):
                self.bar.fp.wrapper_setattr("write", self._bar_write)
            self.bar = None
        for handler, redirected in self._handlers:
            if handler.stream is redirected:
                handler.stream = redirected.stream
        for name, redirected in self._streams:
            if getattr(sys, name) is redirected:
                setattr(sys, name, redirected.stream)
        self._streams, self._handlers = [], []


def original(stream: Any) -> Any:
    """The stream behind a redirected one. The program may put one of ours back after it has replaced it."""
    while isinstance(stream, RedirectedStream):
        stream = stream.stream
    return stream


def is_terminal(stream: Any) -> bool:
    """Whether a stream, which may be None or closed, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _bars_on(*streams: Any) -> list[Any]:
    tqdm: Any = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    with contextlib.suppress(Exception):  # tqdm has no public way to do this
        shown = [bar for bar in list(tqdm._instances) if not bar.disable]  # noqa: SLF001
        return [bar for bar in shown if any(bar.fp == each for each in streams)]
    return []
