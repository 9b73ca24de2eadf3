"""The part of IBM Quantum's REST interface that a cancel needs, over the official client's own HTTP library.

Both processes use it: the watcher with a token of its own, the driver with the token of the user's service. It retries
nothing by itself; `Transient` says what is worth another try, and when.

Source of the interface: https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest, and qiskit_ibm_runtime.api 0.51.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import connections, service_messages
from .connections import Connections
from .facts import End
from .protocol import Credentials

if TYPE_CHECKING:
    import requests

Json = dict[str, Any]
"""An object in an answer of the service."""

Query = Mapping[str, str | int | list[str]]

PAGE = 200  # the most jobs that the service lists at once
EXTRA_PAGES = 2  # read beyond the fewest that could list all jobs that are asked for
API_VERSION = "2026-04-15"  # that of the official client, 0.51
WORKLOADS_PAGE = 50  # the most workloads that the service lists at once
MOST_WORKLOAD_PAGES = 20  # of sessions that are open at the same time; a cursor that leads in a circle ends there
CONNECTIONS = connections.SIZE
CONNECT_TIMEOUT = connections.CONNECT_TIMEOUT
READ_TIMEOUT = 30.0  # the official client has none: a server that stops answering would block it for ever
TOKEN_PATH = "/identity/token"  # noqa: S105 - https://cloud.ibm.com/apidocs/iam-identity-token-api
LONGEST_CLOSED = 60.0  # for which one `Retry-After` holds back all other requests
LONGEST_RETRY_AFTER = 3600.0  # a longer one is taken for a mistake; "inf" is a number too
RAN_TOO_LONG = 1305  # reason code of a job that the service cancelled at its maximum execution time


class RemoteError(Exception):
    """The service refused, for good. Its text holds no header and no key.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Transient(RemoteError):
    """The service could not be asked; another try may succeed.

    Attributes:
        retry_after: Seconds that the service asks to wait, or None.
        was_closed: Whether the connection was closed when an answer was due, as happens to one that was idle for a
            minute.
    """

    def __init__(
        self, message: str, status: int = 0, retry_after: float | None = None, *, was_closed: bool = False
    ) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after
        self.was_closed = was_closed


class Refused(RemoteError):
    """The credentials are not accepted (any more)."""


