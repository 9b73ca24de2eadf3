"""The answers to requests."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import ConfigError
from ..log_tail import chosen
from ..run_fields import fields
from . import totals
from .access import Cancel, Token
from .filters import Filter, page_of
from .gate import FAULT, Gate, cookie_of, refuse, session_of
from .ledgers import Snapshot
from .reader import Reader
from .stream import Listeners

logger = logging.getLogger("qx_supervisor.page")

T = TypeVar("T")

TABS = ("runs", "drivers", "hosts", "leases", "budgets", "deaths")

LARGEST = 4096
"""Bytes of what is sent to us."""

MOST_CANCELS = 4
"""Cancels at one time."""

MOST_LINES = 200
"""Lines of the log that are shown of a run."""

FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript"), "/icon.svg": ("icon.svg", "image/svg+xml")}  # fmt: skip

WRONG = '<p class="trouble" role="alert">{}</p>'


def application(
    reader: Reader,
    listeners: Listeners,
    *,
    names: frozenset[str] = frozenset(),
    token: Token | None = None,
    cancel: Cancel | None = None,
    price: tuple[float, str] | None = None,
) -> ASGIApp:
    """The page, as an ASGI application.

    Args:
        reader: Reads the ledger.
        listeners: Those who listen for news.
        names: The names under which browsers may come, beside IP addresses and "localhost".
        token: What must be given first; None: nothing, and then nothing can be cancelled.
        cancel: Cancels a job; it may take a minute.
        price: What a second of QPU time costs, and the currency.
    """
    answers = _Answers(reader, listeners, token, cancel if token is not None else None, price)
    routes = [
        *(Route(path, _file(name, kind)) for path, (name, kind) in FILES.items()),
        Route("/api/view", answers.view),
        Route("/api/run", answers.run),
        Route("/api/events", answers.events),
        Route("/api/cancel", answers.cancel, methods=["POST"]),
    ]
    if token is not None:
        routes += [
            Route("/login", answers.login, methods=["GET", "POST"]),
            Route("/logout", answers.logout, methods=["POST"]),
        ]
    app = Starlette(routes=routes, exception_handlers={ConfigError: _wrong, HTTPException: _none_such, 500: _fault})
    return Gate(app, names, token)


class _Answers:
    """What is answered."""

    def __init__(
        self,
        reader: Reader,
        listeners: Listeners,
        token: Token | None,
        cancel: Cancel | None,
        price: tuple[float, str] | None,
    ) -> None:
        self._reader = reader
        self._listeners = listeners
        self._token = token
        self._cancel = cancel
        self._price = price
        self._cancelling: set[str] = set()

    async def _snapshot(self) -> Snapshot:
        return await asyncio.wrap_future(self._reader.ask())

    async def view(self, request: Request) -> Response:
        """All that the page shows for its address."""
        query = request.query_params
        wanted, number, tab = Filter.of(query), page_of(query), query.get("tab") or TABS[0]
        if tab not in TABS:
            raise ConfigError("config", f"tab= in the address is one of {', '.join(TABS)}, not {tab[:20]!r}")
        found = await self._snapshot()
        recent = [entry for entry in found.entries if wanted.is_recent(entry, found.now)]
        entries = [entry for entry in recent if wanted.wants(entry)]
        runs = {entry.row.run for entry in entries}
        deaths = [death for death in found.deaths if not runs.isdisjoint(death.runs)]
        match tab:
            case "drivers":
                lines: list[Any] = totals.drivers(entries)
            case "hosts":
                lines = totals.hosts(entries, deaths)
            case "leases":
                lines = totals.leases(entries)
            case "budgets":
                lines = totals.budgets(found.balances)
            case "deaths":
                lines = deaths
            case _:
                lines = list(entries)
        table = totals.page(lines, number)
        if tab in ("runs", "deaths"):
            table["rows"] = [each.cells() for each in table["rows"]]
        return _json(
            {
                "version": found.version,
                "now": found.now,
                "of": self._reader.source.NAME,
                "host": os.uname().nodename,
                "has_token": self._token is not None,
                "may_cancel": self._cancel is not None,
                "trouble": found.trouble,
                "most": len(found.entries) if found.is_cut else None,
                "price": self._price,
                "counts": totals.counts(entries, deaths),
                "plots": totals.plots(entries, deaths, wanted.since, found.now),
                "choices": totals.choices(recent),
                "tab": tab,
                "table": table,
            }
        )

    async def run(self, request: Request) -> Response:
        """All that is known of a run."""
        name = request.query_params.get("run", "")
        found = await self._snapshot()
        entry = next((entry for entry in found.entries if entry.row.run == name), None)
        if entry is None:
            return refuse(404, "the ledger has no such run any more: reload the page")
        lines = list(map(dict, found.lines))
        wants = chosen(name, lines)
        return _json(
            {
                "run": fields(entry.row, entry.state),
                "cancel": entry.unfinished_jobs if self._cancel is not None else [],
                "cancelling": sorted(self._cancelling & {*entry.row.jobs}),
                "log": [line for line in lines if wants(line)][-MOST_LINES:],
            }
        )

    async def events(self, _: Request) -> Response:
        """Tell that something has changed, whenever it does."""
        if self._listeners.is_full:
            return refuse(503, "too many listen already: this page asks every ten seconds instead")
        return StreamingResponse(self._listeners.listen(), media_type="text/event-stream")

    async def cancel(self, request: Request) -> Response:
        """Cancel a job, and wait for confirmation."""
        if self._cancel is None:
            return refuse(
                403, "the page is read-only: start it with a token (QX_PAGE_TOKEN or --token-file) to cancel jobs"
            )
        try:
            job = json.loads(await _body(request, "application/json"))["job"]
        except (ValueError, TypeError, KeyError):
            return refuse(400, 'a cancel names its job: {"job": "d1a2b3..."}')
        found = await self._snapshot()
        if not any(job in entry.unfinished_jobs for entry in found.entries):
            return refuse(404, "no such job is in flight: reload the page")
        if job in self._cancelling:
            return refuse(409, f"job {job} is being cancelled already: wait for that")
        if len(self._cancelling) >= MOST_CANCELS:
            return refuse(503, "other jobs are being cancelled: try again in a moment")
        self._cancelling.add(job)
        logger.info("job %s: its cancel is asked for on the page", job, extra={"event": "page cancel", "job": job})
        try:
            done = _in_thread(self._cancel, job)
            ending = asyncio.ensure_future(self._listeners.is_over.wait())
            either: set[asyncio.Future[Any]] = {done, ending}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if not done.done():
                return refuse(503, f"the page ends: see what became of job {job} with qx-supervisor status {job}")
            outcome, sentence = done.result()
        except Exception as error:  # noqa: BLE001 - the account, the network, Qiskit's client: all in a sentence
            outcome, sentence = "unconfirmed", " ".join(str(error).split()) or type(error).__name__
        finally:
            self._cancelling.discard(job)
        logger.info("job %s: %s: %s", job, outcome, sentence, extra={"event": f"page job {outcome}", "job": job})
        return _json({"job": job, "outcome": outcome, "sentence": sentence})

    async def login(self, request: Request) -> Response:
        """Ask for the token, and remember the browser that gives it."""
        assert self._token is not None
        query = request.url.query
        home = f"/?{query}" if query else "/"
        if request.method != "POST":
            if self._token.is_session(session_of(request.scope)):
                return RedirectResponse(home, 303)
            return _login_page("")
        if "origin" not in request.headers:
            return refuse(403, "log in with a browser, or send the token as Authorization: Bearer")
        given = parse_qs(await _body(request, "application/x-www-form-urlencoded")).get("token", [""])[0]
        if not self._token.is_right(given.strip()):
            if self._token.is_closed:
                return _login_page("Too many wrong tokens: wait a minute, and try again.", 429)
            return _login_page("That is not the token of this page: copy it from where the page was started.", 401)
        answer = RedirectResponse(home, 303)
        answer.set_cookie(
            cookie_of(request.scope),
            self._token.begin_session(),
            httponly=True,
            samesite="strict",
            secure=request.headers["origin"].startswith("https:"),
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Forget the browser."""
        assert self._token is not None
        self._token.end_session(session_of(request.scope))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(cookie_of(request.scope), httponly=True, samesite="strict")
        return answer


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    content = _read(name)

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _read(name: str) -> bytes:
    return (importlib.resources.files(__package__) / "static" / name).read_bytes()


