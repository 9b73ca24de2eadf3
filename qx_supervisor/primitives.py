"""`Sampler` and `Estimator`: Qiskit's primitives, whose jobs are guarded runs.

Whatever takes a `BaseSamplerV2` or `BaseEstimatorV2` runs guarded with them: VQE, QAOA, kernels, circuit cutting.
Importing this module imports Qiskit.
"""

from __future__ import annotations

import contextlib
import copy
import uuid
from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, NoReturn, Self

from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, PrimitiveResult
from qiskit.primitives.base.base_primitive_job import BasePrimitiveJob
from qiskit.providers import JobStatus

from . import calls, service, threads
from .budget import Budget
from .errors import CancelOutcome, ConfigError, JobCancelled, QxError, RunError, RunTimeout
from .pubs import coerce
from .request import check_defaults, check_each_job, check_precision
from .result import RunResult
from .run import OnStatus, submit
from .submitted import Run

__all__ = ["Estimator", "GuardedJob", "JobState", "Sampler"]


class JobState(str):
    """The state of a job: "INITIALIZING", "QUEUED", "RUNNING", "DONE", "CANCELLED" or "ERROR".

    It equals the string, which is what jobs of `qiskit_ibm_runtime` return, and the `JobStatus` of that name, which is
    what all other jobs of Qiskit's return: programs compare with either.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The state, as `JobStatus` has it."""
        return str(self)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other.name if isinstance(other, JobStatus) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__  # that of the `JobStatus`, too, whose hash is its name's


class GuardedJob(BasePrimitiveJob[PrimitiveResult, JobState]):
    """A job of a `Sampler` or an `Estimator`: it is guarded until it is over, or detached.

    It belongs to the process that submitted it. `await job` gives its result; cancelling the task that awaits it
    cancels the job.
    """

    def __init__(self, run: Run, job_id: str, backend: Any, precisions: list[float | None]) -> None:
        super().__init__(job_id)
        self._run = run
        self._backend = backend
        self._precisions = precisions  # that an estimator's PUBs ask for

    def __repr__(self) -> str:
        return f"GuardedJob(state={str(self.status())!r}, job_id={self._job_id!r})"

    def __reduce__(self) -> NoReturn:
        raise QxError(
            "a GuardedJob belongs to the process that submitted it, and can be neither copied nor pickled; pass on its "
            "job_id(), or its result()"
        )

    def backend(self) -> Any:
        """The backend that it was submitted to."""
        return self._backend

    @property
    def qpu_seconds(self) -> float | None:
        """The QPU time charged, in seconds; None while that is pending, or if it is not known."""
        return self._run.qpu_seconds

    @property
    def qpu_seconds_estimated(self) -> float | None:
        """The QPU time that IBM Quantum expects of it, in seconds; None if it has not said."""
        return self._run.qpu_seconds_estimated

    def usage(self) -> float:
        """The QPU time charged, in seconds; 0 while that is pending, as Qiskit has it."""
        return self._run.qpu_seconds or 0

    def result(self, timeout: float | None = None) -> PrimitiveResult[Any]:
        """Wait for the result.

        A Ctrl-C ends the wait and not the job, which goes on, guarded, until this process ends.

        Args:
            timeout: Seconds to wait, or None. When they pass, the job goes on.

        Returns:
            Qiskit's own result.

        Raises:
            RunError: As `run` does, save for signals.
            TimeoutError: If it is not over by then.
        """
        return self._with_metadata(self._run.result(timeout))

    def _with_metadata(self, result: RunResult) -> PrimitiveResult[Any]:
        """The result, where libraries read of each PUB what Qiskit's reference primitives say there."""
        for pub, precision in zip(result, self._precisions, strict=False):
            pub.metadata.setdefault("target_precision", precision)
        if not self._precisions:
            for pub in result:
                shots = [bits.num_shots for bits in pub.data.values() if hasattr(bits, "num_shots")]
                pub.metadata.setdefault("shots", max(shots, default=None))
        return result.primitive_result

    def status(self) -> JobState:
        """The latest state that was read. No request is made for it: the states of all jobs are polled together."""
        run = self._run
        if run.done():
            try:
                run.result(timeout=0)
            except (JobCancelled, RunTimeout):
                return JobState("CANCELLED")
            except RunError:
                return JobState("ERROR")
            except TimeoutError:
                return JobState("RUNNING")  # a listener is being told
            return JobState("DONE")
        if run.running():
            return JobState("RUNNING")
        return JobState("INITIALIZING" if run.job_id is None else "QUEUED")

    def done(self) -> bool:
        """Whether it has a result."""
        return self.status() == "DONE"

    def running(self) -> bool:
        """Whether it is being executed."""
        return self.status() == "RUNNING"

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.status() == "CANCELLED"

    def errored(self) -> bool:
        """Whether it has failed."""
        return self.status() == "ERROR"

    def in_final_state(self) -> bool:
        """Whether it is over."""
        return self.done() or self.cancelled() or self.errored()

    def wait_for_final_state(self, timeout: float | None = None) -> None:
        """Wait until it is over.

        Args:
            timeout: Seconds to wait, or None. When they pass, the job goes on.

        Raises:
            TimeoutError: If it is not over by then.
        """
        with contextlib.suppress(RunError):
            self._run.result(timeout)

    def error_message(self) -> str | None:
        """Why it has no result; None as long as it may have one."""
        try:
            self._run.result(timeout=0)
        except RunError as error:
            return error.reason
        except TimeoutError:
            pass
        return None

    def cancel(self) -> CancelOutcome:
        """Cancel it, and wait up to ten seconds for the proof: see `Run.cancel`."""
        return self._run.cancel()

    def detach(self) -> None:
        """Let it go on by itself: whatever happens to this process, nothing cancels it any more."""
        self._run.detach()

    def add_done_callback(self, fn: Callable[[GuardedJob], Any]) -> None:
        """Have `fn(job)` called when it is over, in another thread; at once if it is over."""
        self._run.add_done_callback(lambda _: fn(self))

    def __await__(self) -> Generator[Any, None, PrimitiveResult[Any]]:
        return self._wait().__await__()

    async def _wait(self) -> PrimitiveResult[Any]:
        return self._with_metadata(await self._run)


