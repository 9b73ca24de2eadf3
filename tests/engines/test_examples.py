"""The examples of the documentation that need an engine: each is a program, run where its engine is installed.

What the others have from `test_docs.account` the programs here, and their engines' processes, have from a
`sitecustomize` on their path: the saved account is the embedded service.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from testkit.pages import BEFORE, BLOCKS, assert_runs
from testkit.processes import DEADLINE

from .host import ENVIRONMENT

EXAMPLES = {
    block.code.split()[1].partition(".")[0]: block
    for block in BLOCKS
    if block.page.name == "engines.md" and block.language == "python"
}


@pytest.mark.parametrize("engine", ["dask", "ray", "joblib", "mpi4py"])
def test_example(ibm, tmp_path, monkeypatch, engine):
    pytest.importorskip(engine)
    starter = []
    if engine == "mpi4py":
        if shutil.which("mpiexec") is None:
            pytest.skip("no mpiexec: on Debian, apt-get install openmpi-bin")
        starter = ["mpiexec", "-n", "2"]
    (tmp_path / "sitecustomize.py").write_text(BEFORE.format(pid=ibm.pid, port=ibm.port))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    program = tmp_path / "example.py"
    program.write_text(EXAMPLES[engine].code)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # its sockets' paths must be short
        for name, value in ENVIRONMENT.items() | {("RAY_TMPDIR", folder)}:
            monkeypatch.setenv(name, value)
        assert_runs(program, *starter, seconds=4 * DEADLINE)  # an engine is many processes
    assert [job.status for job in ibm.jobs()] == ["Completed"] * 2


def test_there_is_no_other_example():
    assert sorted(EXAMPLES) == ["dask", "joblib", "mpi4py", "ray"]
