"""Whether the installed client can be led to another token service than IBM's; known without its import."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def reads_iam_url() -> bool:
    """Whether it reads `IAM_URL`, as it does since 0.49."""
    spec = importlib.util.find_spec("qiskit_ibm_runtime")
    assert spec is not None
    assert spec.origin is not None
    return 'environ.get("IAM_URL")' in Path(spec.origin).with_name("api").joinpath("auth.py").read_text()
