"""What an instance has left of its QPU time, and until when: read once in a while for all runs of this process."""

from __future__ import annotations

import contextlib
import datetime
import functools
import time
import weakref
from dataclasses import dataclass
from typing import Any

from . import forks, threads
from .job_cost import in_words
from .watcher import remote
from .watcher.facts import moment, number

LOW = 0.1
"""The share of its limit below which what an instance has left is low."""

READ_AGAIN = 300.0
"""Seconds after which what an instance has left is read again, while somebody wants to know."""

WHERE = "see https://quantum.cloud.ibm.com/instances"


@dataclass(frozen=True)
class Quota:
    """What an instance has left of its QPU time, as IBM Quantum tells.

    Attributes:
        used: QPU seconds used in the current period, or None.
        limit: QPU seconds that it may use in a period; None: it has no limit, or none is told.
        ends: When the period ends, in seconds since the epoch, or None.
        is_used_up: Whether the limit is reached: jobs are accepted, and wait until there is time again.
    """

    used: float | None = None
    limit: float | None = None
    ends: float | None = None
    is_used_up: bool = False

    @classmethod
    def read(cls, usage: dict[str, Any]) -> Quota:
        """Read the answer to GET /instances/usage, every field of which may be missing."""
        limit = number(usage.get("usage_limit_seconds"))
        if limit is None:
            limit = number(usage.get("usage_allocation_seconds"))
        period = usage.get("usage_period")
        ends = moment(period.get("end_time") or period.get("end")) if isinstance(period, dict) else None
        is_used_up = usage.get("usage_limit_reached") is True
        return cls(number(usage.get("usage_consumed_seconds")), limit, ends, is_used_up)

    @property
    def left(self) -> float | None:
        """QPU seconds that are left; None if that is not told."""
        if self.is_used_up:
            return 0.0
        return None if self.used is None or self.limit is None else max(0.0, self.limit - self.used)

    def is_low(self, wanted: float | None = None) -> bool:
        """Whether less is left than a tenth of the limit, or than the QPU seconds that are wanted."""
        left = self.left
        if left is None:
            return False
        return left < LOW * (self.limit or 0.0) or self.is_used_up or (wanted is not None and left < wanted)

    def words(self) -> str:
        """How much is left, and until when."""
        parts = []
        if self.used is not None and self.limit is not None:
            used, limit, left = map(in_words, (self.used, self.limit, self.left or 0.0))
            parts.append(f"{used} of {limit} are used, {left} are left")
        elif self.used is not None:
            parts.append(f"{in_words(self.used)} are used, and no limit is told")
        if self.ends is not None and self.ends > time.time():
            parts.append(f"its period ends at {_minute(self.ends)}")
        return ", ".join(parts)

    def used_up(self) -> str:
        """That the instance's time is used up, or ""."""
        if not self.is_used_up:
            return ""
        words = self.words()
        return f"the instance has used up its time ({f'{words}; ' if words else ''}{WHERE})"


def _minute(then: float) -> str:
    return f"{datetime.datetime.fromtimestamp(then).astimezone():%Y-%m-%d %H:%M}"


_reading = forks.make_lock()
_known: weakref.WeakKeyDictionary[remote.Remote, Quota] = weakref.WeakKeyDictionary()
_due: weakref.WeakKeyDictionary[remote.Remote, float] = weakref.WeakKeyDictionary()


def read(api: remote.Remote) -> Quota:
    """Read what an instance has left, now.

    Raises:
        RemoteError: The service did not answer, or refused.
    """
    found = Quota.read(api.usage())
    with _reading:
        _known[api], _due[api] = found, time.monotonic() + READ_AGAIN
    return found


def latest(api: remote.Remote) -> Quota | None:
    """What is known of an instance, or None. What is old is read again meanwhile, for all who ask."""
    with _reading:
        if time.monotonic() >= _due.get(api, 0.0):
            _due[api] = time.monotonic() + READ_AGAIN
            with contextlib.suppress(RuntimeError):  # no thread can be had
                threads.looking.do(functools.partial(_try, api))
        return _known.get(api)


def _try(api: remote.Remote) -> None:
    with contextlib.suppress(remote.RemoteError):  # the job's own state shows trouble with the network
        read(api)


forks.reset_in_child(_known.clear)
forks.reset_in_child(_due.clear)
