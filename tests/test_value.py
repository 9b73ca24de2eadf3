"""Immutable values: fields from annotations, equality within a class only."""

from __future__ import annotations

import pytest

from qx_supervisor.watcher.value import Value


class Point(Value):
    x: int
    y: int = 0


class Place(Point):
    name: str = ""


class Other(Value):
    x: int
    y: int = 0


def test_fields_come_in_their_order_with_their_defaults():
    assert (Point(1).x, Point(1).y, Point(y=2, x=1).y, Place(1, 2, "here").name) == (1, 0, 2, "here")
    match Place(1, 2, "here"):
        case Place(x, y, name):
            assert (x, y, name) == (1, 2, "here")
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_values_of_one_class_alone_are_equal():
    assert Point(1) == Point(1, 0)
    assert hash(Point(1)) == hash(Point(x=1, y=0))
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert Point(1) in [Other(1), Point(1)]


def test_nothing_is_changed():
    with pytest.raises(AttributeError, match="Point is immutable"):
        Point(1).x = 2


@pytest.mark.parametrize(
    ("given", "named", "why"),
    [
        ((), {}, "Point needs x"),
        ((1, 2, 3), {}, "Point has 2 fields, and 3 values were given"),
        ((1,), {"z": 1}, "Point can't take z"),
        ((1,), {"x": 1}, "Point can't take x"),
    ],
)
def test_what_does_not_fit_is_refused(given, named, why):
    with pytest.raises(TypeError, match=why):
        Point(*given, **named)
