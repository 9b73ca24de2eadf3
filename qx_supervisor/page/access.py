"""The token, who has given it, and what it permits.

Neither the token nor what a browser is given for it is kept: their digests are.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .. import settings
from ..errors import ConfigError

SHORTEST = 16
"""Characters of a token, at least."""

SESSION_SECONDS = 12 * 3600.0
"""How long a browser is remembered."""

MOST_SESSIONS = 100
"""Browsers that are remembered; the oldest is forgotten."""

MOST_WRONG = 10
WRONG_SECONDS = 60.0
"""So many wrong tokens in this time, and none is heard until it has passed, at the login or with a request."""

Cancel = Callable[[str], tuple[str, str]]
"""Cancels a job; returns what became of it ("cancelled", "finished", "gone", "unconfirmed"), and that in a sentence."""

MAKE_ONE = "make one: python3 -c 'import secrets; print(secrets.token_urlsafe())'"


class Token:
    """The token of a page, and the browsers that have given it.

    Args:
        secret: The token.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest = _digest(secret)
        self._clock = clock
        self._sessions: dict[bytes, float] = {}  # digest → until when
        self._wrong: deque[float] = deque(maxlen=MOST_WRONG)

    def __repr__(self) -> str:
        return "Token()"

    @property
    def is_closed(self) -> bool:
        """Whether so many wrong ones came that none is heard for a while."""
        return len(self._wrong) == MOST_WRONG and self._clock() - self._wrong[0] < WRONG_SECONDS

    def is_right(self, given: str) -> bool:
        """Whether this is the token, and one is heard now; a wrong one counts."""
        if self.is_closed:
            return False
        # Digests: the comparison takes as long whatever is given, and does not tell the token's length either.
        is_right = hmac.compare_digest(self._digest, _digest(given))
        if not is_right:
            self._wrong.append(self._clock())
        return is_right

    def begin_session(self) -> str:
        """Remember a browser that has given the token; returns what it is to show from now on."""
        now = self._clock()
        self._sessions = {digest: until for digest, until in self._sessions.items() if until > now}
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        word = secrets.token_urlsafe(32)
        self._sessions[_digest(word)] = now + SESSION_SECONDS
        return word

    def is_session(self, word: str) -> bool:
        """Whether a browser that shows this has given the token."""
        return self._sessions.get(_digest(word), 0.0) > self._clock()

    def end_session(self, word: str) -> None:
        """Forget a browser."""
        self._sessions.pop(_digest(word), None)


def read(file: str | None) -> Token | None:
    """The token of a file, or else of the environment, where it does not stay; None if there is none.

    Args:
        file: A path, or None.

    Raises:
        ConfigError: If it can't be read, others can read it, or it is too short. No message quotes it.
    """
    given = os.environ.pop(settings.PAGE_TOKEN, "").strip()
    where = settings.PAGE_TOKEN
    if file is not None:
        given, where = _content(Path(file)), file
    elif not given:
        return None
    if len(given) < SHORTEST or len(given.split()) != 1 or not given.isascii():
        raise ConfigError(
            "config", f"the token in {where} must be a word of at least {SHORTEST} characters; {MAKE_ONE}"
        )
    return Token(given)


def _content(path: Path) -> str:
    try:
        status = path.stat()
        # A Secret of Kubernetes is its group's to read.
        if status.st_mode & stat.S_IROTH:
            raise ConfigError("config", f"all can read the token in {path}: chmod 600 {path}, and choose another one")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("config", f"{path} is not a file: write a token into one; {MAKE_ONE}")
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError as error:
        raise ConfigError(
            "config", f"the token can't be read from {path}: {error.strerror}; write one into that file, with mode 600"
        ) from None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