@dataclass(frozen=True)
class JobState:
    """A job as the service describes it.

    Attributes:
        status: The service's word: "Queued", "Running", "Completed", "Failed", "Cancelled", "Cancelled - ...".
        reason: Why it failed or was cancelled, or "".
        code: The service's reason code, or None.
        reply: The whole answer.
    """

    status: str
    reason: str
    code: int | str | None
    reply: Json

    @classmethod
    def from_reply(cls, reply: Json) -> JobState:
        """Read the answer to GET /jobs/{id}, or an item of GET /jobs."""
        state = reply.get("state")
        if not isinstance(state, dict):
            state = {}
        code = service_messages.code(state.get("reason_code") or state.get("reasonCode"))
        return cls(str(state.get("status") or reply.get("status") or ""), str(state.get("reason") or ""), code, reply)

    @property
    def solution(self) -> str:
        """What the service advises, or ""."""
        state = self.reply.get("state")
        found = (state.get("reason_solution") or state.get("reasonSolution")) if isinstance(state, dict) else None
        return found if isinstance(found, str) else ""

    @property
    def ran_too_long(self) -> bool:
        """Whether the service ended it at its maximum execution time. Not every answer has the code."""
        text = f"{self.status} {self.reason} {self.reply.get('status') or ''}".lower()
        return self.code == RAN_TOO_LONG or "ran too long" in text

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled: "Cancelled", "Cancelled - Ran too long" and so on."""
        return self.status.lower().startswith("cancelled")

    @property
    def is_completed(self) -> bool:
        """Whether there are results to fetch."""
        return self.status.lower() == "completed"

    @property
    def is_final(self) -> bool:
        """Whether its state will not change any more."""
        return self.is_cancelled or self.is_completed or self.status.lower() == "failed"

    @property
    def end(self) -> End:
        """How it ended, where nobody here has cancelled it."""
        if self.is_completed:
            return End("finished")
        if self.is_cancelled and not self.ran_too_long:
            return End("cancelled", "someone else", reason=self.reason)
        return End("cancelled" if self.is_cancelled else "failed", "IBM", reason=self.reason or self.status)


class Token:
    """A bearer token, which is renewed when it has expired.

    One thread at a time asks the token service, which may hang. Whoever needs no new token does not wait for it: the
    watcher's loop neither, which hands over what it is sent.

    Args:
        credentials: Whose token it is. The token in them is used first.
        way: The connections to the token service; None for some of its own.
    """

    def __init__(self, credentials: Credentials, way: Connections | None = None) -> None:
        self._credentials = credentials
        self._connections = way or Connections(credentials)
        self._fetching = threading.Lock()
        self._lock = threading.Lock()  # of the two that follow; held for no longer than it takes to read or set them
        self._token = credentials.token
        self._expires = credentials.token_expires

    def __repr__(self) -> str:
        return "Token()"

    def header(self) -> str:
        """The value of the `Authorization` header.

        Raises:
            Refused: If the token service does not accept the key.
            Transient: If it could not be asked.
        """
        if not (token := self._valid()):
            with self._fetching:
                token = self._valid() or self._fetch()
        return f"Bearer {token}"

    def offer(self, credentials: Credentials) -> None:
        """Use the token in some credentials, which are the same but for it, if it is valid for longer."""
        with self._lock:
            if credentials.token and credentials.token_expires > (self._expires if self._token else 0.0):
                self._token, self._expires = credentials.token, credentials.token_expires

    def seconds_left(self) -> float:
        """How long the token is still valid."""
        with self._lock:
            return self._expires - time.time() if self._token else 0.0

    def _valid(self) -> str:
        """The token, or "" if there is none that is valid."""
        with self._lock:
            return self._token if self._expires > time.time() else ""

    def renew(self) -> None:
        """Fetch a new token: the service refused the old one, or it is about to expire.

        Raises:
            Refused: If the token service does not accept the key.
            Transient: If it could not be asked.
        """
        with self._fetching:
            self._fetch()

    def _fetch(self) -> str:
        # By a request of our own, not IBM's library: that would read the certificates' file for each.
        how = self._credentials
        asked = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "response_type": "cloud_iam"}
        asked["apikey"] = how.api_key
        url = how.iam_url.rstrip("/").removesuffix(TOKEN_PATH) + TOKEN_PATH
        try:
            answer = self._connections.request(
                "POST", url, READ_TIMEOUT, data=asked, headers={"Accept": "application/json"}
            )
        except Exception as error:  # noqa: BLE001 - its text may quote a proxy's password
            raise Transient(f"the token service could not be asked ({type(error).__name__})") from None
        status = answer.status_code
        if not 200 <= status < 300:
            message = token_service(status, answer.text)
            if 400 <= status < 500 and status not in (408, 429):
                raise Refused(message, status)
            raise Transient(message, status)
        try:
            reply = answer.json()
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Transient("the token service's answer was no JSON object")
        token, lifetime = reply.get("access_token"), reply.get("expires_in")
        if not isinstance(token, str) or not token:
            raise Transient("the token service's answer held no token")
        # Not "expiration", which is by another clock: if ours were ahead of it, each request would fetch a token.
        if not isinstance(lifetime, int | float) or not 0 < lifetime < 86400:
            lifetime = 600.0
        with self._lock:
            self._token, self._expires = token, time.time() + lifetime
        return token


class Remote:
    """One instance of the service.

    Args:
        credentials: How it is reached. Only `Token` uses the key in them.
        authorization: Returns the `Authorization` header, or raises `RemoteError`.
        renew: Called after the service refused the header, before another try.
        way: The connections to the service; None for some of its own.

    Attributes:
        renewals: How often the token was renewed.
    """

    def __init__(
        self,
        credentials: Credentials,
        authorization: Callable[[], str],
        renew: Callable[[], None],
        way: Connections | None = None,
    ) -> None:
        self._endpoint = credentials.endpoint.rstrip("/")
        self._instance = credentials.instance
        self._connections = way or Connections(credentials)
        self._authorization = authorization
        self._renew = renew
        self._renewing = threading.Lock()
        self.renewals = 0
        self._closed_until = 0.0

    def __repr__(self) -> str:
        return f"Remote({self._endpoint!r})"

    def renew(self, known: int | None = None) -> None:
        """Get a new token.

        Args:
            known: `renewals` when the refused token was in use: if there is a newer one already, nothing is done. When
                a token is void, a thousand requests may be refused at the same moment.

        Raises:
            RemoteError: If there is no new token.
        """
        with self._renewing:
            if known is None or known == self.renewals:
                self._renew()
                self.renewals += 1

    def seconds_closed(self) -> float:
        """The seconds that remain of the last `Retry-After`, whichever request was answered so; 0 if there is none."""
        return max(0.0, self._closed_until - time.monotonic())

    def cancel(self, job: str) -> int:
        """Request a job's cancel: 204 accepted, 404 unknown, 409 can't be cancelled (any more)."""
        return self._request("POST", f"/jobs/{job}/cancel", accept=(404, 409)).status_code

    def job(self, job: str) -> JobState:
        """Read a job."""
        reply = self._object(self._request("GET", f"/jobs/{job}", {"exclude_params": "true"}))
        state = JobState.from_reply(reply)
        # A gateway may answer with a status "failed" of its own, which names no job, and has no state as jobs have one.
        is_about_it = reply["id"] == job if "id" in reply else isinstance(reply.get("state"), dict)
        if not is_about_it or not state.status:
            raise Transient(f"the service's answer was not about job {job}", 200)
        return state

    def metrics(self, job: str) -> Json:
        """Read a job's place in the queue and its cost."""
        return self._object(self._request("GET", f"/jobs/{job}/metrics"))

    def results(self, job: str) -> str:
        """Fetch the results of a completed job, as the service encodes them."""
        return self._request("GET", f"/jobs/{job}/results").text

    def backends(self) -> list[Json]:
        """Read the backends of the instance: their names, sizes, queues and states."""
        devices = self._versioned("/backends").get("devices")
        if not isinstance(devices, list):
            raise Transient("the service's answer was no list of backends", 200)
        return [device for device in devices if isinstance(device, dict) and isinstance(device.get("name"), str)]

    def backend_properties(self, backend: str) -> Json:
        """Read what was measured of a backend at its last calibration."""
        return self._versioned(f"/backends/{backend}/properties")

    def backend_status(self, backend: str) -> Json:
        """Read whether a backend runs the jobs in its queue."""
        return self._object(self._request("GET", f"/backends/{backend}/status"))

    def usage(self) -> Json:
        """Read how much of its time the instance has used."""
        return self._object(self._request("GET", "/instances/usage"))

    def close_session(self, session: str) -> None:
        """Close a session: its queued jobs are dropped, its running ones finish, and it takes no other.

        Raises:
            RemoteError: If it may be open. A 404 alone proves nothing: the request may have gone to the wrong place, or
                something on the way answered it.
        """
        reply = self._request("DELETE", f"/sessions/{session}/close", accept=(404, 409))
        if reply.status_code == 404:
            known = self._object(self._request("GET", f"/sessions/{session}"))
            if str(known.get("state")).lower() != "closed":
                raise Transient("the service does not know this session, and says that it is open", 404)

    def end_session(self, session: str) -> None:
        """Have a session take no more jobs: it ends with those that are in it. One that has ended refuses."""
        self._request("PATCH", f"/sessions/{session}", accept=(400, 404, 409), body={"accepting_jobs": False})

    def session(self, session: str) -> Json:
        """Read a session or batch."""
        return self._versioned(f"/sessions/{session}")

    def open_workloads(self, mode: str, *, mine: bool = False) -> list[Json]:
        """List the sessions or batches of the instance that are not over.

        Args:
            mode: "session" or "batch".
            mine: Only those of the user.
        """
        asked: dict[str, str | int | list[str]] = {
            "mode": mode,
            "status": ["pending", "in_progress"],
            "sort": "-createdAt",
            "limit": WORKLOADS_PAGE,
        }
        if mine:
            asked["user"] = "me"
        found: dict[str, Json] = {}
        for _ in range(MOST_WORKLOAD_PAGES):
            reply = self._versioned("/workloads", asked)
            page = reply.get("workloads")
            if not isinstance(page, list) or not all(_is_job(item) for item in page):
                raise Transient("the service's answer was no list of workloads", 200)
            # Whether a service heeds the filters is seen in what it lists.
            found.update((item["id"], item) for item in page if item.get("mode") == mode and not item.get("ended"))
            following = reply.get("next")
            cursor = _cursor(following.get("href")) if isinstance(following, dict) else ""
            if not cursor:
                break
            asked["next"] = cursor
        return list(found.values())

    def recent_jobs(self, created_after: str) -> list[Json]:
        """List the jobs that were submitted since a moment, the newest first; of a great many, the newest only.

        Args:
            created_after: The moment, as in 2026-01-31T12:00:00Z.
        """
        pages = itertools.islice(self._pages({"created_after": created_after}), EXTRA_PAGES)
        return [item for page in pages for item in page]

    def unfinished_jobs(self, *, tag: str = "", session: str = "") -> dict[str, JobState]:
        """The states of the jobs that are not final, of the whole instance if neither tag nor session is named.

        For people to choose from: a program that cancels by a list names what it means (`unfinished`).
        """
        return {job: JobState.from_reply(item) for job, item in self._listed(tag, session).items()}

    def unfinished(self, *, tag: str = "", session: str = "") -> tuple[str, ...]:
        """The ids of the jobs under a tag, or in a session, that are not final.

        Raises:
            ValueError: If neither is named: that would list all unfinished jobs of the account.
        """
        return tuple(self._unfinished(tag, session))

    def tagged(self, tag: str) -> dict[str, JobState]:
        """The states of all jobs under a tag, final or not."""
        found: dict[str, JobState] = {}
        for page in self._pages({"tags": tag}):
            found.update((item["id"], JobState.from_reply(item)) for item in page if _is_wanted(item, tag, ""))
        return found

    def unfinished_states(self, tag: str) -> dict[str, JobState]:
        """The states of all jobs under a tag that are not final."""
        return {job: JobState.from_reply(item) for job, item in self._unfinished(tag, "").items()}

    def unfinished_by_tag(self, tag: str) -> dict[str, tuple[str, ...]]:
        """The ids of the jobs under a tag that are not final, by each of their tags."""
        found: dict[str, tuple[str, ...]] = {}
        for job, item in self._unfinished(tag, "").items():
            tags = item.get("tags")
            if not isinstance(tags, list):
                raise Transient("the service's list of jobs names no tags", 200)
            for each in tags:
                found[each] = (*found.get(each, ()), job)
        return found

    def states(self, tag: str, jobs: Collection[str]) -> dict[str, JobState]:
        """The states of jobs that share a tag. One that is far down in the service's list may be missing."""
        wanted = set(jobs)
        found: dict[str, JobState] = {}
        pages = len(wanted) // PAGE + EXTRA_PAGES
        for page in itertools.islice(self._pages({"tags": tag}), pages):
            found.update((item["id"], JobState.from_reply(item)) for item in page if item["id"] in wanted)
            if len(found) == len(wanted):
                break
        return found

    def _unfinished(self, tag: str, session: str) -> dict[str, Json]:
        if not tag and not session:
            raise ValueError("neither a tag nor a session is named")
        return self._listed(tag, session)

    def _listed(self, tag: str, session: str) -> dict[str, Json]:
        query = {"pending": "true"} | ({"tags": tag} if tag else {}) | ({"session_id": session} if session else {})
        seen: dict[str, Json | None] = {}  # None: not one that was asked for
        for page in self._pages(query):
            known = len(seen)
            for item in page:
                is_wanted = _is_wanted(item, tag, session) and not JobState.from_reply(item).is_final
                seen[item["id"]] = item if is_wanted else None
            # The list may shrink between two pages. The next sweep finds the jobs that were skipped then.
            if len(seen) == known:
                break
        return {job: item for job, item in seen.items() if item is not None}

    def _pages(self, query: Query) -> Iterator[list[Json]]:
        offset = 0
        while True:
            asked = {"exclude_params": "true", "limit": PAGE, "offset": offset, **query}
            page = self._object(self._request("GET", "/jobs", asked)).get("jobs")
            # An empty list ends a sweep, so nothing else may be taken for one.
            if not isinstance(page, list) or not all(_is_job(item) for item in page):
                raise Transient("the service's answer was no list of jobs", 200)
            yield page
            offset += len(page)
            if len(page) < PAGE:
                return

    def _versioned(self, path: str, query: Query | None = None) -> Json:
        """Read what has another form in another version of the API: without one, a list of backends is one of names."""
        return self._object(self._request("GET", path, query, version=API_VERSION))

    def _request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        accept: tuple[int, ...] = (),
        *,
        body: dict[str, bool] | None = None,
        version: str = "",
    ) -> requests.Response:
        import requests
        import urllib3

        headers = {"Authorization": self._authorization(), "Service-CRN": self._instance, "Accept": "application/json"}
        if version:
            headers["IBM-API-Version"] = version
        try:
            reply = self._connections.request(
                method, self._endpoint + path, READ_TIMEOUT, params=query, json=body, headers=headers
            )
        except (requests.RequestException, OSError, ValueError) as error:
            # Its text may quote a proxy's password.
            was_closed = bool(error.args) and isinstance(error.args[0], urllib3.exceptions.ProtocolError)
            raise Transient(f"{method} {_shape(path)}: {type(error).__name__}", was_closed=was_closed) from None
        status = reply.status_code
        if status < 300 or status in accept:
            return reply
        message = f"{method} {_shape(path)}: {service_messages.answered(status, reply.text)}"
        if status == 401:
            raise Refused(message, status)
        # The service itself never redirects: a network's login page does, for instance.
        if status in (408, 425, 429) or status >= 500 or status < 400:
            pause = retry_after(reply.headers.get("Retry-After"))
            self._closed_until = max(self._closed_until, time.monotonic() + min(pause or 0.0, LONGEST_CLOSED))
            raise Transient(message, status, pause)
        raise RemoteError(message, status)

    @staticmethod
    def _object(reply: requests.Response) -> Json:
        try:
            value = reply.json()
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Transient("the service's answer was no JSON object", reply.status_code)
        return value

    def open(self) -> requests.Session:
        """Get ready for the first request, with all that requests will ever need of files.

        Raises:
            Transient: If the CA certificates can't be read.
        """
        try:
            return self._connections.open()
        except OSError as error:
            what = error.filename or error  # OpenSSL names no file, but says what is wrong with it
            raise Transient(f"the CA certificates can't be read: {what} ({type(error).__name__})") from None

    def keep_warm(self) -> None:
        """Keep a connection to the service open from now on, so that the next request takes half a round trip."""
        self._connections.keep_warm()


