"""A driver with a key that is killed at a random instant and started again, until one gets its result."""

from __future__ import annotations

import contextlib
import signal

from testkit.processes import wait_for_end
from testkit.watchers import watchers_of

from . import code
from .attempt import Try
from .row import Row

_LONGEST = 1.2  # seconds from a driver's first word to its kill: some have their result by then
_WITH_WATCHER = 0.3  # of the kills take the watcher too


def _kill(one: Try, *, with_watcher: bool) -> None:
    if with_watcher:
        one.signal(signal.SIGSTOP)  # else it would start another one
        for watcher in watchers_of(one.driver):
            watcher.send_signal(signal.SIGKILL)
            wait_for_end(watcher)
    one.kill()


def _killed_and_restarted(one: Try) -> None:
    program = code.KEYED.format(key=one.tag, grace=60)
    with contextlib.nullcontext() if one.random.random() < 0.5 else one.let_go():
        for _ in range(one.random.choice((1, 1, 2, 3))):
            one.start(program).line("connecting")
            one.sleep(_LONGEST)
            _kill(one, with_watcher=one.random.random() < _WITH_WATCHER)
    with one.let_go():
        one.start(program).line("result ")
        one.driver.end()
    one.seen.gave_up = None  # somebody came back each time
    made = one.made()
    if len(made) != 1:
        one.seen.troubles.append(f"the key was executed {len(made)} times: {made}")


ROWS = [
    Row(
        "with a key: SIGKILL at a random instant, started again, up to three times",
        "one execution; its result is fetched; never asked to stop",
        _killed_and_restarted,
        6,
        outcome="result",
    ),
]
