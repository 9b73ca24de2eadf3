"""`qx-supervisor reaper`."""

from __future__ import annotations

import logging
import signal
import sys

import click

from ..errors import ConfigError, QxError
from . import account, exits, hosts
from .group import debug_option

EPILOG = """\b
It says on stderr what it does, a line a decision; QX_LOG_LEVEL, where it is
set, says how much. SIGTERM and Ctrl-C stop it cleanly: what it has begun is
finished or released within 10 s, and the exit code is 0. With --once it is 6
if something could not be resolved.

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
@debug_option
def reaper_command(local: bool, instance: str | None, ledger_url: str | None, once: bool, metrics: int | None) -> int:
    """Cancel what drivers on any host left behind, by a shared ledger.

    It claims runs whose leases have run out, waits their grace, and cancels their jobs, with the accounts that are
    saved here, or the one of the environment. Any number of reapers may run at once.
    """
    account.check(local, instance)
    hosts.use(ledger_url)
    url = _url()
    from .. import service, settings
    from ..reaper import Reaper
    from ..reaper.metrics import serve
    from ..watcher import ledger

    if not settings.log_level():  # else the library writes there already, as it was asked to
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        services = [account.connect(local, instance)] if local or instance else service.accounts.every_service()
    except ConfigError:
        raise account.no_account() from None
    remotes = {
        service.address(client): service.remote_of(client) for each in services for client in service.clients_of(each)
    }
    worker = Reaper(url, remotes, lease_seconds=settings.lease_seconds(), window=settings.sweep_window())
    end_metrics = serve(worker.counts, metrics) if metrics else None
    before = {number: signal.signal(number, lambda *_: worker.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    logging.getLogger("qx_supervisor.reaper").info("reaping, with %d instances at hand", len(remotes))
    try:
        is_resolved = worker.run(once=once)
    except ledger.LedgerError as error:
        raise QxError(str(error)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if end_metrics is not None:
            end_metrics()
    return exits.DONE if is_resolved or not once else exits.UNCONFIRMED


def _url() -> str:
    from .. import settings
    from ..shared_ledger import check_installed

    found = settings.ledger_url()
    if not found:
        raise click.UsageError(f"no shared ledger is named; set {settings.LEDGER}")
    check_installed()
    return found
