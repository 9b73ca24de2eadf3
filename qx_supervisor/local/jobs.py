"""The jobs, and the ticker that advances them.

`Jobs` replaces localqpu's job manager, with the method names that localqpu's routes call. In localqpu a job advances
when it is read, so the job of a dead program stays queued forever, and no test could see an orphan run. Here a ticker
advances queued jobs whether or not they are read, and the end of a simulation makes a job final.

A held job needs no thread: its status is Running, but its simulation starts on release. So a thousand jobs can be held,
and a cancel takes effect at once.
"""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from localqpu.clock import utc_now_iso
from localqpu.programs import find_program_runner
from localqpu.programs.base import ExecutionSettings, ProgramInputError

from .english import english
from .records import FINAL, INSTANCE, Job

Hold = Literal["queued", "running"] | None
"""The state in which all jobs are held; None: they are not held."""

current_instance: ContextVar[str] = ContextVar("current_instance", default=INSTANCE)
"""The instance of the request that is being handled: localqpu's routes, which call `Jobs`, don't know instances."""

_TICK = 0.02  # seconds; short compared to any poll interval, long compared to the work of a tick
_WORKERS = 2  # concurrent simulations
_FAILED_CODE = 9000  # our own reason codes, distinct from IBM's 1305 ("ran too long")
_CANCELLED_CODE = 9001


@dataclass(frozen=True)
class QueueInfo:
    """What the service reports of a job's place in the queue and its cost; None: nothing, as often at IBM.

    Attributes:
        queue_position: The place of a queued job.
        starts_in: Seconds until a queued job is expected to start.
        qpu_seconds_estimated: QPU seconds that a job is expected to take.
        qpu_seconds: QPU seconds that a completed job is charged.
    """

    queue_position: int | None = None
    starts_in: float | None = None
    qpu_seconds_estimated: float | None = None
    qpu_seconds: float | None = 0.0


@dataclass
class Record:
    """A job. localqpu's routes read the attributes up to ``metadata``, whose names are localqpu's."""

    job_id: str
    program_id: str
    backend_name: str
    created: str
    session_id: str | None
    status: str = "Queued"
    reason: str | None = None
    reason_code: int | None = None
    running_at: str | None = None
    ended_at: str | None = None
    result_payload: str | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)

    params: dict[str, Any] = field(default_factory=dict, repr=False)
    planned: Any = None
    settings: Any = None
    ticks: int = 0
    submitted: int = field(default_factory=time.monotonic_ns)
    ended: int | None = None
    started: bool = False  # the pool has the simulation
    cancel_due: float | None = None  # time.monotonic() at which an accepted cancel takes effect
    instance: str = INSTANCE

    @property
    def is_final(self) -> bool:
        """Whether the status can't change any more."""
        return self.status in FINAL

    @property
    def tags(self) -> list[str]:
        """The job's tags."""
        tags: list[str] = self.metadata.get("tags", [])
        return tags


