"""`qx-supervisor login`: the key is checked before it is saved, and is seen nowhere."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from testkit.terminals import Terminal

from qx_supervisor import local
from qx_supervisor.service import saving

KEY = "sentinel-0123456789abcdefghijklmnopqrstuvwxyz"
URL = "http://qx.test"
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::"


def prepared(ibm, home, monkeypatch) -> Path:
    """Nobody's account, and the embedded service as the proxy to made-up hosts."""
    from qiskit_ibm_runtime.accounts import management

    file = home / ".qiskit" / "qiskit-ibm.json"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(file))
    for name in list(os.environ):
        if name.startswith("QISKIT_IBM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IAM_URL", "http://iam.qx.test")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ibm.port}")
    return file


@pytest.fixture
def file(ibm, tmp_path, monkeypatch) -> Path:
    return prepared(ibm, tmp_path, monkeypatch)


@pytest.fixture
def typed(monkeypatch):
    """What comes on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.long
def test_from_standard_input(ibm, file, typed, call):
    typed(f"{KEY}\n")
    code, lines, said = call("login", "--token-stdin", "--url", URL)
    assert (code, lines) == (0, [])
    assert f"saved in {file} as {saving.NAME}, with the instance localqpu (" in said
    assert KEY not in said
    saved = json.loads(file.read_text())[saving.NAME]
    assert (saved["token"], saved["instance"], saved["is_default_account"]) == (KEY, f"{CRN}localqpu", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ibm.journal(path="/identity/token")  # it was checked
    assert ibm.journal(method="POST", path="/api/v1/jobs") == []
    assert [json.loads(line)["queue"] for line in call("backends", "--json")[1]]  # and can be used


def test_a_key_that_is_not_accepted_is_not_saved(ibm, file, typed, call):
    ibm.auth(reject_tokens=True)
    typed(KEY)
    code, lines, said = call("login", "--token-stdin", "--url", URL)
    assert (code, lines) == (4, [])
    assert "IBM Quantum does not accept this API key, so nothing is saved" in said
    assert KEY not in said
    assert said.count("\n") == 1
    assert not file.exists()


@pytest.mark.long
def test_a_key_that_the_instance_does_not_accept(ibm, file, typed, call):
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "GET", "status": 403, "times": 100}]})
    typed(KEY)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert code == 4
    assert "the key is accepted, but not at the instance localqpu, so nothing is saved" in said
    assert not file.exists()


@pytest.mark.parametrize("words", [["--token", KEY], [f"--token={KEY}"], ["--token"], ["--api-key", KEY]])
@pytest.mark.short_only("words0")
def test_a_key_is_no_option(call, words):
    code, lines, said = call("login", *words)
    assert (code, lines) == (2, [])
    assert said.startswith(
        "qx-supervisor: an API key is no option, for everybody on this machine sees the command line"
    )
    assert KEY not in said
    assert said.count("\n") == 1


def test_nobody_to_ask(call, typed):
    typed(KEY)
    code, _, said = call("login")
    assert code == 2
    assert "there is no terminal to ask for the API key; give it on standard input, with --token-stdin" in said


def test_where_the_embedded_service_takes_the_accounts_place(ibm, file, typed, call, monkeypatch):
    """It takes any key: one that was checked there only would be saved as the account of IBM Quantum."""
    monkeypatch.setenv("QX_LOCAL", "1")
    typed(KEY)
    code, lines, said = call("login", "--token-stdin", "--url", URL)
    assert (code, lines) == (2, [])
    assert said == (
        "qx-supervisor: QX_LOCAL is set: the embedded service would take any key, so nothing is checked or saved; "
        "for a login at IBM Quantum: env -u QX_LOCAL qx-supervisor login\n"
    )
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "\n", f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}\x07", "schlüssel", "k" * 5000])
@pytest.mark.short_only("")
def test_what_can_be_no_key(ibm, file, typed, call, text):
    before = ibm.cursor()
    typed(text)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert code == 2
    assert said.startswith("qx-supervisor: that is no API key: ")
    assert KEY not in said
    assert ibm.cursor() == before
    assert not file.exists()


@pytest.mark.long
def test_what_is_saved_already(ibm, file, typed, call):
    """It is replaced only if that is meant, and others lose nothing but being the default."""
    file.parent.mkdir()
    other = {"channel": "ibm_quantum_platform", "token": "other", "url": URL, "is_default_account": True}
    file.write_text(json.dumps({"work": other}))
    before = ibm.cursor()
    typed(KEY)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert code == 2
    assert "this takes the place of work as the default account; add --overwrite" in said
    assert (json.loads(file.read_text()), ibm.cursor()) == ({"work": other}, before)
    typed(KEY)
    assert call("login", "--token-stdin", "--url", URL, "--overwrite")[0] == 0
    saved = json.loads(file.read_text())
    assert saved["work"] == {name: value for name, value in other.items() if name != "is_default_account"}
    typed(KEY)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert (code, f"this replaces the saved account {saving.NAME}" in said) == (2, True)
    file.write_text("{")
    typed(KEY)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert (code, "can't be read (JSONDecodeError); repair or remove the file" in said) == (2, True)


@pytest.mark.long
def test_several_instances(tmp_path, monkeypatch, typed, call):
    with local.start(instances=("one", "two")) as ibm:
        file = prepared(ibm, tmp_path, monkeypatch)
        typed(KEY)
        code, _, said = call("login", "--token-stdin", "--url", URL)
        assert code == 2
        assert "several instances; choose one with --instance: one (" in said
        typed(KEY)
        code, _, said = call("login", "--token-stdin", "--url", URL, "--instance", "three")
        assert (code, "no instance is three; there are one (" in said) == (2, True)
        assert not file.exists()
        typed(KEY)
        assert call("login", "--token-stdin", "--url", URL, "--instance", "two")[0] == 0
        assert json.loads(file.read_text())[saving.NAME]["instance"] == f"{CRN}two"
        command = [sys.executable, "-m", "qx_supervisor", "login", "--url", URL]
        shown = Terminal(command, columns=120)
        try:
            shown.until(f"This replaces the saved account {saving.NAME}. Go on? [y/N]")
            shown.type("y\n")
            shown.until("API key (not shown)")
            shown.type(f"{KEY}\n")
            shown.until("checking the key")
            shown.until("Which instance (1-2)") if "Which instance (1-2)" in shown.text else shown.until(
                "Which instance"
            )
            shown.type("1\n")
            assert shown.end() == 0
            assert KEY.encode() not in shown.raw
        finally:
            shown.close()
        assert json.loads(file.read_text())[saving.NAME]["instance"] == f"{CRN}one"


@pytest.mark.long
def test_typed_on_a_terminal_and_left_with_ctrl_c(ibm, file):
    shown = Terminal([sys.executable, "-m", "qx_supervisor", "login", "--url", URL], columns=120)
    try:
        shown.until("API key (not shown)")
        shown.type("half a k\x03")
        assert shown.end() == -2
    finally:
        shown.close()
    assert b"half" not in shown.raw
    assert not file.exists()


@pytest.mark.long
def test_a_variable_that_wins(ibm, file, typed, call, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    typed(KEY)
    code, _, said = call("login", "--token-stdin", "--url", URL)
    assert code == 0
    assert "QISKIT_IBM_TOKEN is set, and is used instead of what is saved" in said
