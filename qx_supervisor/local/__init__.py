"""An IBM Quantum service on this machine: the real Qiskit client talks to it, and no request leaves the loopback.

``start()`` runs the service as a process of its own, so its jobs outlive the program that submitted them, as they do at
IBM. What the program sees is what Qiskit's client sees: tokens, backends, jobs, sessions, results with the counts of an
exact simulation. What a test sees besides is the ``Service``: a journal of every request, gates that hold jobs where
they are, and faults on demand.

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
