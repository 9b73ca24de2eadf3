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
from collections.abc import Callable, Iterator
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


def copy_checkout(folder: Path) -> None:
    shutil.copytree(CHECKOUT, folder, ignore=LEFT_OUT, symlinks=True)


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
    copy_checkout(source)  # building writes into the source
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


def modules(folder: str, *, within: str = "") -> set[str]:
    files = (Path(root, name) for root, _, names in os.walk(CHECKOUT / folder) for name in names)
    return {within + str(file.relative_to(CHECKOUT)) for file in files if file.suffix == ".py"}


def test_the_wheel_holds_one_package_with_the_watcher_in_it_and_nothing_else(built: Built) -> None:
    names = {name for name in built.wheel_names if ".dist-info/" not in name}
    assert names == modules("qx_supervisor") | modules("watcher", within="qx_supervisor/") | {"qx_supervisor/py.typed"}
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_what_a_build_needs(built: Built) -> None:
    names = built.sdist_names
    assert modules("qx_supervisor") | modules("watcher") <= names
    wanted = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "qx_supervisor/py.typed"}
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
def start(ibm: local.Service, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Start a script of a user's, whose folder has a `watcher.py` and is the working directory."""
    begun = []

    def start(python: Path | str, environment: dict[str, str]) -> Driver:
        folder = tmp_path / "user"
        folder.mkdir()
        (folder / "driver.py").write_text(DRIVER.format(pid=ibm.pid, port=ibm.port))
        (folder / "watcher.py").write_text("raise SystemExit('this is the user's own module')")
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        driver = Driver(subprocess.Popen([python, "driver.py"], cwd=folder, env=environment, **streams))
        begun.append(driver)
        return driver

    yield start
    for driver in begun:
        driver.clear()


def assert_works(ibm: local.Service, driver: Driver, package: Path) -> None:
    """It runs a job to its counts; then it is killed, and the watcher that came with it cancels its job."""
    assert driver.line("from ") == [str(package / "__init__.py")]
    assert driver.line("counted ") == ["64"]
    modules = " ".join(driver.line("watcher "))
    assert "watcher.loop" in modules
    assert "qiskit" not in modules
    assert "qx_supervisor" not in modules
    job, pid = driver.line("queued ")
    watcher = psutil.Process(int(pid))
    boot = Path(watcher.cmdline()[-2])
    assert boot.parent.resolve() in ((package / "watcher").resolve(), package.parent / "watcher")
    assert driver.kill() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


def test_installed_from_the_wheel(ibm: local.Service, installed: Path, start: Callable[..., Driver]) -> None:
    driver = start(sys.executable, {**os.environ, "PYTHONPATH": str(installed)})
    assert_works(ibm, driver, installed / "qx_supervisor")


@pytest.mark.long
def test_from_a_checkout(ibm: local.Service, tmp_path: Path, start: Callable[..., Driver]) -> None:
    """Nothing is installed."""
    source = tmp_path / "checkout"
    copy_checkout(source)
    driver = start(sys.executable, {**os.environ, "PYTHONPATH": str(source)})
    assert_works(ibm, driver, source / "qx_supervisor")


@pytest.mark.long
@pytest.mark.parametrize("has_links", [True, False], ids=["with the symbolic link", "without"])
def test_an_editable_install(ibm: local.Service, tmp_path: Path, start: Callable[..., Driver], has_links: bool) -> None:
    """Where symbolic links can't be had, git writes a small file in the place of each."""
    source, place = tmp_path / "checkout", tmp_path / "environment"
    copy_checkout(source)
    if not has_links:
        link = source / "qx_supervisor" / "watcher"
        link.unlink()
        link.write_text("../watcher")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    [packages] = place.glob("lib/python*/site-packages")
    needed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "needed.pth").write_text("\n".join(needed))  # but what these say themselves is not heeded
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command += ["--no-build-isolation", "--editable", str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_works(ibm, start(python, environment), source / "qx_supervisor")
