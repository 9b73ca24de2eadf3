"""What users get who install it: by pipx and uv, beside the usual add-ons, and as a conda package.

All of it needs a package index, except the conda package, which is built from a channel made here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit.distributions import CONFIGURATION, VERSION, Built, build
from testkit.pages import CHECKOUT
from testkit.processes import DEADLINE

pytestmark = pytest.mark.long

ADD_ONS = (
    "mitiq",
    "pennylane-qiskit",
    "qiskit-addon-aqc-tensor",
    "qiskit-addon-cutting",
    "qiskit-addon-mpf",
    "qiskit-addon-obp",
    "qiskit-addon-sqd",
    "qiskit-addon-utils",
    "qiskit-aer",
    "qiskit-experiments",
    "qiskit-serverless",
)

UNREACHABLE = re.compile(r"dns error|Connection refused|Network is unreachable|error sending request|timed out", re.I)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of uv and pipx, which keep all that they make in folders of the test's."""
    pytest.importorskip("uv")
    pytest.importorskip("pipx")
    folder = tmp_path_factory.mktemp("tools")
    places = {
        "UV_CACHE_DIR": folder / "cache",
        "UV_TOOL_DIR": folder / "tools",
        "PIPX_HOME": folder / "pipx",
        "HOME": folder / "home",
        "QX_STATE_DIR": folder / "state",
    }
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # pipx looks for uv there
    more = {
        "PATH": path,
        "UV_PYTHON": sys.executable,
        "UV_NO_PROGRESS": "1",
        "UV_NO_CONFIG": "1",
        "PIPX_DEFAULT_BACKEND": "uv",
    }
    yield {**environment, **more, **{name: str(path) for name, path in places.items()}}
    shutil.rmtree(folder, ignore_errors=True)  # it may be a gigabyte


def told(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """What a command writes, which may have to download packages first."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=20 * DEADLINE, check=False
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("runner", ["uv", "pipx"])
def test_as_a_tool(built: Built, tools: dict[str, str], tmp_path: Path, runner: str) -> None:
    """The command runs in an environment of its own, far from the checkout, with what the wheel asks for."""
    start = {"uv": ["uv", "tool", "run", "--from"], "pipx": ["pipx", "run", "--spec"]}[runner]
    start = [str(Path(sys.executable).with_name(start[0])), *start[1:], str(built.wheel), "qx-supervisor"]
    assert told([*start, "--version"], tools, tmp_path).split()[-1] == VERSION
    assert "reap" in told([*start, "--help"], tools, tmp_path)
    assert told([*start, "ps"], tools, tmp_path) == ""  # nothing is guarded


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("add_on", ADD_ONS)
def test_it_resolves_beside_the_usual_add_ons(
    built: Built, tools: dict[str, str], tmp_path: Path, add_on: str, python: str
) -> None:
    """With the client that setup.cfg asks for."""
    asked = tmp_path / "requirements.in"
    asked.write_text(f"qx-supervisor @ {built.wheel.as_uri()}\n{add_on}\n")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--python-version", python, str(asked)]
    resolved = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", told(command, tools, tmp_path), re.MULTILINE))
    assert {add_on, "qiskit", "qiskit-ibm-runtime"} <= resolved.keys()


def requirements() -> dict[str, set[str]]:
    """What setup.cfg asks for: bounds by name."""
    found = {}
    for line in CONFIGURATION["options"]["install_requires"].split("\n"):
        if line:
            name, bounds = re.fullmatch(r"([\w-]+)\s*(.*)", line).groups()
            found[name] = {re.sub(r"\s", "", bound) for bound in bounds.split(",")}
    return found


def asked_by_conda(lines: list[str]) -> dict[str, set[str]]:
    """The same of a conda package, Python aside."""
    found = {name: set(bounds.split(",")) for name, _, bounds in (line.partition(" ") for line in lines)}
    assert found.pop("python") == {CONFIGURATION["options"]["python_requires"]}
    return found


def test_the_conda_recipe_builds(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sdist, by the real builder; a channel that is made here has the Python to build with."""
    rattler_build = pytest.importorskip("rattler_build")
    from testkit.channel import make_channel

    import recipe

    channel, source = tmp_path / "channel", tmp_path / "source"
    make_channel(channel, tmp_path / "work")
    (source / "dist").mkdir(parents=True)
    (source / "dist" / built.sdist.name).write_bytes(built.sdist.read_bytes())
    (source / "recipe").mkdir()
    (source / "recipe" / "recipe.yaml").write_text((CHECKOUT / "recipe" / "recipe.yaml").read_text())
    monkeypatch.setenv("SDIST_VERSION", recipe.version())
    [path] = recipe.build(source / "recipe" / "recipe.yaml", channel, [channel.as_uri()], with_tests=False)
    package = rattler_build.Package.from_file(path)
    assert (package.name, package.version, package.noarch) == ("qx-supervisor", VERSION, "python")
    assert package.license == CONFIGURATION["metadata"]["license_expression"]
    assert asked_by_conda(package.depends) == requirements()
    in_wheel = {f"site-packages/{name}" for name in built.wheel_names if ".dist-info/" not in name}
    assert in_wheel <= set(package.files)


def test_the_recipe_says_what_setup_cfg_says(built: Built) -> None:
    text = (CHECKOUT / "recipe" / "recipe.yaml").read_text()
    assert f"  summary: {CONFIGURATION['metadata']['description']}\n" in text
    assert CONFIGURATION["options.entry_points"]["console_scripts"].strip() in text
    [needed] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert needed.replace(" ", "") == re.search(r"- (setuptools .*)", text)[1].replace(" ", "")
