"""The service's requests and jobs, as tests see them.

The server creates these objects, sends them as JSON, and ``Service`` returns them. All times are
``time.monotonic_ns()``: they can be compared across processes of this machine, and are independent of the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .charges import LONGEST

FINAL = frozenset({"Completed", "Failed", "Cancelled"})
"""The final statuses, in IBM's spelling."""

HOST = "localqpu.test"
"""The invented host of the API, in whose domain the others are. It does not resolve."""

INSTANCE = "localqpu"
"""The name of the default instance."""

USER = "IBMid-local"
"""The user to whom all belongs."""

_CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::"


def crn(instance: str) -> str:
    """The CRN of the instance with this name."""
    return _CRN + instance


def instance_of(crn: str | None) -> str:
    """The name of the instance with this CRN; "" for None."""
    return crn.rpartition("::")[2] if crn else ""


@dataclass
class JournalEntry:
    """One request. It contains no body, and of the headers only the instance: so no credentials.

    Attributes:
        seq: Number of the request, from 1. A reset does not restart it.
        arrived: When the request line had been read, in ns: before headers, body and any injected delay.
        connection: Number of its TCP connection.
        method: HTTP method.
        path: Path, without host and query.
        query: The query, each name with its values.
        status: Status of the answer; None before the answer, and if the connection was dropped.
        answered: When the answer was ready to be sent or the connection was dropped, in ns; None until then.
        fault: What was injected or went wrong; None for an ordinary request.
        tags: Tags of a submitted job, once the body has been read.
        job_id: The job that a POST to /jobs made, whether or not its answer was sent.
        instance: The name of the instance that the request names, or "".
    """

    seq: int
    arrived: int
    connection: int
    method: str
    path: str
    query: dict[str, list[str]]
    status: int | None = None
    answered: int | None = None
    fault: str | None = None
    tags: list[str] = field(default_factory=list)
    job_id: str | None = None
    instance: str = ""


@dataclass
class Job:
    """One job.

    Attributes:
        id: Job id.
        status: Queued, Running, Completed, Failed or Cancelled.
        reason: Why it failed or was cancelled.
        backend: Name of the backend.
        tags: Its tags.
        session_id: Its session or batch.
        program_id: The primitive's program, such as ``executor``.
        created: When it was accepted, in ns.
        ended: When it became final, in ns; None until then.
        cancel_requests: How many requests to cancel it have arrived, at any instance and with any answer.
        instance: The name of its instance.
        max_execution_time: QPU seconds at which it is ended.
        qpu_seconds: QPU seconds that it has taken by the rule of ``Service.charge``; once it is final, its charge.
    """

    id: str
    status: str
    reason: str | None
    backend: str
    tags: list[str]
    session_id: str | None
    program_id: str
    created: int
    ended: int | None
    cancel_requests: int
    instance: str = INSTANCE
    max_execution_time: float = LONGEST
    qpu_seconds: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether the status can't change any more."""
        return self.status in FINAL
