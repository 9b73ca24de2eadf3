"""Which versions of Qiskit's client are used: what has all that is needed, whatever its number.

The client of tomorrow is the installed one under a higher number, in front of it on the path, with or without a name
that is needed.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qiskit_ibm_runtime
from qiskit import QuantumCircuit

from qx_supervisor import ConfigError, local
from qx_supervisor.canonical import newer
from qx_supervisor.canonical.circuits import Circuits
from qx_supervisor.injected import qx_import_hook
from qx_supervisor.service import internals

pytestmark = pytest.mark.client

CLIENT = Path(qiskit_ibm_runtime.__file__).parent


def test_the_installed_one_has_all_that_is_needed() -> None:
    assert internals._lacking() == []
    internals.check()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was checked yet."""
    monkeypatch.setattr(internals, "_checked", set())


@pytest.mark.parametrize(
    ("table", "more", "told"),
    [
        ("_PLACES", {"no_such_name": ("utils.utils", "no_such_module", "nor.this")}, "no_such_name"),
        ("_METHODS", {"RuntimeClient": {"job_pause": ()}}, "RuntimeClient.job_pause"),
        ("_METHODS", {"RuntimeClient": {"job_cancel": ("job_id", "force")}}, r"RuntimeClient.job_cancel\(force\)"),
    ],
)
def test_what_it_lacks_is_named(
    unchecked: None, monkeypatch: pytest.MonkeyPatch, table: str, more: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(internals, table, {**getattr(internals, table), **more})
    with pytest.raises(
        ConfigError, match=rf"^qiskit-ibm-runtime \S+ has no {told}, which qx_supervisor needs, so "
    ) as it:
        internals.check()
    assert it.value.reason.endswith(f"works: {sys.executable} -m pip install 'qiskit-ibm-runtime=={internals.NEWEST}'")


def test_what_a_connection_lacks_is_named(unchecked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    client = type("RuntimeClient", (), {"_instance": "crn", "_session": object()})()
    with pytest.raises(
        ConfigError, match=r"has no RuntimeClient\._session\.adapters and no RuntimeClient\._session\.b"
    ):
        internals.check_connected(client)


def test_a_module_of_the_client_that_can_not_be_imported_is_no_module_that_it_lacks(tmp_path: Path) -> None:
    """Its own reason is told: a package that it needs is not there."""
    name = "qx_test_broken_client"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "part.py").write_text("import qx_test_no_such_package")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setattr(internals, "PACKAGE", name)
        patch.setattr(internals, "_PLACES", {"thing": ("part",), "other": ("none",)})
        with pytest.raises(ModuleNotFoundError, match="qx_test_no_such_package"):
            internals.find("thing")
        with pytest.raises(ConfigError, match="has no other"):
            internals.find("other")
    for each in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[each]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.51.0", (0, 51, 0)), ("1.0.0rc1", (1, 0, 0)), ("0.52.0.dev1+g1", (0, 52, 0)), ("unknown", (sys.maxsize,))],
)
def test_versions_are_compared_as_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert internals._numbers(version) == numbers


def test_the_import_hook_finds_the_clients_class_where_it_is() -> None:
    """It runs where this package may not be installed, so it has its own rule."""
    place = internals.find("RuntimeClient").__module__
    assert qx_import_hook.is_of_client(place)
    assert "RuntimeClient" in vars(importlib.import_module(place))


# Qiskit 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not newer.has_conditions(), reason="this Qiskit has no conditions of instructions")
@pytest.mark.filterwarnings("ignore:.*c_if:DeprecationWarning")
def test_a_condition_counts_in_a_keys_fingerprint() -> None:
    def made(value: int | None) -> QuantumCircuit:
        circuit = QuantumCircuit(1, 1)
        gate = circuit.x(0)
        if value is not None:
            gate.c_if(0, value)
        return circuit

    encoded = [Circuits(lambda *_: b"").circuit(made(value)) for value in (None, 0, 1, 1)]
    assert len(set(encoded)) == 3
    assert encoded[2] == encoded[3]


# The client of tomorrow -------------------------------------------------------------------------------------------


@pytest.fixture
def tomorrow(tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """Makes the client of tomorrow, without a name if one is given; returns a driver's environment."""

    def make(lost: str = "") -> dict[str, str]:
        own: dict[str, Callable[[str], str]] = {"VERSION.txt": lambda _: "99.1.0\n", "version.py": str}
        if lost:
            changed = Path(str(sys.modules[internals.find("RuntimeClient").__module__].__file__))
            own[str(changed.relative_to(CLIENT))] = lambda text: re.sub(
                rf"\bdef {lost}\b", f"def {lost}_of_tomorrow", text
            )
        _copy(CLIENT, tmp_path / "tomorrow" / CLIENT.name, own)
        paths = (str(tmp_path / "tomorrow"), os.environ.get("PYTHONPATH", ""))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    yield make
    shutil.rmtree(tmp_path / "tomorrow", ignore_errors=True)


def _copy(source: Path, to: Path, own: dict[str, Callable[[str], str]]) -> None:
    """A folder that has links to what there is in another, except for some files, which are changed."""
    to.mkdir(parents=True)
    for each in source.iterdir():
        inside = {path.partition("/")[2]: change for path, change in own.items() if path.startswith(f"{each.name}/")}
        if each.name in own:
            (to / each.name).write_text(own[each.name](each.read_text()))
        elif inside:
            _copy(each, to / each.name, inside)
        elif each.name != "__pycache__":
            (to / each.name).symlink_to(each)


RUN_TWICE = """
import qiskit_ibm_runtime
say("version", qiskit_ibm_runtime.__version__)
for number in (1, 2):
    outcome = try_run(isa(), backend(), shots=16, panel=None)
    say("counts" if outcome else "refused", outcome.value.counts if outcome else outcome.error.reason)
"""


@pytest.mark.long
def test_a_newer_one_is_used_with_a_line_in_the_log(ibm: local.Service, start: Any, tomorrow: Any) -> None:
    driver = start(RUN_TWICE, env={**tomorrow(), "QX_LOG_LEVEL": "WARNING"})
    assert driver.line("version ") == ["99.1.0"]
    assert driver.line("counts ") == ["{'11':", "16}"]
    assert driver.line("counts ") == ["{'11':", "16}"]
    assert driver.end() == 0
    assert driver.errors.decode().count("qiskit-ibm-runtime 99.1.0 is newer than") == 1
    assert [job.status for job in ibm.jobs()] == ["Completed"] * 2


@pytest.mark.long
@pytest.mark.parametrize("lost", ["program_run", "session_details"])
def test_a_newer_one_that_lacks_something_submits_nothing(
    ibm: local.Service, start: Any, tomorrow: Any, lost: str
) -> None:
    driver = start(RUN_TWICE, env=tomorrow(lost))
    for _ in range(2):
        said = " ".join(driver.line("refused "))
        assert said.startswith(f"qiskit-ibm-runtime 99.1.0 has no RuntimeClient.{lost}, which qx_supervisor needs, so ")
        assert said.endswith(f"-m pip install 'qiskit-ibm-runtime=={internals.NEWEST}'")
    assert driver.end() == 0
    assert ibm.jobs() == []
