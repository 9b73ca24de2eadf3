"""A terminal for a program that is tested: a pty whose screen is kept as an emulator shows it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyte

from .processes import DEADLINE, Process


class Terminal:
    """A program on a terminal of its own, which it controls, so that a Ctrl-C typed there is a SIGINT.

    Args:
        command: The program.
        columns: The terminal's width.
        lines: Its height, with room enough for all that a test writes.
        stdout: Where its stdout goes instead, or None.
        environment: Its environment.

    Attributes:
        process: The program's process.
        identity: Its pid and start.
        screen: What the terminal shows.
        raw: All that was written to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 60,
        stdout: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        given = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "CI", "FORCE_COLOR"):
            if name not in (environment or {}):
                given.pop(name, None)
        with contextlib.ExitStack() as stack:
            out: Any = stack.enter_context(stdout.open("wb")) if stdout is not None else slave
            # It makes a session and the terminal its own, and becomes the program.
            command = ["setsid", "--ctty", *command]
            self.process = subprocess.Popen(command, stdin=slave, stdout=out, stderr=slave, env=given)
        os.close(slave)
        self.identity = Process(self.process.pid).identity

    @property
    def text(self) -> str:
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def until(self, shown: str | Callable[[str], object]) -> str:
        """Wait until the screen shows something; returns its text."""
        self._until(lambda: shown in self.text if isinstance(shown, str) else shown(self.text), shown)
        return self.text

    def until_written(self, text: bytes) -> None:
        """Wait until something was written, though it may be gone from the screen since."""
        self._until(lambda: text in self.raw, text)

    def _until(self, holds: Callable[[], object], wanted: object) -> None:
        end = time.monotonic() + DEADLINE
        while not holds():
            more = time.monotonic() < end and self._read(end - time.monotonic())
            assert more, f"{wanted!r} is not shown, but:\n{self.text}"

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def resize(self, columns: int) -> None:
        """Make the window another width; an emulator that cuts lines off, as pyte does, wraps none."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.lines, columns, 0, 0))
        self.screen.resize(columns=columns)

    def end(self) -> int:
        """The program's return code, once it has ended and all that it wrote is shown."""
        end = time.monotonic() + DEADLINE
        while self._read(end - time.monotonic()):
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """End the program if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._master)
