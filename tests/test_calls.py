"""A call that does not fit is refused in the name of what was called, with the argument that was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from qx_supervisor import attach, calls, guard, run, spelling, submit, try_run
from qx_supervisor.primitives import Estimator, Sampler


class Own(Sampler):
    """A program's own."""


MISSPELT: list[tuple[Callable[[], Any], str]] = [
    (lambda: run("circuit", shot=3), "run() got an unexpected keyword argument 'shot'; did you mean shots?"),
    (lambda: try_run("circuit", shot=3), "try_run() got an unexpected keyword argument 'shot'; did you mean shots?"),
    (lambda: submit("circuit", lable=""), "submit() got an unexpected keyword argument 'lable'; did you mean label?"),
    (lambda: attach("job", lable=""), "attach() got an unexpected keyword argument 'lable'; did you mean label?"),
    (lambda: guard(owned=True), "guard() got an unexpected keyword argument 'owned'; did you mean owner?"),
    (lambda: Sampler(lable=""), "Sampler() got an unexpected keyword argument 'lable'; did you mean label?"),
    (lambda: Own(lable=""), "Own() got an unexpected keyword argument 'lable'; did you mean label?"),
    (lambda: Sampler.run(None, [], shot=3), "Sampler.run() got an unexpected keyword argument 'shot'; did you mean"),
    (
        lambda: Estimator(default_precision=1),
        "'default_precision'; Qiskit's own options go to options=, as in options=",
    ),
    (lambda: Sampler(resilience_level=1), "'resilience_level'; Qiskit's own options go to options=, as in options="),
    (lambda: run("circuit", zzz=1), "run() got an unexpected keyword argument 'zzz'; help(run) lists what it takes"),
    (lambda: guard(target="job"), "guard() got an unexpected keyword argument 'target'; help(guard) lists"),
    (lambda: run("circuit", session=1), "run() got an unexpected keyword argument 'session'; help(run) lists"),
    (lambda: submit("circuit", otherwise=1), "submit() got an unexpected keyword argument 'otherwise'; help(submit)"),
    (lambda: Sampler(session=1), "'session'; Qiskit's own options go to options=, as in options="),
    (submit, "submit(): missing a required argument: 'pubs'"),
    (lambda: Estimator(1, 2, 3), "Estimator(): too many positional arguments"),
]


@pytest.mark.parametrize(("call", "said"), MISSPELT, ids=[said[-40:] for _, said in MISSPELT])
def test_what_is_said(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert said in str(caught.value)


def test_what_is_decorated_stays_what_it_is() -> None:
    def add(one: int, *, other: int = 2) -> int:
        """Add."""
        return one + other

    made = calls.suggests_names()(add)
    assert (made(1), made(1, other=3), made.__doc__) == (3, 4, "Add.")
    assert inspect.signature(made) == inspect.signature(add)


def test_similar_names() -> None:
    known = ["ibm_brisbane", "ibm_torino", "ibm_fez"]
    assert spelling.did_you_mean("ibm_brisbain", known) == "did you mean ibm_brisbane?"
    assert spelling.did_you_mean("xyzzy", known) == ""
    assert spelling.did_you_mean("ibm_brisbane", known[1:]) == "", "that they are IBM's says nothing"
    assert spelling.did_you_mean("brisbane", known) == "did you mean ibm_brisbane?"
    assert spelling.did_you_mean("job_tags", ["tags", "label"]) == "did you mean tags?"
