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
@click.option("--backend", metavar="NAME", help="The backend; by default the least busy that is wide enough.")
@click.option("--shots", type=int, help="How often each circuit is executed.")
@account.account_options
@json_option
@click.option("--timeout", type=float, metavar="SECONDS", help="Cancel the job when so many seconds have passed.")
@click.option("--tag", "tags", multiple=True, help="A tag for the job; may be given up to five times.")
@click.option("--measure-all", is_flag=True, help="Measure all qubits of a circuit that measures nothing.")
@click.option("--optimization-level", type=click.IntRange(0, 3), default=1, show_default=True, help="The transpiler's.")
@click.option("--seed", type=int, help="The transpiler's seed.")
@click.option("--max-execution-time", type=int, metavar="SECONDS", help="QPU time after which IBM ends the job itself.")
@click.option("--key", metavar="NAME", help="A name by which the job is taken up again if this command is killed.")
@click.option(
    "--grace",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="How long the job with a key is left alone for that; then the watcher cancels it.",
)
@click.option("--keep-on-sigterm", is_flag=True, help="On SIGTERM leave the job to its grace, and don't cancel it.")
@click.option(
    "--panel",
    type=click.Choice(["auto", "plain", "none"]),
    default="auto",
    show_default=True,
    help="How the job's state is shown on stderr.",
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

    FILE is OpenQASM 2, OpenQASM 3 or QPY, or - for standard input. The circuits of a QPY file run as one job.

    Whatever ends this command, the job is cancelled: by the command itself after Ctrl-C, SIGTERM, SIGHUP and --timeout,
    and by its watcher after everything else.

    With --key a command that is given again takes its job up: it is waited for, or its result fetched, and nothing is
    submitted twice.

    With --local it runs on the embedded service: the one that is running, or one for this run alone.
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
                # The results are on stdout, so the panel need not show them.
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
    # After a kill it is needed still, by the watcher: to be asked for the cancel, and whether that worked.
    started = account.start(lingers=True, **({"backends": [backend]} if backend else {}))
    yield started.service()
    started.stop()  # not where the run ended otherwise: the watcher may be at work
