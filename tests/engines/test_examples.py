"""The examples of the documentation that need an engine: each is a program, run where its engine is installed.

As in `test_docs`, `QX_LOCAL` stands for an account, for the program and for its engine's processes.
"""

from __future__ import annotations

import shutil
import tempfile

import pytest
from testkit.pages import BLOCKS, assert_runs
from testkit.processes import DEADLINE

from qx_supervisor import local

from .host import ENVIRONMENT

TOO_BUSY = "The current node timed out during startup"
"""What Ray says where its processes take more than the 30 seconds that it gives them: before it begins anything."""

EXAMPLES = {
    block.code.split()[1].partition(".")[0]: block
    for block in BLOCKS
    if block.page.name == "engines.md" and block.language == "python"
}


@pytest.mark.parametrize("engine", ["dask", "ray", "joblib", "mpi4py"])
def test_example(tmp_path, monkeypatch, engine):
    pytest.importorskip(engine)
    starter = []
    if engine == "mpi4py":
        if shutil.which("mpiexec") is None:
            pytest.skip("no mpiexec: on Debian, apt-get install openmpi-bin")
        starter = ["mpiexec", "-n", "2"]
    program = tmp_path / "example.py"
    program.write_text(EXAMPLES[engine].code)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # its sockets' paths must be short
        for name, value in ENVIRONMENT.items() | {("RAY_TMPDIR", folder)}:
            monkeypatch.setenv(name, value)
        try:
            try:
                assert_runs(program, *starter, seconds=4 * DEADLINE, QX_LOCAL="1")  # an engine is many processes
            except AssertionError as error:
                if TOO_BUSY not in str(error):
                    raise
                assert_runs(program, *starter, seconds=4 * DEADLINE, QX_LOCAL="1")
            jobs = [job.status for job in local.find().jobs()]  # all of them had the same service
        finally:
            if (running := local.find()) is not None:
                running.stop()
    assert jobs == ["Completed"] * 2


def test_there_is_no_other_example():
    assert sorted(EXAMPLES) == ["dask", "joblib", "mpi4py", "ray"]
