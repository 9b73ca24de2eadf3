"""`qx-supervisor backends`, and how error rates are read."""

from __future__ import annotations

import json

import pytest
from testkit.circuits import BACKEND

from qx_supervisor import local
from qx_supervisor.calibration import ErrorRates, error_rates

BACKENDS = "/api/v1/backends"
PAUSED = {"name": "paused", "reason": "maintenance"}


def devices(*found):
    """A fault that has the service list these backends, whatever it offers: to the client, and to the command."""
    return {"path": BACKENDS, "method": "GET", "body": json.dumps({"devices": found}), "times": 2}


def device(name, queue, status="online", reason=""):
    return {"name": name, "qubits": 127, "queue_length": queue, "status": {"name": status, "reason": reason}}


def test_what_there_is(here, call):
    """The least busy comes first, what is offline last; one list, and one request per backend."""
    listed = [device("ibm_off", 0, "offline", "calibration"), device("ibm_other", 12), device(BACKEND, 10)]
    after = here.cursor()
    code, lines, said = with_devices(here, call, listed, "--json")
    assert (code, said) == (0, "")
    told = {each["backend"]: each for each in map(json.loads, lines)}
    assert list(told) == [BACKEND, "ibm_other", "ibm_off"]
    assert [name for name, each in told.items() if each["least_busy"]] == [BACKEND]
    assert (told["ibm_off"]["status"], told["ibm_off"]["reason"]) == ("offline", "calibration")
    brisbane = told[BACKEND]
    assert (brisbane["status"], brisbane["queue"], brisbane["qubits"]) == ("online", 10, 127)
    assert brisbane["two_qubit_gate"] == "ecr"
    assert 0.001 < brisbane["two_qubit_error"] < 0.05
    assert 0.001 < brisbane["readout_error"] < 0.1
    assert told["ibm_other"]["two_qubit_error"] is None  # it has no properties
    asked = [entry.path for entry in here.journal(after, path=f"{BACKENDS}/*")]
    assert sorted(asked) == sorted(f"{BACKENDS}/{name}/properties" for name in told)


@pytest.mark.long
def test_the_table(here, call):
    listed = [device("ibm_off", 0, "offline", "calibration"), device("ibm_other", 12), device(BACKEND, 10)]
    header, *rows = with_devices(here, call, listed)[1]
    assert header.split() == ["BACKEND", "QUBITS", "QUEUE", "STATUS", "2Q", "READOUT"]
    assert rows[0].split()[:6] == [BACKEND, "127", "10", "online,", "least", "busy"]
    assert rows[2].split() == ["ibm_off", "127", "0", "offline,", "calibration", "–", "–"]


def with_devices(here, call, listed, *words):
    here.scenario({"http_faults": [devices(*listed)]})
    return call("backends", "--local", *words)


@pytest.mark.long
def test_what_is_not_reported(here, call):
    here.scenario(
        {"http_faults": [{"path": f"{BACKENDS}/{BACKEND}/properties", "method": "GET", "status": 503, "times": 1}]}
    )
    code, lines, said = call("backends", "--local")
    assert code == 0
    [row] = [line for line in lines if line.startswith(BACKEND)]
    assert row.split()[-2:] == ["–", "–"]
    assert f"backend {BACKEND}: its error rates can't be read" in said
    strange = {"name": "ibm_strange"}
    here.scenario({"http_faults": [devices(strange, {"name": "ibm_off", "status": PAUSED}, 7)]})
    code, lines, _ = call("backends", "--local")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows == {
        "ibm_strange": ["–", "–", "–", "–", "–"],
        "ibm_off": ["–", "–", "paused,", "maintenance", "–", "–"],
    }


@pytest.mark.long
def test_several_instances(call, monkeypatch):
    """Each backend once for each instance that offers it, with the instance's name."""
    with local.start(instances=("one", "two")) as ibm:
        monkeypatch.setenv("QISKIT_IBM_TOKEN", "sentinel-key")
        monkeypatch.setenv("QISKIT_IBM_URL", "http://qx.test")
        monkeypatch.setenv("QISKIT_IBM_INSTANCE", "auto")
        monkeypatch.setenv("IAM_URL", "http://iam.qx.test")
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{ibm.port}")
        code, (header, *rows), _ = call("backends")
        assert code == 0
    assert header.split()[-1] == "INSTANCE"
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [(BACKEND, "one"), (BACKEND, "two")]


def test_no_account(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    from qiskit_ibm_runtime.accounts import management

    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(tmp_path / "none.json"))
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    code, lines, said = call("backends")
    assert (code, lines) == (4, [])
    assert "save one with qx-supervisor login, or use the embedded service with --local" in said


# Error rates


def gate(name, qubits, error):
    return {
        "gate": name,
        "qubits": qubits,
        "parameters": [{"name": "gate_error", "value": error}, {"name": "gate_length", "value": 1}],
    }


def readout(error):
    return {"name": "readout_error", "value": error}


@pytest.mark.parametrize(
    "properties, rates",
    [
        ({}, ErrorRates()),
        ({"gates": None, "qubits": 3}, ErrorRates()),
        ({"gates": [gate("sx", [0], 1e-4), gate("rzz", [0, 1], 0.5)]}, ErrorRates()),
        (
            {"gates": [*(gate("cz", [0, 1], error) for error in (0.01, 1, 0.03)), gate("cx", [3, 4], 0.5)]},
            ErrorRates(two_qubit=0.02, gate="cz", uncalibrated=1),
        ),
        ({"gates": [gate("ecr", [0, 1], 1.0)]}, ErrorRates(uncalibrated=1)),
        ({"gates": [*(gate("ecr", [0, 1], error) for error in (None, True, float("nan"))), "x"]}, ErrorRates()),
        (
            {"qubits": [[{"name": "T1", "value": 100}, readout(0.02)], [readout(0.04)], []]},
            ErrorRates(readout=0.03),
        ),
        ({"last_update_date": "2026-01-31T12:00:00Z"}, ErrorRates(calibrated=1769860800.0)),
    ],
)  # fmt: skip
def test_error_rates(properties, rates):
    found = error_rates(properties)
    assert found == ErrorRates(
        two_qubit=pytest.approx(rates.two_qubit) if rates.two_qubit is not None else None,
        gate=rates.gate,
        readout=pytest.approx(rates.readout) if rates.readout is not None else None,
        uncalibrated=rates.uncalibrated,
        calibrated=rates.calibrated,
    )
