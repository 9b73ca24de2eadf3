"""What is built, what is in it, and that it works where it is installed, far from the checkout."""

from __future__ import annotations

import email
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import click.testing
import psutil
import pytest
from testkit.distributions import VERSION, Built, build, copy_checkout
from testkit.drivers import Driver
from testkit.pages import CHECKOUT
from testkit.processes import wait_for_end

import qx_supervisor
from qx_supervisor import distribution, local
from qx_supervisor.cli import main

HOME = "https://example.org/quantum/qx_supervisor"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)]+)\)")

STATIC = {
    f"qx_supervisor/page/static/{name}" for name in ("icon.svg", "login.html", "page.css", "page.html", "page.js")
}
"""What the page loads."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel is built from the sdist, so that holds all that is needed."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def built_with_address(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same, by a setup.cfg that says where the project is."""
    return build(tmp_path_factory.mktemp("built"), home=HOME)


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


@pytest.mark.long
def test_the_wheel_holds_one_package_with_the_watcher_in_it_and_nothing_else(built: Built) -> None:
    names = {name for name in built.wheel_names if ".dist-info/" not in name}
    data = {"qx_supervisor/py.typed", *STATIC}
    assert names == modules("qx_supervisor") | modules("watcher", within="qx_supervisor/") | data
    assert built.wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.long
def test_the_sdist_holds_what_a_build_needs(built: Built) -> None:
    names = built.sdist_names
    assert modules("qx_supervisor") | modules("watcher") <= names
    wanted = {"pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE", "qx_supervisor/py.typed", *STATIC}
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests", "scripts", "docs"))]


@pytest.mark.long
def test_the_metadata(built: Built) -> None:
    metadata: Message = email.message_from_string(built.metadata())
    assert metadata["Name"] == "qx-supervisor"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or ()) >= {"local", "test"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Version"] == VERSION
    assert metadata.get_all("Project-URL") is None
    readme = str(metadata.get_payload())
    assert readme.splitlines()[0] == (CHECKOUT / "README.md").read_text().splitlines()[0]
    assert LINK.findall(readme) == []  # without an address they would lead nowhere
    assert "exception is a host that is cut off." in readme
    assert "*The panel of a run in the queue:" in readme
    needed = [item for item in metadata.get_all("Requires-Dist") or () if "extra ==" not in item]
    names = {item.split(">")[0].split("<")[0].strip() for item in needed}
    assert {"qiskit", "qiskit-ibm-runtime", "psutil", "multiprocess", "requests", "ibm-cloud-sdk-core"} <= names
    assert "localqpu" not in names
    assert "qx-supervisor = qx_supervisor.cli:main" in built.metadata("entry_points.txt")
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or ())


@pytest.mark.long
def test_with_an_address_links_lead_there(built_with_address: Built) -> None:
    """Those of the metadata, and those of the readme, in which each names a file of this version."""
    metadata: Message = email.message_from_string(built_with_address.metadata())
    links = dict(link.split(", ") for link in metadata.get_all("Project-URL") or ())
    assert links == {
        "Homepage": HOME,
        "Documentation": f"{HOME}/blob/{VERSION}/docs/index.md",
        "Changelog": f"{HOME}/blob/{VERSION}/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
    }
    readme = str(metadata.get_payload())
    found, were = LINK.findall(readme), LINK.findall((CHECKOUT / "README.md").read_text())
    assert [text for _, text, _ in found] == [text for _, text, _ in were]
    for picture, _, target in found:
        base = f"{HOME}/{'raw' if picture else 'blob'}/{VERSION}/"
        assert target.startswith(base)
        assert (CHECKOUT / target.removeprefix(base).partition("#")[0]).exists()


@pytest.mark.parametrize(
    "addresses, said",
    [
        ({"home": "http://example.org"}, "home in the section addresses must begin with https://"),
        ({"issues": "https://example.org/issues"}, "the section addresses has no home; fill it in"),
    ],
)
@pytest.mark.long
def test_a_wrong_address_ends_the_build(tmp_path: Path, addresses: dict[str, str], said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        build(tmp_path, **addresses)
    assert said in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("which", ["built", "built_with_address"])
def test_an_index_takes_it(which: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("twine")
    found: Built = request.getfixturevalue(which)
    command = [sys.executable, "-m", "twine", "check", "--strict", str(found.sdist), str(found.wheel)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


@pytest.mark.long
def test_classifiers_are_the_indexs(built: Built) -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    named = email.message_from_string(built.metadata()).get_all("Classifier") or []
    assert named
    assert [each for each in named if each not in known] == []


@pytest.mark.long
def test_faults_are_reported_where_the_metadata_says(built_with_address: Built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built_with_address.wheel) as archive:
        archive.extractall(tmp_path)
    code = "from qx_supervisor.distribution import please_report, version; print(version(), please_report(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [VERSION, f"please report it at {HOME}/issues"]


def test_without_an_address_none_is_made_up() -> None:
    assert distribution.please_report() == "please report it"


def test_the_version_is_that_of_setup_cfg() -> None:
    """Everywhere, by the metadata of what is installed; the documentation's and the recipe's too."""
    assert qx_supervisor.__version__ == VERSION
    assert click.testing.CliRunner().invoke(main, ["--version"]).output.split()[-1] == VERSION
    for path in (CHECKOUT / "docs" / "conf.py", CHECKOUT / "recipe" / "recipe.yaml"):
        assert VERSION not in path.read_text()
    with pytest.raises(AttributeError, match="no attribute '__author__'"):
        qx_supervisor.__author__  # noqa: B018


def test_the_changelog_keeps_a_changelogs_form() -> None:
    """https://keepachangelog.com: what is not released first, then versions with their dates, the newest first."""
    text = (CHECKOUT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]]
    assert all(released)
    versions = [tuple(map(int, found.groups())) for found in released if found]
    assert versions == sorted(versions, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A working directory, and an environment in which the installed packages come first."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder, {**os.environ, "PYTHONPATH": str(installed)}


@pytest.mark.long
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
from qx_supervisor.launch import BOOT
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
say("boot", BOOT)
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
    boot = Path(*driver.line("boot "))
    assert boot.parent.resolve() in ((package / "watcher").resolve(), package.parent / "watcher")
    assert driver.line("counted ") == ["64"]
    modules = " ".join(driver.line("watcher "))
    assert "watcher.watch" in modules
    assert "qiskit" not in modules
    assert "qx_supervisor" not in modules
    job, pid = driver.line("queued ")
    watcher = psutil.Process(int(pid))
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
