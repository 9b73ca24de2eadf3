"""Immutable values for the events and actions of the state machines.

They are what frozen dataclasses are, but cheap to define. A dataclass compiles six functions of its own, which takes
about half a millisecond; the two machines have eighty classes, and every driver and every watcher would pay for them
when it starts. Named tuples are no alternative: two of different classes are equal if their fields are.
"""

from __future__ import annotations

from typing import Any, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True)
class Value:
    """A value with the annotated fields of its class, equal only to values of the same class."""

    __match_args__: Any = ()  # the names of the fields, in order; a tuple

    def __init_subclass__(cls) -> None:
        """Take the fields from the annotations."""
        cls.__match_args__ = (*cls.__match_args__, *cls.__annotations__)  # type: ignore[misc]

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self.__match_args__
        kind = type(self)
        if len(values) > len(fields):
            raise TypeError(f"{kind.__name__} has {len(fields)} fields, and {len(values)} values were given")
        state = self.__dict__
        state.update(zip(fields, values, strict=False))
        for name in fields[len(values) :]:
            try:
                state[name] = named.pop(name) if name in named else getattr(kind, name)
            except AttributeError:
                raise TypeError(f"{kind.__name__} needs {name}") from None
        if named:
            raise TypeError(f"{kind.__name__} can't take {', '.join(named)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({fields})"
