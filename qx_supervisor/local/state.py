"""The state that the server's connections share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .journal import Journal
from .tls import Tls
from .tokens import Tokens

if TYPE_CHECKING:
    from .engine import Engine


class State:
    """Journal, tokens, certificates, and the engine once it is loaded."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.tokens = Tokens()
        self.tls = Tls()
        self._engine: Engine | None = None
        self._loaded = threading.Event()
        self._reset = threading.Event()

    @property
    def engine(self) -> Engine:
        """The engine. Waits until it is loaded: the server accepts connections long before."""
        self._loaded.wait()
        assert self._engine is not None
        return self._engine

    def install(self, engine: Engine) -> None:
        """Store the engine, and release the requests that wait for it."""
        self._engine = engine
        self._loaded.set()

    @property
    def ended(self) -> threading.Event:
        """Set at the next reset. A request takes it when it begins, and must have no effect once it is set."""
        return self._reset

    def reset(self) -> None:
        """Forget everything except the certificates and the tokens that were issued."""
        # A delayed request must not create its job after the reset.
        before, self._reset = self._reset, threading.Event()
        before.set()
        self.engine.reset()
        self.tokens.reset()
        self.journal.clear()
