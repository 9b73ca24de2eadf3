"""Spans, where the program uses OpenTelemetry; a real SDK receives them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from testkit.circuits import BACKEND, bell, ones
from testkit.processes import DEADLINE

from qx_supervisor import JobCancelled, run, submit

sdk = pytest.importorskip("opentelemetry.sdk.trace")
from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is exported in the test."""
    made, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield made
    provider.shutdown()


def test_a_run_is_a_span_with_its_steps_in_the_programs_own(ibm, service, exporter):
    with trace.get_tracer("program").start_as_current_span("outer") as outer:
        result = run(bell(), BACKEND, service=service, shots=16, label="vqe step 17", panel=None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans["run"]
    assert whole.parent.span_id == outer.get_span_context().span_id
    assert whole.attributes["qx.job"] == result.job_id
    assert whole.attributes["qx.backend"] == BACKEND
    assert whole.attributes["qx.label"] == "vqe step 17"
    assert len(whole.attributes["qx.run"]) == 32
    steps = [span for span in spans.values() if span.name not in ("run", "outer")]
    assert {span.name for span in steps} <= {"transpile", "queued", "running", "fetch"}
    assert {"transpile", "fetch"} <= spans.keys()
    for step in steps:
        assert step.parent.span_id == whole.context.span_id
        assert whole.start_time <= step.end_time <= whole.end_time
        assert step.start_time <= step.end_time


def test_a_run_that_is_cancelled_in_the_queue(ibm, service, exporter):
    ibm.hold("queued")
    queued = threading.Event()
    held = submit(
        bell(), BACKEND, service=service, on_status=lambda each: queued.set() if each.state == "queued" else None
    )
    assert queued.wait(DEADLINE)
    assert held.cancel() == "confirmed"
    with pytest.raises(JobCancelled):
        held.result()
    [whole] = [span for span in exporter.get_finished_spans() if span.name == "run"]
    assert whole.status.status_code is trace.StatusCode.ERROR
    assert whole.events[-1].name == "exception"
    assert "queued" in {span.name for span in exporter.get_finished_spans()}


def test_a_tracer_that_fails_ends_no_run(ibm, service, monkeypatch):
    class Faulty:
        def __getattr__(self, name):
            raise RuntimeError("no exporter")

        def set_attributes(self, attributes):
            """Take what is known when the run begins."""
            if "qx.job" in attributes:
                raise RuntimeError("no exporter")

    tracer = SimpleNamespace(start_span=lambda *args, **more: Faulty())
    monkeypatch.setattr(trace, "get_tracer", lambda name: tracer)
    monkeypatch.setattr(trace, "set_span_in_context", lambda span: None)
    assert submit(ones(), BACKEND, service=service, shots=8).result(DEADLINE).counts == {"1": 8}


def test_nothing_is_imported_for_a_program_that_does_not_use_it():
    code = "import sys, qx_supervisor.run; print([each for each in sys.modules if each.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