class Jobs:
    """All jobs. Thread-safe; it returns copies of records."""

    def __init__(self, scenario_state: Any, max_sim_qubits: int) -> None:
        self._scenario_state = scenario_state
        self._max_sim_qubits = max_sim_qubits
        self._changed = threading.Condition()
        self._jobs: dict[str, Record] = {}
        self._by_tag: defaultdict[str, set[str]] = defaultdict(set)
        self._live: dict[str, Record] = {}  # jobs that are not final, so that a tick need not visit thousands that are
        self._cancel_requests: Counter[str] = Counter()
        self._hold: Hold = None
        self._cancel_lag: float | None = 0.0  # None: a cancel has no effect
        self.queue_info = QueueInfo()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="simulation")
        self._due = threading.Event()
        threading.Thread(target=self._tick_forever, name="ticker", daemon=True).start()

    # What localqpu's routes call

    def submit(
        self,
        program_id: str,
        backend_name: str,
        params: dict[str, Any],
        *,
        session_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Record:
        """Accept a job. Its outcome and seed are taken from the scenario now, in order of submission."""
        find_program_runner(program_id)  # raises for an unknown program; the route answers 404
        with self._changed:
            state = self._scenario_state
            noise = backend_name if state.current().noise else None
            record = Record(
                job_id=f"d{uuid.uuid4().hex[:19]}",
                program_id=program_id,
                backend_name=backend_name,
                created=utc_now_iso(),
                session_id=session_id,
                metadata=dict(metadata or {}),
                params=params,
                planned=state.next_outcome(),
                settings=ExecutionSettings(self._max_sim_qubits, state.derive_seed(), noise),
                instance=current_instance.get(),
            )
            self._jobs[record.job_id] = self._live[record.job_id] = record
            self._index(record)
            self._due.set()
            self._changed.notify_all()
            return copy.copy(record)

    def get(self, job_id: str) -> Record | None:
        """A job, or None."""
        with self._changed:
            record = self._jobs.get(job_id)
            return None if record is None else copy.copy(record)

    def cancel(self, job_id: str) -> Literal["cancelled", "not_found", "already_final"]:
        """Cancel a job, now or after the lag."""
        with self._changed:
            record = self._jobs.get(job_id)
            if record is None:
                return "not_found"
            if record.is_final:
                return "already_final"
            if self._cancel_lag is None:
                return "cancelled"
            if not self._cancel_lag:
                self._end_cancelled(record)
            elif record.cancel_due is None:
                record.cancel_due = time.monotonic() + self._cancel_lag
                self._due.set()
            return "cancelled"

    def update_metadata(self, job_id: str, key: str, value: Any) -> bool:
        """Replace one item of a job's metadata, such as its tags; False for an unknown job."""
        with self._changed:
            record = self._jobs.get(job_id)
            if record is None:
                return False
            self._unindex(record)
            # A new dict: copies that were returned share the old one.
            record.metadata = {**record.metadata, key: value}
            self._index(record)
            return True

    def delete(self, job_id: str) -> bool:
        """Forget a job; False for an unknown one."""
        with self._changed:
            self._live.pop(job_id, None)
            record = self._jobs.pop(job_id, None)
            if record is not None:
                self._unindex(record)
            self._changed.notify_all()
            return record is not None

    # What our routes call

    def page(
        self, keep: Callable[[Record], bool], *, tags: Set[str], ascending: bool, offset: int, limit: int
    ) -> tuple[list[Record], int]:
        """A page of the jobs that have all tags and pass `keep`, by age, and their total number."""
        with self._changed:
            found = [record for record in self._tagged(tags) if keep(record)]
            if not ascending:
                found.reverse()
            return [copy.copy(record) for record in found[offset : offset + limit]], len(found)

    def _tagged(self, tags: Set[str]) -> Iterable[Record]:
        """The jobs that have all tags, by age. Thousands of clients may look for tags that few jobs have."""
        if not tags:
            return self._jobs.values()
        ids = set.intersection(*(self._by_tag.get(tag, set()) for tag in tags))
        return sorted((self._jobs[job_id] for job_id in ids), key=lambda record: record.submitted)

    def _index(self, record: Record) -> None:
        for tag in record.tags:
            self._by_tag[tag].add(record.job_id)

    def _unindex(self, record: Record) -> None:
        for tag in record.tags:
            self._by_tag[tag].discard(record.job_id)

    def cancel_queued(self, session_id: str) -> None:
        """Cancel a session's queued jobs, not the running ones."""
        with self._changed:
            for record in list(self._live.values()):
                if record.session_id == session_id and record.status == "Queued":
                    self._end_cancelled(record)

    def count_cancel_request(self, job_id: str) -> None:
        """Count a request to cancel, whatever its answer will be."""
        with self._changed:
            self._cancel_requests[job_id] += 1

    # What the control routes call

    def hold(self, where: Hold, cancel_lag: float | None) -> None:
        """Hold or release jobs, and set the seconds until a cancel takes effect; None: it never does."""
        with self._changed:
            self._hold, self._cancel_lag = where, cancel_lag
            self._due.set()

    def report(self, ids: Collection[str] | None = None) -> list[Job]:
        """All jobs, oldest first, or the existing ones of the ids."""
        with self._changed:
            wanted = self._jobs if ids is None else ids
            return [self._describe(self._jobs[id_]) for id_ in wanted if id_ in self._jobs]

    def wait(self, job_id: str, statuses: Collection[str], timeout: float) -> tuple[bool, Job | None]:
        """Wait until a job has one of the statuses.

        Returns:
            Whether it got there within ``timeout`` seconds, and the job; None for an unknown one.
        """

        def is_reached() -> bool:
            record = self._jobs.get(job_id)
            return record is None or record.status in statuses

        with self._changed:
            reached = self._changed.wait_for(is_reached, timeout)
            record = self._jobs.get(job_id)
            return reached, None if record is None else self._describe(record)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until every job is final; returns whether they are within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, timeout)

    def reset(self) -> None:
        """Forget all jobs, holds and the scenario."""
        with self._changed:
            self._jobs.clear()
            self._by_tag.clear()
            self._live.clear()
            self._cancel_requests.clear()
            self._hold, self._cancel_lag = None, 0.0
            self.queue_info = QueueInfo()
            self._scenario_state.reset()
            # A running simulation can't be stopped. A new pool, so that the next jobs need not wait for it.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="simulation")
            self._changed.notify_all()

    # How jobs advance. Everything below is called with the lock held, except the two thread bodies.

    def _tick_forever(self) -> None:
        """Thread body: tick while a job waits for time to pass."""
        while True:
            self._due.wait()
            time.sleep(_TICK)
            with self._changed:
                self._due.clear()
                scenario, now = self._scenario_state.current(), time.monotonic()
                waiting = [self._advance(record, scenario, now) for record in list(self._live.values())]
                if any(waiting):
                    self._due.set()

    def _advance(self, record: Record, scenario: Any, now: float) -> bool:
        """Advance a job as far as it may go; returns whether it waits for a later tick."""
        if record.cancel_due is not None:
            if now < record.cancel_due:
                return True
            self._end_cancelled(record)
            return False
        if record.status == "Queued":
            if self._hold == "queued":
                return False
            record.ticks += 1
            if not _may_leave_queue(record, scenario):
                return True
            self._leave_queue(record)
        if record.status == "Running" and not record.started and self._hold is None:
            record.started = True
            params, record.params = record.params, {}
            self._pool.submit(self._simulate, record, params)
        return False

    def _leave_queue(self, record: Record) -> None:
        """Start the job, or end it as the scenario says."""
        planned = record.planned
        if planned.outcome == "completed":
            record.status, record.running_at = "Running", utc_now_iso()
            self._changed.notify_all()
            return
        # "" is a reason too: the service reports none.
        reason = f"The scenario has this job {planned.outcome}." if planned.reason is None else planned.reason
        self._end(record, planned.outcome.capitalize(), reason, planned.reason_code)

    def _simulate(self, record: Record, params: dict[str, Any]) -> None:
        """Thread body of the pool: run the program and store its result."""
        if record.is_final:  # cancelled while it was waiting for a thread
            return
        payload: str | None = None
        reason = ""
        try:
            payload = find_program_runner(record.program_id)(params, record.settings).payload
        except ProgramInputError as error:
            reason = english(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a simulator raises is a failure of the job
            reason = f"{type(error).__name__}: {english(str(error))}"
        with self._changed:
            if record.is_final or self._jobs.get(record.job_id) is not record:
                return
            record.result_payload = payload
            if payload is None:
                self._end(record, "Failed", reason, _FAILED_CODE)
            else:
                self._end(record, "Completed", None, None)

    def _end_cancelled(self, record: Record) -> None:
        self._end(record, "Cancelled", "The job was cancelled on request.", _CANCELLED_CODE)

    def _end(self, record: Record, status: str, reason: str | None, reason_code: int | None) -> None:
        record.status, record.reason, record.reason_code = status, reason, reason_code
        record.ended_at, record.ended = utc_now_iso(), time.monotonic_ns()
        record.params = {}  # circuits are large, and records are kept
        self._live.pop(record.job_id, None)
        self._changed.notify_all()

    def _describe(self, record: Record) -> Job:
        return Job(
            id=record.job_id,
            status=record.status,
            reason=record.reason,
            backend=record.backend_name,
            tags=record.tags,
            session_id=record.session_id,
            program_id=record.program_id,
            created=record.submitted,
            ended=record.ended,
            cancel_requests=self._cancel_requests[record.job_id],
            instance=record.instance,
        )


def _may_leave_queue(record: Record, scenario: Any) -> bool:
    """Whether the job may leave the scenario's queue. A tick counts as one of localqpu's polls."""
    waited = (time.monotonic_ns() - record.submitted) / 1e9
    return bool(
        record.ticks > scenario.queue.polls_before_running
        and waited >= scenario.queue.delay_seconds
        and scenario.backend_override(record.backend_name).status != "offline"
        and not scenario.usage.is_exhausted
    )
