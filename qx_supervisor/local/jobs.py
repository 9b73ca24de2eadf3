"""The jobs, and what makes them advance.

It takes the place of localqpu's job manager behind localqpu's routes, with the method names those call. There, a job
advances when it is read, so the job of a dead program stays queued for ever: the one thing our checks are about would
never be seen. Here a ticker takes queued jobs on, read or unread, and a simulation that ends makes its job final.

A held job costs no thread: it is Running by the book, and its simulation starts when it is let go. So a thousand jobs
can be held, and cancelling one takes effect at once.
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
"""Where jobs are held: none, all in the queue, or all as running."""

asked: ContextVar[str] = ContextVar("asked", default=INSTANCE)
"""The instance that the request under way asks: localqpu's routes, which call `Jobs`, know of none."""

_TICK = 0.02  # seconds; short beside any poll interval, long beside the work of a tick
_WORKERS = 2  # simulations at a time
_FAILED_CODE = 9000  # reason codes of our own, apart from IBM's 1305 ("ran too long")
_CANCELLED_CODE = 9001


@dataclass(frozen=True)
class Told:
    """What the service tells of a job's place in the queue and its cost; None: nothing, as IBM often does.

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
    """A job. The attributes up to ``metadata`` are those that localqpu's routes read, under its names."""

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
    started: bool = False  # the simulation has been handed to the pool
    cancel_due: float | None = None  # time.monotonic() at which a cancel that was answered takes effect
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
    """All jobs, for any number of threads. Records are handed out as copies."""

    def __init__(self, scenario_state: Any, max_sim_qubits: int) -> None:
        self._scenario_state = scenario_state
        self._max_sim_qubits = max_sim_qubits
        self._changed = threading.Condition()
        self._jobs: dict[str, Record] = {}
        self._by_tag: defaultdict[str, set[str]] = defaultdict(set)
        self._live: dict[str, Record] = {}  # those not final: a tick costs nothing for the thousands that are
        self._cancel_requests: Counter[str] = Counter()
        self._hold: Hold = None
        self._cancel_lag: float | None = 0.0  # None: a cancel has no effect
        self.told = Told()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="simulation")
        self._due = threading.Event()
        threading.Thread(target=self._tick_for_ever, name="ticker", daemon=True).start()

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
        """Accept a job; its outcome and seed are drawn from the scenario here, in order of submission."""
        find_program_runner(program_id)  # raises for a program that can't be run, which the route answers with 404
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
                instance=asked.get(),
            )
            self._jobs[record.job_id] = self._live[record.job_id] = record
            self._index(record)
            self._due.set()
            self._changed.notify_all()
            return copy.copy(record)

    def get(self, job_id: str) -> Record | None:
        """One job. Reading changes nothing."""
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
            # A new dict, since copies that were handed out share the old one.
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
        """One page of the jobs to keep that have all tags, by age, and how many there are. Only the page is copied."""
        with self._changed:
            found = [record for record in self._tagged(tags) if keep(record)]
            if not ascending:
                found.reverse()
            return [copy.copy(record) for record in found[offset : offset + limit]], len(found)

    def _tagged(self, tags: Set[str]) -> Iterable[Record]:
        """The jobs that have all tags, by age. They are asked for by thousands of clients: each has few."""
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
        """Cancel a session's queued jobs and spare the running ones."""
        with self._changed:
            for record in list(self._live.values()):
                if record.session_id == session_id and record.status == "Queued":
                    self._end_cancelled(record)

    def count_cancel_request(self, job_id: str) -> None:
        """Count a request to cancel, before anything is known of its fate."""
        with self._changed:
            self._cancel_requests[job_id] += 1

    # What the control routes call

    def hold(self, where: Hold, cancel_lag: float | None) -> None:
        """Hold jobs from now on, or let them go; and set how long a cancel takes to come true, in seconds, if ever."""
        with self._changed:
            self._hold, self._cancel_lag = where, cancel_lag
            self._due.set()

    def report(self, ids: Collection[str] | None = None) -> list[Job]:
        """Every job, oldest first, or those of the ids that there are."""
        with self._changed:
            wanted = self._jobs if ids is None else ids
            return [self._describe(self._jobs[id_]) for id_ in wanted if id_ in self._jobs]

    def wait(self, job_id: str, statuses: Collection[str], timeout: float) -> tuple[bool, Job | None]:
        """Wait until a job has one of the statuses.

        Returns:
            Whether it came to that within ``timeout`` seconds, and the job; None for an unknown one.
        """

        def settled() -> bool:
            record = self._jobs.get(job_id)
            return record is None or record.status in statuses

        with self._changed:
            reached = self._changed.wait_for(settled, timeout)
            record = self._jobs.get(job_id)
            return reached, None if record is None else self._describe(record)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until every job is final; whether it came to that within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, timeout)

    def reset(self) -> None:
        """Forget all jobs, holds and what is left of the scenario."""
        with self._changed:
            self._jobs.clear()
            self._by_tag.clear()
            self._live.clear()
            self._cancel_requests.clear()
            self._hold, self._cancel_lag = None, 0.0
            self.told = Told()
            self._scenario_state.reset()
            # A simulation can't be stopped half-way: a new pool, so that it does not keep the next jobs waiting.
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="simulation")
            self._changed.notify_all()

    # What makes them advance. Everything below is called with the lock held, but for the two thread bodies.

    def _tick_for_ever(self) -> None:
        """Thread body: while a job waits for time to pass, tick; otherwise sleep."""
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
        """Take a job as far as it may go; whether it waits for a later tick."""
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
        """Run the job, or give it the end that the scenario has planned for it."""
        planned = record.planned
        if planned.outcome == "completed":
            record.status, record.running_at = "Running", utc_now_iso()
            self._changed.notify_all()
            return
        # "" is a reason too: none is told.
        reason = f"The scenario has this job {planned.outcome}." if planned.reason is None else planned.reason
        self._end(record, planned.outcome.capitalize(), reason, planned.reason_code)

    def _simulate(self, record: Record, params: dict[str, Any]) -> None:
        """Thread body of the pool: run the program and record how it went."""
        if record.is_final:  # cancelled while it waited for a worker
            return
        payload: str | None = None
        reason = ""
        try:
            payload = find_program_runner(record.program_id)(params, record.settings).payload
        except ProgramInputError as error:
            reason = english(str(error))
        except Exception as error:  # noqa: BLE001 - whatever a simulator raises is the job's failure, not the service's
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
        """Make a job final."""
        record.status, record.reason, record.reason_code = status, reason, reason_code
        record.ended_at, record.ended = utc_now_iso(), time.monotonic_ns()
        record.params = {}  # circuits are large, and jobs stay on record
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
    """Whether the scenario's queue lets the job go: a tick counts as what localqpu calls a poll."""
    waited = (time.monotonic_ns() - record.submitted) / 1e9
    return bool(
        record.ticks > scenario.queue.polls_before_running
        and waited >= scenario.queue.delay_seconds
        and scenario.backend_override(record.backend_name).status != "offline"
        and not scenario.usage.is_exhausted
    )
