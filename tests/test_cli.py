"""The command `qx-supervisor`."""

from __future__ import annotations

import subprocess
import sys

import pytest


def command(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qx_supervisor", *words], capture_output=True, text=True, check=check
    )


def test_local_start_status_stop():
    started = command("local", "start").stdout.strip()
    try:
        assert started.startswith("http://127.0.0.1:")
        assert command("local", "start").stdout.strip() == started  # it runs already
        assert command("local", "status").stdout.startswith(started)
    finally:
        command("local", "stop")
    gone = command("local", "status", check=False)
    assert gone.returncode == 1
    assert "qx-supervisor local start" in gone.stderr


def test_demo(running_service):
    """Its output is what the README promises; it needs no account."""
    shown = command("demo").stdout
    assert "counts {'" in shown
    assert "is cancelled, by 1 request of the watcher's" in shown


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["ps"], ["ps", "--all"]])
def test_works_without_an_account(words):
    assert command(*words).returncode == 0


def test_reap_with_nothing_to_do_needs_no_account(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "Nothing is left behind" in command("reap").stderr
