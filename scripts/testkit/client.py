"""Qiskit's client in this environment, which may be an older one than the embedded service's."""

from __future__ import annotations

import importlib
import inspect
import pickle
from typing import Any

import pytest
from qiskit.primitives import DataBin

from qx_supervisor.service import internals

from .iam import reads_iam_url

IS_CURRENT = internals.has_current_primitives()
"""Whether it has the primitives for which it deprecates SamplerV2 and EstimatorV2; an older one has these two only."""

Sampler = internals.primitive_class("sampler")
"""The sampler that a run takes by default."""

Estimator = internals.primitive_class("estimator")
"""The estimator that a run takes by default."""

_options = importlib.import_module(f"qiskit_ibm_runtime.{'options_models' if IS_CURRENT else 'options'}")

SamplerOptions = _options.SamplerOptions
"""The options of that sampler."""

EstimatorOptions = _options.EstimatorOptions
"""The options of that estimator."""

READS_IAM_URL = reads_iam_url()
"""Whether `IAM_URL` leads it to another token service than IBM's."""

REACH = "" if READS_IAM_URL else "from qx_supervisor.local.older_clients import reach\nreach()\n"
"""Lines for a program that uses Qiskit alone, with which an older client finds the embedded service."""


def need_iam_url() -> None:
    """Skip the test where the client would ask IBM's own token service, at an account that is not the embedded one."""
    if not READS_IAM_URL:
        pytest.skip("this client reads no IAM_URL, and would ask IBM for a token")


FINDS_THE_LEAST_BUSY = '"available"' not in inspect.getsource(internals.find("QiskitRuntimeService").least_busy)
"""Whether it chooses a backend of the embedded service's; if not, a run has to name one."""

needs_the_least_busy = pytest.mark.skipif(
    not FINDS_THE_LEAST_BUSY,
    reason="this client takes a backend only if the service says that it is available, as the embedded one does not",
)

needs_current_primitives = pytest.mark.skipif(
    not IS_CURRENT, reason="this client has no primitives but SamplerV2 and EstimatorV2"
)

ASKS_FOR_THE_USAGE = hasattr(internals.find("QiskitRuntimeService"), "_check_instance_usage")
"""Whether it asks at each submission what the instance has left, as since 0.44, and warns if that is nothing."""


def _pickles_results() -> bool:
    try:
        pickle.loads(pickle.dumps(DataBin()))
    except NotImplementedError:
        return False
    return True


PICKLES_RESULTS = _pickles_results()
"""Whether Qiskit can unpickle what a result holds, as it can since 2.1."""

needs_pickled_results = pytest.mark.skipif(not PICKLES_RESULTS, reason="this Qiskit can't unpickle a result")


def pickled(result: Any) -> Any:
    """A result as another process gets it; where Qiskit can't unpickle one, the same."""
    return pickle.loads(pickle.dumps(result)) if PICKLES_RESULTS else result
