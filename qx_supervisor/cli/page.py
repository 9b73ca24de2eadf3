"""`qx-supervisor page`, and the page of `qx-supervisor reaper`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import account, hosts, output
from .cancel import cancel_job
from .group import debug_option

if TYPE_CHECKING:
    from ..page import Cancel, Page

Command = TypeVar("Command", bound=Callable[..., Any])

CANCEL_SECONDS = 30.0
"""How long the page waits for the confirmation of a cancel."""

EPILOG = """\b
ADDRESS is an IP address of this machine and a port, such as
127.0.0.1:8470 (the default), or unix:/path for a socket that only you can
open. Port 0 takes any that is free. From another machine:
ssh -L 8470:127.0.0.1:8470 HOST, and http://localhost:8470/ here.

\b
Without a token the page only shows, and only to this machine. With a token,
which a browser is asked for, it may listen at any address, and unfinished
jobs can be cancelled on it, with the account that `qx-supervisor cancel`
uses. The token is in QX_PAGE_TOKEN or in a file, never on the command line.

SIGTERM and Ctrl-C end it."""


def page_options(command: Command) -> Command:
    """Add `--token-file` and `--page-name` to a command."""
    name = click.option(
        "--page-name",
        "page_names",
        metavar="HOST",
        multiple=True,
        help="Another name under which browsers come to the page, such as a proxy's.",
    )
    token = click.option(
        "--token-file", metavar="FILE", help="The file with the page's token, instead of QX_PAGE_TOKEN."
    )
    return token(name(command))


@click.command("page", epilog=EPILOG)
@click.argument("address", required=False)
@page_options
@account.account_options
@click.option("--all-hosts", is_flag=True, help="Show all hosts that write to one ledger.")
@hosts.ledger_option
@debug_option
def page_command(
    address: str | None,
    token_file: str | None,
    page_names: tuple[str, ...],
    *,
    local: bool,
    instance: str | None,
    all_hosts: bool,
    ledger_url: str | None,
) -> None:
    """Show the guarded runs of this machine on a web page, as they change.

    Runs, drivers, hosts, leases, budgets, charges and deaths. It reads the ledger only, and needs no account
    unless jobs are cancelled. It needs the extra `page`.
    """
    account.check(local, instance)
    hosts.use(ledger_url)
    from .. import settings
    from ..page.ledgers import AllHosts, Source, ThisMachine

    price = settings.price()
    if all_hosts:
        from ..shared_ledger import check_named

        check_named()
    source: Source = AllHosts() if all_hosts else ThisMachine()
    page = listen(address, token_file, page_names)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        page.start(source, cancel=canceller(lambda: [account.connect(local, instance)]), price=price)
        output.line(page.address.url)
        while not ended.wait(0.5):  # a signal that another thread has taken does not wake it
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        page.stop()


def listen(address: str | None, token_file: str | None, names: Iterable[str]) -> Page:
    """Listen at the address of a page.

    Args:
        address: As the user has written it; None: the default.
        token_file: The file with the token, or None.
        names: More names of the page.

    Raises:
        ConfigError: If that can't be done.
    """
    from ..page import Address, Page, access
    from ..page.address import DEFAULT

    return Page(Address.parse(address or DEFAULT), access.read(token_file), names)


def canceller(connect: Callable[[], Iterable[Any]]) -> Cancel:
    """What cancels jobs for a page, as `qx-supervisor cancel` does.

    Args:
        connect: Returns the services of the accounts; it is called at the first cancel, and takes seconds.
    """
    services: list[Any] = []
    connecting = threading.Lock()

    def cancel(job: str) -> tuple[str, str]:
        with connecting:
            if not services:
                services.extend(connect())
        return cancel_job(services, job, CANCEL_SECONDS)

    return cancel
