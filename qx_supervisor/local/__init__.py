"""An IBM Quantum service on this machine: the real Qiskit client connects to it, and no request leaves the loopback.

``start()`` runs the service as its own process, so jobs outlive the program that submitted them, as at IBM. The program
sees what Qiskit's client sees: tokens, backends, jobs, sessions, results of an exact simulation. A test also has the
``Service``, with a journal of every request, holds that keep jobs in a state, and faults on demand.

    from qx_supervisor import local

    with local.start() as ibm:
        service = ibm.service()              # a QiskitRuntimeService
        backend = service.backend("ibm_brisbane")

The simulation, the backends and the format of the API are localqpu's (the extra ``local``).
"""

from .handle import Service, ServiceError
from .process import LINGER, find, start
from .records import Job, JournalEntry

__all__ = ["LINGER", "Job", "JournalEntry", "Service", "ServiceError", "find", "start"]
