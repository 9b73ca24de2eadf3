"""What the server's connections share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .journal import Journal
from .tokens import Tokens

if TYPE_CHECKING:
    from .engine import Engine


class State:
    """Journal, tokens, and the engine once it has been loaded."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.tokens = Tokens()
        self._engine: Engine | None = None
        self._loaded = threading.Event()
        self._reset = threading.Event()

    @property
    def engine(self) -> Engine:
        """The engine. Waits while it is loading: the server takes connections long before."""
        self._loaded.wait()
        assert self._engine is not None
        return self._engine

    def install(self, engine: Engine) -> None:
        """The engine has been loaded: let the requests that wait for it go on."""
        self._engine = engine
        self._loaded.set()

    @property
    def ended(self) -> threading.Event:
        """Is set when the service is reset next: whoever began before takes it, and must do nothing once it is set."""
        return self._reset

    def reset(self) -> None:
        """Back to the start, but for the tokens that were issued."""
        # A request that an injected delay keeps, or a slow thread, must not carry its job over into what comes after.
        before, self._reset = self._reset, threading.Event()
        before.set()
        self.engine.reset()
        self.tokens.reset()
        self.journal.clear()
