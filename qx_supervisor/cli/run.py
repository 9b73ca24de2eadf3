"""`qx-supervisor run`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from . import account, hosts, output
from .durations import Duration
from .group import debug_option, json_option
from .results import FIELDS


class _Layout(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """Numbers of qubits, separated by commas."""

    name = "qubits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            return [int(each) for each in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of qubits; write their numbers with commas, as in 4,5,6", param, ctx)


@click.command("run", epilog=FIELDS)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--backend", metavar="NAME", help="The backend. Default: the least busy one that is wide enough.")
@click.option("--shots", type=int, help="Number of executions of each circuit.")
@account.account_options
@json_option
@click.option("--timeout", type=Duration(), metavar="TIME", help="Cancel the job after this time: 90, 10min or 2h.")
@click.option(
    "--running-timeout",
    type=Duration(),
    metavar="TIME",
    help="Cancel the job when it has run this long, queue aside.",
)
@click.option("--tag", "tags", multiple=True, help="A tag for the job; can be repeated up to five times.")
@click.option("--label", metavar="TEXT", help="Words for the run, which the panel, ps and the log show.")
@click.option("--measure-all", is_flag=True, help="Measure all qubits of circuits without measurements.")
@click.option("--optimization-level", type=click.IntRange(0, 3), default=1, show_default=True, help="For transpiling.")
@click.option("--seed", type=int, help="A seed for the transpiler.")
@click.option(
    "--initial-layout",
    type=_Layout(),
    metavar="QUBITS",
    help="The physical qubits of the circuit's qubits, such as 4,5,6.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    metavar="NUMBER",
    help="Submit a job again this often if it fails for a reason of IBM Quantum's.",
)
@click.option(
    "--split",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Put at most this many circuits in a job; more go as several jobs, in a batch.",
)
@click.option(
    "--max-execution-time",
    type=Duration(least=1.0),
    callback=lambda _context, _option, seconds: None if seconds is None else int(seconds),
    metavar="TIME",
    help="QPU time after which IBM ends the job, in whole seconds.",
)
@click.option("--key", metavar="NAME", help="Continue with the job of this name if the command is repeated.")
@click.option(
    "--grace",
    type=Duration(),
    default=0.0,
    metavar="TIME",
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
    running_timeout: float | None,
    tags: tuple[str, ...],
    label: str | None,
    measure_all: bool,
    optimization_level: int,
    seed: int | None,
    initial_layout: list[int] | None,
    retries: int,
    split: int | None,
    max_execution_time: int | None,
    key: str | None,
    grace: float,
    keep_on_sigterm: bool,
    panel: str,
    ledger_url: str | None,
) -> None:
    """Run the circuits of FILE and print the counts.

    FILE contains OpenQASM 2, OpenQASM 3 or QPY; - means standard input. The circuits of a QPY file run as one job, or
    with --split as several.

    Whatever ends this command, the job is cancelled: by the command itself after Ctrl-C, SIGTERM, SIGHUP, --timeout and
    --running-timeout, otherwise by its watcher.

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
                running_timeout=running_timeout,
                tags=tags,
                label=label,
                optimization_level=optimization_level,
                seed_transpiler=seed,
                initial_layout=initial_layout,
                retries=retries,
                split=split,
                max_execution_time=max_execution_time,
                key=key,
                grace=grace,
                keep_on_sigterm=keep_on_sigterm,
                # The results go to stdout, and why there are none is said at the end: the panel need not show it.
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
