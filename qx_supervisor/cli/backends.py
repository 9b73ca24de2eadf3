"""`qx-supervisor backends`."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ..calibration import ErrorRates, error_rates
from ..watcher.facts import number
from . import account, exits, output, table
from .group import debug_option, json_option

if TYPE_CHECKING:
    from ..watcher import remote

EPILOG = """\b
QUEUE    jobs that wait there, of all users
STATUS   online, or why it takes no jobs; "least busy": the one with the
         shortest queue of those online, which run takes if you name none
         and it is wide enough
2Q       median error of the gate on two qubits, without pairs of qubits
         that have none now
READOUT  median error of a measurement
–        not reported

\b
--json prints an object for each backend; what is not known is null:
  backend       its name
  instance      the instance that offers it
  qubits        how many it has
  queue         how many jobs wait there
  status        "online", "paused", "offline" or another word of IBM's
  reason        why it is not online, or an empty string
  least_busy    whether it is the one marked so
  two_qubit_error, two_qubit_gate
                median error of its entangling gate, and which that is
  uncalibrated  pairs of qubits that have no such gate now
  readout_error median error of a measurement
  calibrated    when that was measured, such as 2026-01-31T12:00:00Z"""

SHOWN = ("BACKEND", "QUBITS", "QUEUE", "STATUS", "2Q", "READOUT")
UNKNOWN = "–"
ONLINE = "online"


@dataclass
class Backend:
    """What is shown of a backend.

    Attributes:
        name: Its name.
        instance: The CRN of the instance that offers it.
        instance_name: That instance's name.
        reply: The service's item about it.
        rates: Its error rates.
        is_least_busy: Whether it has the shortest queue.
    """

    name: str
    instance: str
    instance_name: str
    reply: dict[str, Any]
    rates: ErrorRates = field(default_factory=ErrorRates)
    is_least_busy: bool = False

    @property
    def status(self) -> str:
        """The service's word for its state, or ""."""
        return self._state("name")

    @property
    def reason(self) -> str:
        """Why it is not online, or ""."""
        return "" if self.status == ONLINE else self._state("reason")

    def _state(self, name: str) -> str:
        state = self.reply.get("status")
        return str(state.get(name) or "") if isinstance(state, dict) else ""

    @property
    def queue(self) -> int | None:
        """How many jobs wait there."""
        length = number(self.reply.get("queue_length"))
        return None if length is None else int(length)

    @property
    def qubits(self) -> int | None:
        """How many qubits it has."""
        found = number(self.reply.get("qubits"))
        return None if found is None else int(found)


@click.command("backends", epilog=EPILOG)
@account.account_options
@json_option
@debug_option
def backends_command(*, local: bool, instance: str | None, as_json: bool) -> int:
    """List the backends of the account: queues, qubits, error rates, and what is offline.

    The least busy come first. It asks each instance for its backends, and once for the properties of each backend.
    """
    account.check(local, instance)
    found = read(account.connect(local, instance))
    several = len({each.instance for each in found}) > 1
    if as_json:
        for each in found:
            output.record(**_fields(each))
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        more = ("INSTANCE",) if several else ()
        for line in table.lines((*SHOWN, *more), [_cells(each) for each in found], width, (*more, "STATUS")):
            output.line(line)
    else:
        output.say("the account has no backends; see its instances at https://quantum.cloud.ibm.com/instances")
    return exits.DONE


def read(service: Any) -> list[Backend]:
    """Read the backends of an account, and mark the least busy.

    Raises:
        RemoteError: An instance could not be asked for its backends.
    """
    from .. import service as qiskit_service
    from ..poller import ask
    from ..watcher import remote

    names = qiskit_service.instance_names(service)
    found: list[tuple[remote.Remote, Backend]] = []
    for client in qiskit_service.clients_of(service):
        there, crn = qiskit_service.remote_of(client), qiskit_service.address(client)[1]
        name = names.get(crn, crn)
        found += [(there, Backend(item["name"], crn, name, item)) for item in ask(there, there.backends)]
    with ThreadPoolExecutor(remote.CONNECTIONS, thread_name_prefix="qx-backends") as pool:
        rates = pool.map(lambda each: _rates(each[0], each[1].name), found)
        for (_, backend), known in zip(found, rates, strict=True):
            backend.rates = known
    backends = [backend for _, backend in found]
    backends.sort(key=lambda each: (each.status != ONLINE, each.queue is None, each.queue, each.name))
    candidates = [each for each in backends if each.status == ONLINE and each.queue is not None]
    if candidates:
        candidates[0].is_least_busy = True
    return backends


def _rates(there: remote.Remote, name: str) -> ErrorRates:
    """A backend's error rates; they are not known of one without properties, or if the request fails."""
    from ..poller import ask
    from ..watcher import remote

    try:
        return error_rates(ask(there, lambda: there.backend_properties(name)))
    except remote.RemoteError as error:
        if error.status != 404:
            output.say(f"backend {name}: its error rates can't be read: {error}")
        return ErrorRates()


def _cells(backend: Backend) -> dict[str, str]:
    status = backend.status or UNKNOWN
    more = backend.reason or ("least busy" if backend.is_least_busy else "")
    return {
        "BACKEND": backend.name,
        "QUBITS": UNKNOWN if backend.qubits is None else str(backend.qubits),
        "QUEUE": UNKNOWN if backend.queue is None else str(backend.queue),
        "STATUS": f"{status}, {more}" if more else status,
        "2Q": _rate(backend.rates.two_qubit),
        "READOUT": _rate(backend.rates.readout),
        "INSTANCE": backend.instance_name,
    }


def _rate(error: float | None) -> str:
    return UNKNOWN if error is None else f"{100 * error:.2g} %"


def _fields(backend: Backend) -> dict[str, Any]:
    rates = backend.rates
    return {
        "backend": backend.name,
        "instance": backend.instance or None,
        "qubits": backend.qubits,
        "queue": backend.queue,
        "status": backend.status or None,
        "reason": backend.reason,
        "least_busy": backend.is_least_busy,
        "two_qubit_error": rates.two_qubit,
        "two_qubit_gate": rates.gate or None,
        "uncalibrated": rates.uncalibrated if rates.gate else None,
        "readout_error": rates.readout,
        "calibrated": output.time_of(rates.calibrated),
    }
