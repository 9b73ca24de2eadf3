"""Access to an instance: its name, its credentials, and its REST interface by the watcher's `remote`."""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

from .. import forks
from ..watcher import ledger, protocol, remote
from . import internals

_remotes: weakref.WeakKeyDictionary[Any, remote.Remote] = weakref.WeakKeyDictionary()
_accounts: dict[tuple[str, ...], str] = {}
_naming = forks.make_lock()


def account_name(client: Any) -> str:
    """An anonymous name for the client's account and connection, the same for equal ones in this process."""
    session = internals.session_of(client)
    auth = session.auth
    connection = (auth.tm.url, repr(session.proxies), repr(session.verify))
    with _naming:
        return _accounts.setdefault((session.base_url, auth.crn or "", auth.api_key, *connection), f"a{len(_accounts)}")


def job_url(client: Any, job_id: str) -> str:
    """The URL of a job's web page; "" if the service is not IBM's own."""
    host = urlsplit(internals.session_of(client).base_url).hostname or ""
    return f"https://quantum.cloud.ibm.com/jobs/{job_id}" if host.endswith("cloud.ibm.com") else ""


def clients_of(service: Any) -> list[Any]:
    """The official REST clients of a service, one per instance."""
    return list(internals.clients_by_instance(service).values())


def instance_names(service: Any) -> dict[str, str]:
    """The names of the instances of a service, by their CRNs, as far as they are known."""
    with contextlib.suppress(Exception):  # the client raises many kinds of errors
        return {str(each["crn"]): str(each["name"]) for each in service.instances()}
    return {}


def address(client: Any) -> tuple[str, str]:
    """A client's endpoint, without secrets as in the ledger, and its instance."""
    session = internals.session_of(client)
    return ledger.safe_endpoint(session.base_url), session.auth.crn or ""


def credentials(client: Any, *, fetch: bool = True) -> protocol.Credentials:
    """The client's endpoint and credentials, with a valid token, or with "" if none can be obtained.

    Args:
        client: The official REST client.
        fetch: Whether to fetch a token if there is no valid one, which may take a minute.
    """
    session = internals.session_of(client)
    manager = session.auth.tm
    try:
        token = _token(manager) if fetch or _has_valid_token(manager) else ""
    except Exception:  # noqa: BLE001 - the watcher will try again, and report why it fails
        token = ""
    return protocol.Credentials(
        endpoint=session.base_url,
        instance=session.auth.crn or "",
        iam_url=manager.url,
        api_key=session.auth.api_key,
        token=token,
        token_expires=float(manager.expire_time if token else 0),
        verify=bool(session.verify),
        proxies=dict(session.proxies) or None,
    )


_fetching = forks.make_lock()


def _token(manager: Any) -> str:
    if not _has_valid_token(manager):
        with _fetching:  # a thousand runs may find it expired at the same moment, and one fetches
            if not _has_valid_token(manager):
                # Not get_token(), which only waits for a minute after a failure.
                manager._save_token_info(manager.request_token())
    return str(manager.access_token)


def _has_valid_token(manager: Any) -> bool:
    return bool(manager.access_token) and manager.expire_time > time.time() + 60


forks.reset_in_child(_remotes.clear)


def remote_of(client: Any) -> remote.Remote:
    """A client's REST interface by `watcher.remote`, with the token of the user's service object."""
    known = _remotes.get(client)
    if known is None:
        session = internals.session_of(client)
        auth = session.auth
        settings = protocol.Credentials(
            endpoint=session.base_url,
            instance=auth.crn or "",
            iam_url=auth.tm.url,
            api_key="",
            verify=bool(session.verify),
            proxies=dict(session.proxies) or None,
        )
        known = remote.Remote(settings, functools.partial(_authorization, auth), functools.partial(_renew, auth))
        _remotes[client] = known
    return known


def server_clock(client: Any, seconds: float) -> float | None:
    """The service's clock, in seconds since the epoch, to the second; None without an answer within `seconds`."""
    import email.utils

    import requests

    session = internals.session_of(client)
    try:
        began = time.time()
        reply = requests.head(
            session.base_url, timeout=seconds, proxies=session.proxies, verify=session.verify, allow_redirects=False
        )
        took = time.time() - began
        then = email.utils.parsedate_to_datetime(reply.headers.get("Date", ""))
    except (requests.RequestException, OSError, ValueError):
        return None
    return then.timestamp() + took / 2


class NoToken(remote.Transient):
    """A request was not sent, because no token is available now."""


def need_token(auth: Any) -> None:
    """Make sure there is a token before the client needs one.

    Within a minute of a failure the client itself waits, and then sends the bare API key, which is refused.

    Raises:
        NoToken: The token service fails. If it refuses the key, the client finds out by itself.
    """
    try:
        _authorization(auth)
    except remote.Transient as error:
        raise NoToken(str(error), error.status) from None
    except remote.RemoteError:
        pass


def _authorization(auth: Any) -> str:
    import ibm_cloud_sdk_core

    try:
        return f"Bearer {_token(auth.tm)}"
    except ibm_cloud_sdk_core.ApiException as error:
        code = error.status_code or 0
        message = remote.token_service(code, error.http_response.text if error.http_response is not None else "")
        if 400 <= code < 500 and code != 429:
            raise remote.Refused(message, code) from None
        raise remote.Transient(message, code) from None
    except Exception as error:  # noqa: BLE001 - IBM's library fails in many ways on an unexpected answer
        raise remote.Transient(f"the token service could not be asked ({type(error).__name__})") from None


def _renew(auth: Any) -> None:
    auth.tm.expire_time = auth.tm.request_time = 0
    _authorization(auth)