class _Guarded:
    """What `Sampler` and `Estimator` have in common: the primitive of Qiskit's client that submits, and how it is run.

    Attributes:
        qx_primitive: That primitive, for `run`, should it be given this one.
        qx_how: What was said of each of its jobs, for the same.
    """

    _kind: Literal["sampler", "estimator"]

    @calls.suggests_names(
        "Qiskit's own options go to options=, as in options={'default_shots': 1024}, and a session or batch to mode=; "
        "key=, retries= and split= are those of run()"
    )
    def __init__(
        self,
        mode: Any = None,
        options: Any = None,
        *,
        backend: Any = None,
        tags: Iterable[str] = (),
        label: str | None = None,
        budget: Budget | float | None = None,
        on_unprotected: Literal["raise", "warn"] = "raise",
        timeout: float | None = None,
        running_timeout: float | None = None,
        poll_interval: float | None = None,
        optimization_level: int | None = None,
        seed_transpiler: int | None = None,
        on_status: OnStatus | None = None,
    ) -> None:
        if mode is not None and backend is not None:
            raise ConfigError("config", "mode= and backend= name the same thing; give one of them")
        name = type(self).__name__
        self._target = service.target_of_primitive(backend if mode is None else mode, name)
        self._isa_circuits = service.IsaCircuits()
        self.qx_primitive = self._make(options)
        each = {
            "tags": tags,
            "label": label,
            "budget": budget,
            "on_unprotected": on_unprotected,
            "timeout": timeout,
            "running_timeout": running_timeout,
            "poll_interval": poll_interval,
            "optimization_level": optimization_level,
            "seed_transpiler": seed_transpiler,
            "on_status": on_status,
        }
        self.qx_how = check_each_job(each)

    def __reduce__(self) -> NoReturn:
        raise QxError(
            f"this {type(self).__name__} holds the account of its backend, and can't be pickled; make one where it is "
            f"used: {type(self).__name__}(mode=backend)"
        )

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another one for the same backend or session, with options of its own."""
        place = self._target.mode or self._target.backend
        return type(self)(place, copy.deepcopy(self.options, memo), **self.qx_how)

    def __repr__(self) -> str:
        where = f"session={self._target.mode.session_id!r}" if self._target.mode else f"backend={self._target.name!r}"
        return f"{type(self).__name__}({where})"

    @property
    def options(self) -> Any:
        """Qiskit's options of this primitive."""
        return self.qx_primitive.options

    @options.setter
    def options(self, options: Any) -> None:
        self.qx_primitive = self._make(options)

    def _make(self, options: Any) -> Any:
        check_defaults(options)
        primitive = service.make_primitive(self._kind, self._target, options, None)
        service.keep_isa_circuits(primitive, self._isa_circuits)
        return primitive

    @property
    def mode(self) -> Any:
        """The `Session` or `Batch` that its jobs run in, or None."""
        return self._target.mode

    def backend(self) -> Any:
        """The backend that its jobs run on."""
        return self._target.backend

    def _submit(self, pubs: Any, shots: int | None = None, precisions: Iterable[float | None] = ()) -> GuardedJob:
        run = submit(pubs, primitive=self.qx_primitive, shots=shots, **self.qx_how)
        if self._target.is_local:
            return GuardedJob(run, str(uuid.uuid4()), self._target.backend, list(precisions))
        try:
            # So that what comes next may rely on it, such as the end of a `with Batch(...)`, which closes that.
            job_id = run.wait_for_job()
        except RunError:
            raise
        except BaseException:  # by a signal; nobody will have the job, or could cancel it
            threads.ending.do(run.cancel)
            raise
        return GuardedJob(run, job_id, self._target.backend, list(precisions))


