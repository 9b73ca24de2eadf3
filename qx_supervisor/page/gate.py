"""What every request must pass: it comes to a name of ours, from no other origin, and with the token if there is one.

And what every answer says: that nothing but our own files is loaded, run, or sent to, and that no other site may show
or read it.
"""

from __future__ import annotations

import logging
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Token
from .address import is_expected, name_in, port_in

logger = logging.getLogger("qx_supervisor.page")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with "no-referrer" a browser says "null" of the origin of its own login
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

FREE = ("/login", "/page.css", "/icon.svg")
"""What a browser needs before it has given the token."""

SAFE = ("GET", "HEAD")

FAULT = "the page could not answer, by a fault in it: its log has more"


class Gate:
    """Lets requests through to an application, or answers them.

    Args:
        app: The application.
        names: The names under which browsers may come, beside IP addresses and "localhost".
        token: The token; None if there is none.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], token: Token | None) -> None:
        self._app = app
        self._names = names
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            answer: ASGIApp = self._refusal(scope) or self._app
            await answer(scope, receive, send_with_headers)
        except Exception:
            logger.exception("the page could not answer %s, by a fault in here", scope["path"])
            if not has_begun:
                fault = refuse(500, FAULT)
                await fault(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not is_expected(name_in(host), self._names):
            return refuse(
                421, "the page is not known by this name: use the address that it was started with, or --page-name"
            )
        if not is_same_origin(headers, scope["method"]):
            return refuse(403, "the page answers no request from another origin: open its own address")
        if self._token is None or scope["path"] in FREE:
            return None
        bearer = bearer_of(headers)
        if bearer is not None:
            if self._token.is_right(bearer):
                return None
            if self._token.is_closed:
                return refuse(429, "too many wrong tokens: wait a minute")
            return refuse(401, "the token is not the page's: check it")
        if self._token.is_session(session_of(scope)):
            # A browser says of each request that changes something where it comes from.
            if scope["method"] in SAFE or "origin" in headers:
                return None
            return refuse(403, "a request that changes something needs an Origin header, or the token in Authorization")
        if scope["path"] == "/" and scope["method"] in SAFE:
            query = scope["query_string"].decode("ascii", "replace")
            return RedirectResponse(f"/login?{query}" if query else "/login", 303)
        return refuse(401, "this needs the page's token: log in at /login, or send it as Authorization: Bearer")


def is_same_origin(headers: Headers, method: str) -> bool:
    """Whether a request comes from the page itself, from no page at all, or by a link to the page.

    Args:
        headers: The request's.
        method: The request's.
    """
    origin = headers.get("origin")
    host = headers.get("host", "").lower()
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        return False
    site = headers.get("sec-fetch-site", "none")
    if site in ("none", "same-origin"):
        return True
    # A link, in a chat or on another page, that is shared: it shows the page, and hands nothing to whoever has it.
    return (
        method in SAFE and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def bearer_of(headers: Headers) -> str | None:
    """The token in the header Authorization, if there is one."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def cookie_of(scope: Scope) -> str:
    """The name of the cookie: a browser sends those of all ports of a host to each of them (RFC 6265, section 8.5)."""
    port = port_in(Headers(scope=scope).get("host", ""))
    return f"qx-page-{port or (443 if scope['scheme'] == 'https' else 80)}"


def session_of(scope: Scope) -> str:
    """What a browser shows that has given the token, or ""."""
    try:
        found = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(cookie_of(scope))
    except CookieError:
        return ""
    return found.value if found else ""


def refuse(status: int, sentence: str) -> Response:
    """An answer that says what is the matter."""
    return JSONResponse({"error": sentence}, status)
