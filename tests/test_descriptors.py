"""Waiting for a descriptor."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterator

import pytest

from qx_supervisor.descriptors import is_readable, is_writable


@pytest.fixture
def beyond_select() -> Iterator[tuple[int, int]]:
    """A pipe's ends under numbers that select(2) does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    ends = os.pipe()
    made = [os.dup2(end, number) for end, number in zip(ends, (2000, 2001), strict=True)]
    yield made[0], made[1]
    for each in (*ends, *made):
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number(beyond_select: tuple[int, int]) -> None:
    reader, writer = beyond_select
    assert not is_readable(reader, 0.001)
    assert is_writable(writer, 0)
    os.write(writer, bytes(1))
    assert is_readable(reader, 0)
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    assert not is_writable(writer, 0.001)


def test_without_poll(beyond_select: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that eventlet has patched, whose `select` takes its place."""
    asked: list[object] = []

    def stand_in(*lists: list[int]) -> tuple[list[int], list[int], list[int]]:
        asked.append(lists)
        return lists[0], lists[1], []

    monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(select, "select", stand_in)
    reader, writer = beyond_select
    assert is_readable(reader, None)
    assert is_writable(writer, 0.5)
    assert asked == [([reader], [], [], None), ([], [writer], [], 0.5)]
