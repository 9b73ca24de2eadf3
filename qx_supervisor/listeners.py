"""Who is told each status of a run: the user's function, and the panel."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from . import threads
from .errors import RunError
from .panel import Panel, Silent, close_panel
from .result import RunResult
from .status import Status

logger = logging.getLogger("qx_supervisor")

TICK = 0.5
"""Seconds between two looks of a panel's at the clock."""


class StatusListeners:
    """Hands every status to the user's function and to the panel."""

    def __init__(self, on_status: Callable[[Status], Any] | None, panel: Panel) -> None:
        self._on_status = on_status
        self._panel = panel
        self.is_shown = not isinstance(panel, Silent)
        self.is_over = False

    def tick(self) -> None:
        """Let the panel look at the clock."""
        self._show(self._panel.tick)

    def close(self, outcome: Future[RunResult] | RunResult | BaseException) -> None:
        """Show how the run ended."""
        self.is_over = True
        ended = outcome.exception() or outcome.result() if isinstance(outcome, Future) else outcome
        self._show(lambda: close_panel(self._panel, ended))

    def _show(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # a fault in showing the run must not end it
            self._panel = Silent()
            logger.warning("the panel raised %s; the run goes on unseen", type(error).__name__, exc_info=error)

    def tell(self, status: Status) -> None:
        """Tell a status."""
        self._show(lambda: self._panel.show(status))
        if self._on_status is not None:
            try:
                self._on_status(status)
            except Exception as error:  # noqa: BLE001 - nor must one in watching it
                extra = {"job": status.job_id}
                logger.warning("on_status raised %s; the run goes on", type(error).__name__, extra=extra)


class StatusQueue:
    """Tells the listeners of a run of `submit` what happens, in order, by threads that do nothing else."""

    def __init__(self, listeners: StatusListeners) -> None:
        self._listeners = listeners
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_read = False

    def status(self, status: Status) -> None:
        """Tell a status."""
        self.put(lambda: self._listeners.tell(status))

    def end(self, outcome: RunResult | RunError, work: Callable[[], None]) -> None:
        """Show how the run ended, and then let those go on who wait for it."""

        def conclude() -> None:
            self._listeners.close(outcome)
            work()

        self.put(conclude, is_last=True)

    def begin_to_tick(self) -> None:
        """Have the panel look at the clock now and then, until the run is over."""
        if not self._listeners.is_over:
            if not self._waiting:  # else a slow listener is behind, and will look later
                self.put(self._listeners.tick)
            threads.timers.after(2 * TICK, self.begin_to_tick)  # there may be many

    def put(self, work: Callable[[], object], *, is_last: bool = False) -> None:
        """Call something, after all that was put before.

        Args:
            work: What is called. If no thread can be had for it now, it is called with what is put next.
            is_last: That somebody waits for it, and nothing may come after it: without a thread it is called here.
        """
        with self._lock:
            self._waiting.append(work)
            if self._is_read:
                return
            self._is_read = True
            try:
                threads.telling.do(self._read)
            except RuntimeError:
                if not is_last:
                    self._is_read = False
                    return
            else:
                return
        self._read()

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
