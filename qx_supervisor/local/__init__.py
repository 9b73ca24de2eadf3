"""An IBM Quantum service on this machine: the real Qiskit client connects to it, and no request leaves the loopback.

``start()`` runs the service as its own process, so jobs outlive the program that submitted them, as at IBM. The program
sees what Qiskit's client sees: tokens, backends, jobs, sessions, results of an exact simulation. A test also has the
``Service``, with a journal of every request, holds that keep jobs in a state, and faults on demand.

    from qx_supervisor import local

    with local.start() as ibm:
        service = ibm.service()              # a QiskitRuntimeService
        backend = service.backend("ibm_brisbane")

The simulation, the backends and the format of the API are localqpu's (the extra ``local``). It may be installed in an
environment of its own: ``start(python=...)`` and ``QX_LOCAL_PYTHON`` name the Python to run the service with.
"""

from .handle import Service, ServiceError
from .process import LINGER, can_start, find, start
from .records import Job, JournalEntry
from .shared import find_or_start

__all__ = [
    "LINGER",
    "Job",
    "JournalEntry",
    "Service",
    "ServiceError",
    "can_start",
    "find",
    "find_or_start",
    "start",
]
