"""The result of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import html, pub_results
from .errors import RunError

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult, PubResult

T = TypeVar("T")


class RunResult:
    """The result of a run: Qiskit's `PrimitiveResult`, with shortcuts.

    It behaves like the `PrimitiveResult`: `result[0].data.meas`, `len(result)`, iteration over its PUB results.

    Attributes:
        job_id: The job at IBM Quantum; for a local backend, Qiskit's own id.
        backend: The backend's name.
        primitive_result: Qiskit's result.
        qpu_seconds: The QPU time charged, in seconds. It is requested only if a panel is shown. None: unknown, or
            pending, as it may be for a while after the job's end.
        is_list: Whether `counts` and the like are lists with an item for each PUB, because the call was given a list;
            otherwise they are values of the only PUB. None: a list unless there is exactly one PUB.
    """

    is_list: bool | None = None  # for objects that were pickled by a version without this attribute

    def __init__(
        self,
        primitive_result: PrimitiveResult[Any],
        job_id: str,
        backend: str,
        qpu_seconds: float | None = None,
        *,
        is_list: bool | None = None,
    ) -> None:
        self.primitive_result = primitive_result
        self.job_id = job_id
        self.backend = backend
        self.qpu_seconds = qpu_seconds
        self.is_list = is_list

    def __getitem__(self, index: int) -> PubResult:
        return self.primitive_result[index]

    def __len__(self) -> int:
        return len(self.primitive_result)

    def __iter__(self) -> Iterator[PubResult]:
        return iter(self.primitive_result)

    def __repr__(self) -> str:
        return f"RunResult({_pubs(len(self))}, job_id={self.job_id!r}, backend={self.backend!r})"

    def _repr_html_(self) -> str:
        rows = [("job", html.link("", self.job_id)), ("backend", html.text(self.backend))]
        if self.qpu_seconds is not None:
            rows.append(("QPU", html.text(f"{self.qpu_seconds:g} s charged")))
        return html.card("good", html.text(f"RunResult of {_pubs(len(self))}"), rows, pub_results.as_html(self))

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the whole job."""
        return dict(self.primitive_result.metadata)

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


def _pubs(number: int) -> str:
    return "1 PUB" if number == 1 else f"{number} PUBs"


def _field(pub: PubResult, name: str, attribute: str) -> Any:
    if not pub_results.is_estimate(pub):
        raise AttributeError(f"a sampler's result has no {attribute}; see counts")
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

    def _repr_html_(self) -> str:
        return self.error._repr_html_()