def watcher_remote(credentials: Credentials, size: int = CONNECTIONS) -> tuple[Remote, Token]:
    """A `Remote` that fetches its tokens itself, with so many connections at most."""
    way = Connections(credentials, size)
    token = Token(credentials, way)
    return Remote(credentials, token.header, token.renew, way), token


def token_service(status: int, text: str) -> str:
    """What the token service answered, in words."""
    return f"the token service answered {service_messages.status_and_words(status, text)}"


def retry_after(value: str | None) -> float | None:
    """The seconds of a `Retry-After` header, which may be a date (RFC 9110, 10.2.3); None if there are none."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, min(LONGEST_RETRY_AFTER, seconds))


def _cursor(address: object) -> str:
    """The cursor in the address of the next page, or ""."""
    from urllib.parse import parse_qs, urlsplit

    return parse_qs(urlsplit(address).query).get("next", [""])[0] if isinstance(address, str) else ""


def _is_job(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str)


def _is_wanted(item: Json, tag: str, session: str) -> bool:
    """Whether a listed job is one that was asked for.

    To trust the service's filter alone is to cancel all jobs of the account on the day that a gateway drops the query.
    """
    tags, its_session = item.get("tags"), item.get("session_id")
    if tag and isinstance(tags, list) and tag not in tags:
        return False
    return not (session and isinstance(its_session, str) and its_session != session)


def _shape(path: str) -> str:
    return "/".join(path.split("/")[:4])
