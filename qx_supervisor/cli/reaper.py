"""`qx-supervisor reaper`."""

from __future__ import annotations

import contextlib
import logging
import signal

import click

from ..errors import ConfigError, QxError
from . import account, exits, hosts, page
from .group import debug_option

EPILOG = """\b
It says on stderr what it does, a line a decision; QX_LOG_LEVEL, where it is
set, says how much. SIGTERM and Ctrl-C stop it cleanly: what it has begun is
finished or released within 10 s, and the exit code is 0. With --once it is 6
if something could not be resolved.

\b
--page shows all hosts on a web page: "qx-supervisor page --help" describes
addresses and the token, which may be in QX_PAGE_TOKEN.

\b
The database is named by QX_LEDGER, such as
postgresql://user:password@host/database. An option is seen by everybody on
the machine, so --ledger takes no password: libpq finds it in ~/.pgpass."""


@click.command("reaper", epilog=EPILOG)
@account.account_options
@hosts.ledger_option
@click.option("--once", is_flag=True, help="End when nothing is left that is due now.")
@click.option(
    "--metrics", type=click.IntRange(1, 65535), metavar="PORT", help="Serve Prometheus metrics on 127.0.0.1:PORT."
)
@click.option("--page", "address", metavar="ADDRESS", help="Serve a web page there, such as 127.0.0.1:8470.")
@page.page_options
@debug_option
def reaper_command(
    *,
    local: bool,
    instance: str | None,
    ledger_url: str | None,
    once: bool,
    metrics: int | None,
    address: str | None,
    token_file: str | None,
    page_names: tuple[str, ...],
) -> int:
    """Cancel what drivers on any host left behind, by a shared ledger.

    It claims runs whose leases have run out, waits their grace, and cancels their jobs, with the accounts that are
    saved here, or the one of the environment. Any number of reapers may run at once.
    """
    account.check(local, instance)
    hosts.use(ledger_url)
    if address is None and (token_file or page_names):
        raise click.UsageError("--token-file and --page-name are for a page; give --page too")
    if address is not None and once:
        raise click.UsageError("--once ends when nothing is left to do; leave --page away, or see qx-supervisor page")
    url = _url()
    from .. import logs, service, settings
    from ..reaper import Reaper
    from ..reaper.metrics import serve
    from ..watcher import ledger

    price = None if address is None else settings.price()
    if not settings.log_level() and not settings.log_format():  # else the library writes there already
        click.get_current_context().call_on_close(logs.write_to_stderr("INFO", "text"))
    try:
        services = [account.connect(local, instance)] if local or instance else service.accounts.every_service()
    except ConfigError:
        raise account.no_account() from None
    remotes = {
        service.address(client): service.remote_of(client) for each in services for client in service.clients_of(each)
    }
    worker = Reaper(url, remotes, lease_seconds=settings.lease_seconds(), window=settings.sweep_window())
    said = logging.getLogger("qx_supervisor.reaper")
    with contextlib.ExitStack() as ends:
        shown = None if address is None else page.listen(address, token_file, page_names)
        if shown is not None:
            ends.callback(shown.stop)
        if metrics:
            ends.callback(serve(worker.counts, metrics))

        def stop(*_: object) -> None:
            worker.stop()
            if shown is not None:
                shown.end_soon()  # while the reaper finishes what it has begun

        for number in (signal.SIGTERM, signal.SIGINT):
            ends.callback(signal.signal, number, signal.signal(number, stop))
        said.info("reaping, with %d instances at hand", len(remotes))
        if shown is not None:
            from ..page.ledgers import AllHosts

            shown.start(AllHosts(), cancel=page.canceller(lambda: services), price=price)
            said.info("the page is at %s", shown.address.url)
        try:
            is_resolved = worker.run(once=once)
        except ledger.LedgerError as error:
            raise QxError(str(error)) from None
    return exits.DONE if is_resolved or not once else exits.UNCONFIRMED


def _url() -> str:
    from .. import settings
    from ..shared_ledger import check_installed

    found = settings.ledger_url()
    if not found:
        raise click.UsageError(f"no shared ledger is named; set {settings.LEDGER}")
    check_installed()
    return found
