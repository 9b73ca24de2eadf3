"""Access tokens: the service issues them for an API key, and every request to the API needs one."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time

DEFAULT_LIFETIME = 3600
"""Seconds, as at IBM."""


class Tokens:
    """The valid tokens. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expiries: dict[str, float] = {}
        self._voided: dict[str, float] = {}  # by `expire_all`
        self._lifetime = DEFAULT_LIFETIME
        self._rejecting = False

    def issue(self) -> tuple[str, int, int] | None:
        """Make a token.

        Returns:
            The token, its lifetime in seconds and its expiry in epoch seconds; None while tokens are rejected.
        """
        with self._lock:
            if self._rejecting:
                return None
            now = time.time()
            expiry = int(now) + self._lifetime
            token = _encode({"iat": int(now), "exp": expiry, "sub": "qx-local"})
            self._expiries = {known: until for known, until in self._expiries.items() if until > now}
            self._expiries[token] = expiry
            return token, self._lifetime, expiry

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header has a valid token."""
        scheme, _, token = (authorization or "").partition(" ")
        with self._lock:
            return scheme == "Bearer" and self._expiries.get(token, 0) > time.time()

    def expire_all(self) -> None:
        """Make every token issued so far invalid, until a reset."""
        with self._lock:
            self._voided |= self._expiries
            self._expiries.clear()

    def reject(self, rejecting: bool) -> None:
        """Refuse to issue tokens, as for a revoked API key, or issue them again."""
        with self._lock:
            self._rejecting = rejecting

    def set_lifetime(self, seconds: int) -> None:
        """Set the lifetime of new tokens."""
        with self._lock:
            self._lifetime = seconds

    def reset(self) -> None:
        """Restore the defaults and make all tokens valid again, as clients outlive a reset."""
        with self._lock:
            self._lifetime, self._rejecting = DEFAULT_LIFETIME, False
            self._expiries |= self._voided
            self._voided.clear()


def _encode(claims: dict[str, object]) -> str:
    """Encode claims as a JWT: if it is malformed, Qiskit's client sends the bare API key instead.

    Nobody checks the signature. It is random, so that two tokens of the same second differ.
    """
    head, body = (json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return b".".join(map(_base64, (head, body, secrets.token_bytes(32)))).decode()


def _base64(raw: bytes) -> bytes:
    # In the URL alphabet and without padding, as in a JWT.
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
