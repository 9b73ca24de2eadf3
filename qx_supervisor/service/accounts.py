"""The user's saved accounts, or the embedded service in their place."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Any

from .. import forks, settings
from ..errors import ConfigError, RunError
from . import embedded, internals, saved_accounts
from .access import address, clients_of
from .failures import describe
from .outages import Unreachable, outage

logger = logging.getLogger("qx_supervisor")

NONE_SAVED = (
    "no IBM Quantum account is saved; save one with qx-supervisor login, or with "
    "QiskitRuntimeService.save_account(token=..., instance=...), pass service=..., or set QX_LOCAL=1 to use the "
    "embedded service"
)

_default_lock = forks.make_lock()
_defaults: tuple[Any, dict[str | None, Any]] = (None, {})  # what the services were made from; each by its instance


def default_service(instance: str | None = None) -> Any:
    """The user's saved account, as a `QiskitRuntimeService`; for each instance one, until the saved accounts change.

    With `QX_LOCAL` it is the embedded service instead.

    Args:
        instance: The instance to use, by its CRN or name, instead of the saved one.

    Raises:
        RunError: There is no account, or it can't be used.
    """
    if settings.uses_local():
        service = embedded.default_service()
        if instance and not any(instance in (each["crn"], each["name"]) for each in service.instances()):
            raise ConfigError("config", "QX_LOCAL is set, and the embedded service has one instance; name no other one")
        return service
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.exceptions import IBMInputValueError

    global _defaults  # noqa: PLW0603 - one per process, under a lock
    file = saved_accounts.file()
    stamp = file.stat().st_mtime_ns if file.exists() else 0
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith("QISKIT_IBM")))
    made_from = (os.getpid(), stamp, environment)
    with _default_lock:
        if _defaults[0] != made_from:
            _defaults = (made_from, {})
        made = _defaults[1]
        if instance not in made:
            try:
                made[instance] = qiskit_ibm_runtime.QiskitRuntimeService(instance=instance)
            except internals.find("AccountNotFoundError"):
                raise ConfigError("config", saved_accounts.fault() or NONE_SAVED) from None
            except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
                if found := saved_accounts.fault():
                    raise ConfigError("config", found) from None
                if outage(error) is not None:
                    raise Unreachable(
                        "backend", "IBM Quantum can't be reached; check the network and its proxy, and try again"
                    ) from None
                if instance is not None and isinstance(error, IBMInputValueError):
                    raise ConfigError(
                        "config",
                        f"the saved account has no instance {instance!r}; QiskitRuntimeService().instances() lists "
                        "those that it has",
                    ) from None
                raise RunError("auth", f"the saved IBM Quantum account can't be used: {describe(error)}") from None
        return made[instance]


def check_instance(instance: str, service: Any, client: Any, what: str) -> None:
    """Check that an instance is the one of a service, backend, session or primitive.

    Args:
        instance: Its CRN or name.
        service: The `QiskitRuntimeService` that knows the instances' names.
        client: The official REST client of the instance that is used; None if it is local, or not certain.
        what: What has it.

    Raises:
        ConfigError: It is another one.
    """
    used = "" if client is None else address(client)[1]
    if instance == used:
        return
    if used and not instance.startswith("crn:"):
        with contextlib.suppress(Exception):  # the client raises many kinds of errors; the names are not known then
            if any(each["crn"] == used and each["name"] == instance for each in service.instances()):
                return
    has = f", and the {what} has {used}" if used else f", and the {what} has none, or several"
    raise ConfigError(
        "config",
        f"instance= names {instance}{has}; omit instance=, or make the {what} with "
        f"QiskitRuntimeService(instance={instance!r})",
    )


def every_service() -> list[Any]:
    """All saved accounts, the default one first, each as a `QiskitRuntimeService`.

    Raises:
        RunError: There is no account, or the default one can't be used.
    """
    services = [default_service()]
    if settings.uses_local():
        return services
    import qiskit_ibm_runtime

    known = {address(client) for client in clients_of(services[0])}
    for name in internals.find("AccountManager").list():
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
    try:
        found = internals.find("AccountManager").get()
    except internals.find("AccountNotFoundError"):
        return None
    source = "environment" if os.environ.get("QISKIT_IBM_TOKEN") else "file"
    return Account(source, found.channel, found.url, found.instance or "")
