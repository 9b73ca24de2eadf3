"""Plain values as bytes: numbers, text, arrays, containers, and objects that are made of them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import numbers
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

EXACT = 2**53
"""Below this, a whole number and its float64 are the same number."""


class OpaqueError(Exception):
    """Something of which nothing is known that would be the same in another process.

    Args:
        what: What it is.
        where: What it is in, outermost first.
    """

    def __init__(self, what: str, *where: str) -> None:
        super().__init__(what, *where)
        self.what = what
        self.where = where

    def inside(self, place: str) -> OpaqueError:
        """The same, with the place that it is in."""
        return OpaqueError(self.what, place, *self.where)

    def __str__(self) -> str:
        return " in ".join((self.what, *reversed(self.where)))


def name_of(value: Any) -> str:
    """What to call an object that can't be told."""
    kind = value if isinstance(value, type) else type(value)
    return f"{'the class' if kind is value else 'an object of type'} {kind.__name__}"


def text(value: str) -> bytes:
    """A string, with its length."""
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def sequence(pieces: Iterable[bytes]) -> bytes:
    """Pieces, in their order."""
    return b"[" + b"".join(pieces) + b"]"


def collection(pieces: Iterable[bytes]) -> bytes:
    """Pieces whose order means nothing."""
    return b"<" + b"".join(sorted(pieces)) + b">"


def number(value: Any) -> bytes:
    """A number, the same for the same value, such as 1, 1.0 and a float32 of it; float64s count to their last bit."""
    if isinstance(value, float):
        if value != value:  # noqa: PLR0124 - there are many bit patterns for "not a number"
            return b"n"
        return b"f" + struct.pack(">d", value + 0.0)  # the sign of a zero executes nothing
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return number(float(whole)) if -EXACT < whole < EXACT else b"i%d;" % whole
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
        return number(float(value))
    if isinstance(value, numbers.Rational):
        return b"r" + number(value.numerator) + number(value.denominator)
    if isinstance(value, numbers.Complex):
        plain = complex(value)
        return number(plain.real) if plain.imag == 0 else b"c" + number(plain.real) + number(plain.imag)
    if isinstance(value, decimal.Decimal):
        return b"D" + text(str(value))
    raise OpaqueError(name_of(value))


def array(value: np.ndarray[Any, Any], beyond: Callable[[Any], bytes]) -> bytes:
    """An array: its shape and its values; how it lies in memory and what its type is called mean nothing."""
    head = b"a" + sequence(b"%d;" % length for length in value.shape)
    kind = value.dtype.kind
    if kind in "iu" and value.size and max(abs(int(value.min())), abs(int(value.max()))) >= EXACT:
        return head + sequence(number(item) for item in value.ravel().tolist())
    if kind == "c" and (value.imag == 0).all():
        value = value.real
        kind = "f"
    if kind in "biuf":
        return head + b"f" + _packed(value, ">f8")
    if kind == "c":
        return head + b"c" + _packed(value.real, ">f8") + _packed(value.imag, ">f8")
    return head + sequence(encode(item, beyond) for item in value.ravel().tolist())


def _packed(value: np.ndarray[Any, Any], kind: str) -> bytes:
    plain = np.asarray(value, dtype=np.float64) + 0.0
    if np.isnan(plain).any():
        plain = np.where(np.isnan(plain), np.nan, plain)
    return plain.astype(kind).tobytes(order="C")


def encode(value: Any, beyond: Callable[[Any], bytes]) -> bytes:
    """A value as bytes.

    Args:
        value: The value.
        beyond: Encodes what is neither plain nor made of plain values, or raises `OpaqueError`.

    Raises:
        OpaqueError: If there is something in it that can't be told.
    """
    if value is None:
        return b"N"
    if isinstance(value, enum.Enum):  # before str and int: some are those too
        return b"E" + text(type(value).__name__) + text(value.name)
    if isinstance(value, bool | np.bool_):
        return b"T" if value else b"F"
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return b"b%d:%b" % (len(bytes(value)), bytes(value))
    if isinstance(value, numbers.Number):
        return number(value)
    if isinstance(value, np.ndarray):
        return array(value, beyond)
    if isinstance(value, range):
        return b"R" + sequence(number(part) for part in (value.start, value.stop, value.step))
    if isinstance(value, datetime.date | datetime.time):
        return b"t" + text(value.isoformat())
    if isinstance(value, list | tuple):
        return sequence(encode(item, beyond) for item in value)
    if isinstance(value, Mapping):
        return b"m" + collection(encode(key, beyond) + encode(item, beyond) for key, item in value.items())
    if isinstance(value, Set):
        return collection(encode(item, beyond) for item in value)
    try:
        return beyond(value)
    except OpaqueError:
        fields = fields_of(value)
        if fields is not None:
            return b"O" + text(type(value).__name__) + encode(fields, beyond)
        if isinstance(value, Sequence):
            return sequence(encode(item, beyond) for item in value)
        raise


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass's instance or of a pydantic model; None for anything else."""
    kind = type(value)
    if isinstance(names := getattr(kind, "model_fields", None), Mapping):  # first: a model may pose as a dataclass
        return {name: getattr(value, name) for name in names}
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    return None


_UNKNOWN = object()


def default_of(value: Any, name: str) -> Any:
    """The default of a dataclass's or a pydantic model's field, or an object that equals nothing."""
    kind = type(value)
    known = getattr(kind, "__pydantic_fields__", None) or {}
    if name in known:
        field = known[name]
        return _UNKNOWN if field.is_required() else field.get_default(call_default_factory=True)
    for each in dataclasses.fields(kind):
        if each.name == name and each.default is not dataclasses.MISSING:
            return each.default
        if each.name == name and each.default_factory is not dataclasses.MISSING:
            return each.default_factory()
    return _UNKNOWN


def state_of(value: Any) -> dict[str, Any]:
    """What an object keeps in its attributes and slots."""
    state = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                state.setdefault(slot, getattr(value, slot))
    return state
