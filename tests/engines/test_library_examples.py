"""The examples of the documentation that need a library which takes primitives: each is a program.

As in `test_docs`, `QX_LOCAL` stands for an account.
"""

from __future__ import annotations

import pytest
from testkit.pages import BESIDE, BLOCKS, assert_runs, library_of
from testkit.processes import DEADLINE

from qx_supervisor import local

NEEDS = {"pennylane": ["pennylane_qiskit"]}
"""What a library's example needs beside it."""

EXAMPLES = {library: block for block in BLOCKS if (library := library_of(block))}


@pytest.mark.parametrize("library", EXAMPLES)
def test_example(tmp_path, library):
    for module in (library, *NEEDS.get(library, ())):
        pytest.importorskip(module)
    program = tmp_path / "example.py"
    program.write_text(EXAMPLES[library].code)
    try:
        assert_runs(
            program, seconds=6 * DEADLINE, QX_LOCAL="1", PYTHONWARNINGS="ignore"
        )  # of libraries, about each other
        jobs = local.find().jobs()
    finally:
        if (running := local.find()) is not None:
            running.stop()
    assert {job.status for job in jobs} == {"Completed"}
    assert all(any(tag.startswith("qxs-") for tag in job.tags) for job in jobs)


def test_there_is_one_of_each():
    assert sorted(EXAMPLES) == sorted(BESIDE)
