"""How the HTTP library connects: with certificates that are in memory, over connections whose end is noticed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPSConnection
from urllib3.util.proxy import connection_requires_http_tunnel

from . import system
from .certificates import tls, trusted

_OPTIONS = [
    # urllib3's own, except that it does not use it for a proxy.
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A firewall forgets a connection on which nothing is said, and tells nobody. The kernel says something in time, and
    # closes the connection if it gets no answer: without waking this process.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *[
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 20),
            ("TCP_KEEPALIVE", 20),  # the word of macOS for it
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
        )
        if hasattr(socket, name)
    ],
]
if system.HAS_LINUX:
    # A request that nobody acknowledges for that many milliseconds goes over another connection (tcp(7)).
    _OPTIONS.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000))


class Adapter(HTTPAdapter):
    """Connects without reading files.

    Args:
        context: The TLS settings of all connections, those to a proxy too; None if none uses TLS.
        size: Connections to one service, at most.
    """

    def __init__(self, context: ssl.SSLContext | None, size: int) -> None:
        self._context = context
        super().__init__(pool_connections=2, pool_maxsize=size, pool_block=True, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: Any) -> None:
        """See `HTTPAdapter`."""
        super().init_poolmanager(connections, maxsize, block, **self._settings(), **settings)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
        """See `HTTPAdapter`."""
        if proxy in self.proxy_manager:
            return self.proxy_manager[proxy]
        if proxy.lower().startswith("socks"):  # it has pools of its own
            return super().proxy_manager_for(proxy, ssl_context=self._context, **settings)
        manager = super().proxy_manager_for(proxy, proxy_ssl_context=self._context, **self._settings(), **settings)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def _settings(self) -> dict[str, Any]:
        return {"ssl_context": self._context, "socket_options": _OPTIONS}

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave it to the context. The base class looks for the certificates' file."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """See `HTTPAdapter`; a path in `verify` is what the context was made from, and is not read again."""
        host, settings = super().build_connection_pool_key_attributes(request, verify is not False, cert)
        return host, {**settings, "ssl_context": self._context}


class _TlsConnection(HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Whether the peer has not closed it.

        For urllib3, a connection with something to read is at its end. With TLS 1.3 that may be a session ticket, which
        a server sends after the handshake, when nothing has been requested yet.
        """
        return super().is_connected or (self.sock is not None and _is_silent(self.sock))


def _is_silent(connection: Any) -> bool:
    """Whether nothing but TLS's own messages has arrived, which are taken in."""
    timeout = connection.gettimeout()
    connection.settimeout(0)
    try:
        connection.recv(1)
    except ssl.SSLWantReadError:
        return True
    except OSError:
        return False
    else:
        return False  # it is closed, or says that it will be
    finally:
        connection.settimeout(timeout)


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS: dict[str, Any] = {"http": HTTPConnectionPool, "https": _TlsPool}


def make_session(verify: bool, proxies: Mapping[str, str], urls: Iterable[str], size: int) -> requests.Session:
    """A session whose connections need no file.

    Args:
        verify: Whether certificates are verified. `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE` count, as in any session.
        proxies: Proxy URLs by scheme; those of the environment count, too.
        urls: What is to be reached.
        size: Connections to one service, at most.

    Raises:
        OSError: If the CA certificates can't be read.
    """
    session = requests.Session()
    session.verify = verify
    session.proxies = dict(proxies)
    session.auth = _keep_header  # else requests reads .netrc for every request
    context = None
    for url in urls:
        settings = _settings(session, url)
        if any(each.lower().startswith("https:") for each in (url, *settings["proxies"].values())):
            context = tls(trusted(verify))
    adapter = Adapter(context, size)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def connect(session: requests.Session, url: str, seconds: float, *, opens: bool) -> int | None:
    """See that there is an open connection to a URL, on which no request is under way.

    Nothing is requested: browsers open connections in advance, too, and a service bills and limits requests.

    Args:
        session: The session that is to use it.
        url: The URL.
        seconds: How long each step may take.
        opens: Whether one is opened if there is none.

    Returns:
        The connection's descriptor; None if there is none, or all are in use.

    Raises:
        OSError, requests.RequestException, urllib3.exceptions.HTTPError: If there is no way to the service.
    """
    settings = _settings(session, url)
    request = session.prepare_request(requests.Request("POST", url))
    adapter = session.get_adapter(url)
    assert isinstance(adapter, Adapter)
    pool: Any = adapter.get_connection_with_tls_context(request, settings["verify"], settings["proxies"])
    # urllib3 has no public way to connect without a request.
    try:
        connection = pool._get_conn(timeout=0)  # noqa: SLF001 - the last one used, which it has closed if the peer has
    except urllib3.exceptions.EmptyPoolError:
        return None
    try:
        if connection.is_closed:
            if not opens:
                return None
            connection.timeout = seconds
            if pool.proxy is not None and connection_requires_http_tunnel(pool.proxy, pool.proxy_config, pool.scheme):
                pool._prepare_proxy(connection)  # noqa: SLF001
            else:
                connection.connect()
        return int(connection.sock.fileno())
    except BaseException:
        connection.close()
        raise
    finally:
        pool._put_conn(connection)  # noqa: SLF001


def _settings(session: requests.Session, url: str) -> dict[str, Any]:
    """The proxies and the CA certificates of a request, of the session's settings and the environment's."""
    return dict(session.merge_environment_settings(url, {}, None, None, None))


def _keep_header(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
