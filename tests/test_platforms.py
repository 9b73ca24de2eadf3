"""Import everywhere: on platforms where little or nothing can be guarded, what needs no guard works.

The other platforms are this one with their modules and calls taken away (`testkit.platforms`).
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from testkit.platforms import macos, windows

from qx_supervisor import local

BELL = """
from qiskit import QuantumCircuit
def bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit
"""


LITTLE = """
import contextlib, io
from qx_supervisor import WatcherError, cli, launch
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
    cli.main(["ps", "--help"])
print("Usage: qx-supervisor ps" in said.getvalue())
print(launch.system.why_no_watcher())
"""


def told(platform: str, code: str, *arguments: object) -> list[str]:
    """What a program says that runs on a platform."""
    command = [sys.executable, "-c", platform + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOCAL_BACKENDS = f"""{BELL}
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from qx_supervisor import run, submit
print({{"00", "11"}} <= run(bell(), FakeManilaV2(), shots=100, panel=None).counts.keys())
print(sum(submit(bell(), AerSimulator(), shots=100).result().counts.values()))
"""

GUARDED = f"""{BELL}
from qx_supervisor import WatcherError, run
from qx_supervisor.local.client import connect
service = connect(int(sys.argv[1]), "local-key")
try:
    run(bell(), "ibm_brisbane", service=service, shots=10, panel=None)
except WatcherError as error:
    print(error.stage, error)
result = run(bell(), "ibm_brisbane", service=service, shots=10, panel=None, on_unprotected="warn")
print(sum(result.counts.values()))
print(sum(service.job(result.job_id).result()[0].data.meas.get_counts().values()))
"""


@pytest.mark.parametrize("platform", [macos, windows])
def test_it_is_imported_and_says_what_it_can_not_do(platform):
    """Without Qiskit, as `--help` does without it; the rest of what is imported is in the long tests."""
    shown, refusal = told(platform("import qx_supervisor.cli.ps\n"), LITTLE)
    assert shown == "True"
    assert ("WSL 2" in refusal) is (platform is windows)


@pytest.mark.long
def test_local_backends_on_windows():
    assert told(windows(), LOCAL_BACKENDS) == ["True", "100"]


@pytest.mark.long
def test_local_backends_on_macos():
    assert told(macos(), LOCAL_BACKENDS) == ["True", "100"]


@pytest.mark.long
def test_a_guarded_run_on_windows(ibm: local.Service):
    """It is refused before anything is submitted, with the way out; or goes on without a watcher, if that is wanted."""
    refusal, counts, again = told(windows(), GUARDED, ibm.port)
    assert refusal.startswith("submit nothing was submitted, because the watcher can't protect this run: ")
    assert "WSL 2" in refusal
    assert "mount" not in refusal
    assert (counts, again) == ("10", "10")
    assert len(ibm.jobs()) == 1


@pytest.mark.long
@pytest.mark.parametrize("platform", [macos, windows])
def test_every_module_is_imported(platform):
    [line] = told(platform(), "print(len(list(modules())) > 100)")
    assert line == "True"


COMMANDS = """
import contextlib, io
from qx_supervisor import cli
for words in ([], ["run"], ["exec"], ["ps"], ["reap"], ["log"], ["wait"], ["doctor"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main([*words, "--help"])
    print("Usage: qx-supervisor" in said.getvalue())
sys.stderr = sys.stdout
try:
    cli.main(["ps"])
except SystemExit as end:
    print(end.code)
"""


@pytest.mark.long
def test_the_command_on_windows():
    *shown, refusal, code = told(windows(), COMMANDS)
    assert shown == ["True"] * 8
    assert refusal.startswith("qx-supervisor: There is no ledger here: ")
    assert "WSL 2" in refusal
    assert code == "1"


@pytest.mark.long
def test_a_mac_that_can_not_be_recognized_is_not_told_to_mount_proc():
    code = """
from qx_supervisor import WatcherError, launch
from qx_supervisor.watcher import host_identity
host_identity.start_ticks = lambda pid: None
try:
    launch.start()
except WatcherError as error:
    print(error.reason)
"""
    [line] = told(macos(), code)
    assert "psutil" in line
    assert "/proc" not in line
