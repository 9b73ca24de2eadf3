"""Encodes plain values: numbers, text, arrays, containers, and objects that consist of them."""

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
"""Below this, every integer is exactly a float64."""


class OpaqueError(Exception):
    """An object can't be recognized in another process.

    Args:
        what: A name for the object.
        where: What it is in, outermost first.
    """

    def __init__(self, what: str, *where: str) -> None:
        super().__init__(what, *where)
        self.what = what
        self.where = where

    def inside(self, place: str) -> OpaqueError:
        """The same error, with one more level of what the object is in."""
        return OpaqueError(self.what, place, *self.where)

    def __str__(self) -> str:
        return " in ".join((self.what, *reversed(self.where)))


def name_of(value: Any) -> str:
    """A name for an object in an `OpaqueError`."""
    kind = value if isinstance(value, type) else type(value)
    return f"{'the class' if kind is value else 'an object of type'} {kind.__name__}"


def text(value: str) -> bytes:
    """A string, prefixed by its length."""
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def sequence(pieces: Iterable[bytes]) -> bytes:
    """Pieces in their order."""
    return b"[" + b"".join(pieces) + b"]"


def collection(pieces: Iterable[bytes]) -> bytes:
    """Pieces in any order."""
    return b"<" + b"".join(sorted(pieces)) + b">"


def number(value: Any) -> bytes:
    """A number: equal for equal values of any type, such as 1, 1.0 and float32(1). A float64 counts bit by bit."""
    if isinstance(value, float):
        if value != value:  # noqa: PLR0124 - NaN has many bit patterns
            return b"n"
        return b"f" + struct.pack(">d", value + 0.0)  # -0.0 executes as 0.0 does
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
    """An array's shape and values, whatever its memory layout and dtype."""
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
    """Encode a value.

    Args:
        value: The value.
        beyond: Encodes what is neither plain nor consists of plain values, or raises `OpaqueError`.

    Raises:
        OpaqueError: Something in it can't be recognized in another process.
    """
    if value is None:
        return b"N"
    if isinstance(value, enum.Enum):  # before str and int, since some enums are those too
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
    """The fields of a dataclass or pydantic instance; None for anything else."""
    kind = type(value)
    if isinstance(names := getattr(kind, "model_fields", None), Mapping):  # a model may pass for a dataclass
        return {name: getattr(value, name) for name in names}
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    return None


_NO_DEFAULT = object()


def default_of(value: Any, name: str) -> Any:
    """The default of a field of a dataclass or pydantic instance; an object equal to no value if it has none."""
    kind = type(value)
    known = getattr(kind, "__pydantic_fields__", None) or {}
    if name in known:
        field = known[name]
        return _NO_DEFAULT if field.is_required() else field.get_default(call_default_factory=True)
    for each in dataclasses.fields(kind):
        if each.name == name and each.default is not dataclasses.MISSING:
            return each.default
        if each.name == name and each.default_factory is not dataclasses.MISSING:
            return each.default_factory()
    return _NO_DEFAULT


def state_of(value: Any) -> dict[str, Any]:
    """An object's attributes, in its `__dict__` and its slots."""
    state = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                state.setdefault(slot, getattr(value, slot))
    return state
