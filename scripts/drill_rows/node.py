"""Drivers that share a watcher: the tries of a row are drivers of one node, side by side."""

from __future__ import annotations

import psutil
from testkit.processes import wait_for_end

from . import code
from .attempt import Try
from .kills import CANCELLED
from .row import Row, Steps

SHARED = """
os.environ["QX_WATCHER_PLACEMENT"] = "node"
from qx_supervisor import node_launch
node_launch.LINGER_SECONDS = 1.0
"""


def _one_of_many(one: Try) -> Steps:
    one.start(SHARED + code.DRIVE)
    one.queued()
    yield one.random.uniform(0.0, 1.0)
    one.kill()


def _watcher_of_many(one: Try) -> Steps:
    one.start(SHARED + code.TELL_WATCHERS)
    one.queued()
    yield one.random.uniform(0.0, 1.0)
    for watcher in one.lane.watchers():
        watcher.kill()
        wait_for_end(watcher)
    yield one.random.uniform(0.0, 0.3)
    while not _runs(one):  # another try may have killed that one too
        pass
    one.kill()


def _runs(one: Try) -> bool:
    """Whether the watcher that its driver names next runs."""
    try:
        return one.watcher().status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ROWS = [
    Row("SIGKILL, the watcher is shared by all drivers of the node", CANCELLED, _one_of_many, 3),
    # A watcher that dies more often is not started again.
    Row("SIGKILL of the watcher that all share, then of each driver", CANCELLED, _watcher_of_many, 1, most=3),
]
