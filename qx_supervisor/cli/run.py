"""`qx-supervisor run`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from . import account, hosts, output
from .group import debug_option, json_option
from .results import FIELDS


@click.command("run", epilog=FIELDS)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--backend", metavar="NAME", help="The backend. Default: the least busy one that is wide enough.")
@click.option("--shots", type=int, help="Number of executions of each circuit.")
@account.account_options
@json_option
@click.option("--timeout", type=float, metavar="SECONDS", help="Cancel the job after this time.")
@click.option("--tag", "tags", multiple=True, help="A tag for the job; can be repeated up to five times.")
@click.option("--measure-all", is_flag=True, help="Measure all qubits of circuits without measurements.")
@click.option("--optimization-level", type=click.IntRange(0, 3), default=1, show_default=True, help="For transpiling.")
@click.option("--seed", type=int, help="A seed for the transpiler.")
@click.option("--max-execution-time", type=int, metavar="SECONDS", help="QPU time after which IBM ends the job.")
@click.option("--key", metavar="NAME", help="Continue with the job of this name if the command is repeated.")
@click.option(
    "--grace",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="With --key: wait this long for a repeated command before the watcher cancels.",
)
@click.option("--keep-on-sigterm", is_flag=True, help="With --key: on SIGTERM, start the grace period; don't cancel.")
@click.option(
    "--panel",
    type=click.Choice(["auto", "plain", "none"]),
    default="auto",
    show_default=True,
    help="How to show the job's state on stderr.",
)
@hosts.ledger_option
@debug_option
def run_command(  # noqa: PLR0917 - click passes by name
    file: str,
    backend: str | None,
    shots: int | None,
    local: bool,
    instance: str | None,
    as_json: bool,
    timeout: float | None,
    tags: tuple[str, ...],
    measure_all: bool,
    optimization_level: int,
    seed: int | None,
    max_execution_time: int | None,
    key: str | None,
    grace: float,
    keep_on_sigterm: bool,
    panel: str,
    ledger_url: str | None,
) -> None:
    """Run the circuits of FILE and print the counts.

    FILE contains OpenQASM 2, OpenQASM 3 or QPY; - means standard input. The circuits of a QPY file run as one job.

    Whatever ends this command, the job is cancelled: by the command itself after Ctrl-C, SIGTERM, SIGHUP and --timeout,
    otherwise by its watcher.

    With --key, if this command is killed and you repeat it, it continues with the same job: it waits for it, or fetches
    its result, and submits nothing again.

    With --local the job runs on the embedded service: the one that is running, or a new one for this run alone.
    """
    account.check(local, instance)
    hosts.use(ledger_url)
    from ..errors import Interrupted, RunError
    from ..panel import open_panel
    from ..run import run
    from . import files, results

    try:
        circuits = files.read(file, measure_all=measure_all)
        with _service(local, instance, backend) as service:
            result = run(
                circuits,
                backend,
                service=service,
                shots=shots,
                timeout=timeout,
                tags=tags,
                optimization_level=optimization_level,
                seed_transpiler=seed,
                max_execution_time=max_execution_time,
                key=key,
                grace=grace,
                keep_on_sigterm=keep_on_sigterm,
                # The results go to stdout, so the panel need not show them.
                panel=None if panel == "none" else open_panel(panel, interruptible=True, results=False),  # type: ignore[arg-type]
            )
    except (RunError, Interrupted) as error:
        if as_json:
            results.show_failure(error)
        raise
    results.show(result, [circuit.name for circuit in circuits], as_json=as_json)


@contextlib.contextmanager
def _service(local: bool, instance: str | None, backend: str | None) -> Iterator[Any]:
    if not local:
        yield account.connect(local, instance)
        return
    running = account.find()
    if running is not None:
        yield running.service()
        return
    output.say("no embedded service is running, so one is started for this run")
    # After a kill the watcher still needs it, to cancel the job and to confirm that.
    started = account.start(lingers=True, **({"backends": [backend]} if backend else {}))
    yield started.service()
    started.stop()  # not if the run raised: the watcher may be using it
