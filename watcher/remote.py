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

from . import service_messages
from .protocol import Credentials

if TYPE_CHECKING:
    import requests

Json = dict[str, Any]
"""An object in an answer of the service."""

Query = Mapping[str, str | int]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0  # the official client has none: a server that stops answering would block it for ever
PAGE = 200  # the most jobs that the service lists at once
EXTRA_PAGES = 2  # read beyond the fewest that could list all jobs that are asked for
CONNECTIONS = 4  # to one service, at most
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
    """

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


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


class Token:
    """A bearer token, which IBM's own token library renews when it has expired.

    Args:
        credentials: Whose token it is. The token in them is used first.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
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
        with self._lock:
            if self.seconds_left() <= 0:
                self._fetch()
            return f"Bearer {self._token}"

    def seconds_left(self) -> float:
        """How long the token is still valid."""
        return self._expires - time.time() if self._token else 0.0

    def renew(self) -> None:
        """Fetch a new token: the service refused the old one, or it is about to expire.

        Raises:
            Refused: If the token service does not accept the key.
            Transient: If it could not be asked.
        """
        with self._lock:
            self._fetch()

    def _fetch(self) -> None:
        import ibm_cloud_sdk_core

        how = self._credentials
        manager = ibm_cloud_sdk_core.IAMTokenManager(
            how.api_key, url=how.iam_url, disable_ssl_verification=not how.verify, proxies=how.proxies
        )
        manager.http_config = {"timeout": (CONNECT_TIMEOUT, READ_TIMEOUT)}
        try:
            reply = manager.request_token()
        except ibm_cloud_sdk_core.ApiException as error:
            message = token_service(error)
            if error.status_code is not None and 400 <= error.status_code < 500 and error.status_code not in (408, 429):
                raise Refused(message, error.status_code) from None
            raise Transient(message, error.status_code or 0) from None
        except Exception as error:  # noqa: BLE001 - IBM's library fails at answers of another form, too
            raise Transient(f"the token service could not be asked ({type(error).__name__})") from None
        if not isinstance(reply, dict):
            raise Transient("the token service's answer was no JSON object")
        token, lifetime = reply.get("access_token"), reply.get("expires_in")
        if not isinstance(token, str) or not token:
            raise Transient("the token service's answer held no token")
        self._token = token
        # Not "expiration", which is by another clock: if ours were ahead of it, each request would fetch a token.
        if not isinstance(lifetime, int | float) or not 0 < lifetime < 86400:
            lifetime = 600.0
        self._expires = time.time() + lifetime


class Remote:
    """One instance of the service.

    Args:
        credentials: How it is reached. Only `Token` uses the key in them.
        authorization: Returns the `Authorization` header, or raises `RemoteError`.
        renew: Called after the service refused the header, before another try.

    Attributes:
        renewals: How often the token was renewed.
    """

    def __init__(self, credentials: Credentials, authorization: Callable[[], str], renew: Callable[[], None]) -> None:
        self._endpoint = credentials.endpoint.rstrip("/")
        self._instance = credentials.instance
        self._verify = credentials.verify
        self._proxies = credentials.proxies
        self._authorization = authorization
        self._renew = renew
        self._renewing = threading.Lock()
        self.renewals = 0
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
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

    def _request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        accept: tuple[int, ...] = (),
        body: dict[str, bool] | None = None,
    ) -> requests.Response:
        import requests

        headers = {"Authorization": self._authorization(), "Service-CRN": self._instance, "Accept": "application/json"}
        try:
            reply = self.open().request(
                method,
                self._endpoint + path,
                params=query,
                json=body,
                headers=headers,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                allow_redirects=False,
            )
        except (requests.RequestException, OSError, ValueError) as error:
            # Its text may quote a proxy's password.
            raise Transient(f"{method} {_shape(path)}: {type(error).__name__}") from None
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
        """Get ready for the first request."""
        with self._lock:
            if self._session is None:
                import requests
                from requests.adapters import HTTPAdapter

                session = requests.Session()
                adapter = HTTPAdapter(pool_connections=2, pool_maxsize=CONNECTIONS, pool_block=True, max_retries=0)
                session.mount("http://", adapter)
                session.mount("https://", adapter)
                session.verify = self._verify
                session.proxies = dict(self._proxies or {})
                session.auth = _keep_header  # else requests reads .netrc for every request
                self._session = session
            return self._session


def watcher_remote(credentials: Credentials) -> tuple[Remote, Token]:
    """A `Remote` that fetches its tokens itself."""
    token = Token(credentials)
    return Remote(credentials, token.header, token.renew), token


def token_service(error: Any) -> str:
    """What the token service answered, from an `ApiException` of IBM's library."""
    answer = getattr(error, "http_response", None)
    text = answer.text if answer is not None else ""
    return f"the token service answered {service_messages.status_and_words(error.status_code or 0, text)}"


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


def _keep_header(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
