"""Access tokens: the service issues them for an API key and takes no request to the API without one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time

DEFAULT_LIFETIME = 3600
"""Seconds. IBM's tokens live an hour."""


class Tokens:
    """The tokens that are valid now, for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signing_key = secrets.token_bytes(32)
        self._expiries: dict[str, float] = {}
        self._voided: dict[str, float] = {}  # before their time
        self._lifetime = DEFAULT_LIFETIME
        self._rejecting = False

    def issue(self) -> tuple[str, int, int] | None:
        """Make a token.

        Returns:
            The token, its lifetime in seconds and its expiry in epoch seconds; None while tokens are refused.
        """
        with self._lock:
            if self._rejecting:
                return None
            now = time.time()
            expiry = int(now) + self._lifetime
            # The id keeps two tokens of one second apart: expiring the first must not expire the second.
            claims = {"iat": int(now), "exp": expiry, "sub": "qx-local", "jti": secrets.token_hex(8)}
            token = self._encode(claims)
            self._expiries = {known: until for known, until in self._expiries.items() if until > now}
            self._expiries[token] = expiry
            return token, self._lifetime, expiry

    def accepts(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries a token of ours that has not expired."""
        scheme, _, token = (authorization or "").partition(" ")
        with self._lock:
            return scheme == "Bearer" and self._expiries.get(token, 0) > time.time()

    def expire_all(self) -> None:
        """Every token issued so far is void from now on, until a reset."""
        with self._lock:
            self._voided |= self._expiries
            self._expiries.clear()

    def reject(self, rejecting: bool) -> None:
        """Refuse to issue tokens, as for a revoked API key, or stop refusing."""
        with self._lock:
            self._rejecting = rejecting

    def set_lifetime(self, seconds: int) -> None:
        """Set how long new tokens live."""
        with self._lock:
            self._lifetime = seconds

    def reset(self) -> None:
        """Return to the default lifetime and issue again. Clients outlive a reset, and their tokens are good again."""
        with self._lock:
            self._lifetime, self._rejecting = DEFAULT_LIFETIME, False
            self._expiries |= self._voided
            self._voided.clear()

    def _encode(self, claims: dict[str, object]) -> str:
        """Encode claims as a JWT: without a well-formed one Qiskit's client falls back to sending the raw API key."""
        unsigned = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
        signature = hmac.new(self._signing_key, unsigned, hashlib.sha256).digest()
        return (unsigned + b"." + _base64(signature)).decode()


def _base64(raw: bytes) -> bytes:
    """Base64 in the URL alphabet, without padding, as a JWT has it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