def _login_page(trouble: str, status: int = 200) -> Response:
    text = _read("login.html").decode().replace("<!--trouble-->", WRONG.format(trouble) if trouble else "")
    return Response(text, status, media_type="text/html")


def _json(content: Mapping[str, Any]) -> Response:
    return Response(json.dumps(content, ensure_ascii=False, separators=(",", ":")), media_type="application/json")


async def _body(request: Request, kind: str) -> str:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
        raise ConfigError("config", f"send it as {kind}")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST:
            raise ConfigError("config", f"send no more than {LARGEST} bytes")
    return data.decode("utf-8", "replace")


async def _wrong(_: Request, error: Exception) -> Response:
    return refuse(400, str(error))


async def _fault(_: Request, error: Exception) -> Response:  # noqa: ARG001 - whoever let it through logs it
    return refuse(500, FAULT)


async def _none_such(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refuse(error.status_code, "there is no such page: open /")


def _in_thread(work: Callable[[str], T], argument: str) -> asyncio.Future[T]:
    """Call what takes long, in a thread that nobody waits for when the process ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(setter: Callable[..., None], value: object) -> None:
        def set_unless_gone() -> None:
            if not done.done():
                setter(value)

        try:
            loop.call_soon_threadsafe(set_unless_gone)
        except RuntimeError:
            pass  # the server has ended meanwhile

    def body() -> None:
        try:
            result = work(argument)
        except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
            tell(done.set_exception, error)
        else:
            tell(done.set_result, result)

    threading.Thread(target=body, name="qx-page-cancel", daemon=True).start()
    return done
