"""Leads older clients to the embedded service.

Its hosts don't resolve: a client reaches them by its proxy, and learns from ``IAM_URL`` which is the token service's.
Qiskit's client before 0.49 reads no such variable; before 0.44 it asks the token service without the proxy, and before
0.47 the catalogue of instances. It is given what it lacks, for accounts at the embedded service and for no others.
"""

from __future__ import annotations

import functools
import importlib
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from .records import HOST

_proxies: ContextVar[dict[str, str] | None] = ContextVar("qx_local_proxies", default=None)
"""The proxies of the account whose instances are being listed."""


def reach() -> None:
    """Have this process's client reach the embedded service, if by itself it would not."""
    parameters = importlib.import_module("qiskit_ibm_runtime.api.client_parameters").ClientParameters
    if hasattr(parameters.get_auth_handler, "__wrapped__"):
        return
    parameters.get_auth_handler = _by_the_proxy(parameters.get_auth_handler)
    accounts: Any = importlib.import_module("qiskit_ibm_runtime.accounts.account")
    kind = getattr(accounts, "CloudAccount", accounts.Account)
    if not hasattr(kind, "_get_proxies_kwargs"):
        kind.list_instances = _knowing_proxies(kind.list_instances)
        accounts.IAMAuthenticator = _authenticator(accounts.IAMAuthenticator)
        for name in ("GlobalSearchV2", "GlobalCatalogV1"):
            setattr(accounts, name, _catalogue(getattr(accounts, name)))


def _is_ours(url: str | None) -> bool:
    return f".{urlsplit(url or '').hostname}".endswith(f".{HOST}")


def _by_the_proxy(get_auth_handler: Any) -> Any:
    """Wrap the method that makes what fetches tokens."""

    @functools.wraps(get_auth_handler)
    def get(parameters: Any) -> Any:
        handler = get_auth_handler(parameters)
        if _is_ours(parameters.url) and not _is_ours(handler.tm.url):
            handler.tm.url = f"{urlsplit(parameters.url).scheme}://iam.{HOST}"
            if parameters.proxies is not None:
                handler.tm.set_proxies(parameters.proxies.to_request_params()["proxies"])
        return handler

    return get


def _knowing_proxies(list_instances: Any) -> Any:
    @functools.wraps(list_instances)
    def listing(account: Any) -> Any:
        ours = _is_ours(account.url) and account.proxies is not None
        token = _proxies.set(account.proxies.to_request_params()["proxies"] if ours else None)
        try:
            return list_instances(account)
        finally:
            _proxies.reset(token)

    return listing


def _authenticator(kind: Any) -> Any:
    def make(*arguments: Any, **more: Any) -> Any:
        return kind(*arguments, **more, **({} if (found := _proxies.get()) is None else {"proxies": found}))

    return make


def _catalogue(kind: Any) -> Any:
    def make(*arguments: Any, **more: Any) -> Any:
        made = kind(*arguments, **more)
        if (found := _proxies.get()) is not None:
            made.set_http_config({"proxies": found})
        return made

    return make
