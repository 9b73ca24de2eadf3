"""`qx-supervisor reaper`."""

from __future__ import annotations

import logging
import re
import signal
import sys

import click

from ..errors import QxError
from . import account, exits
from .group import debug_option

EPILOG = """\b
It says on stderr what it does, a line a decision. SIGTERM and Ctrl-C stop
it cleanly: what it has begun is finished or released within 10 s, and the
exit code is 0. With --once it is 6 if something could not be resolved.

\b
The database is named by QX_LEDGER, such as
postgresql://user:password@host/database. An option is seen by everybody on
the machine, so --ledger takes no password: libpq finds it in ~/.pgpass."""


@click.command("reaper", epilog=EPILOG)
@account.account_options
@click.option("--ledger", "ledger_url", metavar="URL", help="The database, without a password, instead of QX_LEDGER.")
@click.option("--once", is_flag=True, help="End when nothing is left that is due now.")
@click.option(
    "--metrics", type=click.IntRange(1, 65535), metavar="PORT", help="Serve Prometheus metrics on 127.0.0.1:PORT."
)
@debug_option
def reaper_command(
    local: bool, instance: str | None, ledger_url: str | None, once: bool, metrics: int | None
) -> int:
    """Cancel what drivers on any host left behind, by a ledger of many hosts.

    It claims runs whose leases have run out, waits their grace, and cancels their jobs, with the accounts that are
    saved here, or the one of the environment. Any number of reapers may run at once.
    """
    account.check(local, instance)
    url = _url(ledger_url)
    from .. import service
    from ..launch import sweep_window
    from ..ours import ledger
    from ..reaper import Reaper
    from ..reaper.metrics import serve
    from ..shared import lease_seconds

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    services = [account.connect(local, instance)] if local or instance else service.every_service()
    remotes = {
        service.address(client): service.remote_of(client)
        for each in services
        for client in service.clients_of(each)
    }
    worker = Reaper(url, remotes, lease_seconds=lease_seconds(), window=sweep_window())
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


def _url(given: str | None) -> str:
    from ..shared import SCHEMES, SETTING, check_installed, url

    if given is not None:
        if re.search(r"//[^/?#]*:[^/?#]*@", given) or "password" in given:
            raise click.UsageError(f"--ledger takes no password, which all could see here; set {SETTING} instead")
        if not given.startswith(SCHEMES):
            raise click.UsageError("--ledger must begin with postgresql://")
        found = given
    else:
        found = url()
    if not found:
        raise click.UsageError(f"no ledger of many hosts is named; set {SETTING}")
    check_installed()
    return found
