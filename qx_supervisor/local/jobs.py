"""The jobs, and the ticker that advances them.

`Jobs` replaces localqpu's job manager, with the method names that localqpu's routes call. In localqpu a job advances
when it is read, so the job of a dead program stays queued forever, and no test could see an orphan run. Here a ticker
advances queued jobs whether or not they are read, and the end of a simulation makes a job final.

A held job needs no thread: its status is Running, but its simulation starts on release. So a thousand jobs can be held,
and a cancel takes effect at once.

A running job takes QPU time by the rule of `charges`, held or not, and is ended when it has taken all that it may.
"""

from __future__ import annotations

import copy
import math
import subprocess
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

from .bounds import Bounds
from .charges import LONGEST, TOO_LONG, Rule
from .demand import LARGE, demand_of, size_of
from .noise_learner import runner_of
from .records import FINAL, INSTANCE, Job
from .simulation import Outcome, Task, compute, compute_apart

Hold = Literal["queued", "running"] | None
"""The state in which all jobs are held; None: they are not held."""

current_instance: ContextVar[str] = ContextVar("current_instance", default=INSTANCE)
"""The instance of the request that is being handled: localqpu's routes, which call `Jobs`, don't know instances."""

current_bound: ContextVar[float] = ContextVar("current_bound", default=LONGEST)
"""The QPU seconds that the job of the submission that is being handled may take; localqpu's routes don't know that."""

_TICK = 0.02  # seconds; short compared to any poll interval, long compared to the work of a tick
_WORKERS = 2  # concurrent simulations in this process
_SIMULATORS = 1  # concurrent simulations in processes of their own, each of which takes a core and much memory
_FAILED_CODE = 9000  # our own reason codes, distinct from IBM's 1305 ("ran too long")
_CANCELLED_CODE = 9001


