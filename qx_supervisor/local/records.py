"""What the service tells of itself: the requests it was sent and the jobs it has.

Both ends use these classes. The server fills them in, they cross as JSON, and ``Service`` hands them out.
All times are ``time.monotonic_ns()``, which every process on the machine shares: they can be compared with each other
and with the caller's own clock, and no step of the wall clock moves them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FINAL = frozenset({"Completed", "Failed", "Cancelled"})
"""The statuses, in IBM's spelling, that a job never leaves."""

INSTANCE = "localqpu"
"""The name of the only instance that there is, unless others are asked for."""

_CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::"


def crn(instance: str) -> str:
    """The CRN of an instance, by its name."""
    return _CRN + instance


def instance_of(crn: str | None) -> str:
    """The name of an instance, by its CRN, or "" where that is none."""
    return crn.rpartition("::")[2] if crn else ""


@dataclass
class JournalEntry:
    """One request. No body is ever kept here, and no header but the instance's, so no credential is.

    Attributes:
        seq: Number of the request, from 1. It keeps rising over a reset.
        arrived: When the request line had been read, in ns: before headers, body and any injected delay.
        connection: Number of the TCP connection that it came on.
        method: HTTP method.
        path: Path, without host and query.
        query: The query, each name with its values.
        status: Status of the answer; None while there is none, and for good if the connection was dropped.
        answered: When the answer was ready to be sent or the connection was dropped, in ns; None until then.
        fault: What was injected or went wrong, None for an ordinary request.
        tags: Tags of a submitted job, once the body has been read.
        job_id: The job that a POST to /jobs made, whether or not its answer was sent.
        instance: The name of the instance that was asked, "" where the request names none.
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
        cancel_requests: How many requests to cancel it have arrived, whatever they were answered, and wherever.
        instance: The name of the instance that it was submitted to.
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

    @property
    def is_final(self) -> bool:
        """Whether the status can't change any more."""
        return self.status in FINAL
