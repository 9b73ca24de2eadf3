"""The results of a completed job: they are billed, so they are asked for until they are there.

Whatever the first answer is (a login page, half a text, a refusal), the next one may be the results. Only what has
been wrong for ten minutes is believed. An answer that can't be decoded here is attached to the error, since the results
of a private job are given only once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import service
from .backoff import UNANSWERED, Backoff, look_until
from .errors import RunError, Stage
from .poller import ask
from .watcher import remote

RESULTS_SECONDS = 600.0
"""How long results are requested again if they arrive corrupt, or the service says that there are none."""

REASON_SECONDS = 1.0
"""How long to try to learn why a job failed: that is worth a second, and no more."""

_LONGEST_RESPITE = 2.0  # that a service which asks not to be asked for a while gets meanwhile

_PASSING = (401, 403, 407, 451)  # said by a gateway, or of the account, and not of the results


class Corrupt(Exception):
    """What came is no result."""


class ResultsFetch:
    """The results of one job, so far.

    Args:
        job_id: The job.
        decoders: What decodes them.
        say: Tells the user a stage, a state and a detail.

    Attributes:
        raw: What came that is most likely to be the results, undecoded; or None.
    """

    def __init__(self, job_id: str, decoders: Sequence[Any], say: Callable[[Stage, str, str], None]) -> None:
        self._job_id = job_id
        self._decoders = decoders
        self._backoff = Backoff("results", job_id, say)
        self._wrong_since: float | None = None
        self.raw: str | None = None

    def decode(self, text: str) -> Any:
        """What came, decoded.

        Raises:
            Corrupt: It is no result.
        """
        try:
            decoded = service.decode(self._decoders, text)
        except Exception as error:
            self._keep(text)
            raise Corrupt(f"they can't be decoded: {service.describe(error)}") from error
        if not service.is_result(decoded):  # Qiskit returns text that is not JSON unchanged
            self._keep(text)
            raise Corrupt(f"they are no result but {_shown(text)}")
        self._backoff.answered()
        return decoded

    def failed(self, error: Exception) -> float:
        """They did not come, or came corrupt.

        Returns:
            The seconds to wait before they are asked for again.

        Raises:
            RunError: They have been wrong for ten minutes.
            Exception: The error itself, where it is neither `Corrupt` nor one of `remote`'s.
        """
        if _is_about_them(error):
            now = time.monotonic()
            if self._wrong_since is None:
                self._wrong_since = now
            if now - self._wrong_since >= RESULTS_SECONDS:
                raise self._given_up(error) from error
        return self._backoff.corrupt(str(error)) if isinstance(error, Corrupt) else self._backoff.failed(error)

    def _given_up(self, error: Exception) -> RunError:
        again = f"service.job({self._job_id!r}).result()"
        if self.raw is None:
            return RunError("results", f"the results can't be read: {error}; try {again} later", self._job_id)
        later = "json.loads(error.raw, cls=qiskit_ibm_runtime.RuntimeDecoder)"
        reason = f"the results can't be read: {error}; what came is in error.raw: decode it by {later}, or try {again}"
        return RunError("results", reason, self._job_id, raw=self.raw)

    def _keep(self, text: str) -> None:
        """Keep what is most likely to be the results: JSON rather than a page, and of pages the longest."""
        if text and (self.raw is None or (_is_json(text), len(text)) > (_is_json(self.raw), len(self.raw))):
            self.raw = text


def read_results(there: remote.Remote, job_id: str) -> str:
    """Read a job's results, undecoded.

    Raises:
        RemoteError: They did not come.
    """
    return ask(there, lambda: there.results(job_id))


def reason_in_results(there: remote.Remote, job_id: str, state: remote.JobState) -> str:
    """What a failed job has for results, where the service gives no reason for its failure; "" if that can't be had."""
    if state.reason or state.is_cancelled:
        return ""

    def look() -> list[str]:
        try:
            return [read_results(there, job_id)]
        except remote.Transient:
            return []

    def sleep(seconds: float) -> None:
        time.sleep(max(seconds, min(there.seconds_closed(), _LONGEST_RESPITE)))

    try:
        return "".join(look_until(time.monotonic() + REASON_SECONDS, look, UNANSWERED, sleep))
    except remote.RemoteError:
        return ""


def _is_about_them(error: Exception) -> bool:
    """Whether it says of the results that they are not to be had, and not only that nobody can be asked."""
    if isinstance(error, Corrupt):
        return True
    if not isinstance(error, remote.RemoteError) or isinstance(error, remote.Transient):
        return False
    return error.status not in _PASSING and not isinstance(error, remote.Refused)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return f"{words[:60]}…" if len(words) > 60 else words or "nothing"
