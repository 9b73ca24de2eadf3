"""Calls that do not fit a function: the `TypeError` names what was called, and the argument that was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from .spelling import did_you_mean

P = ParamSpec("P")
T = TypeVar("T")


def check_names(name: str, given: Iterable[str], known: Iterable[str], otherwise: str = "") -> None:
    """Check that a function has all arguments that it is given by name.

    Args:
        name: What was called.
        given: The names that it was given.
        known: Those that it has.
        otherwise: What to do where no known name is similar; "" to look all of them up.

    Raises:
        TypeError: One is unknown.
    """
    known = list(known)
    for each in given:
        if each not in known:
            hint = did_you_mean(each, known) or otherwise or f"help({name}) lists what it takes"
            raise TypeError(f"{name}() got an unexpected keyword argument {each!r}; {hint}")


def suggests_names(otherwise: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function name the argument that was meant: Python itself does so from 3.13 on.

    A constructor, which subclasses have in common, goes by the name of the class that was called.

    Args:
        otherwise: As `check_names` takes it.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        known = names_of(signature)  # once, and not in every iteration of an optimizer

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if function.__name__ == "__init__" and args:
                bind(type(args[0]).__name__, signature, args, kwargs, otherwise)
            else:
                check_names(function.__qualname__, kwargs, known, otherwise)
            return function(*args, **kwargs)

        return call

    return decorate


def names_of(signature: inspect.Signature) -> list[str]:
    """The arguments that may be given by name."""
    return [
        each.name
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
    ]


def bind(
    name: str, signature: inspect.Signature, args: Sequence[object], kwargs: Mapping[str, object], otherwise: str = ""
) -> inspect.BoundArguments:
    """The arguments of a call by their names.

    Args:
        name: What was called.
        signature: What it takes.
        args: What it was given by place.
        kwargs: What it was given by name.
        otherwise: As `check_names` takes it.

    Raises:
        TypeError: They do not fit.
    """
    check_names(name, kwargs, names_of(signature), otherwise)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None
