"""What is built, what is in it, and that it works where it is installed, far from the checkout."""

from __future__ import annotations

import email
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.drivers import Driver
from testkit.processes import wait_for_end

from qx_supervisor import local

CHECKOUT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "scripts", "tests")


@dataclass
class Built:
    """The two distributions and what is in them."""

    sdist: Path
    wheel: Path

    @property
    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    @property
    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def metadata(self, name: str = "METADATA") -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            [path] = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
            return archive.read(path).decode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel is built from the sdist, so that holds all that is needed."""
    folder = tmp_path_factory.mktemp("built")
    source, out = folder / "source", folder / "dist"
    shutil.copytree(CHECKOUT, source, ignore=LEFT_OUT)  # building writes into the source
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture
def installed(built: Built, tmp_path: Path) -> Path:
    """A folder into which the wheel is installed, and nothing else."""
    folder = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(built.wheel)], check=True, capture_output=True)
    return folder


def modules(package: str) -> set[str]:
    return {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / package).rglob("*.py")}


def test_the_wheel_holds_the_two_packages_and_nothing_else(built: Built) -> None:
    names = {name for name in built.wheel_names if ".dist-info/" not in name}
    typed = {"qx_supervisor/py.typed", "watcher/py.typed"}
    assert names == modules("qx_supervisor") | modules("watcher") | typed
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_what_a_build_needs(built: Built) -> None:
    names = built.sdist_names
    assert modules("qx_supervisor") | modules("watcher") <= names
    wanted = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "watcher/py.typed", "qx_supervisor/py.typed"}
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests", "scripts", "docs"))]


def test_the_metadata(built: Built) -> None:
    metadata: Message = email.message_from_string(built.metadata())
    assert metadata["Name"] == "qx-supervisor"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or ()) >= {"local", "test"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (CHECKOUT / "README.md").read_text()
    needed = [item for item in metadata.get_all("Requires-Dist") or () if "extra ==" not in item]
    names = {item.split(">")[0].split("<")[0].strip() for item in needed}
    assert {"qiskit", "qiskit-ibm-runtime", "psutil", "multiprocess", "requests", "ibm-cloud-sdk-core"} <= names
    assert "localqpu" not in names
    assert "qx-supervisor = qx_supervisor.cli:main" in built.metadata("entry_points.txt")
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or ())


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A working directory, and an environment in which the installed packages come first."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder, {**os.environ, "PYTHONPATH": str(installed)}


def test_the_command(installed: Path, elsewhere: tuple[Path, dict[str, str]]) -> None:
    folder, environment = elsewhere
    for how in ([str(installed / "bin" / "qx-supervisor")], ["-m", "qx_supervisor"]):
        command = [sys.executable, *how, "--help"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "reap" in done.stdout


DRIVER = """
import os, sys
import qx_supervisor
from qiskit import QuantumCircuit
from qx_supervisor import local, run
from qx_supervisor.link import link
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
ibm = local.Service({pid}, {port})
service = ibm.service()
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def tell(status):
    say(status.state, status.job_id, status.watcher)
say("from", qx_supervisor.__file__)
say("counted", sum(run(circuit, "ibm_brisbane", service=service, shots=64, panel=None).counts.values()))
say("watcher", [path for path in link.inspect()["modules"] if path.startswith(("watcher", "qx_", "qiskit"))])
ibm.hold("queued")
run(circuit, "ibm_brisbane", service=service, on_status=tell, panel=None)
"""


@pytest.fixture
def driver(ibm: local.Service, installed: Path, elsewhere: tuple[Path, dict[str, str]]) -> Iterator[Driver]:
    """A script of a user's, beside whose checkout nothing is."""
    folder, environment = elsewhere
    (folder / "driver.py").write_text(DRIVER.format(pid=ibm.pid, port=ibm.port))
    (folder / "watcher.py").write_text("raise SystemExit('this is the user's own module')")
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = Driver(subprocess.Popen([sys.executable, "driver.py"], cwd=folder, env=environment, **streams))
    yield started
    started.clear()


def test_a_script_far_from_the_checkout(ibm: local.Service, installed: Path, driver: Driver) -> None:
    """It runs a job to its counts; then it is killed, and the watcher that came with it cancels its job."""
    assert driver.line("from ") == [str(installed / "qx_supervisor" / "__init__.py")]
    assert driver.line("counted ") == ["64"]
    modules = " ".join(driver.line("watcher "))
    assert "watcher.loop" in modules
    assert "qiskit" not in modules
    assert "qx_supervisor" not in modules
    job, pid = driver.line("queued ")
    watcher = psutil.Process(int(pid))
    assert watcher.cmdline()[-2] == str(installed / "watcher" / "boot.py")
    assert driver.kill() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)
