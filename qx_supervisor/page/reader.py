"""The thread that reads a ledger, for all who ask.

A ledger may be slow, or hang for some seconds: whoever serves requests must not wait for it, and nobody waits for this
thread at the end.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future

from .ledgers import Snapshot, Source

logger = logging.getLogger("qx_supervisor.page")

FRESH_SECONDS = 0.4
"""A look is no older for whoever asks; all who ask within this time are told the same."""

IDLE_SECONDS = 60.0
"""After which the ledger is closed, and what was read forgotten, if nobody asks any more."""


class Reader:
    """Reads a ledger when it is asked to.

    Args:
        source: The ledger.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._asked: queue.SimpleQueue[Future[Snapshot] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self) -> Future[Snapshot]:
        """Ask for the ledger as it is now; from any thread."""
        asked: Future[Snapshot] = Future()
        self._asked.put(asked)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="qx-page-reader", daemon=True)
                self._thread.start()
        return asked

    def stop(self, seconds: float) -> None:
        """Close the ledger and end the thread; waits for that for some seconds at most."""
        with self._starting:
            thread = self._thread
        if thread is not None:
            self._asked.put(None)
            thread.join(seconds)

    def _work(self) -> None:
        latest, looked_at = Snapshot(), 0.0
        while True:
            try:
                asked = self._asked.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                self.source.close()
                self.source.forget()
                looked_at = 0.0
                asked = self._asked.get()
            if asked is None:
                self.source.close()
                return
            if not asked.set_running_or_notify_cancel():
                continue
            try:
                if time.monotonic() - looked_at > FRESH_SECONDS:
                    latest = self.source.look()
                    looked_at = time.monotonic()
                asked.set_result(latest)
            except Exception as error:
                logger.exception("the page can't read the ledger, by a fault in here")
                asked.set_exception(error)
