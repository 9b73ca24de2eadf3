"""Which account a command uses: the saved one, or the embedded service's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ConfigError, QxError, RunError

if TYPE_CHECKING:
    from ..local import Service

Command = TypeVar("Command", bound=Callable[..., Any])

NO_SERVICE = "no embedded service is running; start one with: qx-supervisor local start"


def account_options(command: Command) -> Command:
    """Add `--local` and `--instance` to a command."""
    instance = click.option("--instance", metavar="CRN", help="Use this instance instead of the saved one.")
    here = click.option("--local", is_flag=True, help="Use this machine's embedded service, not the account.")
    return instance(here(command))


def connect(local: bool, instance: str | None) -> Any:
    """Return the service that a command's options select.

    Raises:
        click.UsageError: If the options contradict each other.
        RunError: If there is no account, or it can't be used.
        QxError: If no embedded service is running.
    """
    check(local, instance)
    if local:
        running = find()
        if running is None:
            raise QxError(NO_SERVICE)
        return running.service()
    from ..service import accounts

    try:
        return accounts.default_service(instance)
    except ConfigError as error:
        raise (no_account() if error.reason == accounts.NONE_SAVED else RunError("auth", error.reason)) from None


def no_account() -> RunError:
    """The error for a missing account."""
    return RunError(
        "auth",
        "no IBM Quantum account is saved; save one with qx-supervisor login, or use the embedded service with --local",
    )


def check(local: bool, instance: str | None) -> None:
    """Refuse contradictory options.

    Raises:
        click.UsageError: If they do.
    """
    if local and instance:
        raise click.UsageError("--local has one instance only; leave --instance away", click.get_current_context())


def find() -> Service | None:
    """Return the registered embedded service, or None if none is running."""
    from .. import local

    return local.find()


def find_or_start() -> Service:
    """Return the embedded service that the programs of this machine share.

    Raises:
        ConfigError: If there is none, and it can't be started.
    """
    from .. import local

    try:
        return local.find_or_start()
    except (ImportError, local.ServiceError) as error:
        raise ConfigError("config", str(error)) from None


def start(*, lingers: bool = False, **settings: Any) -> Service:
    """Start an embedded service.

    Args:
        lingers: Whether it ends by itself once nobody needs it.
        **settings: Passed on to `local.start`.

    Raises:
        ConfigError: If a dependency is missing, or it can't be started with these settings.
    """
    from .. import local

    try:
        return local.start(linger=local.LINGER if lingers else None, **settings)
    except (ImportError, local.ServiceError) as error:
        raise ConfigError("config", str(error)) from None
