"""The way to an instance: its name, its credentials, and the service as the watcher's `remote` speaks to it."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from typing import Any
from urllib.parse import urlsplit

from ..watcher import ledger, protocol, remote

_remotes: weakref.WeakKeyDictionary[Any, remote.Remote] = weakref.WeakKeyDictionary()
_accounts: dict[tuple[str, ...], str] = {}
_naming = threading.Lock()


def account_name(client: Any) -> str:
    """A name for the client's account and the way to it, the same for the same, that tells nothing of them."""
    session, auth = client._session, client._session.auth
    way = (auth.tm.url, repr(session.proxies), repr(session.verify))
    with _naming:
        return _accounts.setdefault((session.base_url, auth.crn or "", auth.api_key, *way), f"a{len(_accounts)}")


def job_url(client: Any, job_id: str) -> str:
    """A job's page, for people; "" where the service is not IBM's own."""
    host = urlsplit(client._session.base_url).hostname or ""
    return f"https://quantum.cloud.ibm.com/jobs/{job_id}" if host.endswith("cloud.ibm.com") else ""


def clients_of(service: Any) -> list[Any]:
    """The official REST clients of a service, one per instance."""
    return list(getattr(service, "_api_clients", {}).values())


def address(client: Any) -> tuple[str, str]:
    """A client's endpoint, as the ledger writes it down, and its instance."""
    session = client._session
    return ledger.safe_endpoint(session.base_url), session.auth.crn or ""


def credentials(client: Any, *, fetch: bool = True) -> protocol.Credentials:
    """How the client reaches its service, with a token that is valid now, or "" where there is none to be had.

    Args:
        client: The official REST client.
        fetch: Whether to fetch a token where there is none. That may take a minute.
    """
    session = client._session
    manager = session.auth.tm
    try:
        token = _token(manager) if fetch or _is_good(manager) else ""
    except Exception:  # noqa: BLE001 - the watcher tries by itself, and says why it can't
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


_fetching = threading.Lock()


def _token(manager: Any) -> str:
    if not _is_good(manager):
        with _fetching:  # one fetches: a thousand runs may find it expired at the same moment
            if not _is_good(manager):
                # Not get_token(): for a minute after a failure that one only waits.
                manager._save_token_info(manager.request_token())
    return str(manager.access_token)


def _is_good(manager: Any) -> bool:
    return bool(manager.access_token) and manager.expire_time > time.time() + 60


# A forked child must not write on its parent's connections, nor wait for one of its parent's threads.
os.register_at_fork(after_in_child=_remotes.clear)
os.register_at_fork(after_in_child=_fetching._at_fork_reinit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_naming._at_fork_reinit)  # type: ignore[attr-defined]


def remote_of(client: Any) -> remote.Remote:
    """The service as `watcher.remote` speaks to it, with the token of the user's own service."""
    known = _remotes.get(client)
    if known is None:
        auth = client._session.auth
        how = protocol.Credentials(
            endpoint=client._session.base_url,
            instance=auth.crn or "",
            iam_url=auth.tm.url,
            api_key="",
            verify=bool(client._session.verify),
            proxies=dict(client._session.proxies) or None,
        )
        known = remote.Remote(how, functools.partial(_authorization, auth), functools.partial(_renew, auth))
        _remotes[client] = known
    return known


def server_clock(client: Any, seconds: float) -> float | None:
    """The time at the service, in seconds since the epoch, to a second; None where it does not tell within so many."""
    import email.utils

    import requests

    session = client._session
    try:
        asked = time.time()
        reply = requests.head(
            session.base_url, timeout=seconds, proxies=session.proxies, verify=session.verify, allow_redirects=False
        )
        took = time.time() - asked
        then = email.utils.parsedate_to_datetime(reply.headers.get("Date", ""))
    except (requests.RequestException, OSError, ValueError):
        return None
    return then.timestamp() + took / 2


class NoToken(remote.Transient):
    """A request has not left, because there is no token for it now."""


def need_token(auth: Any) -> None:
    """See that there is a token, before the client asks for one in its own way.

    For a minute after a failure that way is to wait, and then to present the bare key, which is refused.

    Raises:
        NoToken: The token service is out of order. Where it refuses, the client hears of that by itself.
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
        message = remote.token_service(error)
        if 400 <= code < 500 and code != 429:
            raise remote.Refused(message, code) from None
        raise remote.Transient(message, code) from None
    except Exception as error:  # noqa: BLE001 - IBM's library stumbles over answers of another form, too
        raise remote.Transient(f"the token service could not be asked ({type(error).__name__})") from None


def _renew(auth: Any) -> None:
    auth.tm.expire_time = auth.tm.request_time = 0
    _authorization(auth)
