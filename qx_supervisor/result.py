"""The result of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import cells, html, pub_results
from .errors import RunError
from .job_cost import JobCost
from .origin import UNKNOWN
from .timeline import NOTHING_SEEN, Timeline, longest
from .watcher.facts import Figures

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult, PubResult

T = TypeVar("T")


class RunResult:
    """The result of a run: Qiskit's `PrimitiveResult`, with shortcuts.

    It behaves like the `PrimitiveResult`: `result[0].data.meas`, `len(result)`, iteration over its PUB results.

    Attributes:
        job_id: The job at IBM Quantum; for a local backend, Qiskit's own id. Of a run with `split` it is the first
            part's.
        failed_job_ids: The jobs that failed before and were submitted again, for `retries`.
        backend: The backend's name.
        primitive_result: Qiskit's result; of an executor a `QuantumProgramResult`, of a noise learner what it learned.
        is_list: Whether `counts` and the like are lists with an item for each PUB, because the call was given a list;
            otherwise they are values of the only PUB. None: a list unless there is exactly one PUB.
    """

    # For objects that were pickled by a version without these attributes.
    is_list: bool | None = None
    failed_job_ids: tuple[str, ...] = ()
    _jobs: tuple[tuple[str, int], ...] = ()
    _seen = NOTHING_SEEN
    _origin = UNKNOWN

    def __init__(
        self,
        primitive_result: PrimitiveResult[Any],
        job_id: str,
        backend: str,
        cost: JobCost | None = None,
        *,
        is_list: bool | None = None,
        jobs: tuple[tuple[str, int], ...] = (),
        failed_job_ids: tuple[str, ...] = (),
        seen: Timeline = NOTHING_SEEN,
    ) -> None:
        self.primitive_result = primitive_result
        self.job_id = job_id
        self.backend = backend
        self.is_list = is_list
        self.failed_job_ids = failed_job_ids
        self._jobs = jobs or ((job_id, len(primitive_result)),)  # each with the number of its PUBs
        self._cost = cost or JobCost()
        self._seen = seen

    @property
    def timeline(self) -> Timeline:
        """How long the run was transpiled, queued and at work, in seconds each; of a run with `split`, the longest.

        A part that there was not, or that is not known, is None. Like `qpu_seconds` it is complete a third of a second
        after the result is there, at most, if IBM Quantum answers.
        """
        self._cost.wait()
        return self._timeline

    @property
    def _timeline(self) -> Timeline:
        """The same, without waiting for an answer that is under way."""
        return self._seen.corrected(self._cost.figures)

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The jobs that have the results, in the order of the PUBs; only a run with `split` has several."""
        return tuple(job for job, _ in self._jobs) or (self.job_id,)

    def job_id_of(self, index: int) -> str:
        """The job that has the result of a PUB, by the PUB's index.

        Raises:
            IndexError: There is no such PUB.
        """
        jobs = [job for job, pubs in self._jobs or ((self.job_id, len(self)),) for _ in range(pubs)]
        try:
            return jobs[index]
        except IndexError:
            only = {0: "none", 1: "one PUB, number 0"}.get(len(jobs), f"{len(jobs)} PUBs, numbers 0 to {len(jobs) - 1}")
            raise IndexError(f"there is no PUB {index}: the result has {only}") from None

    @property
    def qpu_seconds(self) -> float | None:
        """The QPU time charged, in seconds, for all its jobs; None while that is pending, or if it is not known.

        It is read while the result is; whoever asks at once waits a third of a second for it at most. While this
        process lives and it is pending, it is read again.
        """
        return self._cost.charged

    @property
    def qpu_seconds_estimated(self) -> float | None:
        """The QPU time that IBM Quantum had expected, in seconds; None if it has not said."""
        return self._cost.estimated

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_cost"}
        kept["_seen"] = self.timeline
        return kept | {"qpu_seconds": self.qpu_seconds, "qpu_seconds_estimated": self.qpu_seconds_estimated}

    def __setstate__(self, state: dict[str, Any]) -> None:
        charged, estimated = state.pop("qpu_seconds", None), state.pop("qpu_seconds_estimated", None)
        vars(self).update(state)
        self._cost = JobCost(Figures(estimated, charged))

    def __getitem__(self, index: int) -> PubResult:
        return self.primitive_result[index]

    def __len__(self) -> int:
        return len(self.primitive_result)

    def __iter__(self) -> Iterator[PubResult]:
        return iter(self.primitive_result)

    def __repr__(self) -> str:
        jobs = f"job_ids={self.job_ids!r}" if len(self.job_ids) > 1 else f"job_id={self.job_id!r}"
        timeline = f", timeline='{self._timeline}'" if str(self._timeline) else ""
        label = f", label={self._origin.label!r}" if self._origin.label else ""
        embedded = ", is_embedded=True" if self._origin.is_embedded else ""
        return f"RunResult({self._size()}, {jobs}, backend={self.backend!r}{embedded}{label}{timeline})"

    def _ipython_display_(self) -> None:
        cells.leave_to_ipython_unless_shown(self)

    def _repr_html_(self) -> str:
        url = self._origin.url if len(self.job_ids) == 1 else ""
        jobs = ", ".join(html.link(url, job) for job in self.job_ids)
        rows = [(name, html.text(value)) for name, value in self._origin.names(self.backend)]
        rows.append(("job" if len(self.job_ids) == 1 else "jobs", jobs))
        if self._origin.shots:
            rows.append(("shots", html.text(self._origin.shots)))
        if str(self.timeline):
            rows.append(("time", html.text(self.timeline)))
        if self.qpu_seconds is not None:
            rows.append(("QPU", html.text(f"{self.qpu_seconds:g} s charged")))
        return html.card("good", html.text(f"RunResult of {self._size()}"), rows, pub_results.as_html(self))

    def _size(self) -> str:
        # What an `Executor` or a noise learner returns has a class of the client's.
        what = "PUB" if type(self.primitive_result).__module__.startswith("qiskit.") else "item"
        return f"1 {what}" if len(self) == 1 else f"{len(self)} {what}s"

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the whole job."""
        found: Any = self.primitive_result.metadata or {}
        return dict(found if isinstance(found, Mapping) else vars(found))  # an executor's is a dataclass

    @property
    def counts(self) -> Any:
        """How often each bit string was measured, over all shots and parameter sets.

        Several classical registers are joined as by `SamplerPubResult.join_data`: the last one added to the circuit is
        leftmost.

        Returns:
            A dict `{bit string: count}`; if the call was given a list, even of one circuit, a list of such dicts.

        Raises:
            AttributeError: It is an estimator's result, or the measurements are not bits.
        """
        return self._each(pub_results.counts_of)

    @property
    def expectation_values(self) -> Any:
        """An estimator's expectation values.

        Returns:
            An array in the PUB's shape, shape () for one observable; if the call was given a list, a list of such
            arrays.

        Raises:
            AttributeError: It is a sampler's result.
        """
        return self._each(lambda pub: _field(pub, "evs", "expectation_values"))

    @property
    def standard_errors(self) -> Any:
        """The standard errors of the expectation values, in the same shapes.

        Raises:
            AttributeError: It is a sampler's result.
        """
        return self._each(lambda pub: _field(pub, "stds", "standard_errors"))

    def _each(self, read: Callable[[PubResult], Any]) -> Any:
        values = [read(pub) for pub in self]
        is_list = len(values) != 1 if self.is_list is None else self.is_list
        return values if is_list else values[0]


def joined(results: Sequence[RunResult], cost: JobCost, *, is_list: bool | None) -> RunResult:
    """The results of the parts of a run as one.

    Args:
        results: Those of the parts, in order.
        cost: What all jobs cost together.
        is_list: Whether the call was given a list.
    """
    from qiskit.primitives import PrimitiveResult

    first = results[0]
    # As of one job, and what each says of itself.
    metadata = {**first.metadata, "parts": [each.metadata for each in results]}
    return RunResult(
        PrimitiveResult([pub for each in results for pub in each], metadata),
        first.job_id,
        first.backend,
        cost,
        is_list=is_list,
        seen=longest([each._timeline for each in results]),  # noqa: SLF001 - nobody is to wait for each
        jobs=tuple((each.job_id, len(each)) for each in results),
        failed_job_ids=tuple(job for each in results for job in each.failed_job_ids),
    )


def _field(pub: PubResult, name: str, attribute: str) -> Any:
    if not pub_results.is_estimate(pub):
        if hasattr(pub, "join_data"):
            raise AttributeError(f"a sampler's result has no {attribute}; see counts")
        raise AttributeError(f"a {type(pub).__name__} has no {attribute}; see primitive_result")
    return pub.data[name]


@dataclass(frozen=True)
class Ok(Generic[T]):
    """What `try_run` returns for a run with a result.

    Attributes:
        value: The `RunResult`.
    """

    value: T

    def __bool__(self) -> bool:
        return True

    def _ipython_display_(self) -> None:
        cells.leave_to_ipython_unless_shown(self.value)

    def _repr_html_(self) -> str | None:
        show = getattr(self.value, "_repr_html_", None)
        return show() if show is not None else None


@dataclass(frozen=True)
class Err:
    """What `try_run` returns for a run that failed.

    Attributes:
        error: The `RunError`.
    """

    error: RunError

    def __bool__(self) -> bool:
        return False

    def _ipython_display_(self) -> None:
        cells.leave_to_ipython_unless_shown(self.error)

    def _repr_html_(self) -> str:
        return self.error._repr_html_()