class Sampler(_Guarded, BaseSamplerV2):
    """Qiskit's sampler, whose jobs are guarded: whatever ends this process, they are cancelled.

    Args:
        mode: A backend object, or an open `Session` or `Batch`. None: that of the `with` block. A local backend
            (`FakeSherbrooke()`, `AerSimulator()`) runs in Qiskit's local testing mode.
        options: Qiskit's options, as a dict or an object.
        backend: Another name for `mode`.
        tags: Tags for each job, 5 at most, of at most 86 characters each.
        label: Words for its jobs, as `run` takes them.
        budget: A budget that its jobs count for. A number: seconds of QPU time for all its jobs together.
        on_unprotected: What to do if no watcher can protect a job: "raise" a `WatcherError` before it is submitted, or
            "warn" and submit.
        timeout: Seconds from its submission after which a job is cancelled, or None.
        running_timeout: Seconds for which a job may run, queue aside, or None.
        poll_interval: Seconds between two readings of a job's state, or None.
        optimization_level: The transpiler's, 0 to 3, for circuits that the backend can't execute as they are. None: 1.
        seed_transpiler: The transpiler's seed.
        on_status: Called with every `Status` of each job, in another thread.

    Raises:
        ConfigError: There is no such backend or session, the options do not fit, or no job could be submitted so.
    """

    _kind = "sampler"

    @calls.suggests_names()
    def run(self, pubs: Iterable[Any], *, shots: int | None = None) -> GuardedJob:
        """Submit a job, and return when IBM Quantum has it.

        A Ctrl-C meanwhile cancels what was submitted.

        Args:
            pubs: Circuits, or PUBs `(circuit, parameter values, shots)`.
            shots: How often circuits are executed that have no shots of their own. None: `options.default_shots`.

        Raises:
            ConfigError: The call can't be carried out; nothing was submitted.
            RunError: As `run` does, up to the submission.
        """
        return self._submit(pubs, shots)

    @property
    def default_shots(self) -> Any:
        """How often circuits are executed for which nothing else is said, by the options."""
        return _number(self.options.default_shots)


class Estimator(_Guarded, BaseEstimatorV2):
    """Qiskit's estimator, whose jobs are guarded: whatever ends this process, they are cancelled.

    It takes what `Sampler` takes.
    """

    _kind = "estimator"

    @calls.suggests_names()
    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> GuardedJob:
        """Submit a job, and return when IBM Quantum has it.

        A Ctrl-C meanwhile cancels what was submitted.

        Args:
            pubs: PUBs `(circuit, observables, parameter values, precision)`.
            precision: The standard error that is aimed at for PUBs that have none of their own. None:
                `options.default_precision`.

        Raises:
            ConfigError: The call can't be carried out; nothing was submitted.
            RunError: As `run` does, up to the submission.
        """
        check_precision(precision, "estimator", None)
        found, _ = coerce(pubs, "estimator", None, precision)
        return self._submit(found, precisions=[pub.precision or self.default_precision for pub in found])

    @property
    def default_precision(self) -> Any:
        """The standard error that is aimed at where nothing else is said, by the options."""
        shots = _number(self.options.default_shots)
        return shots**-0.5 if shots else _number(self.options.default_precision)


def _number(option: Any) -> Any:
    """The value of an option, or None: those of the deprecated primitives may be unset."""
    return option if isinstance(option, int | float) else None
