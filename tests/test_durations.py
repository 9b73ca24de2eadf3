"""Lengths of time on the command line: all options take the same forms, and say so of others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest

from qx_supervisor.cli import main
from qx_supervisor.cli.durations import Duration

TAKE = [
    ("wait", "d1a2b3c4", "--timeout"),
    ("cancel", "d1a2b3c4", "--timeout"),
    ("run", "bell.qasm", "--timeout"),
    ("run", "bell.qasm", "--running-timeout"),
    ("run", "bell.qasm", "--grace"),
    ("run", "bell.qasm", "--max-execution-time"),
    ("reap", "--wait"),
    ("top", "--interval"),
    ("budget", "set", "--seconds"),
]


@pytest.mark.parametrize("command", TAKE, ids=" ".join)
@pytest.mark.parametrize("given", ["x", "-1", "1h30", "inf", "nan", "1e999", "\u0663", ""])
def test_what_is_none(command: tuple[str, ...], given: str, call: Any) -> None:
    code, _, line = call(*command, given)
    assert code == 2
    assert (
        f"{given!r} is not a length of time; give seconds, or a number with a unit (s, min, h, d), such as 90 or 10min"
        in line
    )
    assert command[-1] in line


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        (".5", 0.5),
        ("0", 0),
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("2 h", 7200),
        ("1d", 86400),
        ("1.5h", 5400),
        ("1e3", 1000),
    ],
)
def test_what_is_one(given: str, seconds: float) -> None:
    assert Duration().convert(given, None, None) == seconds


def options(group: click.Group) -> Iterator[click.Option]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from options(command)
        yield from (each for each in command.params if isinstance(each, click.Option))


def test_no_option_takes_seconds_alone() -> None:
    timed = [each for each in options(main) if each.metavar in ("TIME", "SECONDS") or each.type is click.FLOAT]
    assert len(timed) > len(TAKE) / 2
    assert [each.opts for each in timed if not isinstance(each.type, Duration)] == []


def test_one_that_is_too_short() -> None:
    with pytest.raises(click.BadParameter, match=re.escape("'0.5s' is too short; give at least 1 s")):
        Duration(least=1.0).convert("0.5s", None, None)
