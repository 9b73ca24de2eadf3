"""Spans of OpenTelemetry: one for each run, and in it one for each of its steps.

They are made where the program uses OpenTelemetry, that is, has imported its API. Nothing of it is imported here: to a
program that does not use it this costs a look into a table.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from .errors import RunError
from .status import Status
from .timeline import step_of

PREFIX = "qx."
"""What the names of attributes begin with."""


class RunSpans:
    """The spans of one run; it begins now, in the program's current span. What a tracer raises later ends no run.

    Args:
        api: The module `opentelemetry.trace`.
        about: What is known of the run, by name.
    """

    def __init__(self, api: Any, about: Mapping[str, str]) -> None:
        self._api = api
        self._tracer = api.get_tracer("qx_supervisor")
        self._run = self._tracer.start_span("run")
        self._context = api.set_span_in_context(self._run)
        self._step: Any = None
        self._step_name = ""
        self._is_over = False
        self._tell(about)

    def status(self, status: Status) -> None:
        """A status of the run: a step may end with it, and another one begin."""
        if self._is_over:  # of a cancel that goes on
            return
        with contextlib.suppress(Exception):
            self._see(status)

    def _see(self, status: Status) -> None:
        self._tell({"job": status.job_id, "backend": status.backend})
        name = step_of(status.stage, status.state, self._step_name)
        if name != self._step_name:
            at = int(status.time * 1e9)
            self._end_step(at)
            if name:
                self._step = self._tracer.start_span(name, context=self._context, start_time=at)
            self._step_name = name
        if status.state.endswith("retrying"):
            self._run.add_event(status.state, {"detail": status.detail})

    def end(self, error: RunError | None) -> None:
        """The run is over."""
        self._is_over = True
        with contextlib.suppress(Exception):
            self._finish(error)

    def _finish(self, error: RunError | None) -> None:
        self._end_step(None)
        if error is not None:
            self._run.record_exception(error)
            self._run.set_status(self._api.StatusCode.ERROR, error.reason)
        self._run.end()

    def _end_step(self, at: int | None) -> None:
        step, self._step, self._step_name = self._step, None, ""
        if step is not None:
            step.end(at)

    def _tell(self, known: Mapping[str, str | None]) -> None:
        self._run.set_attributes({f"{PREFIX}{name}": value for name, value in known.items() if value})


def spans_of(**about: str) -> RunSpans | None:
    """The spans of a run that begins, if the program uses OpenTelemetry.

    Args:
        about: What is known of the run.
    """
    api = sys.modules.get("opentelemetry.trace")
    return None if api is None else RunSpans(api, about)