@dataclass(frozen=True)
class QueueInfo:
    """What the service reports of a job's place in the queue and its cost; None: nothing, as often at IBM.

    Attributes:
        queue_position: The place of a queued job.
        starts_in: Seconds until a queued job is expected to start.
        qpu_seconds_estimated: QPU seconds that a job is expected to take, instead of the rule's.
        qpu_seconds: QPU seconds that a job which has run is charged, besides the rule's; None: that is pending.
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
    seed: int | None = None
    noise: str | None = None  # the backend whose noise is simulated
    simulator: subprocess.Popen[str] | None = field(default=None, repr=False)
    ticks: int = 0
    submitted: int = field(default_factory=time.monotonic_ns)
    ended: int | None = None
    started: bool = False  # the pool has the simulation
    simulated: bool = False  # the result is there
    cancel_due: float | None = None  # time.monotonic() at which an accepted cancel takes effect
    instance: str = INSTANCE
    bound: float = LONGEST  # QPU seconds that it may take
    need: float = 0.0  # those that it takes if nothing ends it before
    used: float = 0.0  # those that it has taken
    used_at: float = 0.0  # time.monotonic() of that
    estimate: float | None = None

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

    def __init__(self, scenario_state: Any, bounds: Bounds) -> None:
        self._scenario_state = scenario_state
        self._bounds = bounds
        self._changed = threading.Condition()
        self._jobs: dict[str, Record] = {}
        self._by_tag: defaultdict[str, set[str]] = defaultdict(set)
        self._live: dict[str, Record] = {}  # jobs that are not final, so that a tick need not visit thousands that are
        self._cancel_requests: Counter[str] = Counter()
        self._hold: Hold = None
        self._cancel_lag: float | None = 0.0  # None: a cancel has no effect
        self.queue_info = QueueInfo()
        self._rule = Rule()
        self._used: defaultdict[str, float] = defaultdict(float)  # QPU seconds, by instance
        self._pools()
        self._due = threading.Event()
        threading.Thread(target=self._tick_forever, name="ticker", daemon=True).start()

    def _pools(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="simulation")
        # Of its own, so that short simulations need not wait for long ones.
        self._heavy_pool = ThreadPoolExecutor(_SIMULATORS, thread_name_prefix="simulator")

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
        runner_of(program_id)  # raises for an unknown program; the route answers 404
        with self._changed:
            state = self._scenario_state
            need = self._rule.need(params)
            record = Record(
                job_id=f"d{uuid.uuid4().hex[:19]}",
                program_id=program_id,
                backend_name=backend_name,
                created=utc_now_iso(),
                session_id=session_id,
                metadata=dict(metadata or {}),
                params=params,
                planned=state.next_outcome(),
                seed=state.derive_seed(),
                noise=backend_name if state.current().noise else None,
                instance=current_instance.get(),
                bound=current_bound.get(),
                need=need,
                estimate=None if self._rule.estimate is None else need * self._rule.estimate,
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

    def in_sessions(self) -> list[Record]:
        """The jobs that belong to a session, by age."""
        with self._changed:
            return [copy.copy(record) for record in self._jobs.values() if record.session_id]

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

    def charge(self, record: Record) -> float | None:
        """The QPU seconds that a job is charged; None while that is pending."""
        told, pending = self.queue_info.qpu_seconds, self._rule.pending
        if record.ended is None or told is None or pending is None:
            return None
        if time.monotonic_ns() - record.ended < pending * 1e9:
            return None
        return record.used + (told if record.running_at else 0.0)  # a job that is cancelled has cost what it ran

    def used(self, instance: str) -> float:
        """The QPU seconds that the jobs of an instance have taken."""
        with self._changed:
            return self._used[instance]

    # What the control routes call

    def set_rule(self, rule: Rule) -> None:
        """Set what the jobs that are submitted from now on cost; speed and pending are for all jobs."""
        with self._changed:
            for record in list(self._live.values()):
                self._pass_time(record)  # by the rule until now
            self._rule = rule
            self._due.set()

    def spend(self, seconds: float, ids: Collection[str]) -> None:
        """Let QPU time pass in running jobs: in those of the ids, or in all.

        Raises:
            KeyError: There is no such job.
        """
        with self._changed:
            for record in [self._jobs[id_] for id_ in ids] or list(self._live.values()):
                if record.status == "Running":
                    self._use(record, seconds)

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

    def has_unfinished(self) -> bool:
        """Whether a job is not final."""
        return bool(self._live)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until every job is final; returns whether they are within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, timeout)

    def reset(self) -> None:
        """Forget all jobs, holds and the scenario."""
        with self._changed:
            for record in self._live.values():
                self._end_simulator(record)
            self._jobs.clear()
            self._by_tag.clear()
            self._live.clear()
            self._cancel_requests.clear()
            self._hold, self._cancel_lag = None, 0.0
            self.queue_info, self._rule = QueueInfo(), Rule()
            self._used.clear()
            self._scenario_state.reset()
            # A simulation in this process can't be stopped. New pools, so that the next jobs need not wait for it.
            for pool in (self._pool, self._heavy_pool):
                pool.shutdown(wait=False, cancel_futures=True)
            self._pools()
            self._changed.notify_all()

    # How jobs advance. Everything below is called with the lock held, except the bodies of threads.

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
            if not _may_leave_queue(record, scenario, self._used[record.instance]):
                return True
            self._leave_queue(record)
        if record.status == "Running" and not record.started and self._hold is None:
            record.started = True
            params, record.params = record.params, {}
            self._pool.submit(self._simulate, record, params)
        self._pass_time(record)
        return record.status == "Running" and self._rule.speed is not None

    def _leave_queue(self, record: Record) -> None:
        """Start the job, or end it as the scenario says."""
        planned = record.planned
        if planned.outcome == "completed":
            record.status, record.running_at, record.used_at = "Running", utc_now_iso(), time.monotonic()
            self._changed.notify_all()
            return
        # "" is a reason too: the service reports none.
        reason = f"The scenario has this job {planned.outcome}." if planned.reason is None else planned.reason
        self._end(record, planned.outcome.capitalize(), reason, planned.reason_code)

    def _simulate(self, record: Record, params: dict[str, Any]) -> None:
        """Thread body of the pool: run the program and store its result, or leave that to a process of its own."""
        if record.is_final:  # cancelled while it was waiting for a thread
            return
        task = Task(record.program_id, params, record.seed, record.noise)
        if size_of(params) <= LARGE:
            try:
                demand = demand_of(record.program_id, params)
            except Exception:  # noqa: BLE001 - then it can't be run either, and that says why
                self._store(record, compute(task))
                return
            if reason := self._bounds.refusal(demand):
                self._store(record, Outcome(None, reason))
                return
            if not demand.is_heavy:
                self._store(record, compute(task))
                return
        with self._changed:  # a reset makes new pools
            if self._is_running(record):
                self._heavy_pool.submit(self._simulate_apart, record, task)

    def _simulate_apart(self, record: Record, task: Task) -> None:
        """Thread body of the other pool: have a process run the program, and store its result."""

        def began(process: subprocess.Popen[str]) -> None:
            with self._changed:
                record.simulator = process
                if not self._is_running(record):
                    process.kill()

        if record.is_final:
            return
        try:
            outcome = compute_apart(task, self._bounds, began)
        except Exception as error:  # noqa: BLE001 - nobody reads the pool's future, and the job would run for ever
            outcome = Outcome(None, f"The simulation could not be carried out: {type(error).__name__}: {error}")
        self._store(record, outcome)

    def _is_running(self, record: Record) -> bool:
        return not record.is_final and self._jobs.get(record.job_id) is record

    def _store(self, record: Record, outcome: Outcome) -> None:
        with self._changed:
            record.simulator = None
            if not self._is_running(record):
                return
            record.result_payload, record.simulated = outcome.payload, True
            if outcome.payload is None:
                self._end(record, "Failed", outcome.reason, _FAILED_CODE)
                return
            self._pass_time(record)

    @staticmethod
    def _end_simulator(record: Record) -> None:
        if record.simulator is not None:
            record.simulator.kill()

    def _pass_time(self, record: Record) -> None:
        """Let the QPU time pass that a running job has taken since that was done last."""
        if record.status != "Running":
            return
        now, speed = time.monotonic(), self._rule.speed
        passed, record.used_at = now - record.used_at, now
        if speed is not None:
            self._use(record, passed * speed)
        elif record.simulated:
            self._use(record, math.inf)

    def _use(self, record: Record, seconds: float) -> None:
        """Let QPU time pass in a running job; end it if it has all that it needs, or all that it may have."""
        most = min(record.need, record.bound) if record.started else record.bound  # a held job runs on and on
        used = max(record.used, min(record.used + seconds, most))
        self._used[record.instance] += used - record.used
        record.used = used
        if used >= record.bound and (record.need > record.bound or not record.started):
            reason = f"The job ran too long: it has taken the {record.bound:g} s of QPU time that it may take."
            self._end(record, "Cancelled", reason, TOO_LONG)
        elif record.simulated and used >= record.need:
            self._end(record, "Completed", None, None)

    def _end_cancelled(self, record: Record) -> None:
        self._pass_time(record)
        if not record.is_final:  # not by the time that has passed
            self._end(record, "Cancelled", "The job was cancelled on request.", _CANCELLED_CODE)

    def _end(self, record: Record, status: str, reason: str | None, reason_code: int | None) -> None:
        record.status, record.reason, record.reason_code = status, reason, reason_code
        record.ended_at, record.ended = utc_now_iso(), time.monotonic_ns()
        record.params = {}  # circuits are large, and records are kept
        self._end_simulator(record)
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
            max_execution_time=record.bound,
            qpu_seconds=record.used,
        )


def _may_leave_queue(record: Record, scenario: Any, used: float) -> bool:
    """Whether the job may leave the scenario's queue. A tick counts as one of localqpu's polls."""
    waited = (time.monotonic_ns() - record.submitted) / 1e9
    return bool(
        record.ticks > scenario.queue.polls_before_running
        and waited >= scenario.queue.delay_seconds
        and scenario.backend_override(record.backend_name).status != "offline"
        and scenario.usage.consumed_seconds + used < scenario.usage.limit_seconds
    )
