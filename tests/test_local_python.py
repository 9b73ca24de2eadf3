"""The embedded service in an environment of its own: it is started by the path of a Python that has localqpu."""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from testkit.pages import CHECKOUT

from qx_supervisor import local, settings
from qx_supervisor.local import boot


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The Python of an environment in which nothing is installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    return tmp_path / "bare/bin/python"


@pytest.fixture
def equipped(bare: Path) -> Path:
    """The Python of an environment that has what the service needs: what is installed where the service runs now."""
    python = os.environ.get(settings.LOCAL_PYTHON) or sys.executable
    look = "import localqpu, pathlib; print(pathlib.Path(localqpu.__file__).parent.parent)"
    found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True).stdout
    if Path(found.strip()).parent.name != f"python3.{sys.version_info.minor}":
        pytest.skip("the service runs with another Python, whose modules this one can't import")
    [packages] = bare.parent.parent.glob("lib/python3*/site-packages")
    (packages / "of_the_other.pth").write_text(found)
    return bare


@pytest.mark.long
@pytest.mark.parametrize("named", ["argument", "environment", "on the path"])
def test_it_runs_with_the_python_that_is_named(
    equipped: Path, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The driver needs no localqpu; jobs run to their results."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.delenv(settings.LOCAL_PYTHON, raising=False)
    given: Path | None = None
    if named == "argument":
        given = equipped
    elif named == "environment":
        monkeypatch.setenv(settings.LOCAL_PYTHON, str(equipped))
    else:
        monkeypatch.setenv("PATH", f"{equipped.parent}:{os.environ['PATH']}")
        monkeypatch.setenv(settings.LOCAL_PYTHON, equipped.name)
    monkeypatch.chdir(tmp_path)
    assert local.can_start() is (named != "argument")
    with local.start(python=given) as ibm:
        ibm.health()
        assert psutil.Process(ibm.pid).cmdline()[0] == str(equipped)
        assert ibm.jobs() == []


def test_a_python_that_can_not_run_it_is_named(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(local.ServiceError) as missing:
        local.start(python=bare)
    assert str(missing.value) == (
        f"The embedded service did not start: something is not installed there; {bare} -m pip install "
        "'localqpu >= 0.3.0, < 0.4' 'trustme >= 1.2'"
    )
    monkeypatch.setenv(settings.LOCAL_PYTHON, str(tmp_path / "python"))
    with pytest.raises(local.ServiceError, match=r"There is no Python '.*/python' .* in QX_LOCAL_PYTHON$"):
        local.start()


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(sys, "version", "3.10.4 (main)")
    with pytest.raises(SystemExit, match=r"it needs Python 3.11 or newer, and .* is 3.10.4; name another"):
        boot.check_environment()


def test_what_it_asks_for_is_what_the_extra_installs() -> None:
    read = configparser.ConfigParser()
    read.read(CHECKOUT / "setup.cfg")
    extra = read["options.extras_require"]["local"].strip().splitlines()
    assert sorted(boot.NEEDED.values()) == sorted(extra)
