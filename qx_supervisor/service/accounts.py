"""The user's saved accounts."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from .. import forks
from ..errors import ConfigError, RunError
from . import saved_accounts
from .access import address, clients_of
from .failures import describe
from .outages import Unreachable, outage

logger = logging.getLogger("qx_supervisor")

NONE_SAVED = (
    "no IBM Quantum account is saved; save one with QiskitRuntimeService.save_account(token=..., instance=...), or "
    "pass service=..."
)

_default_lock = forks.make_lock()
_default: tuple[Any, Any] | None = None  # what the service was made from, and the service


def default_service(instance: str | None = None) -> Any:
    """The user's saved account, as a `QiskitRuntimeService`; made once, and again when the saved accounts change.

    Args:
        instance: The instance to use, instead of the saved one.

    Raises:
        RunError: There is no account, or it can't be used.
    """
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.accounts import AccountNotFoundError

    global _default  # noqa: PLW0603 - one per process, under a lock
    file = saved_accounts.file()
    stamp = file.stat().st_mtime_ns if file.exists() else 0
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith("QISKIT_IBM")))
    made_from = (os.getpid(), stamp, environment, instance)
    with _default_lock:
        if _default is None or _default[0] != made_from:
            try:
                _default = (made_from, qiskit_ibm_runtime.QiskitRuntimeService(instance=instance))
            except AccountNotFoundError:
                raise ConfigError("config", saved_accounts.fault() or NONE_SAVED) from None
            except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
                if found := saved_accounts.fault():
                    raise ConfigError("config", found) from None
                if outage(error) is not None:
                    raise Unreachable(
                        "backend", "IBM Quantum can't be reached; check the network and its proxy, and try again"
                    ) from None
                raise RunError("auth", f"the saved IBM Quantum account can't be used: {describe(error)}") from None
        return _default[1]


def every_service() -> list[Any]:
    """All saved accounts, the default one first, each as a `QiskitRuntimeService`.

    Raises:
        RunError: There is no account, or the default one can't be used.
    """
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.accounts import AccountManager

    services = [default_service()]
    known = {address(client) for client in clients_of(services[0])}
    for name in AccountManager.list():
        try:
            service = qiskit_ibm_runtime.QiskitRuntimeService(name=name)
        except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
            logger.warning("the saved account %r can't be used: %s", name, describe(error))
            continue
        found = {address(client) for client in clients_of(service)}
        if not found <= known:
            services.append(service)
            known |= found
    return services


@dataclass(frozen=True)
class Account:
    """The user's account without its key.

    Attributes:
        source: "environment" or "file".
        channel: The channel.
        url: IBM Cloud's address.
        instance: The instance's CRN or name, or "".
    """

    source: str
    channel: str
    url: str
    instance: str


def saved_account() -> Account | None:
    """The account that `default_service` would use, without a request; None if there is none."""
    from qiskit_ibm_runtime.accounts import AccountManager, AccountNotFoundError

    try:
        found = AccountManager.get()
    except AccountNotFoundError:
        return None
    source = "environment" if os.environ.get("QISKIT_IBM_TOKEN") else "file"
    return Account(source, found.channel, found.url, found.instance or "")
